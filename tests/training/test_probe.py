"""Classifiers on features; the oracles are scikit-learn called directly and obvious arithmetic."""

import numpy as np
import pytest
import scipy.special
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sjft_jax.data.folds import assign_folds
from sjft_jax.training import metrics, probe


def make_data(num_classes, per_class=8, num_features=6, seed=0):
  """Return features whose classes overlap, their labels and three folds."""
  rng = np.random.default_rng(seed)
  labels = np.repeat(np.arange(num_classes), per_class).astype(np.int32)
  centers = rng.normal(size=(num_classes, num_features))
  scale = np.linspace(0.1, 10, num_features)  # That of each feature; scikit-learn's C minds it.
  features = (centers[labels] + rng.normal(size=(len(labels), num_features))) * scale + 3
  folds = assign_folds(labels, np.arange(len(labels)), 3, seed)
  return features.astype(np.float32), labels, folds


def fit_directly(features, labels, strength):
  scaler = StandardScaler().fit(features)
  model = LogisticRegression(C=strength, max_iter=1000, tol=1e-8)
  model.fit(scaler.transform(features), labels)
  return lambda x: model.predict_proba(scaler.transform(x))


def best_strength(features, labels, folds):
  losses = {}
  for strength in probe.STRENGTHS:
    parts = []
    for fold in np.unique(folds[folds >= 0]):
      predict = fit_directly(features[folds != fold], labels[folds != fold], strength)
      held_out = features[folds == fold], labels[folds == fold]
      parts.append(metrics.cross_entropy(predict(held_out[0]), held_out[1]))
    losses[strength] = np.mean(parts)
  return min(losses, key=losses.get)


def predict(head, features):
  return scipy.special.softmax(features @ head.kernel + head.bias, axis=1)


@pytest.mark.parametrize('num_classes', [2, 4])
def test_probe_is_the_logistic_regression_that_is_best_on_the_folds(num_classes):
  features, labels, folds = make_data(num_classes)
  folds[0] = -1  # Never held out.
  head = probe.fit_probe(features, labels, folds, num_classes)
  assert head.strength == best_strength(features, labels, folds)
  assert probe.STRENGTHS[0] < head.strength < probe.STRENGTHS[-1]
  expected = fit_directly(features, labels, head.strength)(features)
  np.testing.assert_allclose(predict(head, features), expected, atol=2e-3)
  assert head.kernel.dtype == head.bias.dtype == np.float32


def test_probe_never_predicts_a_class_without_training_images():
  features, labels, folds = make_data(3)
  labels = np.array([0, 2, 3], np.int32)[labels]
  p = predict(probe.fit_probe(features, labels, folds, 5), features)
  assert (p[:, [1, 4]] == 0).all()
  np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
  assert np.mean(p.argmax(axis=1) == labels) > 0.5


def test_one_image_of_each_class_needs_no_folds():
  features, labels = (x[::8] for x in make_data(3)[:2])
  never = np.full(3, -1)
  head = probe.fit_probe(features, labels, never, 3)
  np.testing.assert_array_equal(predict(head, features).argmax(axis=1), labels)
  knn = probe.fit_knn(features, labels, never, 3)
  assert knn.num_neighbors == 1
  np.testing.assert_array_equal(knn.predict(features), np.eye(3))


def vote(train, labels, features, k, num_classes):
  """Return the probabilities of each class, one image after the other."""
  p = np.zeros((len(features), num_classes))
  for row, x in zip(p, features.astype(np.float64), strict=True):
    cosine = train @ x / (np.linalg.norm(train, axis=1) * np.linalg.norm(x))
    nearest = np.argsort(1 - cosine, kind='stable')[:k]
    np.add.at(row, labels[nearest], 1 / (1 - cosine[nearest]))
    row /= row.sum()
  return p


def test_nearest_neighbours_vote_by_their_cosine_distance():
  features, labels, folds = make_data(3, per_class=9)
  labels = np.array([0, 3, 1], np.int32)[labels]  # Class 2 has no image.
  knn = probe.fit_knn(features, labels, folds, 4)
  train = features.astype(np.float64)
  accuracies = {}
  for k in probe.NEIGHBORS:
    if k <= 18:
      rights = []
      for fold in range(3):
        others, own = folds != fold, folds == fold
        p = vote(train[others], labels[others], features[own], k, 4)
        rights.append(np.mean(p.argmax(axis=1) == labels[own]))
      accuracies[k] = np.mean(rights)
  best = max(accuracies.values())
  assert knn.num_neighbors == next(k for k, a in accuracies.items() if np.isclose(a, best))
  test = make_data(3, seed=1)[0]
  expected = vote(train, labels, test, knn.num_neighbors, 4)
  np.testing.assert_allclose(knn.predict(test), expected, rtol=1e-3, atol=1e-5)
  assert (knn.predict(test)[:, 2] == 0).all()
