"""VGG (Simonyan & Zisserman 2015, "Very deep convolutional networks"), configurations D and E."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sjft_jax.models.batch_norm import BatchNorm
from sjft_jax.models.convolution import Conv
from sjft_jax.models.fully_connected import FullyConnected
from sjft_jax.models.pooling import max_pool
from sjft_jax.models.preprocess import check_image_size

# Convolutions per stage; the channels of each stage.
STAGE_SIZES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)

# The smallest image sides: five halvings leave fc6 its 7×7 window, four leave conv5 one position.
MIN_SIDE_FULLY_CONNECTED = 7 * 32
MIN_SIDE_CONVOLUTIONS = 16


class VGG(nn.Module):
  """Stages of 3×3 convolutions with max-pooling between, and, unless left out, fc6 and fc7.

  Attributes:
    stage_sizes: convolutions per stage.
    norm: whether batch norm (epsilon 1e-5) follows each convolution, as in torchvision's
      `vgg16_bn`.
    batch_norm: whose statistics normalise (see `BatchNorm`); of no effect without `norm`.
    batch_norm_momentum: share of the running statistics that remains after a micro-batch.
    fully_connected: whether the features are the 4096 of fc7, averaged over the map; else they are
      the average of the last convolution's 512 maps, after the nonlinearity and before pool5.
    dtype: of activations and products; parameters and statistics are float32.
    remat: recompute each stage in the backward pass instead of keeping its activations.
  """

  stage_sizes: tuple[int, ...]
  norm: bool
  batch_norm: str = 'mixed'
  batch_norm_momentum: float = 0.999
  fully_connected: bool = True
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self,
    images: Float[Array, 'b h w 3'],
    train: bool = False,
    is_source: Bool[Array, ' b'] | None = None,
  ) -> Float[Array, 'b features']:
    """Compute the features of normalised images (`preprocess.normalize`).

    Training needs a mapped axis 'batch' and, if `fully_connected`, a 'dropout' key.

    Raises:
      ValueError: the images are too small.
    """
    if self.fully_connected:
      check_image_size(
        images,
        MIN_SIDE_FULLY_CONNECTED,
        network='VGG with fc6',
        remedy='use larger images or fully_connected=False',
      )
    check_image_size(images, MIN_SIDE_CONVOLUTIONS, network='VGG', remedy='use larger images')

    def stage(module: VGG, x: Array, i: int) -> Array:
      for j in range(1, module.stage_sizes[i - 1] + 1):
        x = Conv(
          CHANNELS[i - 1],
          3,
          padding=1,
          use_bias=True,
          dtype=module.dtype,
          kernel_init=nn.initializers.he_normal(),
          name=f'conv{i}_{j}',
        )(x)
        if module.norm:
          x = BatchNorm(
            train, module.batch_norm, module.batch_norm_momentum, epsilon=1e-5, name=f'norm{i}_{j}'
          )(x, is_source)
        x = nn.relu(x)
      return x

    if self.remat:
      stage = nn.remat(stage, static_argnums=(2,))
    x = images
    for i in range(1, len(self.stage_sizes) + 1):
      x = stage(self, x, i)
      if i < len(self.stage_sizes) or self.fully_connected:
        x = max_pool(x, 2)
    if not self.fully_connected:
      return x.mean(axis=(1, 2), dtype=jnp.float32)
    top = FullyConnected(7, self.dtype)
    nn.share_scope(self, top)
    return top(x, train)


def vgg(depth: int, *, norm: bool, **attributes: Any) -> VGG:
  """Build the standard network of `depth` layers.

  Args:
    depth: a key of `STAGE_SIZES`.
    norm: whether batch norm follows each convolution.
    attributes: other attributes of `VGG`.

  Raises:
    ValueError: a depth not in `STAGE_SIZES`.
  """
  if depth not in STAGE_SIZES:
    raise ValueError(f'depth={depth} is no standard VGG; use one of {sorted(STAGE_SIZES)}')
  return VGG(STAGE_SIZES[depth], norm, **attributes)
