"""From images to the ranking, in one pass over each data set.

The target decides the histograms' bins and is described; the source streams past it: decode →
responses → histograms → divergences → the k nearest so far. Nothing else is kept of a source image.
"""

import functools
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
from etils import epath
from jaxtyping import Float, Float32, Int32

from sjft_jax.data import transforms
from sjft_jax.data.dataset import Dataset
from sjft_jax.data.folder import UnlabelledFolder
from sjft_jax.data.loader import views
from sjft_jax.descriptors import bank as banks
from sjft_jax.descriptors import describe
from sjft_jax.descriptors.bank import FilterBank
from sjft_jax.report import tables
from sjft_jax.retrieval import knn
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.runtime import artifacts, console, distributed, memory, preemption
from sjft_jax.screening.screen import exclude_unreadable

# Of `DescriptorOptions`, those that decide the ranking. The last bits of convolutions depend on the
# size of a batch.
DECIDING_OPTIONS = ('num_bins', 'smoothing', 'resize', 'crop', 'batch_size')
# Rows of a table that are written at once.
_ROWS = 2**18


@dataclass(frozen=True, kw_only=True)
class DescriptorOptions:
  """The section `descriptors` of the configuration.

  Attributes:
    resize, crop: the view of an image that is described, pixels.
    num_bins: equal-mass bins of each filter's histogram.
    smoothing: pseudo-count added to every bin, in pixels.
    batch_size: images described at once.
    workers: processes that decode images; 0: threads of this one.
    checkpoint_minutes: how much of the ranking a killed run repeats at most.
  """

  resize: int
  crop: int
  num_bins: int
  smoothing: float
  batch_size: int
  workers: int
  checkpoint_minutes: float


class RankingResult(NamedTuple):
  """A ranking, the bin edges it was made with, and the seconds it took."""

  ranking: Ranking
  edges: Float[np.ndarray, 'filter edge']
  seconds: float


