import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st

from sjft_jax.retrieval import backends, divergence, knn

WEIGHTS = np.full(3, 1 / 3, np.float32)


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


def assert_nearest(indices, divergences, exact, k):
  """The neighbours are those of the exact divergences, but for exchanges within the tolerance."""
  expected = oracles.nearest(exact, k)
  rows = np.arange(len(exact))[:, None]
  tolerance = 2 * divergence.TOLERANCE * 2 * exact.max()
  np.testing.assert_allclose(exact[rows, indices], exact[rows, expected], rtol=0, atol=tolerance)
  np.testing.assert_allclose(divergences, exact[rows, indices], rtol=0, atol=tolerance)
  assert [len(set(row)) for row in indices] == [k] * len(indices)
  assert (np.diff(divergences, axis=1) >= 0).all()
  assert (indices == expected).mean() > 0.99


@pytest.fixture
def small_tiles(monkeypatch):
  """So that a few hundred sources make many tiles."""
  monkeypatch.setattr(knn, 'TILE', 64)


@pytest.fixture(params=[None, 2], ids=['cores', 'devices'])
def devices(request):
  return request.param and jax.devices()[: request.param]


def searched(targets, blocks, k, devices):
  search = knn.Search(targets, weights=WEIGHTS, k=k, devices=devices)
  for block in blocks:
    search.add(block)
  search.flush()
  return knn.neighbors(search.keys(), k)


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('k', [1, 7, 300])
def test_indices_are_those_of_float64(seed, k, small_tiles):
  rng = np.random.default_rng(seed)
  targets, sources = histograms(rng, 6), histograms(rng, 300)
  found = knn.rank(targets, cut(sources, [50]), weights=WEIGHTS, k=k)
  assert_nearest(*found, oracles.symmetric_kl(targets, sources, WEIGHTS), k)


def test_divergences_that_differ_in_the_sixth_digit(small_tiles):
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
  found = knn.rank(targets, [sources], weights=WEIGHTS, k=200)
  expected, rows = oracles.nearest(exact, 200), np.arange(2)[:, None]
  tolerance = 2 * divergence.TOLERANCE * exact.max()
  np.testing.assert_allclose(exact[rows, found[0]], exact[rows, expected], atol=tolerance)


def test_near_duplicates_come_first_in_their_true_order(small_tiles):
  rng = np.random.default_rng(1)
  targets, sources = histograms(rng, 3, bins=32), histograms(rng, 500, bins=32)
  places = rng.permutation(500)[:40]
  for place, step in zip(places, np.geomspace(1e-6, 1e-2, 40), strict=True):
    sources[place] = targets[0] + step * (sources[place] - targets[0])
  exact = oracles.symmetric_kl(targets, sources, WEIGHTS)
  indices, divergences = knn.rank(targets, cut(sources, [77]), weights=WEIGHTS, k=60)
  np.testing.assert_array_equal(indices[0], oracles.nearest(exact[:1], 60)[0])
  np.testing.assert_allclose(divergences[0, :40], exact[0, indices[0, :40]], rtol=2e-3)


def test_more_copies_than_neighbours(small_tiles):
  """Flat images have all the same histograms: the first of them are kept."""
  rng = np.random.default_rng(2)
  targets = histograms(rng, 2)
  sources = np.concatenate([histograms(rng, 100), np.repeat(targets[:1], 900, axis=0)])
  indices, divergences = knn.rank(targets, cut(sources, [130]), weights=WEIGHTS, k=150)
  np.testing.assert_array_equal(indices[0], np.arange(100, 250))
  assert (divergences[0] == 0).all()


@settings(deadline=None, max_examples=20)
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
  for ours, theirs in zip(
    searched(targets, [sources], 30, one), searched(targets, blocks, 30, many), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), copies=st.integers(2, 6))
def test_ties_are_ordered_by_source_index(seed, copies):
  """DuplicatePairs of the same images, far apart in the stream, come out in the order of their index."""
  rng = np.random.default_rng(seed)
  distinct = histograms(rng, 300)
  sources, n = np.tile(distinct, (copies, 1, 1)), 300
  targets = histograms(rng, 4)
  k = 20 * copies
  indices, divergences = knn.rank(targets, cut(sources, [333]), weights=WEIGHTS, k=k)
  alone, _ = knn.rank(targets, [distinct], weights=WEIGHTS, k=20)
  expected = (alone[:, :, None] + n * np.arange(copies)).reshape(4, k)
  # Distinct images at equal divergence would interleave; random ones are not at equal divergence.
  np.testing.assert_array_equal(indices, expected)
  assert (np.diff(divergences, axis=1) >= 0).all()


