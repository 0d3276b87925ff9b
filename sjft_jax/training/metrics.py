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
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(f'labels span {labels.min()}–{labels.max()}, outside {num_classes} classes')
  images = np.bincount(labels, minlength=num_classes)
  correct = np.bincount(labels[probabilities.argmax(axis=1) == labels], minlength=num_classes)
  present = images > 0
  return float(np.mean(correct[present] / images[present]))


def paired_gain(
  probabilities: Float[np.ndarray, 'image classes'],
  baseline: Float[np.ndarray, 'image classes'],
  labels: Int[np.ndarray, ' image'],
) -> tuple[float, float]:
  """Return the gain in mean class accuracy over a baseline on the same images, and its error.

  The standard error is that of drawing other test images of the same classes; images that both
  classify alike do not add to it. It says nothing about training again with another seed.
  """
  difference = (probabilities.argmax(axis=1) == labels).astype(np.float64)
  difference -= baseline.argmax(axis=1) == labels
  by_class = [difference[labels == label] for label in np.unique(labels)]
  gain = np.mean([d.mean() for d in by_class])
  variance = np.sum([d.var() / len(d) for d in by_class]) / len(by_class) ** 2
  return float(gain), float(np.sqrt(variance))
