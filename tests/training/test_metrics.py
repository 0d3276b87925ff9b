import numpy as np
import pytest

from sjft_jax.training.metrics import cross_entropy, mean_class_accuracy, top1

# Three images of class 0 (two right), one of class 1 (wrong), none of class 2, two of 3 (right).
LABELS = np.array([0, 0, 0, 1, 3, 3])
PREDICTED = np.array([0, 0, 3, 2, 3, 3])
PROBABILITIES = np.full((6, 4), 0.1) + 0.6 * np.eye(4)[PREDICTED]


def test_scores_match_hand_computed_ones():
  assert top1(PROBABILITIES, LABELS) == pytest.approx(4 / 6)
  assert mean_class_accuracy(PROBABILITIES, LABELS, 4) == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_scores_agree_where_classes_are_balanced():
  random = np.random.default_rng(0)
  labels = np.repeat(np.arange(5), 8)
  probabilities = random.dirichlet(np.ones(5), len(labels))
  assert mean_class_accuracy(probabilities, labels, 5) == pytest.approx(top1(probabilities, labels))


def test_labels_outside_the_classes_are_refused():
  with pytest.raises(ValueError, match='3 classes'):
    mean_class_accuracy(PROBABILITIES[:, :3], LABELS, 3)


def one_hot(predicted, num_classes=3):
  return np.eye(num_classes, dtype=np.float32)[predicted]


def test_cross_entropy_matches_hand_computed_one_and_is_finite_at_zero():
  p = np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32)
  expected = -(np.log(0.25) + np.log(0.8)) / 2
  assert cross_entropy(p, np.array([1, 2])) == pytest.approx(expected)
  assert 80 < cross_entropy(one_hot([0]), np.array([1])) < 100
