"""Networks of inverted residual blocks: MobileNetV2 and EfficientNet-Lite.

MobileNetV2 is that of Sandler et al. 2018, "MobileNetV2: Inverted residuals and linear
bottlenecks"; EfficientNet-Lite that of Tan & Le 2019, "EfficientNet", without
squeeze-and-excitation and with ReLU6, as TensorFlow publishes it.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sjft_jax.models.batch_norm import BatchNorm
from sjft_jax.models.convolution import Conv
from sjft_jax.runtime.choice import choose

# The outputs of the last convolution, at width 1 or below.
_HEAD_FEATURES = 1280


class Stage(NamedTuple):
  """Blocks at one resolution.

  Attributes:
    num_blocks: how many there are.
    size: pixels a side of their depthwise kernels.
    stride: of the first block.
    expansion: the factor from a block's inputs to its inner channels.
    features: outputs of each block.
  """

  num_blocks: int
  size: int
  stride: int
  expansion: int
  features: int


_MOBILENET_V2 = (
  Stage(1, 3, 1, 1, 16),
  Stage(2, 3, 2, 6, 24),
  Stage(3, 3, 2, 6, 32),
  Stage(4, 3, 2, 6, 64),
  Stage(3, 3, 1, 6, 96),
  Stage(3, 3, 2, 6, 160),
  Stage(1, 3, 1, 6, 320),
)
_EFFICIENTNET_LITE = (
  Stage(1, 3, 1, 1, 16),
  Stage(2, 3, 2, 6, 24),
  Stage(2, 5, 2, 6, 40),
  Stage(3, 3, 2, 6, 80),
  Stage(3, 5, 1, 6, 112),
  Stage(4, 5, 2, 6, 192),
  Stage(1, 3, 1, 6, 320),
)


@dataclasses.dataclass(frozen=True)
class Style:
  """The choices in which publishers of the same network differ.

  Attributes:
    padding: of the convolutions that stride: 'centre', as many pixels on all four sides; or 'same',
      TensorFlow's.
    epsilon: of the batch norms.
  """

  padding: Literal['centre', 'same'] = 'centre'
  epsilon: float = 1e-5


# Styles by name. 'torch': torchvision's and timm's. 'keras': Keras's and TensorFlow's.
STYLES = {'torch': Style(), 'keras': Style('same', 1e-3)}


@dataclasses.dataclass(frozen=True)
class Variant:
  """One network.

  Attributes:
    stages: of the network of width and depth 1.
    width: factor on the channels.
    depth: factor on the blocks of each stage, rounded up.
    fixed_ends: whether the stem and the last convolution keep their channels, and the first and the
      last stage their blocks.
    styles: keys of `STYLES`; the first is the default.
  """

  stages: tuple[Stage, ...]
  width: float = 1.0
  depth: float = 1.0
  fixed_ends: bool = False
  styles: tuple[str, ...] = ('torch',)

  @property
  def scaled_stages(self) -> tuple[Stage, ...]:
    """The stages with their scaled numbers of blocks and channels."""
    scaled = []
    for stage in self.stages:
      is_end = stage in (self.stages[0], self.stages[-1])
      depth = 1 if self.fixed_ends and is_end else self.depth
      scaled.append(
        stage._replace(
          num_blocks=math.ceil(stage.num_blocks * depth), features=self._scale(stage.features)
        )
      )
    return tuple(scaled)

  @property
  def stem_features(self) -> int:
    """The outputs of the first convolution."""
    return 32 if self.fixed_ends else self._scale(32)

  @property
  def head_features(self) -> int:
    """The outputs of the last convolution."""
    return _HEAD_FEATURES if self.fixed_ends else max(_HEAD_FEATURES, self._scale(_HEAD_FEATURES))

  def _scale(self, features: int) -> int:
    """Return the multiple of 8 that is nearest to the scaled channels, and not 10 % below them."""
    scaled = features * self.width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8


_LITE_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))
# The names are timm's. Its files of 'efficientnet_lite0' and 'tf_efficientnet_lite0' have tensors
# of the same names and shapes, for other paddings and epsilons: only their names differ.
VARIANTS = {
  **{
    f'mobilenetv2_{round(100 * width):03}': Variant(_MOBILENET_V2, width, styles=('torch', 'keras'))
    for width in (0.35, 0.5, 0.75, 1.0, 1.4)
  },
  'mobilenetv2_110d': Variant(_MOBILENET_V2, 1.1, 1.2, fixed_ends=True),
  'mobilenetv2_120d': Variant(_MOBILENET_V2, 1.2, 1.4, fixed_ends=True),
  **{
    f'{prefix}efficientnet_lite{i}': Variant(_EFFICIENTNET_LITE, *scales, True, (style,))
    for prefix, style in (('', 'torch'), ('tf_', 'keras'))
    for i, scales in enumerate(_LITE_SCALES)
  },
}


class Block(nn.Module):
  """An inverted residual block: 1×1 to more channels, depthwise, 1×1 to fewer, without activation.

  A block that neither strides nor changes the channels adds its input. At expansion 1 there is no
  first convolution.

  Attributes:
    features: outputs.
    expansion: the factor from the inputs to the inner channels.
    size: pixels a side of the depthwise kernels.
    stride: of the block.
    conv: makes a convolution.
    norm: makes a batch norm.
  """

  features: int
  expansion: int
  size: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], is_source: Bool[Array, ' b'] | None
  ) -> Float[Array, 'b h2 w2 d']:
    """Compute the block's output; `is_source` is for the batch norms."""

    def unit(y: Array, name: str, *arguments: int, groups: int = 1) -> Array:
      y = self.conv(*arguments, groups=groups, name=name)(y)
      return self.norm(name=f'{name}_norm')(y, is_source)

    inner = x.shape[-1] * self.expansion
    y = x
    if self.expansion > 1:
      y = nn.relu6(unit(y, 'expand', inner, 1))
    y = nn.relu6(unit(y, 'depthwise', inner, self.size, self.stride, groups=inner))
    y = unit(y, 'project', self.features, 1)
    return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class InvertedResidualNet(nn.Module):
  """A network of inverted residual blocks up to and including global average pooling.

  The stem is a 3×3/2 convolution; a 1×1 convolution follows the last block. All but the last
  convolution of each block have batch norm and ReLU6.

  Attributes:
    stages: of blocks.
    stem_features: outputs of the stem.
    head_features: outputs of the last convolution, which are the features.
    style: whose variant it is.
    batch_norm: whose statistics normalise (see `BatchNorm`): 'mixed', 'per_domain' or 'frozen'.
    batch_norm_momentum: share of the running statistics that remains after a micro-batch.
    dtype: of activations and products; parameters, statistics and features are float32.
    remat: keep only the blocks' inputs for the backward pass and compute the rest again.
  """

  stages: tuple[Stage, ...]
  stem_features: int = 32
  head_features: int = _HEAD_FEATURES
  style: Style = STYLES['torch']
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

    def conv(features: int, size: int, stride: int = 1, **options: Any) -> Conv:
      is_centred = self.style.padding == 'centre' or size == 1
      padding: int | Literal['same'] = size // 2 if is_centred else 'same'
      return Conv(features, size, stride, padding, dtype=self.dtype, **options)

    norm = partial(BatchNorm, train, self.batch_norm, self.batch_norm_momentum, self.style.epsilon)
    block = nn.remat(Block) if self.remat else Block

    x = conv(self.stem_features, 3, 2, name='stem')(images)
    x = nn.relu6(norm(name='stem_norm')(x, is_source))
    for i, stage in enumerate(self.stages, 1):
      for j in range(1, stage.num_blocks + 1):
        stride = stage.stride if j == 1 else 1
        x = block(
          stage.features, stage.expansion, stage.size, stride, conv, norm, name=f'stage{i}_block{j}'
        )(x, is_source)
    x = conv(self.head_features, 1, name='head')(x)
    x = nn.relu6(norm(name='head_norm')(x, is_source))
    return x.mean(axis=(1, 2), dtype=jnp.float32)


def inverted_residual(name: str, *, style: str = 'auto', **attributes: Any) -> InvertedResidualNet:
  """Build a published network.

  Args:
    name: a key of `VARIANTS`.
    style: one of the variant's, or 'auto', its first.
    attributes: other attributes of `InvertedResidualNet`.

  Raises:
    ValueError: the variant has no such style.
  """
  variant = VARIANTS[name]
  choose('style', style, ('auto', *variant.styles))
  return InvertedResidualNet(
    variant.scaled_stages,
    variant.stem_features,
    variant.head_features,
    STYLES[variant.styles[0] if style == 'auto' else style],
    **attributes,
  )
