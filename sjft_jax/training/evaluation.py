"""Predict the class probabilities of a data set, averaged over the views of each image."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float

from sjft_jax.data import transforms
from sjft_jax.data.dataset import Dataset
from sjft_jax.data.loader import views
from sjft_jax.runtime import console, distributed, memory
from sjft_jax.training.step import TrainState


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
  """The section `evaluation` of the configuration.

  Attributes:
    views: those that are reported, of `transforms.VIEWS`.
    batch_size: images predicted at once, times the views of each.
  """

  views: tuple[str, ...]
  batch_size: int


@dataclass(frozen=True)
class Evaluator:
  """Predict the class probabilities of data sets: `evaluator(state, data, view)`.

  Attributes:
    predict_step: see `predict`.
    size: of the images that the network sees.
    options: the views to report and the batch size.
  """

  predict_step: Callable[..., jax.Array]
  size: transforms.ImageSize
  options: EvaluationOptions

  def __call__(
    self, state: TrainState, data: Dataset, view: str
  ) -> Float[np.ndarray, 'image category']:
    """Predict all images of `data`; under `jax.distributed` every process predicts its shard.

    Args:
      state: replicated over the devices.
      data: of any number of images.
      view: one of `transforms.VIEWS`.

    Raises:
      OutOfMemoryError: memory ran out; the message says which option to lower.
    """
    batch_size = self.options.batch_size
    start, stop = distributed.shard_bounds(len(data))
    hint = memory.batch_size_hint('evaluation.batch_size', batch_size, 'lower images.crop')
    with (
      console.progress(f'scoring {data.name}, {view}', stop - start) as advance,
      memory.explain_oom(f'scoring {batch_size} images at once', hint),
    ):
      batches = views(
        data,
        functools.partial(transforms.evaluation_views, size=self.size, view=view),
        batch_size,
        side=transforms.evaluation_side(self.size, view),
        start=start,
        stop=stop,
      )
      p = predict(self.predict_step, state, console.with_progress(batches, advance))
    return distributed.gather_shards(p, len(data))


def predict(
  predict_step: Callable[[TrainState, np.ndarray], jax.Array],
  state: TrainState,
  batches: Iterable[tuple[np.ndarray, ...]],
) -> Float[np.ndarray, 'image category']:
  """Predict class probabilities, those of an image averaged over its views; drop no image.

  Args:
    predict_step: (state, images uint8 [device, image, height, width, channel]) -> probabilities
      [device, image, category], mapped over devices.
    state: replicated over the devices.
    batches: each a tuple with, for every size of the views, uint8 [image, view, height, width,
      channel]. All batches but the last have equally many images. Sizes have equal weights, and so
      have the views of one size.
  """
  devices = jax.local_device_count()
  results, padded_size = [], 0
  for batch in batches:
    # A short last batch is padded, so that nothing is compiled twice, and cut again below.
    padded_size = padded_size or -(-len(batch[0]) // devices) * devices
    by_size = []
    for crops in batch:
      crops = np.pad(crops, [(0, padded_size - len(crops))] + [(0, 0)] * 4)
      p = predict_step(state, crops.reshape(devices, -1, *crops.shape[2:]))
      by_size.append(np.asarray(p).reshape(padded_size, crops.shape[1], -1).mean(axis=1))
    results.append(np.mean(by_size, axis=0)[: len(batch[0])])
  return np.concatenate(results)
