"""fc6 and fc7 of AlexNet and VGG as convolutions, with dropout."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sjft_jax.models.convolution import Conv


class Dropout(nn.Module):
  """Zero half of the values at random in training and double the rest (Srivastava et al. 2014).

  Every image has a key of its own, counted over the devices of the mapped axis 'batch' (which
  must exist in training): the same images get the same masks on any number of devices.
  """

  @nn.compact
  def __call__(self, x: Float[Array, ' b *shape'], train: bool) -> Float[Array, ' b *shape']:
    """Drop values of `x` if `train`, with the random stream 'dropout'."""
    if not train or self.is_initializing():
      return x
    batch = x.shape[0]
    positions = jax.lax.axis_index('batch') * batch + jnp.arange(batch)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng('dropout'), positions)
    masks = jax.vmap(lambda key: jax.random.bernoulli(key, shape=x.shape[1:]))(keys)
    return jnp.where(masks, 2 * x, 0)


class FullyConnected(nn.Module):
  """The last pooled map → fc6 → fc7, averaged over the positions where fc6's window fits.

  At the image size of the original training there is one position, and this is the published
  network. On larger images it is applied densely (Simonyan & Zisserman 2015, Section 3.2).

  Attributes:
    size: side of fc6's window, which is that of the pooled map in the original training.
    dtype: of activations and products.
  """

  size: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'], train: bool) -> Float[Array, 'b 4096']:
    """Compute fc7's features, with dropout if `train`."""
    for name, size in (('fc6', self.size), ('fc7', 1)):
      x = Conv(
        4096,
        size,
        use_bias=True,
        dtype=self.dtype,
        kernel_init=nn.initializers.he_normal(),
        name=name,
      )(x)
      x = Dropout()(nn.relu(x), train)
    return x.mean(axis=(1, 2), dtype=jnp.float32)
