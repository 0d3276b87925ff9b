"""How many neighbours each target image has in each round (Ge & Yu 2017, Eq. 3)."""

import numpy as np
from jaxtyping import Bool, Float, Int


def grow(
  num_neighbors: Int[np.ndarray, 'target'],
  hardness: Float[np.ndarray, 'target'],
  is_correct: Bool[np.ndarray, 'target'],
  *,
  delta: float,
  sigma0: int,
  sigma1: int,
) -> Int[np.ndarray, 'target']:
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


def deepest(*, num_neighbors: int, rounds: int, sigma0: int, sigma1: int) -> int:
  """The most neighbours that an image can have in the last round: the depth a ranking needs."""
  return num_neighbors + (rounds - 1) * max(sigma0, sigma1)
