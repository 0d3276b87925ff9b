"""Assign training images to folds, each of which is held out once."""

import numpy as np
from jaxtyping import Int


def assign_folds(
  labels: Int[np.ndarray, ' image'], groups: Int[np.ndarray, ' image'], num_folds: int, seed: int
) -> Int[np.ndarray, ' image']:
  """Deal the images of every class to the folds; a group of images stays together.

  Args:
    labels: the class of each image.
    groups: the group of each image, such as the photographs of one object; a group counts for the
      class of its first image.
    num_folds: 2 or more.
    seed: of the order in which groups are dealt.

  Returns:
    The fold of each image, from 0; −1 where it is never held out, since all images of a class would
    be in one fold.

  Raises:
    ValueError: no class has images in two groups.
  """
  folds = np.full(len(labels), -1)
  _, first_images, groups = np.unique(groups, return_index=True, return_inverse=True)
  group_labels, sizes = labels[first_images], np.bincount(groups)
  totals = np.zeros(num_folds, int)
  for label in np.unique(group_labels):
    members = np.flatnonzero(group_labels == label)
    counts = np.zeros(num_folds, int)
    for group in np.random.Generator(np.random.Philox([seed, label])).permutation(members):
      fold = np.lexsort((totals, counts))[0]
      folds[groups == group] = fold
      counts[fold] += sizes[group]
      totals[fold] += sizes[group]
  # A group of several classes may have taken the last images of one along.
  for label in np.unique(labels):
    if len(np.unique(folds[labels == label])) == 1:
      folds[np.isin(groups, groups[labels == label])] = -1
  if not (folds >= 0).any():
    raise ValueError('no class has two training images that are not copies of each other')
  return folds
