"""The depthwise convolution and its gradients are XLA's of grouped convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.models import depthwise
from sjft_jax.models.convolution import Conv

CASES = [
  (3, 1, ((1, 1), (1, 1)), (9, 7)),
  (5, 2, ((1, 2), (2, 2)), (9, 10)),
  (3, 2, ((0, 1), (1, 1)), (8, 7)),
  # The last pixels are in no window.
  (3, 3, ((0, 0), (0, 0)), (8, 10)),
]


def grouped(x, kernel, stride, padding):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


def draw(size, sides, seed=0):
  random = np.random.default_rng(seed)
  x = random.standard_normal((2, *sides, 4), np.float32)
  return x, random.standard_normal((size, size, 1, 4), np.float32)


@pytest.mark.parametrize(('size', 'stride', 'padding', 'sides'), CASES)
def test_values_and_gradients_are_those_of_grouped_convolutions(size, stride, padding, sides):
  x, kernel = draw(size, sides)

  def run(convolve, cotangent):
    def compute(x, kernel, cotangent):
      out, gradients = jax.vjp(lambda x, k: convolve(x, k, stride, padding), x, kernel)
      return out, *gradients(cotangent)

    return jax.jit(compute)(x, kernel, cotangent)

  shape = jax.eval_shape(lambda: grouped(x, kernel, stride, padding)).shape
  cotangent = np.random.default_rng(1).standard_normal(shape, np.float32)
  for a, b in zip(run(depthwise.depthwise, cotangent), run(grouped, cotangent), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  # As on other platforms.
  everywhere = depthwise._sum_maps(size, stride, padding, x, cotangent)
  np.testing.assert_allclose(everywhere.reshape(kernel.shape), b, rtol=1e-4, atol=1e-4)


def test_sums_are_float32():
  x, kernel = draw(7, (16, 16))
  x, kernel = (jnp.asarray(value, jnp.bfloat16) for value in (x, kernel))
  out = depthwise.depthwise(x, kernel, 1, ((3, 3), (3, 3)))
  exact = grouped(x.astype(jnp.float32), kernel.astype(jnp.float32), 1, ((3, 3), (3, 3)))
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize('groups', [1, 4])
@pytest.mark.parametrize(('size', 'stride', 'side'), [(3, 2, 8), (3, 2, 9), (5, 2, 7), (4, 2, 9)])
def test_same_padding_is_tensorflows(size, stride, side, groups):
  x, kernel = draw(size, (side, side + 1))
  kernel = kernel if groups == 4 else np.repeat(kernel, 4, axis=2)
  ours = Conv(4, size, stride, 'same', groups).apply({'params': {'kernel': kernel}}, x)
  expected = jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )
  np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
