"""The source images that targets are paired with in a round: the nearest ones, or a baseline."""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from sjft_jax.runtime.choice import choose

METHODS = ('nearest', 'similar', 'classes', 'random', 'all', 'none')

Labels = Int[np.ndarray, ' source'] | Bool[np.ndarray, 'source category']


@dataclass(frozen=True)
class Subset:
  """The source images of one round.

  Attributes:
    pools: source indices; one pool for each target, or one that all share.
    num_neighbors: a target draws from this many first entries of its pool.
  """

  pools: Int[np.ndarray, 'pool depth']
  num_neighbors: Int[np.ndarray, ' target']

  def __len__(self) -> int:
    """Return the number of distinct source images that can be drawn."""
    return len(self.distinct)

  @property
  def is_shared(self) -> bool:
    """Return whether all targets draw from the same pool."""
    return len(self.pools) < len(self.num_neighbors)

  @functools.cached_property
  def distinct(self) -> Int[np.ndarray, ' source']:
    """The distinct source images that can be drawn, ascending."""
    depths = self.num_neighbors[: len(self.pools)]
    return np.unique(np.concatenate([pool[:n] for pool, n in zip(self.pools, depths, strict=True)]))

  def draw(
    self, targets: Int[np.ndarray, ' image'], uniform: Float[np.ndarray, ' image']
  ) -> Int[np.ndarray, ' image']:
    """Draw a neighbour for each target, uniformly among its own.

    Args:
      targets: target indices.
      uniform: a random number for each of them, uniform in [0, 1).
    """
    rank = np.floor(uniform * self.num_neighbors[targets]).astype(np.int64)
    return self.pools[targets % len(self.pools), rank]


def select(
  method: str,
  *,
  ranking: Int[np.ndarray, 'target depth'],
  num_neighbors: Int[np.ndarray, ' target'],
  source_labels: Labels,
  seed: int,
  random_size: int | None = None,
) -> Subset | None:
  """Select the source images of a round.

  Args:
    method: 'nearest' takes each target's own first `num_neighbors` of the ranking, as in the paper;
      'similar' does, too, and its ranking is another one; 'classes' takes whole source classes, in
      the order of the share of their images that 'nearest' has, until there are as many images;
      'random' takes `random_size` images, drawn once for all targets, so that a larger subset of
      the same seed contains the smaller ones; 'all' takes the whole source; 'none' takes nothing,
      for plain fine-tuning.
    ranking: source indices, nearest first.
    num_neighbors: K_i of this round.
    source_labels: the class of each source image, or a row that says which classes it has.
    seed: of the random subset.
    random_size: its size; None: as many distinct images as 'nearest' has.

  Returns:
    The subset, or None for 'none'.

  Raises:
    ValueError: an unknown method.
  """
  choose('method', method, METHODS)
  if method == 'none':
    return None
  nearest = Subset(ranking, num_neighbors)
  if method in ('nearest', 'similar'):
    return nearest
  pool = np.arange(len(source_labels))
  if method == 'classes':
    pool = _nearest_classes(nearest, source_labels)
  elif method == 'random':
    size = len(nearest) if random_size is None else random_size
    pool = np.random.Generator(np.random.Philox(key=seed)).permutation(pool)[:size]
  return Subset(pool[None], np.full(len(num_neighbors), len(pool)))


def _nearest_classes(nearest: Subset, labels: Labels) -> Int[np.ndarray, ' image']:
  """Return all images of the classes with the largest shares in a subset, as many or a few more."""
  has_several = labels.ndim == 2
  if has_several:
    class_sizes, counts = labels.sum(axis=0), labels[nearest.distinct].sum(axis=0)
  else:
    class_sizes = np.bincount(labels)
    counts = np.bincount(labels[nearest.distinct], minlength=len(class_sizes))
  places = np.argsort(np.argsort(-counts / np.maximum(class_sizes, 1), kind='stable'))
  # Of each image the place of its first class; of an image of no class behind all.
  behind = len(places)
  first = np.where(labels, places, behind).min(axis=1) if has_several else places[labels]
  last = np.searchsorted(np.cumsum(np.bincount(first)), len(nearest))
  return np.flatnonzero(first <= last)
