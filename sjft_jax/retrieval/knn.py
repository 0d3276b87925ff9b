"""Exact nearest neighbours under Eq. 1 over a stream of source blocks.

Memory holds the targets, a few tiles of sources and the k nearest so far, however long the stream.
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
# and with it the order of near ties, would then depend on the caller's block size.
TILE = 1024

# A key holds a divergence in its upper half and a source index in its lower half. The bits of a
# float32 that is not negative sort as its value does, so keys sort by divergence and ties by index:
# the order is total.
Keys = UInt64[np.ndarray, 'target k']
# Sorts behind the key of every source.
EMPTY_KEY = np.iinfo(np.uint64).max


class TopK:
  """The k smallest keys of every target among all that were added.

  Attributes:
    k: keys of each target.
    bound: a divergence above a target's bound can no longer enter, [target].
  """

  def __init__(self, num_targets: int, k: int):
    self.k = k
    # Selection goes over old and new keys alike: room for more new ones makes it rarer.
    self._keys = np.empty((num_targets, k + max(k, 4 * TILE)), '<u8')
    self._num_keys = 0  # Of each target; those behind them are unset.
    self.bound = np.full(num_targets, np.inf, np.float32)
    num_threads = os.cpu_count() or 1
    self._threads = ThreadPoolExecutor(num_threads)
    self._parts = np.array_split(np.arange(num_targets), min(num_targets, num_threads))

  def add(self, divergences: Float[np.ndarray, 'target source'], first: int) -> None:
    """Add the sources first, first + 1, …; no divergence is negative or NaN."""
    num_sources = divergences.shape[1]
    columns = self._reserve(num_sources)
    indices = np.arange(first, first + num_sources, dtype=np.uint32)

    def write(rows: slice) -> None:
      # A little-endian uint64 viewed as two uint32, the lower half first.
      halves = self._keys[rows, columns].view(np.uint32)
      halves[:, 1::2] = divergences[rows].view(np.uint32)
      halves[:, 0::2] = indices

    self._on_all_cores(write)

  def add_keys(self, keys: Keys) -> None:
    """Add the keys of another `TopK`, at most k of each target."""
    self._keys[:, self._reserve(keys.shape[1])] = keys

  def keys(self) -> Keys:
    """Return the k smallest keys of each target in ascending order, or all if there are fewer."""
    self._select()

    def sort(rows: slice) -> None:
      self._keys[rows, : self._num_keys].sort(axis=1)

    self._on_all_cores(sort)
    return self._keys[:, : self._num_keys].copy()

  def _reserve(self, num_columns: int) -> slice:
    """Return the columns for so many new keys."""
    if self._num_keys + num_columns > self._keys.shape[1]:
      self._select()
    self._num_keys += num_columns
    return slice(self._num_keys - num_columns, self._num_keys)

  def _select(self) -> None:
    """Drop all keys but the k smallest."""
    if self._num_keys <= self.k:
      return

    def select(rows: slice) -> None:
      self._keys[rows, : self._num_keys].partition(self.k - 1, axis=1)

    self._on_all_cores(select)
    self._num_keys = self.k
    self.bound = _divergences(self._keys[:, self.k - 1])

  def _on_all_cores(self, work: Callable[[slice], None]) -> None:
    """Call `work` with parts of the targets in threads, as numpy releases the interpreter lock."""
    list(self._threads.map(lambda part: work(slice(part[0], part[-1] + 1)), self._parts))


def _divergences(keys: np.ndarray) -> np.ndarray:
  return (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)


class Search:
  """The k nearest sources of every target, over a stream in which each source appears once.

  Attributes:
    position: the number of sources of the stream whose neighbours are in `keys`.
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
    """Begin a search, or resume one.

    Args:
      targets: histograms, positive and summing to one, as for `symmetric_kl`.
      weights: w_h of Eq. 1.
      k: neighbours of each target.
      position: index of the first source that will be added.
      keys: `keys()` of a search that was stopped at `position`.
      devices: those that compute tiles in turn; None: this process's accelerators, or its cores if
        it has none.

    Raises:
      ValueError: k < 1.
    """
    if k < 1:
      raise ValueError(f'k={k} must be 1 or more')
    self._targets = np.asarray(targets, np.float32)
    self._weights = np.asarray(weights, np.float32)
    self._top_k = TopK(len(targets), k)
    if keys is not None:
      self._top_k.add_keys(keys)
    self.position = position
    self._blocks: list[np.ndarray | Array] = []  # Of the next tile.
    self._backend = backends.make_backend(self._targets, self._weights, TILE, devices)
    # Size, blocks and divergences of the tiles that are being computed, in their order.
    self._pending: deque[tuple[int, list[np.ndarray | Array], backends.PendingTile]] = deque()

  def add(self, block: Float[Array | np.ndarray, 'source filter bin']) -> None:
    """Add the next sources, any number of them, which must not be changed afterwards.

    Raises:
      ValueError: the divergence to a source is not finite.
    """
    while len(block):
      room = TILE - sum(map(len, self._blocks))
      # The slice of an array on a device is a copy, even if it is all of it.
      fits = len(block) <= room
      self._blocks.append(block if fits else block[:room])
      if len(self._blocks[-1]) == room:
        self._start_tile()
      if fits:
        break
      block = block[room:]

  def flush(self) -> None:
    """Merge all sources, at the end of the stream: only its last tile may be short.

    Raises:
      ValueError: the divergence to a source is not finite.
    """
    if self._blocks:
      self._start_tile()
    while self._pending:
      self._merge_tile()
    self._backend.close()

  def keys(self) -> Keys:
    """Return the keys of the neighbours among the first `position` sources, nearest first."""
    return self._top_k.keys()

  def _start_tile(self) -> None:
    """Hand the next tile to the backend and merge the tiles that are ready."""
    size = sum(map(len, self._blocks))
    # The last tile of a stream is padded with ones, whose logarithm is finite.
    if missing := -size % self._backend.unit:
      self._blocks.append(np.ones((missing, *self._targets.shape[1:]), np.float32))
    self._pending.append((size, self._blocks, self._backend.start(self._blocks)))
    self._blocks = []
    while self._pending and (
      len(self._pending) > self._backend.capacity or self._pending[0][2].done()
    ):
      self._merge_tile()

  def _merge_tile(self) -> None:
    """Wait for the oldest pending tile and merge it."""
    size, blocks, pending = self._pending.popleft()
    divergences = pending.result()[:, :size]
    # Infinities, NaNs and set signs have the largest bits: one comparison finds them all.
    if divergences.view(np.uint32).max() >= np.float32(np.inf).view(np.uint32):
      if not np.isfinite(divergences).all():
        raise ValueError(
          f'a divergence to one of the sources {self.position}..{self.position + size - 1} is not '
          'finite: every histogram must be positive and sum to one; is smoothing above 0?'
        )
      tile = np.concatenate([np.asarray(block) for block in blocks])
      # Targets with k sources at divergence zero are left out: later sources cannot enter.
      divergences = refine_near_duplicates(
        divergences, self._targets, tile, self._weights, active=self._top_k.bound > 0
      )
    self._top_k.add(divergences, self.position)
    self.position += size


