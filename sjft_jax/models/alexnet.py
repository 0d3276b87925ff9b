"""AlexNet's convolutions (Krizhevsky 2014, as in torchvision): a trunk, and a filter bank."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

LAYERS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5')
TAPS = ('linear', 'relu')
NUM_FILTERS = {'conv1': 64, 'conv2': 192, 'conv3': 384, 'conv4': 256, 'conv5': 256}
# The smallest image side that leaves each layer one response (two 3×3 poolings of stride 2).
MIN_SIDE = {'conv1': 7, 'conv2': 15, 'conv3': 31, 'conv4': 31, 'conv5': 31}


class AlexNet(nn.Module):
  """conv1–conv5, ending in the average of conv5's map.

  pool5 is left out: it only shrinks the map for the fully connected layers, which are not here,
  and without it the features mean the same at every image size.
  """

  def setup(self):
    def conv(layer, size, stride, padding):
      return nn.Conv(
        NUM_FILTERS[layer],
        (size, size),
        strides=stride,
        padding=padding,
        kernel_init=nn.initializers.he_normal(),
      )

    self.conv1 = conv('conv1', 11, 4, 2)
    self.conv2 = conv('conv2', 5, 1, 2)
    self.conv3 = conv('conv3', 3, 1, 1)
    self.conv4 = conv('conv4', 3, 1, 1)
    self.conv5 = conv('conv5', 3, 1, 1)

  def __call__(
    self, images: Float[Array, 'batch height width 3'], train: bool = False
  ) -> Float[Array, 'batch 256']:
    """Features of normalised images (`preprocess.normalize`), at least 31 pixels a side.

    `train` is the trunks' common argument; without batch norm or dropout it changes nothing.
    """
    del train
    (features,) = self.responses(images, layers=('conv5',), tap='relu')
    return features.mean(axis=(1, 2))

  def responses(
    self, images: Float[Array, 'batch height width 3'], *, layers: Sequence[str], tap: str
  ) -> tuple[Float[Array, 'batch _height _width _filter'], ...]:
    """One map per layer in `layers`, before (tap 'linear') or after ('relu') the nonlinearity.

    Computes no deeper than the last of `layers`.  Raises ValueError for an image too small to
    reach it.
    """
    depth = max(LAYERS.index(layer) for layer in layers)
    deepest = LAYERS[depth]
    height, width = images.shape[1:3]
    if min(height, width) < MIN_SIDE[deepest]:
      raise ValueError(
        f'{height}×{width} images are too small for AlexNet {deepest}, which needs '
        f'{MIN_SIDE[deepest]} pixels a side; use larger images or fewer layers'
      )
    convs = (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5)
    x = images
    maps = {}
    for layer, conv in zip(LAYERS[: depth + 1], convs, strict=False):
      if layer in ('conv2', 'conv3'):
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
      linear = conv(x)
      x = jnp.maximum(linear, 0)
      maps[layer] = linear if tap == 'linear' else x
    return tuple(maps[layer] for layer in layers)
