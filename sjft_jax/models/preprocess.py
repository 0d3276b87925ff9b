"""What every network reads: ImageNet-normalised float images."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

# Of RGB / 255; the values that torchvision's and timm's ImageNet checkpoints were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalize(
  images: UInt8[Array, 'batch height width 3'],
) -> Float[Array, 'batch height width 3']:
  """RGB images 0–255 to float32, less the ImageNet mean and divided by its standard deviation."""
  mean = jnp.asarray(MEAN, jnp.float32).reshape(1, 1, 1, 3)
  std = jnp.asarray(STD, jnp.float32).reshape(1, 1, 1, 3)
  return (images.astype(jnp.float32) / 255 - mean) / std
