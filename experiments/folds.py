"""The demo's target training set in folds, to choose options without a look at the test images."""

import numpy as np

from experiments import tasks
from sjft_jax import inputs
from sjft_jax.data.dataset import Domains, SubsetDataset

# The held-out images of each class, which are cut from cells that share no pixels.
FOLDS = ((0, 1), (2, 3))


def fold_domains(fold: int) -> Domains:
  """Return the demo's data sets with a fold of the target's training images as the test images."""
  train, _, source = inputs.open_domains(tasks.get_config('textures_imagenet'))
  number_in_class = np.concatenate([np.arange(n) for n in np.bincount(train.labels)])
  is_held_out = np.isin(number_in_class, FOLDS[fold])
  return Domains(
    target=SubsetDataset(train, np.flatnonzero(~is_held_out)),
    test=SubsetDataset(train, np.flatnonzero(is_held_out)),
    source=source,
  )
