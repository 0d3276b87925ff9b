import jax
import numpy as np
import oracles
import pytest
import threadpoolctl
from retrieval.searches import WEIGHTS, assert_nearest, histograms, run_search

from sjft_jax.retrieval import backends, knn


@pytest.mark.parametrize('num_devices', [0, 2], ids=['cores', 'devices'])
def test_targets_in_several_products_find_the_nearest(small_tiles, monkeypatch, num_devices):
  rng = np.random.default_rng(4)
  targets, sources = histograms(rng, 23), histograms(rng, 300)
  monkeypatch.setattr(backends, 'MAX_TARGETS', 7)
  ranking = run_search(targets, [sources], 50, jax.devices()[:num_devices] or None)
  assert_nearest(ranking, oracles.symmetric_kl(targets, sources, WEIGHTS), 50)


def test_targets_that_do_not_fit_the_device_give_the_same_ranking(small_tiles, monkeypatch):
  rng = np.random.default_rng(4)
  targets, sources = histograms(rng, 23), histograms(rng, 300)
  expected = run_search(targets, [sources], 50, jax.devices()[:2])
  monkeypatch.setattr(backends, '_fits', lambda num_bytes, device: False)
  ranking = run_search(targets, [sources], 50, jax.devices()[:2])
  np.testing.assert_array_equal(ranking.indices, expected.indices)
  np.testing.assert_array_equal(ranking.divergences, expected.divergences)


def test_fewer_threads_where_memory_is_short(monkeypatch):
  gigabytes = {'SC_PAGE_SIZE': 2**30, 'SC_PHYS_PAGES': 16}
  monkeypatch.setattr(backends.os, 'sysconf', gigabytes.get)
  monkeypatch.setattr(backends.os, 'cpu_count', lambda: 64)
  released = np.broadcast_to(np.float32(0.01), (12_000, 352, 100))
  # 144 MB of histograms, 288 MB of factors, 49 MB of divergences.
  assert backends.num_threads(released, 1024) == 8
  assert backends.num_threads(released, 2**20) == 1


def test_blas_has_one_thread_during_a_search_on_cores_and_no_longer():
  def blas_threads():
    libraries = (x for x in threadpoolctl.threadpool_info() if x['user_api'] == 'blas')
    # OpenCV's wheels before 4.13 bring one that has no threads.
    return {x['num_threads'] for x in libraries if x['threading_layer'] != 'disabled'}

  rng = np.random.default_rng(6)
  with threadpoolctl.threadpool_limits(2):
    search = knn.Search(histograms(rng, 2), weights=WEIGHTS, k=1)
    assert blas_threads() == {1}
    search.add(histograms(rng, 9))
    search.flush()
    assert blas_threads() == {2}
    search = knn.Search(histograms(rng, 2), weights=WEIGHTS, k=1)
    assert blas_threads() == {1}
    del search  # As after an error.
    assert blas_threads() == {2}
