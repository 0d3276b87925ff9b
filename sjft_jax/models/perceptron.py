"""The layers that blocks of ConvNeXt and of vision transformers share."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

# With the variance in two passes, as for batch norm; statistics are float32.
LayerNorm = partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)
Dense = partial(nn.Dense, kernel_init=nn.initializers.normal(0.02))


class ResponseNorm(nn.Module):
  """Scale each channel by its share of the image's response (Woo et al. 2023, ConvNeXt V2).

  The response of a channel is the root of its sum of squares over the map, its share that over the
  mean of all channels'. Parameters are 'scale' and 'bias' `[c]`, zeros at first.
  """

  @nn.compact
  def __call__(self, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
    """Compute x + scale · x · share + bias, in float32."""
    scale, bias = (
      self.param(name, nn.initializers.zeros, x.shape[-1:], jnp.float32).reshape(1, 1, -1)
      for name in ('scale', 'bias')
    )
    dtype, x = x.dtype, x.astype(jnp.float32)
    # The square root has no gradient at 0, where a channel is silent.
    squares = jnp.square(x).sum(axis=1, keepdims=True)
    response = jnp.sqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny))
    share = response / (response.mean(axis=-1, keepdims=True) + 1e-6)
    return (x + scale * x * share + bias).astype(dtype)


class Perceptron(nn.Module):
  """A layer of four times the channels, GELU, and a layer back to as many as there were.

  Attributes:
    response_norm: whether `ResponseNorm` follows the GELU.
    dtype: of activations and products.
  """

  response_norm: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
    """Compute every position's output."""
    features = x.shape[-1]
    x = nn.gelu(Dense(4 * features, dtype=self.dtype, name='fc1')(x), approximate=False)
    if self.response_norm:
      x = ResponseNorm(name='response_norm')(x)
    return Dense(features, dtype=self.dtype, name='fc2')(x)
