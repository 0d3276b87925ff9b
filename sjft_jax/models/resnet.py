"""Pre-activation residual networks (He et al. 2016, "Identity mappings in deep residual networks").

The stride sits on the first convolution of a block and the projection reads the activated input,
as in the paper's released network. Batch norm follows it too: running average 0.999, epsilon 1e-5.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

# Blocks per stage; from 50 layers on, blocks are bottlenecks.
STAGE_SIZES = {
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
  200: (3, 24, 36, 3),
}
BATCH_NORMS = ('mixed', 'frozen')

# The released networks' initialisation: N(0, 2 / (kernel area × output channels)).
he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class Pointwise(nn.Module):
  """A 1×1 convolution, written as a matrix product: XLA's CPU gradients are four times faster."""

  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 d']:
    x = x[:, :: self.stride, :: self.stride]
    return nn.Dense(self.features, use_bias=False, kernel_init=he_normal, name='dense')(x)


class Conv3x3(nn.Module):
  """A 3×3 convolution with one pixel of padding on every side, whatever the stride."""

  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 d']:
    return nn.Conv(
      self.features,
      (3, 3),
      (self.stride, self.stride),
      padding=1,
      use_bias=False,
      kernel_init=he_normal,
      name='conv',
    )(x)


class Block(nn.Module):
  """One residual block: norm → ReLU → convolution, two (basic) or three (bottleneck) times."""

  features: int
  stride: int
  bottleneck: bool
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 d']:
    features, stride = self.features, self.stride
    if self.bottleneck:
      convolutions = [
        Pointwise(features, stride, name='conv1'),
        Conv3x3(features, name='conv2'),
        Pointwise(4 * features, name='conv3'),
      ]
    else:
      convolutions = [Conv3x3(features, stride, name='conv1'), Conv3x3(features, name='conv2')]
    width_out = convolutions[-1].features

    y = nn.relu(self.norm(name='norm1')(x))
    if stride != 1 or x.shape[-1] != width_out:
      x = Pointwise(width_out, stride, name='projection')(y)
    y = convolutions[0](y)
    for i, convolution in enumerate(convolutions[1:], start=2):
      y = convolution(nn.relu(self.norm(name=f'norm{i}')(y)))
    return x + y


class ResNet(nn.Module):
  """Pre-activation ResNet up to and including global average pooling.

  The stem is a bare 7×7/2 convolution and a 3×3/2 max-pool; the first norm is the first block's.

  Attributes:
    stage_sizes: blocks per stage; every stage but the first halves the resolution.
    bottleneck: three-layer blocks (1×1, 3×3, 1×1 with four times the channels) or two 3×3.
    width: multiple of the standard channel counts (64, 128, 256, 512).
    batch_norm: 'mixed' normalises a training batch by its own statistics, over all its images
      of both domains and over the devices of the mapped axis 'batch' (which must exist then);
      'frozen' always uses the running statistics. Scale and bias train in both.
  """

  stage_sizes: tuple[int, ...]
  bottleneck: bool
  width: float = 1.0
  batch_norm: str = 'mixed'

  @nn.compact
  def __call__(
    self, images: Float[Array, 'b h w 3'], train: bool = False
  ) -> Float[Array, 'b features']:
    base = round(64 * self.width)
    norm = partial(
      nn.BatchNorm,
      use_running_average=not train or self.batch_norm == 'frozen',
      momentum=0.999,
      epsilon=1e-5,
      axis_name='batch',
      # E[x²] − E[x]² cancels badly where the mean is large.
      use_fast_variance=False,
    )
    x = nn.Conv(
      base, (7, 7), (2, 2), padding=3, use_bias=False, kernel_init=he_normal, name='stem'
    )(images)
    x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for i, num_blocks in enumerate(self.stage_sizes):
      for j in range(num_blocks):
        x = Block(
          features=base * 2**i,
          stride=2 if i > 0 and j == 0 else 1,
          bottleneck=self.bottleneck,
          norm=norm,
          name=f'stage{i + 1}_block{j + 1}',
        )(x)
    x = nn.relu(norm(name='norm')(x))
    return x.mean(axis=(1, 2))


def resnet(depth: int, *, width: float = 1.0, batch_norm: str = 'mixed') -> ResNet:
  """The standard network of `depth` layers.

  Raises:
    ValueError: a depth not in `STAGE_SIZES`, an unknown batch_norm, or a width that leaves no
      channel.
  """
  if depth not in STAGE_SIZES:
    raise ValueError(f'depth={depth} is no standard ResNet; known: {sorted(STAGE_SIZES)}')
  if batch_norm not in BATCH_NORMS:
    raise ValueError(f'batch_norm={batch_norm!r} is unknown; known: {", ".join(BATCH_NORMS)}')
  if round(64 * width) < 1:
    raise ValueError(f'width={width} leaves no channel of 64; raise model.width')
  return ResNet(STAGE_SIZES[depth], depth >= 50, width, batch_norm)
