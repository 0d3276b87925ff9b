"""Rank the source images for every target image, in one pass over each data set.

The target decides the histograms' bins and is described. The source streams past it: decode →
responses → histograms → divergences → the nearest so far. No descriptor of the source is stored.
"""

import contextlib
import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, UInt8

from sjft_jax.data import transforms
from sjft_jax.data.dataset import Dataset
from sjft_jax.data.loader import views
from sjft_jax.descriptors import describe, histogram
from sjft_jax.descriptors.bank import FilterBank
from sjft_jax.retrieval import knn
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.runtime import artifacts, console, distributed, memory, preemption

Edges = Float[np.ndarray, 'filter edge']


@dataclass(frozen=True, kw_only=True)
class DescriptorOptions:
  """The section `descriptors` of the configuration.

  Attributes:
    resize: images are warped to a square of this side, pixels.
    crop: side of the centre square that is described, pixels.
    num_bins: equal-mass bins of each filter's histogram.
    smoothing: pseudo-count added to every bin, in pixels.
    batch_size: images described at once.
    workers: processes that decode images; 0: threads of this one.
    checkpoint_minutes: minutes of the ranking that a killed run repeats at most.

  Raises:
    ValueError: an impossible crop, number of bins or smoothing.
  """

  resize: int
  crop: int
  num_bins: int
  smoothing: float
  batch_size: int
  workers: int
  checkpoint_minutes: float

  def __post_init__(self) -> None:
    if self.crop > self.resize:
      raise ValueError(f'crop={self.crop} exceeds resize={self.resize}')
    histogram.check_num_bins(self.num_bins)
    histogram.check_smoothing(self.smoothing)

  @property
  def result_options(self) -> list[float]:
    """Return the options that decide a ranking."""
    # Not the batch size, on which last bits of convolutions depend: where memory runs out, a search
    # goes on with a smaller one.
    return [self.num_bins, self.smoothing, self.resize, self.crop]


def check_crop(bank: FilterBank, crop: int) -> None:
  """Check that the filters of a bank fit into the images, without computing anything.

  Raises:
    ValueError: they do not.
  """
  image = jax.ShapeDtypeStruct((1, crop, crop, 3), np.uint8)
  try:
    maps = jax.eval_shape(bank.respond, image)
  except ValueError as error:
    raise ValueError(f'crop={crop}: {error}') from error
  if any(0 in response.shape for response in maps):
    raise ValueError(
      f'crop={crop} is smaller than the filters of the {bank.name} bank; raise it or use others'
    )


class RankingInputs(NamedTuple):
  """What decides a ranking.

  Attributes:
    target: the images to find neighbours of; they also decide the bins.
    source: the images to find neighbours among.
    bank: the filters that describe them.
    depth: neighbours of each target image.
    options: of the descriptors.
  """

  target: Dataset
  source: Dataset
  bank: FilterBank
  depth: int
  options: DescriptorOptions

  @property
  def fingerprint(self) -> str:
    """Return the fingerprint of everything but the depth: a deeper ranking begins with this one."""
    return artifacts.fingerprint(
      self.target.fingerprint,
      self.source.fingerprint,
      self.bank.fingerprint,
      self.options.result_options,
    )


class RankingResult(NamedTuple):
  """A ranking, the bin edges of its descriptors, and the seconds that it took."""

  ranking: Ranking
  edges: Edges
  seconds: float


def load_or_rank(
  path: epath.Path, inputs: RankingInputs, *, prefix: str = 'descriptors.'
) -> RankingResult:
  """Load the ranking at `path`, or rank the source and save it there.

  Under `jax.distributed` the first process reads and writes, and all return the same.

  Args:
    path: an .npz file; beside it a search that is stopped leaves `<name>.partial.npz`.
    inputs: what to rank; the file may hold a deeper ranking of the same.
    prefix: what users write before the names of the descriptors' options, for messages.

  Raises:
    ValueError: the source has fewer than `depth` images, an image cannot be read, memory runs out,
      a file is damaged or was made from something else, or processes have other inputs.
  """
  partial = path.with_name(f'{path.stem}.partial.npz')
  # Each process ranks a part of its own source, and their indices are put together.
  distributed.check_same(
    {
      'target images': inputs.target.fingerprint,
      'source images': inputs.source.fingerprint,
      'filters or options': artifacts.fingerprint(inputs.fingerprint, inputs.depth),
    }
  )
  if distributed.broadcast(np.array(path.exists(), np.int32)):
    console.say(f'  done before: {path}')
    result = _load_ranking(path, inputs)
  else:
    result = rank_sources(partial, inputs, prefix=prefix)
    if distributed.is_primary_process():
      artifacts.save(
        path,
        inputs.fingerprint,
        **result.ranking._asdict(),
        edges=result.edges,
        seconds=result.seconds,
      )
    distributed.barrier()  # Only after it is the partial search not needed any more.
  _per_process(partial).unlink(missing_ok=True)
  return result