@dataclass(frozen=True)
class FolderRanking:
  """The neighbours of the images of one folder among those of another.

  Attributes:
    targets: the names of the target images, paths below their folder.
    sources: those of the source images.
    indices: of the neighbours in `sources`, nearest first.
    divergences: from the target, in nats.
    seconds: that the search took.
  """

  targets: list[str]
  sources: list[str]
  indices: Int32[np.ndarray, 'target k']
  divergences: Float32[np.ndarray, 'target k']
  seconds: float

  def save(self, path: os.PathLike[str] | str) -> None:
    """Write a table, .csv or .parquet, with a row for each target image and neighbour.

    Its columns are target, source, rank (1 is the nearest) and divergence (nats).
    """
    num_targets, k = self.indices.shape
    targets, sources = pa.array(self.targets), pa.array(self.sources)
    ranks = np.arange(1, k + 1, dtype=np.int32)
    step = max(1, _ROWS // k)

    def part(rows: slice) -> tuple[Any, ...]:
      indices = self.indices[rows]
      return (
        targets[rows].take(pa.array(np.repeat(np.arange(len(indices)), k))),
        sources.take(pa.array(indices.ravel())),
        np.tile(ranks, len(indices)),
        self.divergences[rows].ravel(),
      )

    parts = (part(slice(start, start + step)) for start in range(0, num_targets, step))
    tables.write_table(path, tables.NEIGHBOR_COLUMNS, parts)


def rank_folders(
  target: str,
  source: str,
  *,
  k: int,
  bank: Mapping[str, Any],
  descriptors: DescriptorOptions,
  max_bad_share: float,
  path: epath.Path | None = None,
  bad_images: os.PathLike[str] | None = None,
) -> FolderRanking:
  """Rank the images of one folder by their likeness to each image of another.

  Args:
    target: the folder of the query images, which are read at any depth.
    source: the folder of the images to be ranked.
    k: neighbours of each target image.
    bank: the keywords of `bank.load`.
    descriptors: how images are described.
    max_bad_share: share of a folder, 0–1, that may be unreadable.
    path: an .npz file that keeps the ranking, and beside which a search that is stopped is resumed.
    bad_images: the table that lists images that cannot be read, if there are any.

  Raises:
    ValueError: an impossible option, a folder without images, k exceeds the source images, or too
      many images cannot be read.
  """
  folders = UnlabelledFolder(target), UnlabelledFolder(source)
  if k > len(folders[1]):
    raise ValueError(f'k={k} exceeds the {len(folders[1]):,} images below {source}')
  if not 0 < descriptors.smoothing < math.inf:
    raise ValueError(f'smoothing={descriptors.smoothing} must be above 0')
  if descriptors.crop > descriptors.resize:
    raise ValueError(f'crop={descriptors.crop} exceeds resize={descriptors.resize}')
  filter_bank = banks.load(**bank)
  with tempfile.TemporaryDirectory() as scratch:
    listing = bad_images or Path(scratch) / 'bad_images.csv'
    targets, sources = exclude_unreadable(folders, listing, max_bad_share=max_bad_share)
    if (targets, sources) == folders:  # The list is empty.
      Path(listing).unlink(missing_ok=True)
    console.say(f'Target: {len(targets):,} images. Source: {len(sources):,} images.')
    fingerprint = artifacts.fingerprint(
      targets.fingerprint,
      sources.fingerprint,
      filter_bank.fingerprint,
      [getattr(descriptors, name) for name in DECIDING_OPTIONS],
      k,
    )
    kept = epath.Path(scratch) / 'ranking.npz' if path is None else path
    result = load_or_rank(kept, fingerprint, targets, sources, filter_bank, k, descriptors)
  return FolderRanking(
    [targets.key(i) for i in range(len(targets))],
    [sources.key(i) for i in range(len(sources))],
    result.ranking.indices,
    result.ranking.divergences,
    result.seconds,
  )


def load_or_rank(
  path: epath.Path,
  fingerprint: str,
  target: Dataset,
  source: Dataset,
  bank: FilterBank,
  depth: int,
  options: DescriptorOptions,
) -> RankingResult:
  """Load the ranking at `path`, or rank the source and save it there.

  Under `jax.distributed` the first process reads and writes, and all return the same.

  Args:
    path: an .npz file; beside it a search that is stopped leaves `<name>.partial.npz`.
    fingerprint: of all that decides the ranking.
    target: whose images are queries; they decide the bins.
    source: whose images are ranked.
    bank: of filters.
    depth: neighbours of each target image.
    options: of the descriptors.

  Raises:
    ValueError: the source has fewer than `depth` images, an image cannot be read, or a file is
      damaged or was made from something else.
  """
  partial = path.with_name(f'{path.stem}.partial.npz')
  if distributed.broadcast(np.array(path.exists(), np.int32)):
    console.say(f'  done before: {path}')
    result = _load(path, fingerprint, (len(target), depth), bank, options.num_bins)
  else:
    result = rank_sources(partial, fingerprint, target, source, bank, depth, options)
    if distributed.is_lead_host():
      artifacts.save(
        path,
        fingerprint,
        **result.ranking._asdict(),
        edges=result.edges,
        seconds=result.seconds,
      )
    distributed.barrier()  # Only then is the partial search not needed any more.
  own_partial = artifacts.per_process_path(partial, jax.process_index(), jax.process_count())
  own_partial.unlink(missing_ok=True)
  return result


def rank_sources(
  partial: epath.Path,
  fingerprint: str,
  target: Dataset,
  source: Dataset,
  bank: FilterBank,
  depth: int,
  options: DescriptorOptions,
) -> RankingResult:
  """Find the `depth` source images nearest to every target image.

  Under `jax.distributed` every process ranks its share of the source, on all of its devices, and
  all return the whole ranking.

  Args:
    partial: where a search that is stopped leaves its state, to resume; each process has a name of
      its own.
    fingerprint, target, source, bank, depth, options: as for `load_or_rank`.

  Raises:
    ValueError: the source has fewer than `depth` images, or an image cannot be read.
  """
  start_time = time.monotonic()
  if depth > len(source):
    raise ValueError(f'{depth} neighbours of each image exceed the {len(source)} source images')
  view = functools.partial(transforms.describe_view, resize=options.resize, crop=options.crop)
  batches = functools.partial(
    views,
    view=view,
    batch_size=options.batch_size,
    min_side=options.resize,
    workers=options.workers,
  )
  # In whole tiles, so that the products are the same ones as in a single process.
  start, stop = distributed.shard_bounds(len(source), unit=knn.TILE)
  partial = artifacts.per_process_path(partial, jax.process_index(), jax.process_count())

  saved_search = load_partial(partial, fingerprint) or {}
  if saved_search:
    start_time -= float(saved_search['seconds'])
    console.say(f'  resumes at source image {int(saved_search["position"]):,}')
    edges = saved_search['edges']
  else:
    with console.progress(f'adaptive bins of {target.name}', len(target)) as advance:
      images = console.with_progress(batches(target), advance)
      edges = describe.fit_edges(bank, images, num_bins=options.num_bins)
  edges = distributed.broadcast(np.asarray(edges))

  describe_batches = functools.partial(
    describe.describe,
    bank,
    edges,
    smoothing=options.smoothing,
    batch_size=options.batch_size,
  )
  with console.progress(f'histograms of {target.name}', len(target)) as advance:
    images = console.with_progress(batches(target), advance)
    targets = np.concatenate([np.asarray(block) for block in describe_batches(images)])

  search = knn.Search(
    targets,
    weights=bank.weights,
    k=depth,
    position=int(saved_search.get('position', start)),
    keys=saved_search.get('keys'),
  )

  def save_partial() -> None:
    artifacts.save(
      partial,
      fingerprint,
      position=search.position,
      keys=search.keys(),
      edges=edges,
      seconds=time.monotonic() - start_time,
    )

  save_time = time.monotonic()
  with (
    console.progress(f'ranking {source.name}', stop - start, search.position - start) as advance,
    memory.explain_oom(
      f'describing {options.batch_size} images at once',
      memory.batch_size_hint(
        'descriptors.batch_size', options.batch_size, 'lower descriptors.crop'
      ),
    ),
    preemption.defer_signals(),
  ):
    stream = _TimedBatches(batches(source, start=search.position, stop=stop))
    for block in _pipelined(describe_batches(stream)):
      search.add(block)
      advance(len(block), stream.slower_stage())
      if preemption.should_stop():
        save_partial()
        preemption.raise_if_stopping()
      if time.monotonic() - save_time > 60 * options.checkpoint_minutes:
        save_partial()
        save_time = time.monotonic()
    search.flush()
  ranking = knn.neighbors(_merge_processes(search.keys(), depth), depth)
  return RankingResult(ranking, edges, time.monotonic() - start_time)


def load_partial(path: epath.Path, fingerprint: str) -> dict[str, np.ndarray] | None:
  """Load the state of a search that was stopped, if there is one at `path`.

  Raises:
    ValueError: the file is damaged, or of a search for something else.
  """
  try:
    return artifacts.load(path, fingerprint)
  except ValueError as error:
    raise ValueError(
      f'{path} is damaged, or was left by a search with other images or options; delete it to '
      'start anew'
    ) from error


def _load(
  path: epath.Path, fingerprint: str, shape: tuple[int, int], bank: FilterBank, num_bins: int
) -> RankingResult:
  indices, divergences = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
  edges = np.zeros((sum(bank.num_filters), num_bins - 1), np.float32)
  seconds = np.zeros((), np.float32)
  if distributed.is_lead_host():
    arrays = load_partial(path, fingerprint)
    assert arrays is not None
    indices, divergences, edges = (arrays[name] for name in ('indices', 'divergences', 'edges'))
    seconds = arrays['seconds'].astype(np.float32)
  indices, divergences, edges, seconds = map(
    distributed.broadcast, (indices, divergences, edges, seconds)
  )
  return RankingResult(Ranking(indices, divergences), edges, float(seconds))


class _TimedBatches:
  """Batches, and how long the consumer has waited for them."""

  def __init__(self, batches: Iterator[np.ndarray]):
    self._batches = batches
    self._waiting_seconds, self._start_time = 0.0, time.monotonic()

  def __iter__(self) -> '_TimedBatches':
    return self

  def __next__(self) -> np.ndarray:
    call_time = time.monotonic()
    batch = next(self._batches)
    self._waiting_seconds += time.monotonic() - call_time
    return batch

  def slower_stage(self) -> str:
    is_waiting = self._waiting_seconds > (time.monotonic() - self._start_time) / 2
    return f'{"decoding" if is_waiting else "describing"} is the slower stage'


def _pipelined(blocks: Iterator[jax.Array]) -> Iterator[jax.Array]:
  """Yield the blocks, computed by each device in turn, several at a time."""
  devices = jax.local_devices()
  pending: deque[jax.Array] = deque()
  for number in range(10**18):
    with jax.default_device(devices[number % len(devices)]):
      block = next(blocks, None)
    if block is None:
      break
    pending.append(block)
    if len(pending) > 2 * len(devices):
      yield pending.popleft().block_until_ready()
  yield from pending


def _merge_processes(keys: knn.Keys, k: int) -> knn.Keys:
  """Return the k smallest keys of every target among those of all processes."""
  if jax.process_count() == 1:
    return keys
  # A little-endian uint64 viewed as two uint32, since JAX would cut 64 bits short; padded, since
  # all processes gather arrays of one shape.
  padded = np.pad(keys, ((0, 0), (0, k - keys.shape[1])), constant_values=knn.EMPTY_KEY)
  merged = knn.TopK(len(keys), k)
  for part in distributed.all_gather(padded.view(np.uint32)):
    merged.add_keys(np.ascontiguousarray(part).view(np.uint64))
  return merged.keys()
