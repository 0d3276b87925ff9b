"""Joint batches, target images each beside one of its current neighbours, loaded by Grain."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import grain
import numpy as np

from sjft_jax.data.dataset import Dataset
from sjft_jax.selection.subset import Subset

Batch = dict[str, np.ndarray]
Views = TypeVar('Views', np.ndarray, tuple[np.ndarray, ...])
Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# What a stream of random numbers is for.  Streams are told apart by their whole key.
_ORDER, _NEIGHBOR, _AUGMENT = range(3)


def _random(purpose: int, *key: int) -> np.random.Generator:
  """Counter-based random numbers that depend on the key alone, never on what was drawn before."""
  # A length in front: numpy's seeds do not tell (1, 2) from (1, 2, 0).
  return np.random.Generator(np.random.Philox(np.random.SeedSequence([len(key), purpose, *key])))


def shuffled(seed: int, start: int, stop: int, size: int) -> np.ndarray:
  """Places start..stop-1 of an endless sequence that goes through 0..size-1 epoch by epoch."""
  epochs = range(start // size, -(-stop // size))
  orders = {e: _random(_ORDER, seed, e).permutation(size) for e in epochs}
  return np.array([orders[place // size][place % size] for place in range(start, stop)])


@dataclass(frozen=True)
class Pairs:
  """The batches of one round; `pairs(step)` is a pure function of (seed, round, step).

  A batch holds `batch_size` target images and, unless there is no subset, one neighbour of each
  behind it: target, neighbour, target, neighbour … so that any cut between pairs keeps the
  domains in balance. Its leaves are 'image' uint8 [image, height, width, channel], 'label' int32
  in the label space of the image's own domain, and 'is_source' bool. If the source is multi-label,
  there is also 'shown' bool [image, class], the classes in each source image, whose 'label' is 0.

  `side` is the short side that `augment` can make use of: images are decoded no larger than it
  takes.
  """

  target: Dataset
  source: Dataset
  subset: Subset | None
  augment: Augment
  side: int
  seed: int
  round_: int
  batch_size: int

  def __call__(self, step: int) -> Batch:
    first = step * self.batch_size
    targets = shuffled(self.seed, first, first + self.batch_size, len(self.target))
    chosen = [(self.target, targets)]
    if self.subset is not None:
      uniform = _random(_NEIGHBOR, self.seed, self.round_, step).random(self.batch_size)
      chosen.append((self.source, self.subset.draw(targets, uniform)))
    return self._load(chosen, step)

  def _load(self, chosen: list[tuple[Dataset, np.ndarray]], step: int) -> Batch:
    images: list[np.ndarray] = []
    labels, is_source = [], []
    several = self.source.labels.ndim > 1
    shown = np.zeros((len(chosen) * self.batch_size, len(self.source.classes)), bool)
    for place in range(self.batch_size):
      for dataset, indices in chosen:
        index = int(indices[place])
        random = _random(_AUGMENT, self.seed, self.round_, step, len(images))
        is_source.append(dataset is self.source)
        if several and is_source[-1]:
          shown[len(images)] = dataset.labels[index]
        labels.append(0 if several and is_source[-1] else dataset.labels[index])
        images.append(self.augment(dataset.at_least(index, self.side), random))
    batch = {
      'image': np.stack(images),
      'label': np.array(labels, np.int32),
      'is_source': np.array(is_source),
    }
    return batch | {'shown': shown} if several else batch


class SourceOnly(Pairs):
  """Batches of source images alone, for pretraining a trunk; twice as many, so of the same size."""

  def __call__(self, step: int) -> Batch:
    first = 2 * step * self.batch_size
    indices = shuffled(self.seed, first, first + 2 * self.batch_size, len(self.source))
    return self._load([(self.source, indices[0::2]), (self.source, indices[1::2])], step)


def _ahead(dataset: grain.MapDataset, buffer: int, workers: int = 0) -> Iterator:
  # Grain's own default is to hold 500 elements, which for batches of images is gigabytes.
  # Decoding releases the interpreter lock: threads keep all cores busy.
  options = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=buffer)
  if not workers:
    return iter(dataset.to_iter_dataset(options))
  own = grain.ReadOptions(num_threads=1, prefetch_buffer_size=buffer)
  processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffer)
  return iter(dataset.to_iter_dataset(own).mp_prefetch(processes))


def prefetched(
  batches: Callable[[int], Batch], start: int, stop: int, *, workers: int = 0
) -> Iterator[Batch]:
  """The batches of steps start..stop-1, loaded ahead in threads or in `workers` processes."""
  steps = grain.MapDataset.range(start, stop)
  return _ahead(steps.map(lambda step: batches(int(step))), buffer=4, workers=workers)


def views(
  dataset: Dataset,
  view: Callable[[np.ndarray], Views],
  batch_size: int,
  *,
  side: int,
  start: int = 0,
  stop: int | None = None,
  workers: int = 0,
) -> Iterator[Views]:
  """Images start..stop-1 of a data set through `view`, in batches; the last may be smaller.

  They are loaded ahead, in threads or, if `workers` is not 0, in as many processes; `side` is the
  short side that `view` can make use of.
  """
  stop = len(dataset) if stop is None else stop
  indices = grain.MapDataset.range(start, stop)
  images = indices.map(lambda index: view(dataset.at_least(int(index), side)))
  return _ahead(images.batch(batch_size), buffer=4, workers=workers)
