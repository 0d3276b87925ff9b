"""Exact nearest neighbours under Eq. 1 over a stream of source blocks.

Memory holds the targets, a few tiles of sources and the running best, however long the stream is.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, UInt64

from sjft_jax.retrieval import backends
from sjft_jax.retrieval.divergence import refine_near_duplicates

# Sources go through the product in tiles of this many, whatever the blocks that they arrive in: a
# matrix product may sum in another order when its shape changes, and the last bit of a divergence,
# with it the order of near ties, would then depend on the caller's block size.
TILE = 1024

# Divergence and source index in one number. The bits of a float32 that is not negative sort as it
# does, so keys sort by divergence and ties by index: the order is total.
Keys = UInt64[np.ndarray, 'target k']
# The key of no source at all, behind every other.
EMPTY_KEY = np.iinfo(np.uint64).max


class TopK:
  """The k smallest keys of every target among all that were added."""

  def __init__(self, num_targets: int, k: int):
    self.k = k
    # Selection goes over kept and new keys alike: room for more new ones makes it rarer.
    self._keys = np.empty((num_targets, k + max(k, 4 * TILE)), '<u8')
    self._filled = 0
    # No divergence above this can enter any more.
    self.bound = np.full(num_targets, np.inf, np.float32)
    num_threads = os.cpu_count() or 1
    self._threads = ThreadPoolExecutor(num_threads)
    self._parts = np.array_split(np.arange(num_targets), min(num_targets, num_threads))

  def _on_all_cores(self, work: Callable[[slice], None]) -> None:
    # numpy lets go of the interpreter lock.
    list(self._threads.map(lambda part: work(slice(part[0], part[-1] + 1)), self._parts))

  def _room(self, columns: int) -> slice:
    if self._filled + columns > self._keys.shape[1]:
      self._select()
    self._filled += columns
    return slice(self._filled - columns, self._filled)

  def _select(self) -> None:
    """Drops all keys but the k smallest."""
    if self._filled <= self.k:
      return

    def select(rows: slice) -> None:
      self._keys[rows, : self._filled].partition(self.k - 1, axis=1)

    self._on_all_cores(select)
    self._filled = self.k
    self.bound = _divergences(self._keys[:, self.k - 1])

  def add(self, divergences: Float[np.ndarray, 'target source'], first: int) -> None:
    """Adds the sources first, first + 1, …; no divergence is negative or NaN."""
    columns = self._room(divergences.shape[1])
    indices = np.arange(first, first + divergences.shape[1], dtype=np.uint32)

    def write(rows: slice) -> None:
      # The upper and lower halves of numbers whose lower half comes first.
      halves = self._keys[rows, columns].view(np.uint32)
      halves[:, 1::2] = divergences[rows].view(np.uint32)
      halves[:, 0::2] = indices

    self._on_all_cores(write)

  def add_keys(self, keys: Keys) -> None:
    """Adds what another one has kept; at most k a target."""
    self._keys[:, self._room(keys.shape[1])] = keys

  def keys(self) -> Keys:
    """The k smallest of each target in ascending order, or all if there are fewer."""
    self._select()

    def sort(rows: slice) -> None:
      self._keys[rows, : self._filled].sort(axis=1)

    self._on_all_cores(sort)
    return self._keys[:, : self._filled].copy()


def _divergences(keys: np.ndarray) -> np.ndarray:
  return (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)


class Search:
  """The k nearest sources of every target, over a stream of which each source is seen once.

  Attributes:
    position: how many sources of the stream have been merged; their neighbours are in `keys`.
  """

  def __init__(
    self,
    targets: Float[np.ndarray, 'target filter bin'],
    *,
    weights: Float[np.ndarray, ' filter'],
    k: int,
    position: int = 0,
    keys: Keys | None = None,
    devices: Sequence[jax.Device] | None = None,
  ):
    """
    Args:
      targets: histograms, positive and summing to one, as for `symmetric_kl`.
      weights: w_h of Eq. 1.
      k: how many neighbours to keep.
      position: index of the first source to come.
      keys: what a search that was stopped at `position` had found.
      devices: whose turn it is changes with every tile; default: this process's accelerators, or
        its cores if there are none.
    """
    if k < 1:
      raise ValueError(f'k={k}: ask for at least one neighbour')
    self._targets = np.asarray(targets, np.float32)
    self._weights = np.asarray(weights, np.float32)
    self._nearest = TopK(len(targets), k)
    if keys is not None:
      self._nearest.add_keys(keys)
    self.position = position
    self._parts: list[np.ndarray | Array] = []
    self._workers = backends.make_backend(self._targets, self._weights, TILE, devices)
    self._pending: deque[tuple[int, list[np.ndarray | Array], backends.PendingTile]] = deque()

  def add(self, block: Float[Array | np.ndarray, 'source filter bin']) -> None:
    """Takes the next sources, any number of them, which must not be changed afterwards.

    Raises:
      ValueError: a divergence to one of the sources is not finite.
    """
    while len(block):
      room = TILE - sum(map(len, self._parts))
      # Slices of what is on a device are copies, even of all of it.
      whole = len(block) <= room
      self._parts.append(block if whole else block[:room])
      if len(self._parts[-1]) == room:
        self._start()
      if whole:
        break
      block = block[room:]

  def _start(self) -> None:
    """Sets someone to work on the tile that is filled."""
    count = sum(map(len, self._parts))
    # The last tile of a stream is filled up. Ones have a logarithm.
    if missing := -count % self._workers.unit:
      self._parts.append(np.ones((missing, *self._targets.shape[1:]), np.float32))
    self._pending.append((count, self._parts, self._workers.start(self._parts)))
    self._parts = []
    while self._pending and (
      len(self._pending) > self._workers.capacity or self._pending[0][2].done()
    ):
      self._finish()

  def _finish(self) -> None:
    """Merges the oldest of the tiles in work."""
    count, parts, divergences = self._pending.popleft()
    d = divergences.result()[:, :count]
    # One look at the bits tells whether there is an infinity, a NaN or a sign.
    if d.view(np.uint32).max() >= np.float32(np.inf).view(np.uint32):
      if not np.isfinite(d).all():
        raise ValueError(
          f'a divergence to one of the sources {self.position}..{self.position + count - 1} is not '
          'finite: every histogram must be positive and sum to one; is descriptors.smoothing above '
          'zero?'
        )
      # Once there are k sources at divergence zero, nothing comes before them any more.
      tile = np.concatenate([np.asarray(part) for part in parts])
      d = refine_near_duplicates(d, self._targets, tile, self._weights, self._nearest.bound > 0)
    self._nearest.add(d, self.position)
    self.position += count

  def keys(self) -> Keys:
    """The keys of the neighbours among the first `position` sources, nearest first."""
    return self._nearest.keys()

  def flush(self) -> None:
    """Merges all sources added so far: the end of the stream, for only its last tile is short."""
    if self._parts:
      self._start()
    while self._pending:
      self._finish()
    self._workers.close()


class Ranking(NamedTuple):
  """The source images nearest to each target image, nearest first, ties by source index.

  Attributes:
    indices: of the sources in their stream.
    divergences: from the target, in nats.
  """

  indices: Int32[np.ndarray, 'target k']
  divergences: Float32[np.ndarray, 'target k']


def neighbors(keys: Keys, k: int) -> Ranking:
  """Decode the k smallest keys of every target.

  Raises:
    ValueError: there are fewer than k sources.
  """
  num_sources = int((keys != EMPTY_KEY).sum(axis=1).min()) if keys.shape[1] == k else keys.shape[1]
  if num_sources < k:
    raise ValueError(f'k={k} exceeds the {num_sources} sources; lower it')
  return Ranking(keys.astype(np.uint32).view(np.int32), _divergences(keys))


def rank(
  targets: Float[np.ndarray, 'target filter bin'],
  source_blocks: Iterable[np.ndarray],
  *,
  weights: Float[np.ndarray, ' filter'],
  k: int,
) -> Ranking:
  """Find the k nearest sources of every target, nearest first, ties by source index.

  Args:
    targets: histograms, positive and summing to one, as for `symmetric_kl`.
    source_blocks: the sources' histograms in order, [any number, filter, bin] at a time. The
      answer does not depend on how they are cut into blocks.
    weights: w_h of Eq. 1.
    k: how many neighbours to keep.

  Raises:
    ValueError: the stream holds fewer than k sources, or a divergence is not finite.
  """
  search = Search(targets, weights=weights, k=k)
  for block in source_blocks:
    search.add(block)
  search.flush()
  return neighbors(search.keys(), k)
