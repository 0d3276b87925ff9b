"""Classifiers on the features of a trunk that is not trained: what they know before fine-tuning."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epy
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from sjft_jax.training import metrics

with epy.lazy_imports():  # Every command imports this module, and few need scikit-learn.
  from sklearn import exceptions, linear_model, model_selection, neighbors, pipeline, preprocessing

# C of scikit-learn: the weight of the summed loss against half the squared weights.
STRENGTHS = tuple(10.0**power for power in range(-6, 3))
_STRENGTH = 1e-3  # Where nothing can be held out.
# A rise of the held-out loss that ends the search; with hardly any weights it wavers by 1 %.
_CLEAR_RISE = 1.05
_SMALL = 10_000_000  # Products of a pass over all images.
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

  Of `STRENGTHS` the one with the least cross-entropy on held-out folds is taken. Those beyond a
  clear rise are not tried: the weaker the regularisation, the longer a fit takes.

  Args:
    features: of the training images.
    labels: their classes.
    folds: the fold in which each is held out, −1 for never; without any, C is `_STRENGTH`.
    num_classes: classes of the head; those without images are never predicted.
  """
  model = pipeline.make_pipeline(
    preprocessing.StandardScaler(), linear_model.LogisticRegression(max_iter=1000)
  )
  option, strength, best = 'logisticregression__C', _STRENGTH, -np.inf
  # Threads that share little work cost more than they save.
  is_small = features.size * num_classes < _SMALL
  with threadpool_limits(1 if is_small else None), warnings.catch_warnings():
    # A fit that is slow to converge is stopped, which is a little more regularisation.
    warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
    for value in STRENGTHS if (folds >= 0).any() else ():
      model.set_params(**{option: value})
      score = _cross_validate(model, features, labels, folds, _log_likelihood)
      if score > best:
        strength, best = value, score
      elif score < best * _CLEAR_RISE:  # Both are below 0.
        break
    model.set_params(**{option: strength}).fit(features, labels)
  scaler, regression = model[0], model[1]
  coefficients, intercepts = regression.coef_, regression.intercept_
  if len(coefficients) == 1:  # Of two classes, the logit of the second against the first.
    coefficients, intercepts = (np.concatenate([-x / 2, x / 2]) for x in (coefficients, intercepts))
  kernel, bias = np.zeros((features.shape[1], num_classes)), np.full(num_classes, _NEVER)
  kernel[:, regression.classes_] = (coefficients / scaler.scale_).T
  bias[regression.classes_] = intercepts - scaler.mean_ @ kernel[:, regression.classes_]
  return Head(kernel.astype(np.float32), bias.astype(np.float32), strength)


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
  model = neighbors.KNeighborsClassifier(n_neighbors=1, weights='distance', metric='cosine')
  held_out = np.bincount(folds[folds >= 0])
  scores = {
    k: _cross_validate(model.set_params(n_neighbors=k), features, labels, folds)
    for k in NEIGHBORS
    if held_out.any() and k <= len(labels) - held_out.max()
  }
  num_neighbors = max(scores, key=lambda k: scores[k], default=1)
  model.set_params(n_neighbors=num_neighbors).fit(features, labels)
  predict = functools.partial(_predict_all_classes, model, num_classes)
  return NearestNeighbors(predict, num_neighbors)


def _cross_validate(
  model: Any,
  features: Features,
  labels: Labels,
  folds: Labels,
  scoring: Callable[..., float] | str = 'accuracy',
) -> float:
  """Return the mean of a score over the folds, each scored by a fit to the other images."""
  split = model_selection.PredefinedSplit(folds)
  scores = model_selection.cross_val_score(
    model, features, labels, cv=split, scoring=scoring, error_score='raise'
  )
  return float(scores.mean())


def _log_likelihood(model: Any, features: Features, labels: Labels) -> float:
  columns = np.searchsorted(model.classes_, labels)
  return -metrics.cross_entropy(model.predict_proba(features), columns)


def _predict_all_classes(
  model: Any, num_classes: int, features: Features
) -> Float[np.ndarray, 'image category']:
  p = np.zeros((len(features), num_classes), np.float32)
  p[:, model.classes_] = model.predict_proba(features)
  return p
