"""Counts of what was borrowed, against loops over small cases."""

import numpy as np
import pytest

from sjft_jax.selection.borrowing import count_borrowing


@pytest.mark.parametrize('is_multi_label', [False, True])
def test_counts_are_those_of_a_loop(is_multi_label):
  rng = np.random.default_rng(0)
  targets, sources, depth = 40, 25, 9
  neighbors = np.stack([rng.permutation(sources)[:depth] for _ in range(targets)])
  num_neighbors = rng.integers(0, depth + 1, targets)
  target_labels = rng.integers(0, 4, targets)
  source_labels = rng.random((sources, 6)) < 0.3 if is_multi_label else rng.integers(0, 6, sources)
  images, classes = count_borrowing(
    neighbors,
    num_neighbors,
    target_labels,
    source_labels,
    num_target_classes=5,  # One of them has no image.
    num_source_classes=6,
  )
  expected_images, expected_classes = np.zeros(sources, int), np.zeros((5, 6), int)
  for target in range(targets):
    for source in neighbors[target, : num_neighbors[target]]:
      expected_images[source] += 1
      shown = np.flatnonzero(source_labels[source]) if is_multi_label else [source_labels[source]]
      for label in shown:
        expected_classes[target_labels[target], label] += 1
  np.testing.assert_array_equal(images, expected_images)
  np.testing.assert_array_equal(classes, expected_classes)
  assert images.sum() == num_neighbors.sum()
