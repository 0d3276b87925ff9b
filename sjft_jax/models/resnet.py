"""Residual networks in their publishers' variants.

Version 1 is that of He et al. 2016a, "Deep residual learning for image recognition"; version 2 that
of He et al. 2016b, "Identity mappings in deep residual networks" (pre-activation).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sjft_jax.models.batch_norm import BatchNorm
from sjft_jax.models.convolution import Conv
from sjft_jax.models.pooling import max_pool
from sjft_jax.runtime.choice import choose

# Blocks per stage; from 50 layers on, blocks are bottlenecks.
STAGE_SIZES = {
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
  200: (3, 24, 36, 3),
}


@dataclasses.dataclass(frozen=True)
class Style:
  """The choices in which publishers of the same network differ.

  Attributes:
    stride_on: the convolution of a bottleneck block that strides, '1x1' (the first) or '3x3';
      basic blocks stride on their first.
    strided_block: the block of a stage that strides. 'first': the first block of each stage but the
      first stage. 'last': the last block of each stage but the last stage.
    pool: the border of the stem's 3×3/2 max-pool. 'padded': a pixel of −∞ on each side. 'zeros': a
      pixel of zeros on each side. 'ceil': no padding, and a last window that overhangs.
    epsilon: of the batch norms.
    stem_norm: whether version 2 normalises and activates before the max-pool, and not again in the
      first block.
    bias: whether the stem, projections and the last convolution of each block have biases.
  """

  stride_on: str = '3x3'
  strided_block: str = 'first'
  pool: str = 'padded'
  epsilon: float = 1e-5
  stem_norm: bool = False
  bias: bool = False

  def strided_block_index(self, stage: int, stage_sizes: tuple[int, ...]) -> int | None:
    """Return the index of the block that strides in a stage, both from 0; None if none does."""
    if self.strided_block == 'first':
      return 0 if stage > 0 else None
    return stage_sizes[stage] - 1 if stage < len(stage_sizes) - 1 else None


# Styles by version; the first of each is the default. 'released': the paper's (Ge & Yu 2017) own
# code. 'torch': torchvision's ("v1.5") and timm's resnetv2. 'caffe': He's models.
STYLES = {
  1: {
    'torch': Style(),
    'caffe': Style(stride_on='1x1', pool='ceil'),
    'keras': Style(stride_on='1x1', epsilon=1.001e-5),
  },
  2: {
    'released': Style(stride_on='1x1', pool='ceil', stem_norm=True),
    'torch': Style(),
    'keras': Style(strided_block='last', pool='zeros', epsilon=1.001e-5, bias=True),
  },
}


class Block(nn.Module):
  """One residual block: two 3×3 convolutions (basic), or 1×1, 3×3, 1×1 (bottleneck).

  Version 1 normalises after each convolution and activates the sum. Version 2 normalises and
  activates before each convolution, and its projection reads the first of these activations. A
  block that strides without changing its channels keeps every stride-th pixel as its shortcut.

  Attributes:
    version: 1 or 2.
    features: output channels; a bottleneck has four times as many.
    stride: of the block.
    bottleneck: whether it has three convolutions.
    style: whose variant it is.
    is_activated: whether the input is normalised and activated already (version 2).
    conv: makes a convolution.
    norm: makes a batch norm.
  """

  version: int
  features: int
  stride: int
  bottleneck: bool
  style: Style
  is_activated: bool
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], is_source: Bool[Array, ' b'] | None
  ) -> Float[Array, 'b h2 w2 d']:
    """Compute the block's output; `is_source` is for the batch norms."""

    def norm(x: Array, name: str) -> Array:
      return self.norm(name=name)(x, is_source)

    sizes = (1, 3, 1) if self.bottleneck else (3, 3)
    last = len(sizes) - 1
    strided = 1 if self.bottleneck and self.style.stride_on == '3x3' else 0
    features_out = 4 * self.features if self.bottleneck else self.features
    pre_activation = self.version == 2

    # Both uses of x reshape it, so that XLA's CPU compiler fuses the sum of the residual gradients:
    # they add up in the shape that matrix products take. In any other shape, the compiler adds the
    # gradients of all later blocks up again in every block.
    flat = x.reshape(-1, x.shape[-1])
    x, y = flat.reshape(x.shape), flat.reshape(x.shape)
    if pre_activation and not self.is_activated:
      y = nn.relu(norm(y, 'norm1'))
    if x.shape[-1] != features_out:
      project = self.conv(features_out, 1, self.stride, use_bias=self.style.bias, name='projection')
      shortcut = project(y) if pre_activation else norm(project(x), 'projection_norm')
    else:
      shortcut = x[:, :: self.stride, :: self.stride]
    for i, size in enumerate(sizes):
      if pre_activation and i > 0:
        y = nn.relu(norm(y, f'norm{i + 1}'))
      y = self.conv(
        features_out if i == last else self.features,
        size,
        self.stride if i == strided else 1,
        padding=size // 2,
        use_bias=self.style.bias and i == last,
        name=f'conv{i + 1}',
      )(y)
      if not pre_activation:
        y = norm(y, f'norm{i + 1}')
        y = nn.relu(y) if i < last else y
    return shortcut + y if pre_activation else nn.relu(shortcut + y)


