import jax.numpy as jnp
import numpy as np
import oracles
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from sjft_jax.retrieval.divergence import symmetric_kl


def histograms(rng, images, filters, bins, smoothing=0.5):
  counts = rng.multinomial(200, rng.dirichlet(np.ones(bins), (images, filters))) + smoothing
  return (counts / counts.sum(axis=-1, keepdims=True)).astype(np.float32)


@settings(deadline=None, max_examples=30)
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
  ours = np.asarray(symmetric_kl(jnp.asarray(targets), jnp.asarray(sources), jnp.asarray(weights)))
  np.testing.assert_allclose(ours, oracles.symmetric_kl(targets, sources, weights), 3e-5, 3e-5)


def test_equals_scipy_on_one_filter():
  rng = np.random.default_rng(0)
  p, q = histograms(rng, 4, 1, 16), histograms(rng, 5, 1, 16)
  ours = symmetric_kl(jnp.asarray(p), jnp.asarray(q), jnp.ones(1))
  scipys = [
    [scipy.stats.entropy(a[0], b[0]) + scipy.stats.entropy(b[0], a[0]) for b in q] for a in p
  ]
  np.testing.assert_allclose(ours, scipys, rtol=2e-5)


def test_is_symmetric_and_zero_on_itself_and_never_negative():
  p = jnp.asarray(histograms(np.random.default_rng(1), 8, 3, 16))
  d = np.asarray(symmetric_kl(p, p, jnp.full(3, 1 / 3)))
  np.testing.assert_allclose(d, d.T, atol=1e-6)
  np.testing.assert_allclose(np.diag(d), 0, atol=1e-6)
  assert (d >= 0).all()


def test_weights_scale_each_filter():
  rng = np.random.default_rng(2)
  p, q = jnp.asarray(histograms(rng, 3, 2, 8)), jnp.asarray(histograms(rng, 3, 2, 8))
  first = symmetric_kl(p[:, :1], q[:, :1], jnp.ones(1))
  second = symmetric_kl(p[:, 1:], q[:, 1:], jnp.ones(1))
  both = symmetric_kl(p, q, jnp.asarray([0.25, 2.0]))
  np.testing.assert_allclose(both, 0.25 * first + 2.0 * second, rtol=1e-4)
