"""Float images as the networks take them, normalised as their weights were trained."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from sjft_jax.runtime.choice import choose

# Mean and standard deviation of RGB 0–255, by name. Weights that were trained with it:
# 'imagenet', torchvision's and most of timm's; 'inception', Keras's and timm's v2 ResNets (−1 to
# 1); 'caffe', Caffe's, and Keras's v1 ResNets and VGG (their channels are BGR, and are put into
# the order of RGB when the weights are converted).
NORMALIZATIONS = {
  'imagenet': ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
  'inception': ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
  'caffe': ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
}


def normalize(
  images: UInt8[Array, 'batch height width 3'], normalization: str = 'imagenet'
) -> Float[Array, 'batch height width 3']:
  """Subtract the mean from RGB images 0–255 and divide by the standard deviation, in float32.

  Args:
    images: RGB.
    normalization: a key of `NORMALIZATIONS`.

  Raises:
    ValueError: the normalization is unknown.
  """
  choose('normalization', normalization, NORMALIZATIONS)
  mean, std = (
    jnp.asarray(np.divide(v, 255), jnp.float32).reshape(1, 1, 1, 3)
    for v in NORMALIZATIONS[normalization]
  )
  return (images.astype(jnp.float32) / 255 - mean) / std


def check_image_size(
  images: Float[Array, 'batch height width 3'], min_side: int, *, network: str, remedy: str
) -> None:
  """Check that images are large enough for a network.

  Args:
    images: of any values.
    min_side: the smallest side in pixels that the network takes.
    network: its name, for the message.
    remedy: what to do if they are too small, for the message.

  Raises:
    ValueError: a side is smaller than `min_side`.
  """
  height, width = images.shape[1:3]
  if min(height, width) < min_side:
    raise ValueError(
      f'{height}×{width} images are too small for {network}, which needs {min_side} pixels a side; '
      f'{remedy}'
    )
