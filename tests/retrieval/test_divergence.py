import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from sjft_jax.retrieval import divergence
from sjft_jax.retrieval.divergence import symmetric_kl


def histograms(rng, images, filters, bins, smoothing=0.5, concentration=1.0):
  masses = rng.dirichlet(np.full(bins, concentration), (images, filters))
  counts = rng.multinomial(200, masses) + smoothing
  return (counts / counts.sum(axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(params=[np.asarray, jnp.asarray], ids=['numpy', 'XLA'])
def array(request):
  """Make an array of the host, or one of a device."""
  return request.param


@pytest.mark.slow
@settings(max_examples=30)
@given(
  seed=st.integers(0, 2**32 - 1),
  shape=st.tuples(*(st.integers(1, 6) for _ in range(3)), st.integers(1, 9)),
)
def test_equals_the_definition_in_float64(seed, shape):
  rng = np.random.default_rng(seed)
  num_targets, num_sources, filters, bins = shape
  targets = histograms(rng, num_targets, filters, bins)
  sources = histograms(rng, num_sources, filters, bins)
  weights = rng.uniform(0.01, 1, filters).astype(np.float32)
  ours = symmetric_kl(jnp.asarray(targets), jnp.asarray(sources), jnp.asarray(weights))
  np.testing.assert_allclose(ours, oracles.symmetric_kl(targets, sources, weights), 3e-5, 3e-5)


@pytest.mark.parametrize('seed', range(20))
def test_the_documented_tolerance_holds(seed, array):
  rng = np.random.default_rng(seed)
  filters, bins = [(3, 8), (48, 32), (64, 100), (160, 16)][seed % 4]
  shape = {'smoothing': [0.5, 1e-6, 5][seed % 3], 'concentration': [1, 0.1, 10, 1, 0.3][seed % 5]}
  targets = histograms(rng, 7, filters, bins, **shape)
  sources = histograms(rng, 40, filters, bins, **shape)
  sources[:20] = targets[0] + rng.uniform(0, 0.3) * (sources[:20] - targets[0])
  sources /= sources.sum(axis=-1, keepdims=True)
  weights = np.full(filters, 1 / filters, np.float32)
  exact = oracles.symmetric_kl(targets, sources, weights)
  mean = targets.mean(axis=0, keepdims=True)
  scale = oracles.symmetric_kl(targets, mean, weights)
  scale = scale + oracles.symmetric_kl(sources, mean, weights).T
  error = np.abs(symmetric_kl(array(targets), array(sources), weights) - exact)
  assert (error <= divergence.TOLERANCE * scale).all()
  assert (error <= 2.0**-8 * exact).all()


def test_near_duplicates_keep_their_order_and_their_digits(array):
  """Their divergences are 1e-14 to 1e-2 of those around them."""
  rng = np.random.default_rng(0)
  targets = histograms(rng, 5, 16, 32)
  other = histograms(rng, 5, 16, 32)
  steps = np.repeat(10.0 ** -np.arange(1, 7), 5) * rng.uniform(0.5, 1, 30)
  sources = targets[1] + steps[:, None, None] * (np.tile(other, (6, 1, 1)) - targets[1])
  sources = np.concatenate([sources, targets]).astype(np.float32)
  weights = np.full(16, 1 / 16, np.float32)
  ours = symmetric_kl(array(targets), array(sources), weights)
  exact = oracles.symmetric_kl(targets, sources, weights)
  assert (np.diag(ours[:, 30:]) == 0).all()
  assert (ours >= 0).all()
  np.testing.assert_array_equal(np.argsort(ours[1, :30]), np.argsort(exact[1, :30]))
  np.testing.assert_allclose(ours[1], exact[1], rtol=2e-3)
  closest = exact[1] < 1e-4
  assert closest.sum() > 20
  np.testing.assert_allclose(ours[1, closest], exact[1, closest], rtol=1e-5)


@pytest.mark.parametrize('num_targets', [1, 3])
def test_the_tolerance_holds_where_all_targets_are_alike(num_targets, array):
  """The center is then so close to them that float32 logarithms cannot tell how close."""
  rng = np.random.default_rng(0)
  target, *others = histograms(rng, 101, 16, 32)
  steps = 10.0 ** -rng.uniform(0, 6, (100, 1, 1))
  sources = (target + steps * (np.stack(others) - target)).astype(np.float32)
  targets = np.repeat(target[None], num_targets, axis=0)
  weights = np.full(16, 3 / 16, np.float32)
  exact = oracles.symmetric_kl(targets[:1], sources, weights)
  ours = symmetric_kl(array(targets), array(sources), weights)
  # Of targets at the center a(p) + a(q) is d itself.
  np.testing.assert_allclose(ours, np.repeat(exact, num_targets, axis=0), divergence.TOLERANCE)
  np.testing.assert_array_equal(np.argsort(ours[0]), np.argsort(exact[0]))


def test_histograms_of_one_bin_have_no_divergence():
  ones = np.ones((3, 4, 1), np.float32)
  assert (symmetric_kl(ones, ones, np.full(4, 0.25, np.float32)) == 0).all()


def test_divergence_of_an_empty_bin_is_not_finite(array):
  p = histograms(np.random.default_rng(0), 4, 2, 8)
  q = p.copy()
  q[2, 0, 0] = 0
  assert not np.isfinite(symmetric_kl(array(p), array(q), np.ones(2, np.float32))[:, 2]).any()


def test_equals_scipy_on_one_filter():
  rng = np.random.default_rng(0)
  p, q = histograms(rng, 4, 1, 16), histograms(rng, 5, 1, 16)
  ours = symmetric_kl(p, q, np.ones(1, np.float32))
  expected = [
    [scipy.stats.entropy(a[0], b[0]) + scipy.stats.entropy(b[0], a[0]) for b in q] for a in p
  ]
  np.testing.assert_allclose(ours, expected, rtol=2e-5)


def test_is_symmetric_and_zero_on_itself_and_never_negative(array):
  p = array(histograms(np.random.default_rng(1), 8, 3, 16))
  d = symmetric_kl(p, p, np.full(3, 1 / 3, np.float32))
  np.testing.assert_allclose(d, d.T, atol=1e-6)
  assert (np.diag(d) == 0).all()
  assert (d >= 0).all()


def test_products_are_computed_at_the_highest_precision():
  """By default GPUs may multiply float32 with mantissas of ten bits."""
  p = jnp.asarray(histograms(np.random.default_rng(3), 4, 2, 8))
  text = jax.jit(lambda p: divergence.divergences(*factors(p))).lower(p).as_text()
  products = [line for line in text.splitlines() if 'dot_general' in line]
  assert products
  assert all('precision = [HIGHEST, HIGHEST]' in line for line in products)


def factors(p):
  center = divergence.Center(p[0], jnp.log(p[0]), jnp.ones(p.shape[1]))
  return divergence.target_factors(p, center), divergence.source_factors(p, center)


def test_weights_scale_each_filter():
  rng = np.random.default_rng(2)
  p, q = histograms(rng, 3, 2, 8), histograms(rng, 3, 2, 8)
  one = np.ones(1, np.float32)
  first, second = symmetric_kl(p[:, :1], q[:, :1], one), symmetric_kl(p[:, 1:], q[:, 1:], one)
  both = symmetric_kl(p, q, np.array([0.25, 2.0], np.float32))
  np.testing.assert_allclose(both, 0.25 * first + 2.0 * second, rtol=1e-4)


def test_pairs_are_the_diagonal_of_all_pairs():
  rng = np.random.default_rng(4)
  p, q = histograms(rng, 5, 3, 8), histograms(rng, 5, 3, 8)
  weights = np.full(3, 1 / 3, np.float32)
  ours = divergence.symmetric_kl_of_pairs(p, q, weights)
  np.testing.assert_allclose(ours, np.diag(oracles.symmetric_kl(p, q, weights)), rtol=1e-4)


def test_only_active_targets_are_refined():
  rng = np.random.default_rng(5)
  targets = histograms(rng, 2, 3, 8)
  sources = targets + np.float32(1e-4) * (histograms(rng, 2, 3, 8) - targets)
  weights = np.full(3, 1 / 3, np.float32)
  rough = np.full((2, 2), -1e-9, np.float32)
  refined = divergence.refine_near_duplicates(
    rough, targets, sources, weights, active=np.array([True, False])
  )
  exact = oracles.symmetric_kl(targets, sources, weights)
  np.testing.assert_allclose(refined[0], exact[0], rtol=1e-5)
  np.testing.assert_array_equal(refined[1], -rough[1])
