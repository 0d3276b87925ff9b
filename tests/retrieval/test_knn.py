import itertools

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sjft_jax.retrieval import knn


def histograms(rng, images, filters=3, bins=8):
  counts = rng.multinomial(50, rng.dirichlet(np.ones(bins), (images, filters))) + 0.5
  return (counts / counts.sum(axis=-1, keepdims=True)).astype(np.float32)


def cut(array, sizes):
  """The array in consecutive blocks of these sizes, repeated as often as needed."""
  start = 0
  for size in itertools.cycle(sizes):
    if start >= len(array):
      return
    yield array[start : start + size]
    start += size


@pytest.fixture
def small_tiles(monkeypatch):
  """So that a few hundred sources make many tiles."""
  monkeypatch.setattr(knn, 'TILE', 64)
  knn._rank_tile.clear_cache()
  yield
  knn._rank_tile.clear_cache()


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('k', [1, 7, 300])
def test_indices_are_those_of_float64(seed, k, small_tiles):
  rng = np.random.default_rng(seed)
  targets, sources, weights = histograms(rng, 6), histograms(rng, 300), np.full(3, 1 / 3)
  indices, divergences = knn.rank(targets, cut(sources, [50]), weights=weights, k=k)
  exact = oracles.symmetric_kl(targets, sources, weights)
  expected = oracles.nearest(exact, k)
  rows = np.arange(6)[:, None]
  # Where float32 exchanges two neighbours, their true divergences are equal but for its rounding.
  np.testing.assert_allclose(exact[rows, indices], exact[rows, expected], atol=2e-6)
  np.testing.assert_allclose(divergences, exact[rows, indices], rtol=1e-5, atol=2e-6)
  assert (indices == expected).mean() > 0.99


@settings(deadline=None, max_examples=20)
@given(
  seed=st.integers(0, 2**32 - 1),
  sizes=st.lists(st.integers(1, 1500), min_size=1, max_size=5),
  num_sources=st.integers(30, 2500),
)
def test_indices_do_not_depend_on_the_blocks(seed, sizes, num_sources):
  rng = np.random.default_rng(seed)
  targets, sources = histograms(rng, 5), histograms(rng, num_sources)
  one = knn.rank(targets, [sources], weights=np.ones(3), k=30)
  many = knn.rank(targets, cut(sources, sizes), weights=np.ones(3), k=30)
  for a, b in zip(one, many, strict=True):
    np.testing.assert_array_equal(a, b)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), copies=st.integers(2, 6))
def test_ties_are_ordered_by_source_index(seed, copies):
  """Copies of the same images, far apart in the stream, come out in the order of their index."""
  rng = np.random.default_rng(seed)
  distinct = histograms(rng, 300)
  sources, n = np.tile(distinct, (copies, 1, 1)), 300
  targets = histograms(rng, 4)
  k = 20 * copies
  indices, divergences = knn.rank(targets, cut(sources, [333]), weights=np.ones(3), k=k)
  alone, _ = knn.rank(targets, [distinct], weights=np.ones(3), k=20)
  expected = (alone[:, :, None] + n * np.arange(copies)).reshape(4, k)
  # Distinct images at equal divergence would interleave; random ones are not at equal divergence.
  np.testing.assert_array_equal(indices, expected)
  assert (np.diff(divergences, axis=1) >= 0).all()


def test_merging_does_not_depend_on_the_order():
  rng = np.random.default_rng(0)
  # Few distinct values, so that ties cross the parts.
  parts = [
    (rng.integers(0, 5, (4, 10)).astype(np.float32), np.arange(10 * i, 10 * i + 10, dtype=np.int32))
    for i in range(4)
  ]
  parts = [(jnp.asarray(d), jnp.asarray(np.tile(i, (4, 1)))) for d, i in parts]
  empty = (jnp.full((4, 15), jnp.inf), jnp.full((4, 15), 2**31 - 1, jnp.int32))
  results = []
  for order in itertools.permutations(parts):
    best = empty
    for part in order:
      best = knn.merge(best, part)
    results.append(np.asarray(best[1]))
  whole = np.concatenate([np.asarray(d) for d, _ in parts], axis=1)
  np.testing.assert_array_equal(results[0], oracles.nearest(whole, 15))
  for result in results:
    np.testing.assert_array_equal(result, results[0])


def test_k_beyond_the_sources_and_below_one_are_refused():
  rng = np.random.default_rng(0)
  targets, sources = histograms(rng, 2), histograms(rng, 9)
  with pytest.raises(ValueError, match='k=10 exceeds the 9 sources'):
    knn.rank(targets, [sources], weights=np.ones(3), k=10)
  with pytest.raises(ValueError, match='at least one neighbour'):
    knn.rank(targets, [sources], weights=np.ones(3), k=0)
  indices, _ = knn.rank(targets, [sources], weights=np.ones(3), k=9)
  assert (np.sort(indices, axis=1) == np.arange(9)).all()


def test_an_empty_bin_without_smoothing_is_an_error_that_names_the_sources():
  rng = np.random.default_rng(0)
  sources = histograms(rng, 1500)
  sources[1100, 0, 0] = 0
  with pytest.raises(ValueError, match=r'sources 1024\.\.1499 is not finite.*smoothing'):
    knn.rank(histograms(rng, 2), [sources], weights=np.ones(3), k=5)
