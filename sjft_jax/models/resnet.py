"""Residual networks: v1 (He et al. 2016a, "Deep residual learning") and v2 (He et al. 2016b,
"Identity mappings in deep residual networks", pre-activation), as their publishers lay them out.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sjft_jax.models.batch_norm import MODES, BatchNorm
from sjft_jax.models.convolution import Conv
from sjft_jax.models.pooling import max_pool
from sjft_jax.runtime.options import choose

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
  """What publishers of the same network do differently.

  Attributes:
    stride_on: the convolution of a bottleneck block that strides, '1x1' (the first) or '3x3';
      basic blocks stride on their first.
    strided_block: where a stage strides. 'first': in the first block of each stage but the first
      stage. 'last': in the last block of each stage but the last stage.
    pool: what the stem's 3×3/2 max-pool does at the border. 'padded': a pixel of −∞ on each side.
      'zeros': a pixel of zeros on each side. 'ceil': no padding, and a last window that overhangs.
    epsilon: the batch norms'.
    stem_norm: whether version 2 norms and activates before the max-pool, and not again in the first
      block.
    bias: whether the stem, projections and the last convolution of each block have biases.
  """

  stride_on: str = '3x3'
  strided_block: str = 'first'
  pool: str = 'padded'
  epsilon: float = 1e-5
  stem_norm: bool = False
  bias: bool = False


# By version; the first of each is the default. 'released': the paper's (Ge & Yu 2017) own code.
# 'torch': torchvision's ("v1.5") and timm's resnetv2. 'caffe': He's models.
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

  Version 1 norms after each convolution and activates the sum; version 2 norms and activates
  before each, unless `is_activated` says that the first has been, and its projection reads the
  first of these. A block that strides without changing its channels keeps every stride-th pixel as
  its shortcut.
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
    def norm(x: Array, name: str) -> Array:
      return self.norm(name=name)(x, is_source)

    sizes = (1, 3, 1) if self.bottleneck else (3, 3)
    last = len(sizes) - 1
    strided = 1 if self.bottleneck and self.style.stride_on == '3x3' else 0
    features_out = 4 * self.features if self.bottleneck else self.features
    pre = self.version == 2

    # What follows reads x twice, and the gradients of both add up in the shape that products take.
    # In any other, XLA's CPU compiler adds those of all later blocks up again in every block.
    flat = x.reshape(-1, x.shape[-1])
    x, y = flat.reshape(x.shape), flat.reshape(x.shape)
    if pre and not self.is_activated:
      y = nn.relu(norm(y, 'norm1'))
    if x.shape[-1] != features_out:
      project = self.conv(features_out, 1, self.stride, use_bias=self.style.bias, name='projection')
      shortcut = project(y) if pre else norm(project(x), 'projection_norm')
    else:
      shortcut = x[:, :: self.stride, :: self.stride]
    for i, size in enumerate(sizes):
      if pre and i > 0:
        y = nn.relu(norm(y, f'norm{i + 1}'))
      y = self.conv(
        features_out if i == last else self.features,
        size,
        self.stride if i == strided else 1,
        padding=size // 2,
        use_bias=self.style.bias and i == last,
        name=f'conv{i + 1}',
      )(y)
      if not pre:
        y = norm(y, f'norm{i + 1}')
        y = nn.relu(y) if i < last else y
    return shortcut + y if pre else nn.relu(shortcut + y)


class ResNet(nn.Module):
  """A residual network up to and including global average pooling, at any image size.

  The stem is a 7×7/2 convolution (with norm and ReLU in version 1) and a 3×3/2 max-pool.

  Attributes:
    stage_sizes: blocks per stage.
    bottleneck: three-layer blocks (1×1, 3×3, 1×1 with four times the channels) or two 3×3.
    version: 1 or 2.
    style: whose variant of it.
    width: multiple of the standard channel counts (64, 128, 256, 512).
    batch_norm: whose statistics normalise (see `BatchNorm`): 'mixed', 'per_domain' or 'frozen'.
    batch_norm_momentum: share of the running statistics that a micro-batch leaves.
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
    base = round(64 * self.width)
    conv = partial(Conv, dtype=self.dtype)
    norm = partial(BatchNorm, train, self.batch_norm, self.batch_norm_momentum, self.style.epsilon)
    block = nn.remat(Block) if self.remat else Block

    x = conv(base, 7, 2, padding=3, use_bias=self.style.bias, name='stem')(images)
    if self.version == 1 or self.style.stem_norm:
      x = nn.relu(norm(name='stem_norm')(x, is_source))
    x = max_pool(x, 3, self.style.pool)
    for i, num_blocks in enumerate(self.stage_sizes):
      if self.style.strided_block == 'first':
        strided = 0 if i > 0 else None
      else:
        strided = num_blocks - 1 if i < len(self.stage_sizes) - 1 else None
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
    attributes: others of `ResNet`.

  Raises:
    ValueError: another depth, a style not of that version, an unknown batch_norm, or a width that
      leaves no channel.
  """
  if depth not in STAGE_SIZES:
    raise ValueError(f'depth={depth} is no standard ResNet; use one of {sorted(STAGE_SIZES)}')
  styles = STYLES[version]
  choose('style', style, ('auto', *styles))
  choose('batch_norm', attributes.get('batch_norm', 'mixed'), MODES)
  if round(64 * width) < 1:
    raise ValueError(f'width={width} leaves no channel of 64; raise width')
  chosen = next(iter(styles.values())) if style == 'auto' else styles[style]
  return ResNet(STAGE_SIZES[depth], depth >= 50, version, chosen, width, **attributes)
