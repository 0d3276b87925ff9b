"""How hard the network finds each target training image (Ge & Yu 2017, Eq. 2)."""

import numpy as np
from jaxtyping import Float


def entropy(probabilities: Float[np.ndarray, 'image category']) -> Float[np.ndarray, ' image']:
  """Return the entropy of each image's class probabilities in nats, 0 to log(number of classes)."""
  p = np.asarray(probabilities, np.float64)
  return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=1)