class ResNet(nn.Module):
  """A residual network up to and including global average pooling, at any image size.

  The stem is a 7×7/2 convolution (with norm and ReLU in version 1) and a 3×3/2 max-pool.

  Attributes:
    stage_sizes: blocks per stage.
    bottleneck: whether blocks have three layers (1×1, 3×3, 1×1 with four times the channels) or
      two 3×3.
    version: 1 or 2.
    style: whose variant it is.
    width: multiple of the standard channel counts (64, 128, 256, 512).
    batch_norm: whose statistics normalise (see `BatchNorm`): 'mixed', 'per_domain' or 'frozen'.
    batch_norm_momentum: share of the running statistics that remains after a micro-batch.
    dtype: of activations and products; parameters, statistics and features are float32.
    remat: keep only the blocks' inputs for the backward pass and compute the rest again, which
      takes about a third more time and a fraction of the memory.
  """

  stage_sizes: tuple[int, ...]
  bottleneck: bool
  version: int = 2
  style: Style = STYLES[2]['released']
  width: float = 1.0
  batch_norm: str = 'mixed'
  batch_norm_momentum: float = 0.999
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

    Training needs a mapped axis 'batch', and `is_source` with `batch_norm` 'per_domain'.
    """
    base = round(64 * self.width)
    conv = partial(Conv, dtype=self.dtype)
    norm = partial(BatchNorm, train, self.batch_norm, self.batch_norm_momentum, self.style.epsilon)
    block = nn.remat(Block) if self.remat else Block

    x = conv(base, 7, 2, padding=3, use_bias=self.style.bias, name='stem')(images)
    if self.version == 1 or self.style.stem_norm:
      x = nn.relu(norm(name='stem_norm')(x, is_source))
    x = max_pool(x, 3, self.style.pool)
    for i, num_blocks in enumerate(self.stage_sizes):
      strided = self.style.strided_block_index(i, self.stage_sizes)
      for j in range(num_blocks):
        x = block(
          self.version,
          base * 2**i,
          2 if j == strided else 1,
          self.bottleneck,
          self.style,
          self.style.stem_norm and i == j == 0,
          conv,
          norm,
          name=f'stage{i + 1}_block{j + 1}',
        )(x, is_source)
    if self.version == 2:
      x = nn.relu(norm(name='norm')(x, is_source))
    return x.mean(axis=(1, 2), dtype=jnp.float32)


def resnet(
  depth: int, version: int = 2, *, style: str = 'auto', width: float = 1.0, **attributes: Any
) -> ResNet:
  """Build the standard network of `depth` layers.

  Args:
    depth: a key of `STAGE_SIZES`.
    version: 1 or 2.
    style: a key of `STYLES[version]`, or 'auto', its first.
    width: multiple of the standard channel counts.
    attributes: other attributes of `ResNet`.

  Raises:
    ValueError: a depth not in `STAGE_SIZES`, a style not of that version, or a width that leaves no
      channel.
  """
  if depth not in STAGE_SIZES:
    raise ValueError(f'depth={depth} is no standard ResNet; use one of {sorted(STAGE_SIZES)}')
  styles = STYLES[version]
  choose('style', style, ('auto', *styles))
  if round(64 * width) < 1:
    raise ValueError(f'width={width} leaves no channel of 64; raise width')
  variant = next(iter(styles.values())) if style == 'auto' else styles[style]
  return ResNet(STAGE_SIZES[depth], depth >= 50, version, variant, width, **attributes)
