"""Perceptual hashes: nearly the same for an image and its re-encoded, resized or cropped copies."""

import functools

import imagehash
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Int64, UInt8, UInt32

# Of a hash's side. The usual 8 tells too little apart, 16 sees fine detail that a crop changes.
_SIDE = 12
BITS = _SIDE**2
WORDS = -(-BITS // 32)
# Two unlike images differ in half of the bits, ± 6. This close are all re-encoded and resized
# copies and 98 % of the demo's images cropped by 5 %; of unlike photographs, five pairs in a
# million.
RADIUS = 40
# Source images compared at once.
_BLOCK = 8192


def phash(image: UInt8[np.ndarray, 'height width 3']) -> UInt32[np.ndarray, ' word']:
  """The 144 bits of `imagehash.phash`: which low frequencies of the luminance exceed the median.

  Brightness, contrast and colour change little; a mirror image has another hash.
  """
  bits = imagehash.phash(PIL.Image.fromarray(image), hash_size=_SIDE).hash.ravel()
  return np.packbits(np.pad(bits, (0, 32 * WORDS - BITS))).view(np.uint32)


def near_pairs(
  sources: UInt32[np.ndarray, 'source word'],
  targets: UInt32[np.ndarray, 'target word'],
  *,
  radius: int = RADIUS,
  most: int = 16,
) -> Int64[np.ndarray, 'pair 3']:
  """Pairs of hashes that differ in `radius` bits at most: source, target and how many bits.

  They are in the order of the sources; of each, the nearest `most` targets, ties by index. The
  search is exhaustive; its memory does not depend on the number of sources.
  """
  columns = jnp.asarray(targets.T)
  pairs = [np.zeros((0, 3), np.int64)]
  for start in range(0, len(sources) if len(targets) else 0, _BLOCK):
    block = sources[start : start + _BLOCK]
    # The one number that few sources pass is found at speed, the targets only for these.
    for row in np.flatnonzero(np.asarray(_nearest(block, columns)) <= radius):
      bits = np.bitwise_count(block[row] ^ targets).sum(axis=1, dtype=np.int64)
      within = np.flatnonzero(bits <= radius)
      within = within[np.argsort(bits[within], kind='stable')[:most]]
      pairs.append(np.stack([np.full_like(within, start + row), within, bits[within]], axis=1))
  return np.concatenate(pairs)


@jax.jit
def _nearest(
  sources: UInt32[Array, 'source word'], columns: UInt32[Array, 'word target']
) -> UInt32[Array, ' source']:
  # Few sources at a time, their distances stay in the cache: thrice as fast as whole blocks.
  def bits(source):
    differing = map(jax.lax.population_count, (a ^ b for a, b in zip(source, columns, strict=True)))
    return functools.reduce(jnp.add, differing).min()

  return jax.lax.map(bits, sources, batch_size=64)
