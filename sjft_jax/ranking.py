"""From images to the ranking, in one pass over each data set.

The target decides the histograms' bins and is described; the source streams past it: decode →
responses → histograms → divergences → the k nearest so far. Nothing else is kept of a source image.
"""

import functools
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from etils import epath

from sjft_jax import artifacts, interruption, processes
from sjft_jax.data import transforms
from sjft_jax.data.dataset import Dataset
from sjft_jax.data.pairs import views
from sjft_jax.descriptors import describe
from sjft_jax.descriptors.bank import FilterBank
from sjft_jax.report import terminal
from sjft_jax.retrieval import knn
from sjft_jax.training import memory


@dataclass(frozen=True)
class Ranking:
  """The source images nearest to each target training image, nearest first."""

  indices: np.ndarray
  divergences: np.ndarray


@dataclass(frozen=True)
class Ranked:
  """A ranking with the bin edges it was made with, and the seconds it took.

  Once it is kept elsewhere, `partial` can go.
  """

  ranking: Ranking
  edges: np.ndarray
  seconds: float
  partial: Path | epath.Path


def rank_sources(
  partial: Path | epath.Path,
  made_from: str,
  target: Dataset,
  source: Dataset,
  bank: FilterBank,
  depth: int,
  *,
  num_bins: int,
  smoothing: float,
  resize: int,
  crop: int,
  batch_size: int,
  workers: int,
  checkpoint_minutes: float,
) -> Ranked:
  """The `depth` source images nearest to every target image.

  Under `jax.distributed` every process ranks its share of the source, on all of its devices, and
  all return the whole ranking.

  Args:
    partial: where a search that is killed leaves what it has found, to go on from there; the name
      differs between processes.
    made_from: fingerprint of all that decides the ranking.
    num_bins, smoothing: of the histograms; see `config.default`, as for those below.
    resize, crop: the view of an image that is described.
    batch_size: images described at once.
    workers: processes that decode; 0: threads of this one.
    checkpoint_minutes: how often `partial` is written.

  Raises:
    ValueError: the source has fewer than `depth` images, or an image cannot be read.
  """
  begun = time.monotonic()
  if depth > len(source):
    raise ValueError(f'{depth} neighbours of each image exceed the {len(source)} source images')
  view = functools.partial(transforms.describe_view, resize=resize, crop=crop)
  batches = functools.partial(views, view=view, batch_size=batch_size, side=resize, workers=workers)
  # In whole tiles, so that the products are the same ones as in a single process.
  start, stop = processes.share(len(source), unit=knn.TILE)
  partial = artifacts.of_process(partial, jax.process_index(), jax.process_count())

  found = left(partial, made_from) or {}
  if found:
    begun -= float(found['seconds'])
    terminal.say(f'  goes on from source image {int(found["position"]):,}')
    edges = found['edges']
  else:
    with terminal.progress(f'adaptive bins of {target.name}', len(target)) as advance:
      images = terminal.counted(batches(target), advance)
      edges = describe.fit_edges(bank, images, num_bins=num_bins)
  edges = processes.of_first(np.asarray(edges))

  describing = functools.partial(
    describe.describe, bank, edges, smoothing=smoothing, batch_size=batch_size
  )
  with terminal.progress(f'histograms of {target.name}', len(target)) as advance:
    images = terminal.counted(batches(target), advance)
    targets = np.concatenate([np.asarray(block) for block in describing(images)])

  search = knn.Search(
    targets,
    weights=bank.weights,
    k=depth,
    position=int(found.get('position', start)),
    keys=found.get('keys'),
  )
  saved = time.monotonic()
  done = search.position - start
  with (
    terminal.progress(f'ranking {source.name}', stop - start, done) as advance,
    memory.explained(
      f'describing {batch_size} images at once',
      memory.batch_remedy('descriptors.batch_size', batch_size, 'lower descriptors.crop'),
    ),
    interruption.deferred(),
  ):
    stream = _Timed(batches(source, start=search.position, stop=stop))
    for block in _in_flight(describing(stream)):
      search.add(block)
      advance(len(block), stream.slower_stage())
      is_asked = interruption.is_asked()
      if is_asked or time.monotonic() - saved > 60 * checkpoint_minutes:
        artifacts.save(
          partial,
          made_from,
          position=search.position,
          keys=search.keys(),
          edges=edges,
          seconds=time.monotonic() - begun,
        )
        saved = time.monotonic()
      if is_asked:
        interruption.check()
    search.flush()
  indices, divergences = knn.neighbors(_of_all_processes(search.keys(), depth), depth)
  return Ranked(Ranking(indices, divergences), edges, time.monotonic() - begun, partial)


def left(path: os.PathLike[str], made_from: str) -> dict[str, np.ndarray] | None:
  """What a search that was stopped has left at `path`, if it has.

  Raises:
    ValueError: the file is damaged, or of a search for something else.
  """
  try:
    return artifacts.load(path, made_from)
  except ValueError as error:
    raise ValueError(
      f'{path} is damaged, or was left by a search with other images or options; delete it to '
      'start anew'
    ) from error


class _Timed:
  """Batches, and how long the consumer has waited for them."""

  def __init__(self, batches: Iterator[np.ndarray]):
    self._batches = batches
    self._waited, self._begun = 0.0, time.monotonic()

  def __iter__(self) -> '_Timed':
    return self

  def __next__(self) -> np.ndarray:
    begun = time.monotonic()
    batch = next(self._batches)
    self._waited += time.monotonic() - begun
    return batch

  def slower_stage(self) -> str:
    waiting = self._waited > (time.monotonic() - self._begun) / 2
    return 'decoding is the slower stage' if waiting else 'describing is the slower stage'


def _in_flight(blocks: Iterator[jax.Array]) -> Iterator[jax.Array]:
  """The blocks, made by each device in turn, several at a time."""
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


def _of_all_processes(keys: knn.Keys, k: int) -> knn.Keys:
  if jax.process_count() == 1:
    return keys
  # As 32-bit numbers: JAX would cut 64 bits short. As wide as any other process's.
  padded = np.pad(keys, ((0, 0), (0, k - keys.shape[1])), constant_values=knn.NOBODY)
  nearest = knn.Nearest(len(keys), k)
  for part in processes.of_all(padded.view(np.uint32)):
    nearest.add_keys(np.ascontiguousarray(part).view(np.uint64))
  return nearest.keys()
