"""Class probabilities of a data set, averaged over the views of each image."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import Float

from sjft_jax.training.step import TrainState


def predict(
  predict_step: Callable[[TrainState, np.ndarray], jax.Array],
  state: TrainState,
  batches: Iterable[np.ndarray],
) -> Float[np.ndarray, 'image category']:
  """Class probabilities, each image's averaged over its views; no image is dropped.

  Args:
    predict_step: (state, images uint8 [device, image, height, width, channel]) -> probabilities
      [device, image, category], mapped over devices.
    state: replicated over the devices.
    batches: images uint8 [image, view, height, width, channel], all of one size but the last.
  """
  devices = jax.local_device_count()
  results, size = [], 0
  for batch in batches:
    images = batch.reshape(-1, *batch.shape[2:])
    # A short last batch is filled up, so that nothing is compiled twice, and cut again below.
    size = size or -(-len(images) // devices) * devices
    padding = [(0, size - len(images))] + [(0, 0)] * 3
    sharded = np.pad(images, padding).reshape(devices, -1, *images.shape[1:])
    p = np.asarray(predict_step(state, sharded)).reshape(size, -1)[: len(images)]
    results.append(p.reshape(len(batch), batch.shape[1], -1).mean(axis=1))
  return np.concatenate(results)
