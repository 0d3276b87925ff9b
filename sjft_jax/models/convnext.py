"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s") and ConvNeXt V2 (Woo et al. 2023)."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sjft_jax.models.convolution import Conv
from sjft_jax.models.perceptron import LayerNorm, Perceptron
from sjft_jax.models.preprocess import check_image_size

_MIN_SIDE = 32  # Pixels; the stem and three halvings leave one position.
_kernel_init = nn.initializers.normal(0.02)


class Variant(NamedTuple):
  """One network.

  Attributes:
    stage_sizes: blocks per stage.
    features: channels of the first stage, which double with each further one.
    response_norm: whether it is of version 2: `ResponseNorm`, and no scale of a block's output.
  """

  stage_sizes: tuple[int, ...]
  features: int
  response_norm: bool = False


# The names are timm's.
VARIANTS = {
  'convnext_tiny': Variant((3, 3, 9, 3), 96),
  'convnext_small': Variant((3, 3, 27, 3), 96),
  'convnext_base': Variant((3, 3, 27, 3), 128),
  'convnext_large': Variant((3, 3, 27, 3), 192),
  'convnextv2_atto': Variant((2, 2, 6, 2), 40, True),
  'convnextv2_nano': Variant((2, 2, 8, 2), 80, True),
  'convnextv2_tiny': Variant((3, 3, 9, 3), 96, True),
  'convnextv2_base': Variant((3, 3, 27, 3), 128, True),
  'convnextv2_large': Variant((3, 3, 27, 3), 192, True),
}


class Block(nn.Module):
  """A depthwise 7×7 convolution, layer norm and a perceptron, beside the input.

  The first block of a stage halves the map before: layer norm and a 2×2/2 convolution.

  Attributes:
    features: channels.
    halves: whether it halves the map.
    response_norm: as in `Variant`. Without it, each channel of the output has a factor, 1e-6 at
      first.
    dtype: of activations and products.
  """

  features: int
  halves: bool
  response_norm: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 d']:
    """Compute the block's output."""
    options = {'use_bias': True, 'dtype': self.dtype, 'kernel_init': _kernel_init}
    if self.halves:
      x = LayerNorm(dtype=self.dtype, name='downsample_norm')(x)
      x = Conv(self.features, 2, 2, name='downsample', **options)(x)
    y = Conv(self.features, 7, padding=3, groups=self.features, name='depthwise', **options)(x)
    y = LayerNorm(dtype=self.dtype, name='norm')(y)
    positions = y.reshape(y.shape[0], -1, self.features)
    y = Perceptron(self.response_norm, self.dtype, name='mlp')(positions).reshape(x.shape)
    if not self.response_norm:
      scale = self.param('scale', nn.initializers.constant(1e-6), (self.features,), jnp.float32)
      y *= scale.astype(self.dtype).reshape(1, 1, 1, -1)
    return x + y


class ConvNeXt(nn.Module):
  """A ConvNeXt up to the layer norm after global average pooling, without stochastic depth.

  Attributes:
    variant: which one.
    dtype: of activations and products; parameters and features are float32.
    remat: keep only the blocks' inputs for the backward pass and compute the rest again.
  """

  variant: Variant
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

    `train` and `is_source` are arguments of every trunk, and without effect here.

    Raises:
      ValueError: the images are too small.
    """
    del train, is_source
    check_image_size(images, _MIN_SIDE, network='ConvNeXt', remedy='use larger images')
    block = nn.remat(Block) if self.remat else Block
    features = self.variant.features
    stem = Conv(
      features, 4, 4, use_bias=True, dtype=self.dtype, kernel_init=_kernel_init, name='stem'
    )
    x = LayerNorm(dtype=self.dtype, name='stem_norm')(stem(images))
    for i, num_blocks in enumerate(self.variant.stage_sizes):
      for j in range(num_blocks):
        x = block(
          features * 2**i,
          i > 0 and j == 0,
          self.variant.response_norm,
          self.dtype,
          name=f'stage{i + 1}_block{j + 1}',
        )(x)
    return LayerNorm(name='norm')(x.mean(axis=(1, 2), dtype=jnp.float32))
