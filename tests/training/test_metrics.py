import numpy as np
import pytest

from sjft_jax.training.metrics import (
  calibrated_cross_entropy,
  cross_entropy,
  mean_class_accuracy,
  top1,
)

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
  assert str(cross_entropy(one_hot([0]), np.array([0]))) == '0.0'  # Without a sign.


def test_calibrated_cross_entropy_does_not_depend_on_how_sure_the_network_is():
  random = np.random.default_rng(0)
  labels = np.repeat(np.arange(5), 30)
  logits = random.normal(0, 1, (150, 5)) + 1.5 * np.eye(5)[labels]

  def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)

  scores = [calibrated_cross_entropy(softmax(logits * scale), labels) for scale in (0.3, 1, 4)]
  np.testing.assert_allclose(scores, scores[0], rtol=1e-5)
  # A slow search over temperatures.
  grid = [cross_entropy(softmax(logits / t), labels) for t in np.geomspace(0.1, 10, 2001)]
  assert scores[1] == pytest.approx(min(grid), rel=1e-5)
  assert scores[1] <= cross_entropy(softmax(logits), labels)


def test_calibrated_cross_entropy_is_finite_for_certain_predictions():
  labels = np.array([0, 1, 2, 2])
  assert calibrated_cross_entropy(one_hot(labels), labels) == pytest.approx(0, abs=1e-6)
  wrong = calibrated_cross_entropy(one_hot([0, 1, 2, 0]), labels)
  assert 0.5 < wrong < np.log(3) + 1e-6
