"""Classification scores from predicted probabilities."""

import numpy as np
from jaxtyping import Float, Int


def top1(
  probabilities: Float[np.ndarray, 'image classes'], labels: Int[np.ndarray, ' image']
) -> float:
  """Return the share of images whose most probable class (the first of equals) is their label."""
  return float(np.mean(probabilities.argmax(axis=1) == labels))


def cross_entropy(
  probabilities: Float[np.ndarray, 'image classes'], labels: Int[np.ndarray, ' image']
) -> float:
  """Return the mean of −log p(label) in nats.

  A p that float32 has rounded to 0 counts as the smallest normal float32.
  """
  p = np.take_along_axis(probabilities, labels[:, None], axis=1)
  return float(-np.log(np.maximum(p, np.finfo(np.float32).tiny)).mean())


def mean_class_accuracy(
  probabilities: Float[np.ndarray, 'image classes'],
  labels: Int[np.ndarray, ' image'],
  num_classes: int,
) -> float:
  """Return the mean, over the classes that have images, of the share classified correctly.

  Raises:
    ValueError: a label is outside [0, num_classes).
  """
  accuracies = class_accuracies(probabilities.argmax(axis=1), labels, num_classes)
  return float(np.mean(accuracies[~np.isnan(accuracies)]))


def class_accuracies(
  predicted: Int[np.ndarray, ' image'], labels: Int[np.ndarray, ' image'], num_classes: int
) -> Float[np.ndarray, ' category']:
  """Return the share of each class's images that are classified correctly; nan without images.

  Raises:
    ValueError: a label is outside [0, num_classes).
  """
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(f'labels span {labels.min()}–{labels.max()}, outside {num_classes} classes')
  images = np.bincount(labels, minlength=num_classes)
  correct = np.bincount(labels[predicted == labels], minlength=num_classes)
  return np.where(images > 0, correct / np.maximum(images, 1), np.nan)
