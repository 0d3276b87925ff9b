"""In which order training goes through its images: random numbers that depend on keys alone."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

# What a stream of random numbers is for.  Streams are told apart by their whole key.
ORDER, NEIGHBOR, AUGMENT = range(3)

# As in the released code.
MAX_REPEATS = 10


def keyed_rng(purpose: int, *key: int) -> np.random.Generator:
  """Counter-based random numbers that depend on the key alone, never on what was drawn before."""
  # A length in front: numpy's seeds do not tell (1, 2) from (1, 2, 0).
  return np.random.Generator(np.random.Philox(np.random.SeedSequence([len(key), purpose, *key])))


def shuffled_indices(seed: int, start: int, stop: int, size: int) -> Int[np.ndarray, ' place']:
  """Places start..stop-1 of an endless sequence that goes through 0..size-1 epoch by epoch."""
  return _places(lambda epoch: _permutation(seed, epoch, size), size, start, stop)


def repeats(num_neighbors: Int[np.ndarray, ' image'], initial: int) -> Int[np.ndarray, ' image']:
  """How often an epoch goes through each target image where hard ones are oversampled.

  That is K_i / K0 rounded, from 1 to 10, as in the released code.
  """
  return np.floor(num_neighbors / initial + 0.5).astype(np.int64).clip(1, MAX_REPEATS)


# Told apart by identity, for the cache of epochs: arrays have no hash.
@dataclass(frozen=True, eq=False)
class Sampler:
  """An endless sequence of image indices; `order(start, stop)` gives places start..stop-1.

  A pure function of the attributes. It is `shuffled_indices` if these ask for nothing else. Every epoch
  goes through all images, each as often as its level says, and then through some again:

  - with `class_balanced`, through those of smaller classes, until all classes have as many draws;
  - with `class_cap`, through those of any class, until an epoch fills whole micro-batches, and so
    many that its largest class fits in.

  These are drawn at random, all images of a class once before one of them twice. To keep to the
  cap, a shuffled epoch swaps the images that are too many in a micro-batch for others of its own.

  Attributes:
    labels: [image], the class of each.
    seed: of the shuffling.
    micro_batch: target images in one, over all devices; the first stands at places
      0..micro_batch-1.
    class_balanced: whether an epoch draws all classes equally often.
    class_cap: the most images of one class in a micro-batch; 0: any number.
    levels: [image], how often an epoch goes through each at least; None: once.

  Raises:
    ValueError: the cap leaves places of a micro-batch empty.
  """

  labels: Int[np.ndarray, ' image']
  seed: int
  micro_batch: int
  class_balanced: bool = False
  class_cap: int = 0
  levels: Int[np.ndarray, ' image'] | None = None

  def __post_init__(self) -> None:
    classes = len(np.unique(self.labels))
    if 0 < self.class_cap * classes < self.micro_batch:
      raise ValueError(
        f'class_cap={self.class_cap} with {classes} classes fills '
        f'{self.class_cap * classes} of the {self.micro_batch} target images of a micro-batch; '
        f'raise class_cap to {-(-self.micro_batch // classes)} or accumulation'
      )

  def __call__(self, start: int, stop: int) -> Int[np.ndarray, ' place']:
    return _places(lambda epoch: _epoch(self, epoch), self._size_and_limit[0], start, stop)

  @functools.cached_property
  def _size_and_limit(self) -> tuple[int, int]:
    """The draws of an epoch, and the most of these that one class may have."""
    sizes = np.bincount(np.repeat(self.labels, 1 if self.levels is None else self.levels))
    total, largest, classes = (int(n) for n in (sizes.sum(), sizes.max(), (sizes > 0).sum()))
    if self.class_balanced:
      # With a cap: as many of each class as fill whole micro-batches.
      unit = self.micro_batch // math.gcd(self.micro_batch, classes) if self.class_cap else 1
      limit = -(-largest // unit) * unit
      return classes * limit, limit
    if self.class_cap:
      micro_batches = max(-(-total // self.micro_batch), -(-largest // self.class_cap))
      return micro_batches * self.micro_batch, micro_batches * self.class_cap
    return total, total


def _places(
  epoch_order: Callable[[int], np.ndarray], size: int, start: int, stop: int
) -> np.ndarray:
  """Places start..stop-1 of all epochs' orders, one after the other."""
  epochs = range(start // size, -(-stop // size))
  return np.concatenate(
    [epoch_order(e)[max(start - e * size, 0) : stop - e * size] for e in epochs]
  )


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  return keyed_rng(ORDER, seed, epoch).permutation(size)


@functools.lru_cache(maxsize=4)
def _epoch(order: Sampler, epoch: int) -> np.ndarray:
  random = keyed_rng(ORDER, order.seed, epoch)
  draws = np.repeat(np.arange(len(order.labels)), 1 if order.levels is None else order.levels)
  draws = _filled(draws, order.labels, *order._size_and_limit, random)
  draws = draws[random.permutation(len(draws))]
  if order.class_cap:
    _keep_cap(draws.reshape(-1, order.micro_batch), order.labels, order.class_cap, random)
  return draws


def _filled(
  draws: np.ndarray, labels: np.ndarray, size: int, limit: int, random: np.random.Generator
) -> np.ndarray:
  """`draws` and then some of them again: `size` in all, of no class more than `limit`."""
  again, result = draws, [draws]
  room = limit - np.bincount(labels[draws])
  while missing := size - sum(map(len, result)):
    again = again[room[labels[again]] > 0]
    more = random.permutation(again)
    more = more[_ranks(labels[more]) < room[labels[more]]][:missing]
    room -= np.bincount(labels[more], minlength=len(room))
    result.append(more)
  return np.concatenate(result)


def _ranks(values: np.ndarray) -> np.ndarray:
  """How many equal values stand before each."""
  order = np.argsort(values, kind='stable')
  ranks = np.empty_like(order)
  ranks[order] = np.arange(len(values)) - np.searchsorted(values[order], values[order])
  return ranks


def _keep_cap(draws: np.ndarray, labels: np.ndarray, cap: int, random: np.random.Generator) -> None:
  """Swaps entries of `draws` [micro-batch, image] until no class has more than `cap` in a row.

  `cap` is enough for every class in the mean. There is always a swap that brings a class nearer to
  it and no other one farther off: another row has less of the class than the cap, and of some
  class more than this row. Rows that are in order stay so.
  """
  classes = labels[draws]
  ordered = np.sort(classes, axis=1)
  for row in np.flatnonzero((ordered[:, cap:] == ordered[:, :-cap]).any(axis=1)):
    while (excess := _ranks(classes[row]) >= cap).any():
      place = np.flatnonzero(excess)[0]
      less = np.count_nonzero(classes == classes[row, place], axis=1) < cap
      other = random.choice(np.flatnonzero(less))
      here, there = ((classes[r][:, None] == classes[other]).sum(axis=0) for r in (row, other))
      swap = random.choice(np.flatnonzero(there > here))
      for array in (draws, classes):
        array[row, place], array[other, swap] = array[other, swap], array[row, place]
