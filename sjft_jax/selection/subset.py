"""Which source images the targets may be paired with: the nearest ones, and the baselines."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

METHODS = ('nearest', 'random', 'all', 'none')


@dataclass(frozen=True)
class Subset:
  """The source images of one round.

  Attributes:
    pools: [pool, depth] source indices. Either one pool per target, or one that all share.
    num_neighbors: [target]; a target draws from this many first entries of its pool.
  """

  pools: Int[np.ndarray, 'pool depth']
  num_neighbors: Int[np.ndarray, ' target']

  def __len__(self) -> int:
    """How many distinct source images can be drawn."""
    return len(self.distinct())

  @property
  def is_shared(self) -> bool:
    """Whether all targets draw from the same pool."""
    return len(self.pools) < len(self.num_neighbors)

  def distinct(self) -> Int[np.ndarray, ' source']:
    """The distinct source images, ascending."""
    depths = self.num_neighbors[: len(self.pools)]
    return np.unique(np.concatenate([pool[:n] for pool, n in zip(self.pools, depths, strict=True)]))

  def draw(
    self, targets: Int[np.ndarray, ' image'], uniform: Float[np.ndarray, ' image']
  ) -> Int[np.ndarray, ' image']:
    """One neighbour for each target, uniform among its own, from numbers uniform in [0, 1)."""
    place = np.floor(uniform * self.num_neighbors[targets]).astype(np.int64)
    return self.pools[targets % len(self.pools), place]


def select(
  method: str,
  *,
  ranking: Int[np.ndarray, 'target depth'],
  num_neighbors: Int[np.ndarray, ' target'],
  num_source: int,
  seed: int,
  random_size: int | None = None,
) -> Subset | None:
  """The source images of a round.

  Args:
    method: 'nearest', each target's own first `num_neighbors` of the ranking (the paper's);
      'random', `random_size` images drawn once for all targets, so that a larger subset of the same
      seed contains the smaller ones; 'all', the whole source; 'none',
      plain fine-tuning.
    ranking: source indices, nearest first.
    num_neighbors: K_i of this round.
    num_source: how many source images there are.
    seed: of the random subset.
    random_size: its size; None: as many distinct images as 'nearest' has.

  Returns:
    The subset, or None for 'none'.
  """
  if method == 'none':
    return None
  nearest = Subset(ranking, num_neighbors)
  if method == 'nearest':
    return nearest
  if method == 'random':
    size = len(nearest) if random_size is None else random_size
    pool = np.random.Generator(np.random.Philox(key=seed)).permutation(num_source)[:size]
  elif method == 'all':
    pool = np.arange(num_source)
  else:
    raise ValueError(f'selection.method={method!r} is unknown; use one of {", ".join(METHODS)}')
  return Subset(pool[None], np.full(len(num_neighbors), len(pool)))