def _load_ranking(path: epath.Path, inputs: RankingInputs) -> RankingResult:
  """Load a ranking in the first process and send it to all."""
  shape = len(inputs.target), inputs.depth
  # In the other processes `broadcast` needs arrays of the same shapes and types, of any contents.
  indices, divergences = np.empty(shape, np.int32), np.empty(shape, np.float32)
  edges_shape = sum(inputs.bank.num_filters), inputs.options.num_bins - 1
  edges, seconds = np.empty(edges_shape, np.float32), np.empty((), np.float32)
  if distributed.is_primary_process():
    arrays = _load_arrays(path, inputs.fingerprint)
    assert arrays is not None
    saved_depth = arrays['indices'].shape[1]
    if saved_depth < inputs.depth:
      raise ValueError(
        f'{path} has {saved_depth:,} neighbours of each image, {inputs.depth:,} are asked for; '
        'delete it to rank anew'
      )
    indices, divergences = (arrays[name][:, : inputs.depth] for name in ('indices', 'divergences'))
    edges, seconds = arrays['edges'], arrays['seconds'].astype(np.float32)
  indices, divergences, edges, seconds = map(
    distributed.broadcast, (indices, divergences, edges, seconds)
  )
  return RankingResult(Ranking(indices, divergences), edges, float(seconds))


def copy_ranking(candidates: Sequence[epath.Path], path: epath.Path, inputs: RankingInputs) -> None:
  """Copy a ranking that was made for another run to `path`, if one is the same or deeper."""
  for candidate in candidates:
    if path.exists():
      return
    with contextlib.suppress(ValueError):  # Of other images or options, or damaged.
      arrays = artifacts.load(candidate, inputs.fingerprint)
      if arrays is not None and arrays['indices'].shape[1] >= inputs.depth:
        artifacts.save(path, inputs.fingerprint, **arrays)


def rank_sources(
  partial: epath.Path, inputs: RankingInputs, *, prefix: str = 'descriptors.'
) -> RankingResult:
  """Find the `depth` source images nearest to every target image.

  Under `jax.distributed` every process ranks its share of the source, on all of its devices, and
  all return the whole ranking.

  Args:
    partial: where a search that is stopped saves its state, to be resumed; each process adds its
      number to the name.
    inputs: what to rank.
    prefix: as for `load_or_rank`.

  Raises:
    ValueError: as for `load_or_rank`.
  """
  target, source, bank, depth, options = inputs
  if depth > len(source):
    raise ValueError(
      f'{depth} neighbours of each target image exceed the {len(source):,} source images; lower '
      'their number'
    )
  start_time = time.monotonic()
  partial = _per_process(partial)
  fingerprint = artifacts.fingerprint(inputs.fingerprint, depth)
  describer = Describer(bank, options)
  # In whole tiles, so that the products are the same ones as in a single process.
  shard = distributed.shard_bounds(len(source), unit=knn.TILE)
  state = _load_search(partial, fingerprint)
  if state is not None:
    console.say(f'  resumes at source image {state.position:,}')
    start_time -= state.seconds
  hint = memory.batch_size_hint(f'{prefix}batch_size', options.batch_size, f'lower {prefix}crop')
  with memory.explain_oom(f'describing {options.batch_size} images at once', hint):
    if state is None:
      state = _SearchState(shard[0], None, describer.fit_edges(target), 0.0)
    edges = distributed.broadcast(state.edges)
    targets = describer.describe_all(target, edges)
    search = knn.Search(
      targets, weights=bank.weights, k=depth, position=state.position, keys=state.keys
    )

    def save() -> None:
      seconds = time.monotonic() - start_time
      now = _SearchState(search.position, search.keys(), edges, seconds)
      artifacts.save(partial, fingerprint, **now._asdict())

    _search(search, describer, edges, source, shard, save)
    ranking = knn.decode_keys(_merge_processes(search.keys(), depth), depth)
  return RankingResult(ranking, edges, time.monotonic() - start_time)


class _SearchState(NamedTuple):
  """A search that was stopped, or is yet to begin.

  Attributes:
    position: index of the next source image.
    keys: of the neighbours among the images before it, if there are any.
    edges: of the bins.
    seconds: that the search took so far.
  """

  position: int
  keys: knn.Keys | None
  edges: Edges
  seconds: float


