"""Classification scores from predicted probabilities."""

import numpy as np
from etils import epy
from jaxtyping import Float, Int

with epy.lazy_imports():  # A tenth of the time that a command needs to start.
  import scipy.optimize
  import scipy.special


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
  # A difference, since −0 of a perfect network would be shown with its sign.
  return float(0 - np.log(np.maximum(p, np.finfo(np.float32).tiny)).mean())


def calibrated_cross_entropy(
  probabilities: Float[np.ndarray, 'image classes'], labels: Int[np.ndarray, ' image']
) -> float:
  """Return the cross-entropy in nats of p^(1/T), made to sum to one, at the temperature T of least.

  It judges which classes are likelier, as accuracy does, in finer steps; how sure the network is
  does not count (temperature scaling, Guo et al. 2017). T lies between 0.01 and 100.
  """
  logits = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))
  rows = np.arange(len(labels))

  def loss(log_temperature: float) -> float:
    scaled = logits * np.exp(-log_temperature)
    return float(-scipy.special.log_softmax(scaled, axis=1)[rows, labels].mean())

  limit = np.log(100)
  best = scipy.optimize.minimize_scalar(loss, bounds=(-limit, limit), method='bounded')
  return float(best.fun)


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
