"""Slow, obvious references in float64 numpy that the tests compare the package with."""

import numpy as np


def symmetric_kl(targets, sources, weights):
  """Compute Eq. 1 as it is written: two Kullback–Leibler divergences per filter, pair by pair."""
  targets, sources, weights = (np.asarray(x, np.float64) for x in (targets, sources, weights))
  result = np.zeros((len(targets), len(sources)))
  for i, p in enumerate(targets):
    for j, q in enumerate(sources):
      for w, p_h, q_h in zip(weights, p, q, strict=True):
        result[i, j] += w * (np.sum(p_h * np.log(p_h / q_h)) + np.sum(q_h * np.log(q_h / p_h)))
  return result


def nearest(divergences, k):
  """Return the indices of the k smallest of each row; ties go to the lower index."""
  order = [sorted(range(len(row)), key=lambda j: (row[j], j))[:k] for row in divergences]
  return np.array(order, np.int64)