def test_a_search_goes_on_where_another_was_stopped(small_tiles):
  rng = np.random.default_rng(3)
  targets, sources = histograms(rng, 5), histograms(rng, 1000)
  whole = knn.rank(targets, [sources], weights=WEIGHTS, k=100)
  for stop_after in (0, 70, 500, 999):
    stopped = knn.Search(targets, weights=WEIGHTS, k=100)
    stopped.add(sources[:stop_after])
    assert stopped.position <= stop_after
    second = knn.Search(
      targets, weights=WEIGHTS, k=100, position=stopped.position, keys=stopped.keys()
    )
    second.add(sources[stopped.position :])
    second.flush()
    for ours, expected in zip(knn.neighbors(second.keys(), 100), whole, strict=True):
      np.testing.assert_array_equal(ours, expected)


def test_targets_in_parts(small_tiles, monkeypatch, devices):
  rng = np.random.default_rng(4)
  targets, sources = histograms(rng, 23), histograms(rng, 300)
  monkeypatch.setattr(backends, 'TARGETS', 7)
  found = searched(targets, [sources], 50, devices)
  assert_nearest(*found, oracles.symmetric_kl(targets, sources, WEIGHTS), 50)


def test_targets_that_do_not_fit_the_device(small_tiles, monkeypatch):
  rng = np.random.default_rng(4)
  targets, sources = histograms(rng, 23), histograms(rng, 300)
  expected = searched(targets, [sources], 50, jax.devices()[:2])
  monkeypatch.setattr(backends, '_fits', lambda num_bytes, device: False)
  found = searched(targets, [sources], 50, jax.devices()[:2])
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('as_array', [np.asarray, jnp.asarray])
def test_devices_find_what_is_nearest(small_tiles, as_array):
  rng = np.random.default_rng(5)
  targets, sources = histograms(rng, 6), histograms(rng, 300)
  found = searched(targets, cut(as_array(sources), [50]), 40, jax.devices()[:2])
  assert_nearest(*found, oracles.symmetric_kl(targets, sources, WEIGHTS), 40)


def test_fewer_workers_where_memory_is_short(monkeypatch):
  gigabytes = {'SC_PAGE_SIZE': 2**30, 'SC_PHYS_PAGES': 16}
  monkeypatch.setattr(backends.os, 'sysconf', gigabytes.get)
  monkeypatch.setattr(backends.os, 'cpu_count', lambda: 64)
  released = np.broadcast_to(np.float32(0.01), (12_000, 352, 100))
  # 144 MB of histograms, 288 MB of factors, 49 MB of divergences.
  assert backends.num_workers(1024, released) == 8
  assert backends.num_workers(2**20, released) == 1


def test_one_thread_of_blas_while_cores_search_and_no_longer():
  def threads():
    return {x['num_threads'] for x in threadpoolctl.threadpool_info() if x['user_api'] == 'blas'}

  rng = np.random.default_rng(6)
  with threadpoolctl.threadpool_limits(2):
    search = knn.Search(histograms(rng, 2), weights=WEIGHTS, k=1)
    assert threads() == {1}
    search.add(histograms(rng, 9))
    search.flush()
    assert threads() == {2}
    search = knn.Search(histograms(rng, 2), weights=WEIGHTS, k=1)
    assert threads() == {1}
    del search  # As after an error.
    assert threads() == {2}


@pytest.mark.parametrize('seed', range(4))
def test_nearest_keeps_the_smallest_whatever_the_order(seed):
  rng = np.random.default_rng(seed)
  # Few distinct values, so that ties cross the parts.
  divergences = rng.integers(0, 6, (9, 2000)).astype(np.float32) / 3
  expected = oracles.nearest(divergences, 15)
  nearest, others = knn.TopK(9, 15), knn.TopK(9, 15)
  for number, start in enumerate(rng.permutation(np.arange(0, 2000, 40))):
    part = divergences[:, start : start + 40]
    (others if number % 3 else nearest).add(part, int(start))
  nearest.add_keys(others.keys())
  indices, kept = knn.neighbors(nearest.keys(), 15)
  np.testing.assert_array_equal(indices, expected)
  np.testing.assert_array_equal(kept, np.take_along_axis(divergences, expected, 1))


def test_k_beyond_the_sources_and_below_one_are_refused():
  rng = np.random.default_rng(0)
  targets, sources = histograms(rng, 2), histograms(rng, 9)
  with pytest.raises(ValueError, match='k=10 exceeds the 9 sources'):
    knn.rank(targets, [sources], weights=WEIGHTS, k=10)
  with pytest.raises(ValueError, match='at least one neighbour'):
    knn.rank(targets, [sources], weights=WEIGHTS, k=0)
  indices, _ = knn.rank(targets, [sources], weights=WEIGHTS, k=9)
  assert (np.sort(indices, axis=1) == np.arange(9)).all()


def test_an_empty_bin_without_smoothing_is_an_error_that_names_the_sources():
  rng = np.random.default_rng(0)
  sources = histograms(rng, 1500)
  sources[1100, 0, 0] = 0
  with pytest.raises(ValueError, match=r'sources 1024\.\.1499 is not finite.*smoothing'):
    knn.rank(histograms(rng, 2), [sources], weights=WEIGHTS, k=5)
