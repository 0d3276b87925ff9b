"""Folds: every image held out once, groups together, and no class without training images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sjft_jax.data.folds import assign_folds


@st.composite
def images(draw):
  num_groups = draw(st.integers(2, 12))
  groups = np.array(draw(st.lists(st.integers(0, num_groups - 1), min_size=2, max_size=40)))
  # Mostly all images of a group are of one class.
  classes = np.array(draw(st.lists(st.integers(0, 3), min_size=num_groups, max_size=num_groups)))
  labels = classes[groups]
  labels[0] = draw(st.integers(0, 3))
  return labels, groups


@given(images(), st.integers(2, 4), st.integers(0, 3))
def test_groups_stay_together_and_every_class_can_be_trained(data, num_folds, seed):
  labels, groups = data
  try:
    folds = assign_folds(labels, groups, num_folds, seed)
  except ValueError:
    # No class can be held out and trained at once: all its groups are in other classes' way.
    return
  assert folds.min() >= -1
  assert folds.max() < num_folds
  for group in np.unique(groups):
    assert len(np.unique(folds[groups == group])) == 1
  for fold in range(num_folds):
    assert set(labels[folds != fold]) == set(labels)


def test_classes_are_dealt_evenly():
  labels = np.repeat([0, 1, 2], [6, 5, 1])
  folds = assign_folds(labels, np.arange(12), 3, seed=0)
  assert sorted(np.bincount(folds[labels == 0])) == [2, 2, 2]
  assert sorted(np.bincount(folds[labels == 1], minlength=3)) == [1, 2, 2]
  assert folds[labels == 2] == -1
  np.testing.assert_array_equal(folds, assign_folds(labels, np.arange(12), 3, seed=0))
  assert (folds != assign_folds(labels, np.arange(12), 3, seed=1)).any()


def test_copies_only_are_an_error():
  with pytest.raises(ValueError, match='no class has two training images that are not copies'):
    assign_folds(np.array([0, 0, 1]), np.array([5, 5, 6]), 2, seed=0)
