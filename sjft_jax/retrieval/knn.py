"""Exact nearest neighbours under Eq. 1 over a stream of source blocks.

Memory holds the targets, one tile of sources and the running best, however long the stream is.
"""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sjft_jax.retrieval.divergence import TargetFactors, divergences_to, target_factors

# Sources go through the product in tiles of this many, whatever the blocks that they arrive in: a
# matrix product may sum in another order when its shape changes, and the last bit of a divergence,
# with it the order of near ties, would then depend on the caller's block size.
TILE = 1024


@jax.jit
def merge(
  left: tuple[Float[Array, 'target k'], Int[Array, 'target k']],
  right: tuple[Float[Array, 'target m'], Int[Array, 'target m']],
) -> tuple[Float[Array, 'target k'], Int[Array, 'target k']]:
  """The k best of two sets of (divergences, indices), ordered by divergence, then by index.

  The order is total, so any order of merging gives the same result.
  """
  k = left[0].shape[1]
  both = (jnp.concatenate([a, b], axis=1) for a, b in zip(left, right, strict=True))
  divergences, indices = jax.lax.sort(tuple(both), dimension=1, num_keys=2)
  return divergences[:, :k], indices[:, :k]


@jax.jit
def _rank_tile(best, targets: TargetFactors, tile, start, count):
  divergences = divergences_to(targets, tile)
  column = jnp.arange(TILE, dtype=jnp.int32)
  filled = (column < count)[None, :]
  healthy = jnp.all(jnp.isfinite(divergences) | ~filled)
  # Rows that only fill up the last tile come after everything, real sources at infinity included.
  divergences = jnp.where(filled, divergences, jnp.inf)
  indices = jnp.where(filled, start + column[None, :], np.iinfo(np.int32).max)
  indices = jnp.broadcast_to(indices, divergences.shape)
  return merge(best, (divergences, indices)), healthy


def _tiles(blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
  """Cuts a stream of blocks into (tile, number of its rows that are real)."""
  tile, filled = None, 0
  for block in blocks:
    block = np.asarray(block)
    while len(block):
      if tile is None:
        # A fresh array for every tile: JAX may still be reading the one before. Ones have a log.
        tile, filled = np.ones((TILE, *block.shape[1:]), np.float32), 0
      part = block[: TILE - filled]
      tile[filled : filled + len(part)] = part
      filled, block = filled + len(part), block[len(part) :]
      if filled == TILE:
        yield tile, filled
        tile = None
  if tile is not None:
    yield tile, filled


def rank(
  targets: Float[np.ndarray, 'target filter bin'],
  source_blocks: Iterable[np.ndarray],
  *,
  weights: Float[np.ndarray, 'filter'],
  k: int,
) -> tuple[np.ndarray, np.ndarray]:
  """The k nearest sources of every target, nearest first, ties by source index.

  Args:
    targets: histograms, positive and summing to one, as for `symmetric_kl`.
    source_blocks: the sources' histograms in order, [any number, filter, bin] at a time. The
      answer does not depend on how they are cut into blocks.
    weights: w_h of Eq. 1.
    k: how many neighbours to keep.

  Returns:
    indices int32 [target, k] into the stream, and divergences float32 [target, k] in nats.

  Raises:
    ValueError: the stream holds fewer than k sources, or a divergence is not finite.
  """
  if k < 1:
    raise ValueError(f'k={k}: ask for at least one neighbour')
  factors = target_factors(jnp.asarray(targets, jnp.float32), jnp.asarray(weights, jnp.float32))
  best = (
    jnp.full((len(targets), k), jnp.inf, jnp.float32),
    jnp.full((len(targets), k), np.iinfo(np.int32).max, jnp.int32),
  )
  healthy, num_sources = [], 0
  for tile, count in _tiles(source_blocks):
    best, tile_healthy = _rank_tile(best, factors, tile, num_sources, count)
    healthy.append(tile_healthy)
    num_sources += count
  if num_sources < k:
    raise ValueError(f'k={k} exceeds the {num_sources} sources; lower selection.num_neighbors')
  for number, tile_healthy in enumerate(healthy):
    if not tile_healthy:
      first, last = number * TILE, min((number + 1) * TILE, num_sources) - 1
      raise ValueError(
        f'a divergence to one of the sources {first}..{last} is not finite: every histogram must '
        f'be positive and sum to one; is descriptors.smoothing above zero?'
      )
  return np.asarray(best[1]), np.asarray(best[0])
