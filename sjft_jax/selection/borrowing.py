"""Count which source images and classes were borrowed, and by which target classes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class Borrowing(NamedTuple):
  """How often source images were neighbours of target images in one round.

  Attributes:
    images: the target images that borrowed each source image.
    classes: pairs of a target image and a neighbour, by target class and source class. A source
      image with several classes counts for each of them.
  """

  images: Int[np.ndarray, ' source']
  classes: Int[np.ndarray, 'target_class source_class']


def count_borrowing(
  neighbors: Int[np.ndarray, 'target depth'],
  num_neighbors: Int[np.ndarray, ' target'],
  target_labels: Int[np.ndarray, ' target'],
  source_labels: Int[np.ndarray, ' source'] | Bool[np.ndarray, 'source source_class'],
  *,
  num_target_classes: int,
  num_source_classes: int,
) -> Borrowing:
  """Count the neighbours of all target images.

  Args:
    neighbors: source indices, nearest first.
    num_neighbors: K_i of the round; the first K_i entries of a row count.
    target_labels: the class of each target image.
    source_labels: the class of each source image, or whether it shows each class.
    num_target_classes, num_source_classes: the number of classes.
  """
  images = np.zeros(len(source_labels), np.int64)
  classes = np.zeros((num_target_classes, num_source_classes), np.int64)
  ranks = np.arange(neighbors.shape[1])
  # Class by class: a table of all target classes and source images may not fit in memory.
  for label in range(num_target_classes):
    rows = np.flatnonzero(target_labels == label)
    is_borrowed = ranks < num_neighbors[rows, None]
    counts = np.bincount(neighbors[rows][is_borrowed], minlength=len(images))
    images += counts
    if source_labels.ndim > 1:
      classes[label] = counts @ source_labels
    else:
      borrowed = np.flatnonzero(counts)
      np.add.at(classes[label], source_labels[borrowed], counts[borrowed])
  return Borrowing(images, classes)
