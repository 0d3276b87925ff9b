"""The number of neighbours of each target image in each round (Ge & Yu 2017, Eq. 3)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
  """The section `selection` of the configuration.

  Attributes:
    method: where neighbours come from, as for `subset.select`.
    num_neighbors: K0, the neighbours of each target image in the first round; with
      `min_source_images` the largest K0 allowed.
    min_source_images: K0 becomes the smallest number of neighbours that together hold so many
      distinct source images (see `coverage`); 0: K0 is `num_neighbors`.
    rounds: number of rounds.
    delta: δ of Eq. 3, nats.
    sigma0: σ0 of Eq. 3, in multiples of K0.
    sigma1: σ1 of Eq. 3, in multiples of K0.
  """

  method: str
  num_neighbors: int
  rounds: int
  delta: float
  sigma0: float
  sigma1: float
  min_source_images: int = 0

  @property
  def increments(self) -> dict[str, int]:
    """Return σ0 and σ1 of Eq. 3 in neighbours, by the names that `grow` has for them."""
    return {
      'sigma0': round(self.sigma0 * self.num_neighbors),
      'sigma1': round(self.sigma1 * self.num_neighbors),
    }

  @property
  def has_own_neighbors(self) -> bool:
    """Return whether a target image draws from neighbours of its own: no pool that all share."""
    return self.method in ('nearest', 'similar')

  @property
  def ranking_depth(self) -> int:
    """Return how deep the ranking by filter responses has to be; 0 where none is needed."""
    # 'random' draws as many images as 'nearest' has, which the ranking decides.
    if self.method in ('nearest', 'classes', 'random'):
      return self._growth_limit
    # 'similar' has another ranking, but its K0 is that of an arm with the same limits.
    return self.num_neighbors if self.method == 'similar' and self.min_source_images else 0

  @property
  def feature_depth(self) -> int:
    """Return how deep the ranking by features has to be; 0 where none is needed."""
    return self._growth_limit if self.method == 'similar' else 0

  @property
  def _growth_limit(self) -> int:
    """Return the most neighbours that a target image can have in any round."""
    return self.num_neighbors + (self.rounds - 1) * max(self.increments.values())


def grow(
  num_neighbors: Int[np.ndarray, ' target'],
  hardness: Float[np.ndarray, ' target'],
  is_correct: Bool[np.ndarray, ' target'],
  *,
  delta: float,
  sigma0: int,
  sigma1: int,
) -> Int[np.ndarray, ' target']:
  """Return K_i of the next round (Eq. 3): hard images have more neighbours, others as many.

  Args:
    num_neighbors: K_i of this round.
    hardness: entropy of the predicted class probabilities in nats (Eq. 2).
    is_correct: whether the predicted class is the true one.
    delta: δ in nats; a correct prediction is unsure when its entropy is δ or more.
    sigma0: neighbours added for a misclassified image.
    sigma1: neighbours added for a correct but unsure one.
  """
  return num_neighbors + np.where(is_correct, np.where(hardness >= delta, sigma1, 0), sigma0)
