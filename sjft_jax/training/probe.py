"""Classifiers on the features of a trunk that is not trained: what they know before fine-tuning."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sjft_jax.training import metrics

# C of scikit-learn: the weight of the summed loss against half the squared weights.
STRENGTHS = tuple(10.0**power for power in range(-6, 3))
NEIGHBORS = (1, 2, 3, 5, 8, 12, 20, 30, 50)
# Of a class without training images: its probability is 0.
_NEVER = -1e9

Features = Float[np.ndarray, 'image feature']
Labels = Int[np.ndarray, ' image']


class Head(NamedTuple):
  """A linear head: features @ kernel + bias are the logits.

  Attributes:
    kernel, bias: float32.
    strength: the C that was chosen.
  """

  kernel: Float[np.ndarray, 'feature category']
  bias: Float[np.ndarray, ' category']
  strength: float


def fit_probe(features: Features, labels: Labels, folds: Labels, num_classes: int) -> Head:
  """Fit a logistic regression to features that are standardised, by scikit-learn.

  Of `STRENGTHS` the one with the least cross-entropy on held-out folds is taken.

  Args:
    features: of the training images.
    labels: their classes.
    folds: the fold in which each is held out, −1 for never; without any, C is 1e-3.
    num_classes: classes of the head; those without images are never predicted.
  """
  model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=1000))
  name = 'logisticregression__C'
  with warnings.catch_warnings():
    # Weak regularisation is slow to converge; stopped early, it is a little stronger.
    warnings.simplefilter('ignore', ConvergenceWarning)
    model = _search(model, {name: STRENGTHS}, features, labels, folds, scoring=_log_likelihood)
  scaler, regression = model[0], model[1]
  coefficients, intercepts = regression.coef_, regression.intercept_
  if len(coefficients) == 1:  # Of two classes, the logit of the second against the first.
    coefficients, intercepts = (np.concatenate([-x / 2, x / 2]) for x in (coefficients, intercepts))
  kernel, bias = np.zeros((features.shape[1], num_classes)), np.full(num_classes, _NEVER)
  kernel[:, regression.classes_] = (coefficients / scaler.scale_).T
  bias[regression.classes_] = intercepts - scaler.mean_ @ kernel[:, regression.classes_]
  return Head(kernel.astype(np.float32), bias.astype(np.float32), model.get_params()[name])


class NearestNeighbors(NamedTuple):
  """A classifier by the nearest training images.

  Attributes:
    predict: features → probabilities [image, category], float32.
    num_neighbors: the k that was chosen.
  """

  predict: Callable[[Features], Float[np.ndarray, 'image category']]
  num_neighbors: int


def fit_knn(
  features: Features, labels: Labels, folds: Labels, num_classes: int
) -> NearestNeighbors:
  """Classify by the nearest training images in cosine distance, by scikit-learn.

  Neighbours vote with the inverse of their distance. Of `NEIGHBORS` the number with the highest
  accuracy on held-out folds is taken, the smallest of equals.

  Args:
    features, labels, folds, num_classes: as for `fit_probe`; without folds, k is 1.
  """
  model = KNeighborsClassifier(n_neighbors=1, weights='distance', metric='cosine')
  held_out = np.bincount(folds[folds >= 0]).max(initial=0)
  possible = [k for k in NEIGHBORS if k <= len(labels) - held_out]
  model = _search(model, {'n_neighbors': possible}, features, labels, folds)
  predict = functools.partial(_predict_all_classes, model, num_classes)
  return NearestNeighbors(predict, model.n_neighbors)


def _search(
  model: Any,
  grid: dict[str, Sequence[float]],
  features: Features,
  labels: Labels,
  folds: Labels,
  scoring: Callable[..., float] | None = None,
) -> Any:
  """Fit a model with the best of some values of an option, the first of equals."""
  if not (folds >= 0).any():
    return model.fit(features, labels)
  search = GridSearchCV(
    model, grid, scoring=scoring, cv=PredefinedSplit(folds), error_score='raise'
  )
  return search.fit(features, labels).best_estimator_


def _log_likelihood(model: Any, features: Features, labels: Labels) -> float:
  columns = np.searchsorted(model.classes_, labels)
  return -metrics.cross_entropy(model.predict_proba(features), columns)


def _predict_all_classes(
  model: Any, num_classes: int, features: Features
) -> Float[np.ndarray, 'image category']:
  p = np.zeros((len(features), num_classes), np.float32)
  p[:, model.classes_] = model.predict_proba(features)
  return p
