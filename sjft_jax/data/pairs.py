"""Joint batches, target images each beside one of its current neighbours, loaded by Grain."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grain
import numpy as np
from jaxtyping import Int

from sjft_jax.data.dataset import Dataset
from sjft_jax.data.order import AUGMENT, NEIGHBOR, Order, shuffled, stream
from sjft_jax.selection.subset import Subset

Batch = dict[str, np.ndarray]
Views = TypeVar('Views', np.ndarray, tuple[np.ndarray, ...])
Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Loaded = TypeVar('Loaded')

# Decoding releases the interpreter lock: threads keep all cores busy. So many batches are loaded at
# once and ahead; Grain's own default would hold 500, which for batches of images is gigabytes.
AHEAD = min(max(os.cpu_count() or 1, 4), 16)


@dataclass(frozen=True)
class Pairs:
  """The batches of one round; `pairs(step)` is a pure function of (seed, round, step).

  A batch holds `batch_size` target images and, unless there is no subset, one neighbour of each
  behind it: target, neighbour, target, neighbour … so that any cut between pairs keeps the
  domains in balance. Its leaves are 'image' uint8 [image, height, width, channel], 'label' int32
  in the label space of the image's own domain, and 'is_source' bool. If the source is multi-label,
  there is also 'shown' bool [image, class], the classes in each source image, whose 'label' is 0.

  Attributes:
    order: of the target images.
    side: short side in pixels that `augment` can make use of: images are decoded no larger than it
      takes.
    places: which pairs of a batch are loaded, for processes that share the batches.
  """

  target: Dataset
  source: Dataset
  subset: Subset | None
  order: Order
  augment: Augment
  side: int
  seed: int
  round_: int
  batch_size: int
  places: Int[np.ndarray, ' pair'] | Sequence[int]

  def __call__(self, step: int) -> Batch:
    chosen = self._chosen(step)
    images: list[np.ndarray] = []
    labels, is_source = [], []
    several = self.source.labels.ndim > 1
    shown = np.zeros((len(chosen) * len(self.places), len(self.source.classes)), bool)
    for place in self.places:
      for part, (dataset, indices) in enumerate(chosen):
        index = int(indices[place])
        random = stream(AUGMENT, self.seed, self.round_, step, int(place) * len(chosen) + part)
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

  @property
  def images(self) -> int:
    """How many a batch has here."""
    return len(self.places) * (1 if self.subset is None else 2)

  def names(self, step: int) -> list[str]:
    """The images of the whole batch, in its order."""
    chosen = self._chosen(step)
    return [
      f'{dataset.name}/{dataset.key(int(indices[place]))}'
      for place in range(self.batch_size)
      for dataset, indices in chosen
    ]

  def _chosen(self, step: int) -> list[tuple[Dataset, np.ndarray]]:
    """For each image of a pair its data set and, at every place, its index there."""
    first = step * self.batch_size
    targets = self.order(first, first + self.batch_size)
    if self.subset is None:
      return [(self.target, targets)]
    uniform = stream(NEIGHBOR, self.seed, self.round_, step).random(self.batch_size)
    return [(self.target, targets), (self.source, self.subset.draw(targets, uniform))]


class SourceOnly(Pairs):
  """Batches of source images alone, for pretraining a trunk; twice as many, so of the same size."""

  @property
  def images(self) -> int:
    return 2 * len(self.places)

  def _chosen(self, step: int) -> list[tuple[Dataset, np.ndarray]]:
    first = 2 * step * self.batch_size
    indices = shuffled(self.seed, first, first + 2 * self.batch_size, len(self.source))
    return [(self.source, indices[0::2]), (self.source, indices[1::2])]


def loaders(workers: int) -> int:
  """How many batches are loaded at once: in threads or, if `workers` is not 0, in processes."""
  return workers or min(os.cpu_count() or 1, AHEAD)


def _ahead(dataset: grain.MapDataset, workers: int = 0) -> Iterator:
  options = grain.ReadOptions(num_threads=1 if workers else loaders(0), prefetch_buffer_size=AHEAD)
  loaded = dataset.to_iter_dataset(options)
  if workers:
    loaded = loaded.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4)
    )
  return iter(loaded)


def prefetched(
  load: Callable[[int], Loaded], start: int, stop: int, *, workers: int = 0
) -> Iterator[Loaded]:
  """The batches of steps start..stop-1, loaded ahead in threads or in `workers` processes."""
  steps = grain.MapDataset.range(start, stop)
  return _ahead(steps.map(lambda step: load(int(step))), workers)


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
  return _ahead(images.batch(batch_size), workers)
