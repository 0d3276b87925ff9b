"""Class probabilities of a data set, averaged over the views of each image."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import Float

from sjft_jax.training.step import TrainState


def predict(
  predict_step: Callable[[TrainState, np.ndarray], jax.Array],
  state: TrainState,
  batches: Iterable[tuple[np.ndarray, ...]],
) -> Float[np.ndarray, 'image category']:
  """Class probabilities, each image's averaged over its views; no image is dropped.

  Args:
    predict_step: (state, images uint8 [device, image, height, width, channel]) -> probabilities
      [device, image, category], mapped over devices.
    state: replicated over the devices.
    batches: for each size of views, uint8 [image, view, height, width, channel]; all batches of as
      many images but the last. Sizes count alike, and so do the views of one.
  """
  devices = jax.local_device_count()
  results, padded = [], 0
  for batch in batches:
    # A short last batch is filled up, so that nothing is compiled twice, and cut again below.
    padded = padded or -(-len(batch[0]) // devices) * devices
    of_sizes = []
    for views in batch:
      views = np.pad(views, [(0, padded - len(views))] + [(0, 0)] * 4)
      p = predict_step(state, views.reshape(devices, -1, *views.shape[2:]))
      of_sizes.append(np.asarray(p).reshape(padded, views.shape[1], -1).mean(axis=1))
    results.append(np.mean(of_sizes, axis=0)[: len(batch[0])])
  return np.concatenate(results)