class Ranking(NamedTuple):
  """The source images nearest to each target image, nearest first, ties by source index.

  Attributes:
    indices: of the sources in their stream.
    divergences: from the target, in nats.
  """

  indices: Int32[np.ndarray, 'target k']
  divergences: Float32[np.ndarray, 'target k']

  @classmethod
  def empty(cls, num_targets: int) -> 'Ranking':
    """Return the ranking that has no neighbour of any target image."""
    return cls(np.zeros((num_targets, 0), np.int32), np.zeros((num_targets, 0), np.float32))


def decode_keys(keys: Keys, k: int) -> Ranking:
  """Return the ranking that the k smallest keys of every target hold.

  Raises:
    ValueError: there are fewer than k sources.
  """
  num_sources = int((keys != EMPTY_KEY).sum(axis=1).min()) if keys.shape[1] == k else keys.shape[1]
  if num_sources < k:
    raise ValueError(f'k={k} exceeds the {num_sources} sources; lower it')
  return Ranking(keys.astype(np.uint32).view(np.int32), _divergences(keys))


def rank_histograms(
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
    k: neighbours of each target.

  Raises:
    ValueError: the stream holds fewer than k sources, or a divergence is not finite.
  """
  search = Search(targets, weights=weights, k=k)
  for block in source_blocks:
    search.add(block)
  search.flush()
  return decode_keys(search.keys(), k)
