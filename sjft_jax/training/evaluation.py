"""Predict the class probabilities of a data set, averaged over the views of each image."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from sjft_jax.data import transforms
from sjft_jax.data.dataset import Dataset
from sjft_jax.data.loader import views
from sjft_jax.runtime import console, distributed, memory
from sjft_jax.training.step import TrainState

# Of an image's views: [view, height, width, channel] for each size.
Shapes = tuple[tuple[int, ...], ...]


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
    batch_size_option: what users call the batch size, for messages.
    last_resort: what to do where memory runs out for a single image, for messages.
  """

  predict_step: Callable[..., jax.Array | np.ndarray]
  size: transforms.ImageSize
  options: EvaluationOptions
  batch_size_option: str = 'evaluation.batch_size'
  last_resort: str = 'lower images.crop'

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
    # Shapes of batches follow from the images. Processes that compiled different shapes could wait
    # for each other for ever: all predict all images then.
    is_shared = view != 'multi_scale'
    start, stop = distributed.shard_bounds(len(data)) if is_shared else (0, len(data))
    num_images = stop - start
    if is_shared:
      # A shard may be one image shorter than others, even empty. The image behind it, which the
      # longer shard that comes last always leaves, makes batches alike in number and shape.
      stop = start + -(-len(data) // jax.process_count())
    hint = memory.batch_size_hint(self.batch_size_option, self.options.batch_size, self.last_resort)
    with (
      console.progress(f'scoring {data.name}, {view}', stop - start) as advance,
      memory.explain_oom(f'scoring {self.options.batch_size} images at once', hint),
    ):
      batches = views(
        data,
        functools.partial(transforms.evaluation_views, size=self.size, view=view),
        self.options.batch_size if is_shared else 1,
        min_side=transforms.evaluation_side(self.size, view),
        start=start,
        stop=stop,
      )
      batches = console.with_progress(batches, advance)
      if is_shared:
        p = predict(self.predict_step, state, batches)
        return distributed.gather_shards(p[:num_images], len(data))
      return predict_shapes(self.predict_step, state, batches, self.options.batch_size)


def predict(
  predict_step: Callable[[TrainState, np.ndarray], jax.Array | np.ndarray],
  state: TrainState,
  batches: Iterable[tuple[np.ndarray, ...]],
) -> Float[np.ndarray, 'image category']:
  """Predict class probabilities, those of an image averaged over its views; drop no image.

  Args:
    predict_step: (state, images uint8 [device, image, height, width, channel]) -> probabilities
      [device, image, category], mapped over devices.
    state: replicated over the devices.
    batches: each a tuple with, for every size of the views, uint8 [image, view, height, width,
      channel]. All batches of one shape but the last have equally many images. Sizes have equal
      weights, and so have the views of one size.
  """
  devices = jax.local_device_count()
  results: list[np.ndarray] = []
  in_flight: deque[_Pending] = deque()
  padded_sizes: dict[Shapes, int] = {}
  for batch in batches:
    # A short last batch is padded, so that nothing is compiled twice, and cut again below.
    padded_size = -(-len(batch[0]) // devices) * devices
    padded_size = padded_sizes.setdefault(_shapes(batch), padded_size)
    by_size = []
    for crops in batch:
      crops = np.pad(crops, [(0, padded_size - len(crops))] + [(0, 0)] * 4)
      by_size.append(predict_step(state, crops.reshape(devices, -1, *crops.shape[2:])))
    in_flight.append(_Pending(by_size, [crops.shape[1] for crops in batch], len(batch[0])))
    # The devices work on one batch while the next one is prepared and handed to them.
    if len(in_flight) > 1:
      results.append(in_flight.popleft().mean())
  results += [pending.mean() for pending in in_flight]
  return np.concatenate(results)


class _Pending(NamedTuple):
  """The predictions of a batch, which the devices may not have made yet.

  Attributes:
    by_size: probabilities [device, image · view, category] for each size of the views.
    num_views: the views of each size.
    num_images: without padding.
  """

  by_size: list[jax.Array | np.ndarray]
  num_views: list[int]
  num_images: int

  def mean(self) -> np.ndarray:
    """Wait for the devices, and return the mean over views and sizes [image, category]."""
    means = [
      np.asarray(p).reshape(-1, num_views, p.shape[-1]).mean(axis=1)
      for p, num_views in zip(self.by_size, self.num_views, strict=True)
    ]
    return np.asarray(np.mean(means, axis=0)[: self.num_images])


def predict_shapes(
  predict_step: Callable[[TrainState, np.ndarray], jax.Array | np.ndarray],
  state: TrainState,
  images: Iterable[tuple[np.ndarray, ...]],
  batch_size: int,
) -> Float[np.ndarray, 'image category']:
  """Compute what `predict` does, for images whose views have different shapes.

  Args:
    predict_step, state: as for `predict`.
    images: batches of one image each.
    batch_size: square images in a batch.
  """
  order: list[int] = []

  def batches() -> Iterator[tuple[np.ndarray, ...]]:
    for indices, batch in group_by_shape(images, batch_size):
      order.extend(indices)
      yield batch

  p = predict(predict_step, state, batches())
  result = np.empty_like(p)
  result[order] = p
  return result


def group_by_shape(
  images: Iterable[tuple[np.ndarray, ...]], batch_size: int
) -> Iterator[tuple[list[int], tuple[np.ndarray, ...]]]:
  """Yield batches of images whose views have the same shapes, and the positions of these images.

  A batch is yielded once it is full, at the end the others, in the order of their first image.

  Args:
    images: batches of one image each, with views as in `predict`.
    batch_size: square images in a batch. Of longer ones there are fewer: about as many pixels.
  """
  groups: dict[Shapes, list[tuple[int, tuple[np.ndarray, ...]]]] = {}
  for index, image in enumerate(images):
    shapes = _shapes(image)
    height, width = shapes[-1][1:3]
    aspect = max(height, width) / min(height, width)
    groups.setdefault(shapes, []).append((index, image))
    if len(groups[shapes]) >= int(batch_size / aspect):
      yield _join(groups.pop(shapes))
  yield from map(_join, groups.values())


def _shapes(batch: tuple[np.ndarray, ...]) -> Shapes:
  """Return the shape of one image's views of each size."""
  return tuple(views.shape[1:] for views in batch)


def _join(
  group: list[tuple[int, tuple[np.ndarray, ...]]],
) -> tuple[list[int], tuple[np.ndarray, ...]]:
  indices, images = zip(*group, strict=True)
  return list(indices), tuple(map(np.concatenate, zip(*images, strict=True)))
