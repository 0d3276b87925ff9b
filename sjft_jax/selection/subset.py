"""The source images that targets are paired with in a round: the nearest ones, or a baseline."""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from sjft_jax.runtime.choice import choose

METHODS = ('nearest', 'similar', 'classes', 'random', 'all', 'none')
DRAWS = ('uniform', 'nearer', 'balanced')
# The farthest neighbour is so much rarer than the nearest one where nearer ones are drawn more.
_NEAR_TO_FAR = 20.0

Labels = Int[np.ndarray, ' source'] | Bool[np.ndarray, 'source category']


@dataclass(frozen=True)
class Subset:
  """The source images of one round.

  Attributes:
    pools: source indices; one pool for each target, or one that all share.
    num_neighbors: a target draws from this many first entries of its pool.
    weights: of the entries of each pool in the draw; None: all are drawn equally often.
  """

  pools: Int[np.ndarray, 'pool depth']
  num_neighbors: Int[np.ndarray, ' target']
  weights: Float[np.ndarray, 'pool depth'] | None = None

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
    """Draw a neighbour for each target among its own.

    Args:
      targets: target indices.
      uniform: a random number for each of them, uniform in [0, 1).
    """
    pools, num_neighbors = targets % len(self.pools), self.num_neighbors[targets]
    if self.weights is None:
      rank = np.floor(uniform * num_neighbors).astype(np.int64)
    else:
      is_own = np.arange(self.pools.shape[1]) < num_neighbors[:, None]
      shares = np.cumsum(np.where(is_own, self.weights[pools], 0), axis=1)
      rank = np.sum(shares <= uniform[:, None] * shares[:, -1:], axis=1)
    return self.pools[pools, rank]


def select(
  method: str,
  *,
  ranking: Int[np.ndarray, 'target depth'],
  num_neighbors: Int[np.ndarray, ' target'],
  source_labels: Labels,
  seed: int,
  random_size: int | None = None,
  draw: str = 'uniform',
  divergences: Float[np.ndarray, 'target depth'] | None = None,
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
    draw: how often each target's own neighbours are drawn: 'uniform', all equally often; 'nearer',
      exponentially less with divergence, the last one 20 times less often than the first;
      'balanced', in inverse proportion to the number of targets whose neighbours they are.
    divergences: of `ranking`, for 'nearer'.

  Returns:
    The subset, or None for 'none'.

  Raises:
    ValueError: an unknown method or draw.
  """
  choose('method', method, METHODS)
  choose('draw', draw, DRAWS)
  if method == 'none':
    return None
  nearest = Subset(ranking, num_neighbors)
  if method in ('nearest', 'similar'):
    weights = None
    if draw == 'nearer':
      assert divergences is not None
      weights = _nearer_weights(divergences, num_neighbors)
    elif draw == 'balanced':
      weights = _balanced_weights(nearest, len(source_labels))
    return Subset(ranking, num_neighbors, weights)
  pool = np.arange(len(source_labels))
  if method == 'classes':
    pool = _nearest_classes(nearest, source_labels)
  elif method == 'random':
    size = len(nearest) if random_size is None else random_size
    pool = np.random.Generator(np.random.Philox(key=seed)).permutation(pool)[:size]
  return Subset(pool[None], np.full(len(num_neighbors), len(pool)))


def _nearer_weights(
  divergences: Float[np.ndarray, 'target depth'], num_neighbors: Int[np.ndarray, ' target']
) -> Float[np.ndarray, 'target depth']:
  first = divergences[:, :1].astype(np.float64)
  last = np.take_along_axis(divergences, num_neighbors[:, None] - 1, axis=1)
  spread = np.maximum(last - first, np.finfo(np.float32).tiny)
  return np.asarray(_NEAR_TO_FAR ** -((divergences - first) / spread))


def _balanced_weights(nearest: Subset, num_source: int) -> Float[np.ndarray, 'target depth']:
  is_own = np.arange(nearest.pools.shape[1]) < nearest.num_neighbors[:, None]
  borrowers = np.bincount(nearest.pools[is_own], minlength=num_source)
  return 1 / np.maximum(borrowers, 1)[nearest.pools]


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
