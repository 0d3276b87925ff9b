"""AlexNet in torchvision's and in Caffe's variant, as a trunk and as a filter bank."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sjft_jax.models.convolution import Conv
from sjft_jax.models.fully_connected import FullyConnected
from sjft_jax.models.pooling import max_pool
from sjft_jax.models.preprocess import check_image_size

TAPS = ('linear', 'relu')


@dataclasses.dataclass(frozen=True)
class Layer:
  """One convolution.

  Attributes:
    features: output channels.
    size: pixels a side of the kernel.
    stride: of both axes.
    padding: pixels of zeros on each side.
    groups: runs of channels that are convolved separately.
    min_side: the smallest image side in pixels that leaves the layer one response.
  """

  features: int
  size: int
  stride: int
  padding: int
  groups: int
  min_side: int


# Krizhevsky 2014, "One weird trick", as in torchvision.
TORCHVISION = {
  'conv1': Layer(64, 11, 4, 2, 1, min_side=7),
  'conv2': Layer(192, 5, 1, 2, 1, min_side=15),
  'conv3': Layer(384, 3, 1, 1, 1, min_side=31),
  'conv4': Layer(256, 3, 1, 1, 1, min_side=31),
  'conv5': Layer(256, 3, 1, 1, 1, min_side=31),
}
# Krizhevsky et al. 2012, as in Caffe's bvlc_alexnet: two groups, which were two GPUs.
CAFFE = {
  'conv1': Layer(96, 11, 4, 0, 1, min_side=11),
  'conv2': Layer(256, 5, 1, 2, 2, min_side=15),
  'conv3': Layer(384, 3, 1, 1, 1, min_side=23),
  'conv4': Layer(384, 3, 1, 1, 2, min_side=23),
  'conv5': Layer(256, 3, 1, 1, 2, min_side=23),
}
LAYERS = tuple(TORCHVISION)
# By whether the variant is Caffe's: the smallest image side that leaves fc6 its 6×6 window.
MIN_SIDE_FULLY_CONNECTED = {False: 223, True: 199}


def local_response_norm(x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
  """Divide each value by (1 + 1e-4 · the mean square of the five channels around it)^0.75.

  Krizhevsky et al. 2012, Section 3.3, with Caffe's constants: alpha is divided by the size, and k
  is 1. Channels beyond the ends count as zeros.
  """
  dtype, x = x.dtype, x.astype(jnp.float32)
  sums = jax.lax.reduce_window(
    jnp.square(x), 0.0, jax.lax.add, (1, 1, 1, 5), (1, 1, 1, 1), [(0, 0)] * 3 + [(2, 2)]
  )
  # The power −0.75 is written with roots, which take a third of the time.
  root = jax.lax.rsqrt(1 + 1e-4 / 5 * sums)
  return (x * root * jnp.sqrt(root)).astype(dtype)


class AlexNet(nn.Module):
  """The layers conv1–conv5 and, unless they are left out, fc6 and fc7.

  Attributes:
    caffe: whether it is Caffe's bvlc_alexnet, with grouped convolutions, local response
      normalisation after conv1 and conv2, and pooling windows that may reach over the lower and
      right border; else it is torchvision's.
    fully_connected: whether the features are the 4096 of fc7, averaged over the map; else they are
      the average of conv5's 256 maps. pool5 is left out there: it only shrinks the map for fc6.
    dtype: of activations and products; parameters are float32.
  """

  caffe: bool = False
  fully_connected: bool = True
  dtype: Any = jnp.float32

  @property
  def layers(self) -> dict[str, Layer]:
    """The convolutions of this variant by name, in their order."""
    return CAFFE if self.caffe else TORCHVISION

  def setup(self) -> None:
    """Create the layers."""
    for name, layer in self.layers.items():
      conv = Conv(
        layer.features,
        layer.size,
        layer.stride,
        layer.padding,
        layer.groups,
        use_bias=True,
        dtype=self.dtype,
        kernel_init=nn.initializers.he_normal(),
      )
      setattr(self, name, conv)
    if self.fully_connected:
      self.top = FullyConnected(6, self.dtype)
      nn.share_scope(self, self.top)

  def __call__(
    self,
    images: Float[Array, 'b h w 3'],
    train: bool = False,
    is_source: Bool[Array, ' b'] | None = None,
  ) -> Float[Array, 'b features']:
    """Compute the features of normalised images (`preprocess.normalize`).

    Training with `fully_connected` needs a mapped axis 'batch' and a 'dropout' key. `is_source` is
    an argument of every trunk, and without effect here.

    Raises:
      ValueError: the images are too small.
    """
    del is_source
    if self.fully_connected:
      check_image_size(
        images,
        MIN_SIDE_FULLY_CONNECTED[self.caffe],
        network='AlexNet with fc6',
        remedy='use larger images or fully_connected=False',
      )
    (x,) = self.responses(images, layers=('conv5',), tap='relu')
    if self.fully_connected:
      features: Array = self.top(self._pool(x), train)
      return features
    return x.mean(axis=(1, 2), dtype=jnp.float32)

  def responses(
    self, images: Float[Array, 'b h w 3'], *, layers: Sequence[str], tap: str
  ) -> tuple[Float[Array, 'b _height _width _filter'], ...]:
    """Compute the responses of some layers, and of none deeper than the last of them.

    Args:
      images: normalised, as for `__call__`.
      layers: names of `LAYERS`.
      tap: 'linear' takes the responses before the nonlinearity, 'relu' after it.

    Returns:
      One map per layer.

    Raises:
      ValueError: the images are too small to reach the last of the layers.
    """
    depth = max(LAYERS.index(layer) for layer in layers)
    check_image_size(
      images,
      self.layers[LAYERS[depth]].min_side,
      network=f'AlexNet {LAYERS[depth]}',
      remedy='use larger images or fewer layers',
    )
    x = images
    maps = {}
    for name in LAYERS[: depth + 1]:
      if name in ('conv2', 'conv3'):
        x = self._pool(local_response_norm(x) if self.caffe else x)
      linear = getattr(self, name)(x)
      x = nn.relu(linear)
      maps[name] = linear if tap == 'linear' else x
    return tuple(maps[layer] for layer in layers)

  def _pool(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
    return max_pool(x, 3, 'ceil' if self.caffe else 'valid')
