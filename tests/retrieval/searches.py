"""Histograms, and searches among them, for the tests of retrieval."""

import itertools

import numpy as np
import oracles

from sjft_jax.retrieval import divergence, knn

WEIGHTS = np.full(3, 1 / 3, np.float32)


def histograms(rng, images, filters=3, bins=8):
  counts = rng.multinomial(50, rng.dirichlet(np.ones(bins), (images, filters))) + 0.5
  return (counts / counts.sum(axis=-1, keepdims=True)).astype(np.float32)


def cut(array, sizes):
  """Yield the array in consecutive blocks of these sizes, repeated as often as needed."""
  start = 0
  for size in itertools.cycle(sizes):
    if start >= len(array):
      return
    yield array[start : start + size]
    start += size


def run_search(targets, blocks, k, devices):
  search = knn.Search(targets, weights=WEIGHTS, k=k, devices=devices)
  for block in blocks:
    search.add(block)
  search.flush()
  return knn.decode_keys(search.keys(), k)


def assert_nearest(ranking, exact, k):
  """Assert that a ranking is that of the exact divergences, up to swaps within the tolerance."""
  indices, divergences = ranking
  expected = oracles.nearest(exact, k)
  rows = np.arange(len(exact))[:, None]
  tolerance = 2 * divergence.TOLERANCE * 2 * exact.max()
  np.testing.assert_allclose(exact[rows, indices], exact[rows, expected], rtol=0, atol=tolerance)
  np.testing.assert_allclose(divergences, exact[rows, indices], rtol=0, atol=tolerance)
  assert [len(set(row)) for row in indices] == [k] * len(indices)
  assert (np.diff(divergences, axis=1) >= 0).all()
  assert (indices == expected).mean() > 0.99
