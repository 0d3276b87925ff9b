"""Vision transformers (Dosovitskiy et al. 2021) and DINOv2 (Oquab et al. 2024), with registers.

The variants are timm's; registers are those of Darcet et al. 2024.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sjft_jax.models.convolution import Conv
from sjft_jax.models.perceptron import Dense, LayerNorm, Perceptron
from sjft_jax.models.preprocess import check_image_size


class Variant(NamedTuple):
  """One network.

  Attributes:
    features: channels of a token.
    num_blocks: how many blocks there are.
    num_heads: of the attention.
    patch: pixels a side of a patch.
    grid: patches a side of the images that its positions are learnt for.
    num_registers: tokens beside the class token. With registers, the positions are the patches'
      alone; else they are the class token's and the patches'.
    scales: whether each channel of a branch has a factor, 1e-5 at first (DINOv2).
  """

  features: int
  num_blocks: int
  num_heads: int
  patch: int
  grid: int
  num_registers: int = 0
  scales: bool = False


# Channels, blocks and heads.
_SIZES = {
  'tiny': (192, 12, 3),
  'small': (384, 12, 6),
  'base': (768, 12, 12),
  'large': (1024, 24, 16),
}
# The names are timm's; the last number of the first ones is the side of the images in pixels.
VARIANTS = {
  **{
    f'vit_{size}_patch{patch}_{side}': Variant(*_SIZES[size], patch, side // patch)
    for size in _SIZES
    for patch in (16, 32)
    for side in (224, 384)
    if (size, patch) != ('tiny', 32)
  },
  **{
    f'vit_{size}_patch14_{registers}dinov2': Variant(*_SIZES[size], 14, 37, count, True)
    for size in ('small', 'base', 'large')
    for registers, count in (('', 0), ('reg4_', 4))
  },
}


class Tokens(nn.Module):
  """Prepend the class token and registers to the patches, and add the learnt positions.

  Parameters are 'class_token' `[1, 1, c]`, 'registers' `[1, n, c]` and 'positions' `[1, p, c]`.

  Attributes:
    grid: patches a side of the learnt positions.
    num_registers: as in `Variant`.
  """

  grid: int
  num_registers: int

  @nn.compact
  def __call__(self, patches: Float[Array, 'b h w c']) -> Float[Array, 'b tokens c']:
    """Return the tokens, the class token first.

    On another grid than the learnt one, the positions are resampled, by cubic interpolation with
    antialiasing, as in timm.
    """
    batch, height, width, features = patches.shape
    prefix = 0 if self.num_registers else 1  # Tokens before the patches that have positions.
    shapes = {'class_token': 1, 'positions': prefix + self.grid**2}
    if self.num_registers:
      shapes['registers'] = self.num_registers
    params = {
      name: self.param(name, nn.initializers.normal(0.02), (1, count, features), jnp.float32)
      for name, count in shapes.items()
    }
    positions = params['positions'][:, prefix:]
    if (height, width) != (self.grid, self.grid):
      learnt = positions.reshape(1, self.grid, self.grid, features)
      # The matrix products of a GPU would round to ten bits.
      resampled = jax.image.resize(
        learnt, (1, height, width, features), 'cubic', precision=jax.lax.Precision.HIGHEST
      )
      positions = resampled.reshape(1, height * width, features)
    dtype = patches.dtype
    tokens = patches.reshape(batch, height * width, features) + positions.astype(dtype)
    first = params['class_token'] + params['positions'][:, :prefix].sum(axis=1, keepdims=True)
    others = [params['registers']] if self.num_registers else []
    shared = jnp.concatenate([first, *others], axis=1).astype(dtype)
    shared = jnp.broadcast_to(shared, (batch, *shared.shape[1:]))
    return jnp.concatenate([shared, tokens], axis=1)


def _attend(
  queries: Float[Array, 'b n h c'], keys: Float[Array, 'b n h c'], values: Float[Array, 'b n h c']
) -> Float[Array, 'b n h c']:
  """Compute dot-product attention, with a float32 softmax."""
  # JAX's own promotes types without being asked, which the tests refuse.
  logits = jnp.einsum('bqhc,bkhc->bhqk', queries, keys, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(logits / math.sqrt(queries.shape[-1])).astype(values.dtype)
  return jnp.einsum('bhqk,bkhc->bqhc', weights, values)


class Block(nn.Module):
  """Layer norm and self-attention, then layer norm and a perceptron, each beside its input.

  Attributes:
    num_heads, scales: as in `Variant`.
    dtype: of activations and products.
  """

  num_heads: int
  scales: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
    """Compute the block's output."""
    features = x.shape[-1]
    y = LayerNorm(dtype=self.dtype, name='norm1')(x)
    y = Dense(3 * features, dtype=self.dtype, name='qkv')(y)
    heads = y.reshape(*x.shape[:2], 3, self.num_heads, features // self.num_heads)
    y = _attend(*(heads[:, :, i] for i in range(3))).reshape(x.shape)
    x += self._scale('scale1', Dense(features, dtype=self.dtype, name='proj')(y))
    y = LayerNorm(dtype=self.dtype, name='norm2')(x)
    return x + self._scale('scale2', Perceptron(dtype=self.dtype, name='mlp')(y))

  def _scale(self, name: str, y: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
    if not self.scales:
      return y
    scale = self.param(name, nn.initializers.constant(1e-5), y.shape[-1:], jnp.float32)
    return y * scale.astype(y.dtype).reshape(1, 1, -1)


class ViT(nn.Module):
  """A vision transformer; its features are the class token after the last layer norm.

  It takes images of any size: pixels beyond the last whole patch are left out.

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
      ValueError: the images are smaller than a patch.
    """
    del train, is_source
    v = self.variant
    check_image_size(images, v.patch, network='this transformer', remedy='use larger images')
    block = nn.remat(Block) if self.remat else Block
    x = Conv(
      v.features,
      v.patch,
      v.patch,
      use_bias=True,
      dtype=self.dtype,
      kernel_init=nn.initializers.lecun_normal(),
      name='stem',
    )(images)
    x = Tokens(v.grid, v.num_registers, name='stem_tokens')(x)
    for i in range(1, v.num_blocks + 1):
      x = block(v.num_heads, v.scales, self.dtype, name=f'block{i}')(x)
    return LayerNorm(name='norm')(x[:, 0].astype(jnp.float32))
