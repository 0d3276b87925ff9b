"""How many neighbours each target image has in each round (Ge & Yu 2017, Eq. 3)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
  """The section `selection` of the configuration.

  Attributes:
    method: where neighbours come from (see `select`).
    num_neighbors: K0, of each target image in the first round; with `min_source_images` the largest
      K0 allowed.
    min_source_images: K0 becomes the smallest number of neighbours that together hold so many
      distinct source images (see `coverage`); 0: it is `num_neighbors`.
    rounds: how many there are.
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
    """Return σ0 and σ1 of Eq. 3 in neighbours."""
    return {
      'sigma0': round(self.sigma0 * self.num_neighbors),
      'sigma1': round(self.sigma1 * self.num_neighbors),
    }

  @property
  def ranking_depth(self) -> int:
    """Return how deep a ranking the last round can need; 0 if none."""
    if self.method not in ('nearest', 'random'):  # 'random' has as many images as 'nearest'.
      return 0
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
  """K_i of the next round: +σ0 where misclassified, +σ1 where correct but unsure, else unchanged.

  Args:
    num_neighbors: K_i of this round.
    hardness: entropy of the predicted class probabilities in nats (Eq. 2).
    is_correct: whether the predicted class is the true one.
    delta: δ in nats; a correct prediction is unsure when its entropy is δ or more.
    sigma0: neighbours added for a misclassified image.
    sigma1: neighbours added for a correct but unsure one.
  """
  return num_neighbors + np.where(is_correct, np.where(hardness >= delta, sigma1, 0), sigma0)
