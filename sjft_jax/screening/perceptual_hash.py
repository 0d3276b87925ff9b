"""Perceptual hashes, nearly the same for an image and its re-encoded, resized or cropped copies."""

import functools

import imagehash
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Int64, UInt8, UInt32

# Bits on a hash's side. The usual 8 distinguish too little, 16 see fine detail that a crop changes.
_SIDE = 12
BITS = _SIDE**2
WORDS = -(-BITS // 32)
# Bits. Two unlike images differ in half of them, ± 6. All re-encoded and resized copies and 98 % of
# the demo's images cropped by 5 % are within this radius, and five pairs of unlike photographs in a
# million.
RADIUS = 40
# Pixels that are converted to luminance at once.
_PART_PIXELS = 2**22
# Source images that are compared at once.
_BLOCK = 8192


def phash(image: UInt8[np.ndarray, 'height width 3']) -> UInt32[np.ndarray, ' word']:
  """Compute the 144 bits of `imagehash.phash`: the low frequencies that exceed their median.

  They are those of the luminance. Brightness, contrast and colour change few bits; a mirror image
  has another hash.
  """
  bits = imagehash.phash(_luminance(image), hash_size=_SIDE).hash.ravel()
  return np.packbits(np.pad(bits, (0, 32 * WORDS - BITS))).view(np.uint32)


def _luminance(image: UInt8[np.ndarray, 'height width 3']) -> PIL.Image.Image:
  """Return the luminance; of a large image part by part, as Pillow needs four bytes a pixel."""
  if image.size <= 3 * _PART_PIXELS:
    return PIL.Image.fromarray(image).convert('L')
  parts = np.array_split(image, min(-(-image.size // (3 * _PART_PIXELS)), len(image)))
  return PIL.Image.fromarray(
    np.concatenate([np.asarray(PIL.Image.fromarray(part).convert('L')) for part in parts])
  )


def find_near_pairs(
  sources: UInt32[np.ndarray, 'source word'],
  targets: UInt32[np.ndarray, 'target word'],
  *,
  radius: int = RADIUS,
  max_targets: int = 16,
) -> Int64[np.ndarray, 'pair 3']:
  """Find pairs of hashes that differ in few bits.

  The search is exhaustive; its memory does not depend on the number of sources.

  Args:
    sources, targets: hashes.
    radius: bits in which a pair differs at most.
    max_targets: pairs of each source at most, its nearest ones.

  Returns:
    A row for each pair: source index, target index, and the number of bits that differ. Rows are in
    the order of the sources, those of a source by bits, ties by target index.
  """
  target_words = jnp.asarray(targets.T)
  pairs = [np.zeros((0, 3), np.int64)]
  for start in range(0, len(sources) if len(targets) else 0, _BLOCK):
    block = sources[start : start + _BLOCK]
    # Few sources have a near target: only for these is it worked out which ones are near.
    for row in np.flatnonzero(np.asarray(_min_bits(block, target_words)) <= radius):
      bits = np.bitwise_count(block[row] ^ targets).sum(axis=1, dtype=np.int64)
      near = np.flatnonzero(bits <= radius)
      near = near[np.argsort(bits[near], kind='stable')[:max_targets]]
      pairs.append(np.stack([np.full_like(near, start + row), near, bits[near]], axis=1))
  return np.concatenate(pairs)


@jax.jit
def _min_bits(
  sources: UInt32[Array, 'source word'], target_words: UInt32[Array, 'word target']
) -> UInt32[Array, ' source']:
  """Return the bits that differ between each source and its nearest target."""

  def min_bits(source: UInt32[Array, ' word']) -> UInt32[Array, '']:
    differing = (a ^ b for a, b in zip(source, target_words, strict=True))
    return functools.reduce(jnp.add, map(jax.lax.population_count, differing)).min()

  # The distances of few sources stay in the cache: three times as fast as whole blocks.
  return jax.lax.map(min_bits, sources, batch_size=64)
