"""What every network reads: float images, normalised as its weights were trained."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

# Name: mean and standard deviation of RGB 0–255. Whose weights were trained with it:
# 'imagenet' torchvision's and most of timm's; 'inception' Keras's and timm's v2 ResNets (−1 to 1);
# 'caffe' Caffe's, and Keras's v1 ResNets and VGG (their channels are BGR, which importers turn).
NORMALIZATIONS = {
  'imagenet': ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
  'inception': ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
  'caffe': ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
}


def normalize(
  images: UInt8[Array, 'batch height width 3'], normalization: str = 'imagenet'
) -> Float[Array, 'batch height width 3']:
  """RGB images 0–255 to float32, less the mean and divided by the standard deviation.

  Raises:
    ValueError: normalization not in `NORMALIZATIONS`.
  """
  if normalization not in NORMALIZATIONS:
    raise ValueError(
      f'normalization={normalization!r} is unknown; known: {", ".join(NORMALIZATIONS)}'
    )
  mean, std = (
    jnp.asarray(np.divide(v, 255), jnp.float32).reshape(1, 1, 1, 3)
    for v in NORMALIZATIONS[normalization]
  )
  return (images.astype(jnp.float32) / 255 - mean) / std
