"""The layers that blocks of ConvNeXt and of vision transformers share."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Dense = partial(nn.Dense, kernel_init=nn.initializers.normal(0.02))


class LayerNorm(nn.Module):
  """Normalise the channels of each position, then scale and shift them (Ba et al. 2016).

  Parameters are 'scale' and 'bias' `[c]`, float32, as the arithmetic is. Flax's own layer promotes
  types without being asked, which the tests refuse.

  Attributes:
    dtype: of the output.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*b c']) -> Float[Array, '*b c']:
    """Normalise `x`, of any float type; epsilon is 1e-6."""
    shape = (1,) * (x.ndim - 1) + x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:], jnp.float32).reshape(shape)
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:], jnp.float32).reshape(shape)
    x = x.astype(jnp.float32)
    x -= x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x).mean(axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(variance + 1e-6) * scale + bias).astype(self.dtype)


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
