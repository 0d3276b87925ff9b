import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieval.searches import WEIGHTS, assert_nearest, cut, histograms, run_search

from sjft_jax.retrieval import divergence, knn


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('k', [1, 7, 300])
def test_indices_are_those_of_float64(seed, k, small_tiles):
  rng = np.random.default_rng(seed)
  targets, sources = histograms(rng, 6), histograms(rng, 300)
  ranking = knn.rank_histograms(targets, cut(sources, [50]), weights=WEIGHTS, k=k)
  assert_nearest(ranking, oracles.symmetric_kl(targets, sources, WEIGHTS), k)


def test_divergences_that_differ_in_the_sixth_digit_are_ordered(small_tiles):
  """Sources on a line away from the target, in random order: each a millionth further."""
  rng = np.random.default_rng(0)
  target, far = histograms(rng, 2, bins=32).astype(np.float64)
  share = 0.5 + 5e-7 * np.arange(200)
  order = rng.permutation(200)
  sources = target + share[order, None, None] * (far - target)
  sources, targets = sources.astype(np.float32), np.stack([target, far]).astype(np.float32)
  exact = oracles.symmetric_kl(targets, sources, WEIGHTS)
  gaps = np.diff(np.sort(exact[0])) / exact[0].max()
  assert np.median(gaps) < 3e-6
  indices, _ = knn.rank_histograms(targets, [sources], weights=WEIGHTS, k=200)
  expected, rows = oracles.nearest(exact, 200), np.arange(2)[:, None]
  tolerance = 2 * divergence.TOLERANCE * exact.max()
  np.testing.assert_allclose(exact[rows, indices], exact[rows, expected], atol=tolerance)


def test_near_duplicates_come_first_in_their_true_order(small_tiles):
  rng = np.random.default_rng(1)
  targets, sources = histograms(rng, 3, bins=32), histograms(rng, 500, bins=32)
  places = rng.permutation(500)[:40]
  for place, step in zip(places, np.geomspace(1e-6, 1e-2, 40), strict=True):
    sources[place] = targets[0] + step * (sources[place] - targets[0])
  exact = oracles.symmetric_kl(targets, sources, WEIGHTS)
  indices, divergences = knn.rank_histograms(targets, cut(sources, [77]), weights=WEIGHTS, k=60)
  np.testing.assert_array_equal(indices[0], oracles.nearest(exact[:1], 60)[0])
  np.testing.assert_allclose(divergences[0, :40], exact[0, indices[0, :40]], rtol=2e-3)


def test_of_more_copies_than_neighbours_the_first_are_kept(small_tiles):
  """Flat images, for example, all have the same histograms."""
  rng = np.random.default_rng(2)
  targets = histograms(rng, 2)
  sources = np.concatenate([histograms(rng, 100), np.repeat(targets[:1], 900, axis=0)])
  indices, divergences = knn.rank_histograms(targets, cut(sources, [130]), weights=WEIGHTS, k=150)
  np.testing.assert_array_equal(indices[0], np.arange(100, 250))
  assert (divergences[0] == 0).all()


@settings(max_examples=20)
@given(
  seed=st.integers(0, 2**32 - 1),
  sizes=st.lists(st.integers(1, 1500), min_size=1, max_size=5),
  num_sources=st.integers(30, 2500),
  num_devices=st.integers(0, 4),
)
def test_indices_do_not_depend_on_blocks_or_devices(seed, sizes, num_sources, num_devices):
  rng = np.random.default_rng(seed)
  targets, sources = histograms(rng, 5), histograms(rng, num_sources)
  one, many = (jax.devices()[:1], jax.devices()[:num_devices]) if num_devices else (None, None)
  blocks = (
    jax.device_put(block, jax.devices()[number % 4]) if number % 2 else block
    for number, block in enumerate(cut(sources, sizes))
  )
  for ours, expected in zip(
    run_search(targets, blocks, 30, many), run_search(targets, [sources], 30, one), strict=True
  ):
    np.testing.assert_array_equal(ours, expected)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), copies=st.integers(2, 6))
