import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.models.pooling import max_pool

PADDING = {
  'valid': lambda side, size: (0, 0),
  'padded': lambda side, size: (1, 1),
  'ceil': lambda side, size: (0, (side - size) % 2),
}


@pytest.mark.parametrize('size', [2, 3])
@pytest.mark.parametrize('border', PADDING)
def test_values_and_gradients_are_those_of_the_window_maximum(size, border):
  rng = np.random.default_rng(size)
  # With few values, windows have ties, whose gradient goes to the first pixel.
  x = jnp.asarray(rng.integers(-2, 3, (8, 9, 10, 3)), jnp.float32)
  padding = [PADDING[border](side, size) for side in (9, 10)]
  pooled, gradient = jax.vjp(lambda x: max_pool(x, size, border), x)
  expected, expected_gradient = jax.vjp(
    lambda x: nn.max_pool(x, (size, size), (2, 2), padding=padding), x
  )
  np.testing.assert_array_equal(pooled, expected)
  g = jnp.asarray(rng.normal(size=pooled.shape), jnp.float32)
  np.testing.assert_allclose(gradient(g)[0], expected_gradient(g)[0], rtol=1e-6)


def test_zeros_at_the_border_count_as_pixels():
  x = jnp.full((1, 4, 4, 1), -1.0)
  assert not max_pool(x, 3, 'zeros')[0, 0].any()
  assert max_pool(x, 3, 'zeros')[0, 1, 1, 0] == -1
  gradient = jax.grad(lambda x: max_pool(x, 3, 'zeros').sum())(x)
  assert gradient.sum() == 1  # It is that of the one window without a border.


@pytest.mark.reference
@pytest.mark.parametrize('side', [8, 9, 10])
def test_ceil_border_equals_pytorch_ceil_mode(side):
  import torch

  x = np.random.default_rng(0).normal(size=(1, side, side + 1, 2)).astype(np.float32)
  expected = torch.nn.functional.max_pool2d(
    torch.from_numpy(x.transpose(0, 3, 1, 2)), 3, 2, ceil_mode=True
  )
  np.testing.assert_array_equal(
    max_pool(jnp.asarray(x), 3, 'ceil'), expected.numpy().transpose(0, 2, 3, 1)
  )
