import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from sjft_jax.models.convolution import Conv


def oracle(x, kernel, bias, *, stride, padding, groups):
  """Compute every output channel as a sum of scipy's two-dimensional correlations."""
  x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  num_in, num_out = kernel.shape[2:]
  outputs = []
  for image in x:
    maps = []
    for out in range(num_out):
      first = out // (num_out // groups) * num_in
      maps.append(
        sum(
          signal.correlate2d(image[..., first + i], kernel[..., i, out], mode='valid')
          for i in range(num_in)
        )
      )
    outputs.append(np.stack(maps, axis=-1)[::stride, ::stride])
  return np.stack(outputs) + bias


@given(
  seed=st.integers(0, 99),
  size=st.sampled_from([1, 2, 3, 5]),
  stride=st.integers(1, 4),
  padding=st.integers(0, 2),
  groups=st.sampled_from([1, 2, 3]),
  sides=st.tuples(st.integers(5, 9), st.integers(5, 9)),
)
@settings(max_examples=25)
def test_convolution_is_a_correlation(seed, size, stride, padding, groups, sides):
  random = np.random.default_rng(seed)
  x = random.normal(size=(2, *sides, 2 * groups)).astype(np.float32)
  kernel = random.normal(size=(size, size, 2, 3 * groups)).astype(np.float32)
  bias = random.normal(size=3 * groups).astype(np.float32)
  options = {'stride': stride, 'padding': padding, 'groups': groups}
  model = Conv(3 * groups, size, use_bias=True, **options)
  out = model.apply({'params': {'kernel': kernel, 'bias': bias}}, x)
  np.testing.assert_allclose(out, oracle(x, kernel, bias, **options), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('size', 'side', 'stride'), [(1, 6, 1), (1, 7, 2), (5, 5, 1), (5, 5, 2), (5, 6, 1)]
)
def test_products_have_the_gradients_of_convolutions(size, side, stride):
  random = np.random.default_rng(0)
  x = random.normal(size=(2, side, side, 3)).astype(np.float32)
  kernel = random.normal(size=(size, size, 3, 4)).astype(np.float32)

  def ours(x, kernel):
    return Conv(4, size, stride).apply({'params': {'kernel': kernel}}, x)

  def theirs(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  (out, gradient), (expected, expected_gradient) = (
    (value, pull(jnp.cos(value))) for value, pull in (jax.vjp(f, x, kernel) for f in (ours, theirs))
  )
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
  for a, b in zip(gradient, expected_gradient, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_parameters_are_float32_and_products_low_precision():
  random = np.random.default_rng(0)
  x = random.normal(size=(2, 8, 8, 4)).astype(np.float32)
  for size in (1, 3, 8):
    low = Conv(6, size, groups=2, use_bias=True, dtype=jnp.bfloat16)
    params = jax.eval_shape(low.init, jax.random.key(1), x)['params']
    kinds = jax.tree.map(lambda p: (p.shape, p.dtype.name), params)
    assert kinds == {'kernel': ((size, size, 2, 6), 'float32'), 'bias': ((6,), 'float32')}
    variables = {
      'params': jax.tree.map(
        lambda p: random.normal(0, 1 / p.shape[0], p.shape).astype(np.float32), params
      )
    }
    out, full = low.apply(variables, x), low.clone(dtype=jnp.float32).apply(variables, x)
    assert (out.dtype, full.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(out.astype(jnp.float32), full, rtol=0.02, atol=0.06)


def test_initial_kernels_are_scaled_by_their_fan_out():
  kernel = Conv(400, 3).init(jax.random.key(0), jnp.zeros((1, 3, 3, 64)))['params']['kernel']
  assert float(kernel.std()) == pytest.approx(np.sqrt(2 / (9 * 400)), rel=0.01)