def test_ties_are_ordered_by_source_index(seed, copies):
  """The same images, far apart in the stream, are ranked in the order of their index."""
  rng = np.random.default_rng(seed)
  distinct = histograms(rng, 300)
  sources, n = np.tile(distinct, (copies, 1, 1)), 300
  targets = histograms(rng, 4)
  k = 20 * copies
  indices, divergences = knn.rank_histograms(targets, cut(sources, [333]), weights=WEIGHTS, k=k)
  once, _ = knn.rank_histograms(targets, [distinct], weights=WEIGHTS, k=20)
  expected = (once[:, :, None] + n * np.arange(copies)).reshape(4, k)
  # Distinct images at equal divergence would interleave; random ones are not at equal divergence.
  np.testing.assert_array_equal(indices, expected)
  assert (np.diff(divergences, axis=1) >= 0).all()


def test_search_resumes_where_another_was_stopped(small_tiles):
  rng = np.random.default_rng(3)
  targets, sources = histograms(rng, 5), histograms(rng, 1000)
  whole = knn.rank_histograms(targets, [sources], weights=WEIGHTS, k=100)
  for stop_after in (0, 70, 500, 999):
    stopped = knn.Search(targets, weights=WEIGHTS, k=100)
    stopped.add(sources[:stop_after])
    assert stopped.position <= stop_after
    second = knn.Search(
      targets, weights=WEIGHTS, k=100, position=stopped.position, keys=stopped.keys()
    )
    second.add(sources[stopped.position :])
    second.flush()
    for ours, expected in zip(knn.decode_keys(second.keys(), 100), whole, strict=True):
      np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize('as_array', [np.asarray, jnp.asarray])
def test_devices_find_the_nearest(small_tiles, as_array):
  rng = np.random.default_rng(5)
  targets, sources = histograms(rng, 6), histograms(rng, 300)
  ranking = run_search(targets, cut(as_array(sources), [50]), 40, jax.devices()[:2])
  assert_nearest(ranking, oracles.symmetric_kl(targets, sources, WEIGHTS), 40)


@pytest.mark.parametrize('seed', range(4))
def test_top_k_keeps_the_smallest_in_any_order(seed):
  rng = np.random.default_rng(seed)
  # Few distinct values, so that ties cross the parts.
  divergences = rng.integers(0, 6, (9, 2000)).astype(np.float32) / 3
  expected = oracles.nearest(divergences, 15)
  top_k, other = knn.TopK(9, 15), knn.TopK(9, 15)
  for number, start in enumerate(rng.permutation(np.arange(0, 2000, 40))):
    part = divergences[:, start : start + 40]
    (other if number % 3 else top_k).add(part, int(start))
  top_k.add_keys(other.keys())
  ranking = knn.decode_keys(top_k.keys(), 15)
  np.testing.assert_array_equal(ranking.indices, expected)
  np.testing.assert_array_equal(
    ranking.divergences, np.take_along_axis(divergences, expected, axis=1)
  )


def test_empty_keys_are_no_sources():
  top_k = knn.TopK(2, 3)
  top_k.add_keys(np.array([[7, 5, knn.EMPTY_KEY], [7, 5, 6]], np.uint64))
  with pytest.raises(ValueError, match='k=3 exceeds the 2 sources'):
    knn.decode_keys(top_k.keys(), 3)


def test_k_beyond_the_sources_or_below_one_is_an_error():
  rng = np.random.default_rng(0)
  targets, sources = histograms(rng, 2), histograms(rng, 9)
  with pytest.raises(ValueError, match='k=10 exceeds the 9 sources'):
    knn.rank_histograms(targets, [sources], weights=WEIGHTS, k=10)
  with pytest.raises(ValueError, match='k=0 must be 1 or more'):
    knn.rank_histograms(targets, [sources], weights=WEIGHTS, k=0)
  indices, _ = knn.rank_histograms(targets, [sources], weights=WEIGHTS, k=9)
  assert (np.sort(indices, axis=1) == np.arange(9)).all()


def test_empty_bin_is_an_error_that_names_the_sources():
  rng = np.random.default_rng(0)
  sources = histograms(rng, 1500)
  sources[1100, 0, 0] = 0
  with pytest.raises(ValueError, match=r'sources 1024\.\.1499 is not finite.*smoothing'):
    knn.rank_histograms(histograms(rng, 2), [sources], weights=WEIGHTS, k=5)