def _load_search(path: epath.Path, fingerprint: str) -> _SearchState | None:
  """Load a search that was stopped, if there is one at `path`."""
  arrays = _load_arrays(path, fingerprint)
  if arrays is None:
    return None
  position, seconds = int(arrays['position']), float(arrays['seconds'])
  return _SearchState(position, arrays['keys'], arrays['edges'], seconds)


@dataclass(frozen=True)
class Describer:
  """Describes the images of data sets with the filters of a bank."""

  bank: FilterBank
  options: DescriptorOptions

  def batches(
    self, dataset: Dataset, start: int = 0, stop: int | None = None
  ) -> Iterator[UInt8[np.ndarray, 'batch crop crop 3']]:
    """Yield the views of images start..stop-1."""
    o = self.options
    view = functools.partial(transforms.describe_view, resize=o.resize, crop=o.crop)
    return views(
      dataset, view, o.batch_size, min_side=o.resize, start=start, stop=stop, workers=o.workers
    )

  def fit_edges(self, dataset: Dataset) -> Edges:
    """Fit the bins to all images."""
    with console.progress(f'adaptive bins of {dataset.name}', len(dataset)) as advance:
      batches = console.with_progress(self.batches(dataset), advance)
      return describe.fit_edges(self.bank, batches, num_bins=self.options.num_bins)

  def describe(self, batches: Iterator[np.ndarray], edges: Edges) -> Iterator[jax.Array]:
    """Yield the descriptors of each batch."""
    return describe.describe(
      self.bank,
      edges,
      batches,
      smoothing=self.options.smoothing,
      batch_size=self.options.batch_size,
    )

  def describe_all(self, dataset: Dataset, edges: Edges) -> Float[np.ndarray, 'image filter bin']:
    """Return the descriptors of all images."""
    with console.progress(f'histograms of {dataset.name}', len(dataset)) as advance:
      batches = console.with_progress(self.batches(dataset), advance)
      return np.concatenate([np.asarray(block) for block in self.describe(batches, edges)])


def _search(
  search: knn.Search,
  describer: Describer,
  edges: Edges,
  source: Dataset,
  shard: tuple[int, int],
  save: Callable[[], None],
) -> None:
  """Add the rest of a shard of the source to the search; save it now and then, and if stopped."""
  (start, stop), options = shard, describer.options
  save_time = time.monotonic()
  with (
    console.progress(f'ranking {source.name}', stop - start, search.position - start) as advance,
    preemption.defer_signals(),
  ):
    batches = _TimedBatches(describer.batches(source, search.position, stop))
    for block in pipelined(describer.describe(batches, edges)):
      search.add(block)
      advance(len(block), batches.slower_stage())
      is_stopping = preemption.should_stop()
      if is_stopping or time.monotonic() - save_time > 60 * options.checkpoint_minutes:
        save()
        save_time = time.monotonic()
      if is_stopping:
        preemption.raise_if_stopping()
    search.flush()


class _TimedBatches:
  """Iterates over batches and measures how long the consumer waits for them."""

  def __init__(self, batches: Iterator[np.ndarray]):
    self._batches = batches
    self._start_time, self._waiting_seconds = time.monotonic(), 0.0

  def __iter__(self) -> '_TimedBatches':
    return self

  def __next__(self) -> np.ndarray:
    call_time = time.monotonic()
    batch = next(self._batches)
    self._waiting_seconds += time.monotonic() - call_time
    return batch

  def slower_stage(self) -> str:
    """Return a note that names the stage which takes most of the time."""
    is_waiting = self._waiting_seconds > (time.monotonic() - self._start_time) / 2
    return f'{"decoding" if is_waiting else "describing"} is the slower stage'


def pipelined(blocks: Iterator[jax.Array]) -> Iterator[jax.Array]:
  """Yield the blocks, computed by the devices in turn, several ahead."""
  devices = jax.local_devices()
  pending: deque[jax.Array] = deque()
  for device in itertools.cycle(devices):
    with jax.default_device(device):
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


def _load_arrays(path: epath.Path, fingerprint: str) -> dict[str, np.ndarray] | None:
  """Load what a search for the same images and options has saved, or None.

  Raises:
    ValueError: the file is damaged, or was saved by another search.
  """
  try:
    return artifacts.load(path, fingerprint)
  except ValueError as error:
    raise ValueError(
      f'{path} is damaged, or was left by a search with other images or options; delete it to '
      'start anew'
    ) from error


def _per_process(path: epath.Path) -> epath.Path:
  return artifacts.per_process_path(path, jax.process_index(), jax.process_count())
