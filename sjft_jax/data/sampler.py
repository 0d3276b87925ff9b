"""The order in which training goes through its images; random numbers depend on keys alone."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

# The purposes of random numbers. A generator is seeded with its whole key, so that those of
# different purposes are independent.
ORDER, NEIGHBOR, AUGMENT = range(3)

# As in the released code.
MAX_REPEATS = 10


def keyed_rng(purpose: int, *key: int) -> np.random.Generator:
  """Return a counter-based generator; its numbers depend on the key alone, not on earlier draws."""
  # The length comes first, because numpy's seeds do not distinguish (1, 2) from (1, 2, 0).
  return np.random.Generator(np.random.Philox(np.random.SeedSequence([len(key), purpose, *key])))


def shuffled_indices(seed: int, start: int, stop: int, size: int) -> Int[np.ndarray, ' place']:
  """Return places start..stop-1 of an endless sequence of shuffled epochs over 0..size-1."""
  return _slice_epochs(lambda epoch: _permutation(seed, epoch, size), size, start, stop)


def repeats(num_neighbors: Int[np.ndarray, ' image'], initial: int) -> Int[np.ndarray, ' image']:
  """Return how often an epoch draws each target image where hard ones are oversampled.

  That is K_i / K0 rounded, from 1 to 10, as in the released code.

  Args:
    num_neighbors: K_i of this round.
    initial: K0, that of the first round.
  """
  return np.floor(num_neighbors / initial + 0.5).astype(np.int64).clip(1, MAX_REPEATS)


# Compared by identity, for the cache of epochs: arrays have no hash.
@dataclass(frozen=True, eq=False)
class Sampler:
  """An endless sequence of image indices; `sampler(start, stop)` gives places start..stop-1.

  It is a pure function of the attributes, and equals `shuffled_indices` where `class_balanced`,
  `class_cap` and `repeats` keep their defaults. Every epoch goes through all images, each as often
  as `repeats` says, and then through some again:

  - with `class_balanced`, through images of smaller classes, until all classes have as many draws;
  - with `class_cap`, through images of any class, until the epoch fills whole micro-batches, and so
    many of them that its largest class fits in.

  These extra draws are random, all images of a class once before one of them twice. To keep to the
  cap, a shuffled epoch swaps the images that are too many in a micro-batch for others of its own.

  Attributes:
    labels: [image], the class of each.
    seed: of the shuffling.
    micro_batch: target images in a micro-batch, over all devices; the first one holds places
      0..micro_batch-1.
    class_balanced: whether an epoch draws all classes equally often.
    class_cap: the most images of one class in a micro-batch; 0: any number.
    repeats: [image], how often an epoch draws each image at least; None: once.

  Raises:
    ValueError: `class_cap` leaves places of a micro-batch empty.
  """

  labels: Int[np.ndarray, ' image']
  seed: int
  micro_batch: int
  class_balanced: bool = False
  class_cap: int = 0
  repeats: Int[np.ndarray, ' image'] | None = None

  def __post_init__(self) -> None:
    num_classes = len(np.unique(self.labels))
    if 0 < self.class_cap * num_classes < self.micro_batch:
      raise ValueError(
        f'training.class_cap={self.class_cap} with {num_classes} classes fills '
        f'{self.class_cap * num_classes} of the {self.micro_batch} target images of a micro-batch; '
        f'raise it to {-(-self.micro_batch // num_classes)}, or make micro-batches smaller'
      )

  def __call__(self, start: int, stop: int) -> Int[np.ndarray, ' place']:
    return _slice_epochs(lambda epoch: _epoch(self, epoch), self.epoch_size, start, stop)

  @property
  def epoch_size(self) -> int:
    """Return the number of draws in an epoch."""
    return self._size_and_limit[0]

  @functools.cached_property
  def _size_and_limit(self) -> tuple[int, int]:
    """Return the draws of an epoch, and the most of them that one class may have."""
    sizes = np.bincount(np.repeat(self.labels, 1 if self.repeats is None else self.repeats))
    total, largest, num_classes = (int(n) for n in (sizes.sum(), sizes.max(), (sizes > 0).sum()))
    if self.class_balanced:
      # With a cap: as many of each class as fill whole micro-batches.
      unit = self.micro_batch // math.gcd(self.micro_batch, num_classes) if self.class_cap else 1
      limit = -(-largest // unit) * unit
      return num_classes * limit, limit
    if self.class_cap:
      micro_batches = max(-(-total // self.micro_batch), -(-largest // self.class_cap))
      return micro_batches * self.micro_batch, micro_batches * self.class_cap
    return total, total


def _slice_epochs(
  epoch_order: Callable[[int], np.ndarray], size: int, start: int, stop: int
) -> np.ndarray:
  """Return places start..stop-1 of the orders of all epochs, one after the other."""
  epochs = range(start // size, -(-stop // size))
  return np.concatenate(
    [epoch_order(e)[max(start - e * size, 0) : stop - e * size] for e in epochs]
  )


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  return keyed_rng(ORDER, seed, epoch).permutation(size)


@functools.lru_cache(maxsize=4)
def _epoch(sampler: Sampler, epoch: int) -> np.ndarray:
  """Return the image indices of an epoch in order."""
  rng = keyed_rng(ORDER, sampler.seed, epoch)
  once = np.arange(len(sampler.labels))
  draws = np.repeat(once, 1 if sampler.repeats is None else sampler.repeats)
  draws = _fill(draws, sampler.labels, *sampler._size_and_limit, rng)
  draws = draws[rng.permutation(len(draws))]
  if sampler.class_cap:
    _enforce_cap(draws.reshape(-1, sampler.micro_batch), sampler.labels, sampler.class_cap, rng)
  return draws


def _fill(
  draws: np.ndarray, labels: np.ndarray, size: int, limit: int, rng: np.random.Generator
) -> np.ndarray:
  """Return `draws` and then some of them again: `size` in all, of no class more than `limit`."""
  candidates, result = draws, [draws]
  room = limit - np.bincount(labels[draws])
  while missing := size - sum(map(len, result)):
    candidates = candidates[room[labels[candidates]] > 0]
    extra = rng.permutation(candidates)
    extra = extra[_ranks(labels[extra]) < room[labels[extra]]][:missing]
    room -= np.bincount(labels[extra], minlength=len(room))
    result.append(extra)
  return np.concatenate(result)


def _ranks(values: np.ndarray) -> np.ndarray:
  """Return how many equal values stand before each value."""
  order = np.argsort(values, kind='stable')
  ranks = np.empty_like(order)
  ranks[order] = np.arange(len(values)) - np.searchsorted(values[order], values[order])
  return ranks


def _enforce_cap(draws: np.ndarray, labels: np.ndarray, cap: int, rng: np.random.Generator) -> None:
  """Swap entries of `draws` [micro-batch, image] until no class has more than `cap` in a row.

  `cap` is enough for every class in the mean. There is always a swap that brings a class nearer to
  the cap and no other one farther from it: another row has less of the class than the cap, and of
  some class more than this row. Rows that keep to the cap continue to do so.
  """
  classes = labels[draws]
  ordered = np.sort(classes, axis=1)
  for row in np.flatnonzero((ordered[:, cap:] == ordered[:, :-cap]).any(axis=1)):
    while (excess := _ranks(classes[row]) >= cap).any():
      place = np.flatnonzero(excess)[0]
      has_room = np.count_nonzero(classes == classes[row, place], axis=1) < cap
      other = rng.choice(np.flatnonzero(has_room))
      # For each entry of the other row: how many of its class each of the two rows has.
      in_row, in_other = ((classes[r][:, None] == classes[other]).sum(axis=0) for r in (row, other))
      other_place = rng.choice(np.flatnonzero(in_other > in_row))
      for array in (draws, classes):
        array[row, place], array[other, other_place] = array[other, other_place], array[row, place]
