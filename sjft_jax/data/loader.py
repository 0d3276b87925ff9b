"""Load batches ahead of their use, in threads or processes, by Grain."""

import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import cv2
import grain
import numpy as np
from absl import flags

from sjft_jax.data.dataset import Dataset
from sjft_jax.runtime import host_memory, preemption

Views = TypeVar('Views', np.ndarray, tuple[np.ndarray, ...])
Batch = TypeVar('Batch')

# So many batches are loaded at once and ahead. Decoding releases the interpreter lock, so as many
# threads keep all cores busy. Grain's own default would hold 500, which for batches of images is
# gigabytes.
BUFFER_SIZE = min(max(os.cpu_count() or 1, 4), 16)


def num_loaders(workers: int) -> int:
  """Return how many batches are loaded at once: in threads, or in `workers` processes if not 0."""
  return workers or min(os.cpu_count() or 1, BUFFER_SIZE)


def prefetch(
  load: Callable[[int], Batch], start: int, stop: int, *, workers: int = 0
) -> Iterator[Batch]:
  """Yield load(start), load(start + 1), …, load(stop - 1), computed ahead.

  Args:
    load: makes the batch of a step.
    start: the first step.
    stop: the step to end before.
    workers: processes that call `load`; 0: threads of this one.
  """

  def load_step(step: int) -> Batch:
    _limit_opencv_threads()
    return load(int(step))

  return _load_ahead(grain.MapDataset.range(start, stop).map(load_step), workers)


def views(
  dataset: Dataset,
  view: Callable[[np.ndarray], Views],
  batch_size: int,
  *,
  min_side: int,
  start: int = 0,
  stop: int | None = None,
  workers: int = 0,
) -> Iterator[Views]:
  """Yield batches of the views of images start..stop-1; the last batch may be smaller.

  Args:
    dataset: the images.
    view: makes one array of an image, or a tuple of arrays.
    batch_size: images in a batch.
    min_side: short side in pixels above which `view` gains nothing: images may be decoded so small.
    start: the first image.
    stop: the image to end before; None: the end of the data set.
    workers: processes that decode; 0: threads of this one.
  """
  stop = len(dataset) if stop is None else stop

  def load_view(index: int) -> Views:
    _limit_opencv_threads()
    return view(dataset.read_image(int(index), min_side=min_side))

  images = grain.MapDataset.range(start, stop).map(load_view)
  return _load_ahead(images.batch(batch_size), workers)


def _load_ahead(dataset: grain.MapDataset, workers: int) -> Iterator:
  options = grain.ReadOptions(
    num_threads=1 if workers else num_loaders(0), prefetch_buffer_size=BUFFER_SIZE
  )
  batches = dataset.to_iter_dataset(options)
  if workers:
    if not flags.FLAGS.is_parsed():
      # Grain's processes read flags of its own, which nobody has parsed where Python calls us.
      flags.FLAGS.mark_as_parsed()
    batches = batches.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4),
      worker_init_fn=functools.partial(_init_worker, workers),
    )
  return _explain_killed_workers(iter(batches))


def _explain_killed_workers(batches: Iterator[Batch]) -> Iterator[Batch]:
  """Yield the batches; say what to change where the system has killed one of Grain's processes.

  Raises:
    ValueError: it has.
  """
  try:
    yield from batches
  except RuntimeError as error:
    killed = re.search(r'terminated unexpectedly with exit code (-\d+)', str(error))
    if not killed:
      raise
    raise ValueError(
      f'a process that loads images was killed (exit code {killed[1]}), as the system does where '
      'memory runs out; lower training.workers or descriptors.workers, with --resume_with_changes, '
      "or retrieve's --workers (0: threads of this process), and run the same command: it goes on"
    ) from error


def _init_worker(workers: int, *_: int) -> None:
  preemption.init_worker()
  host_memory.share_with(workers)


@functools.cache
def _limit_opencv_threads() -> None:
  # Each of the loader's threads works on an image of its own; OpenCV's would compete with them.
  # Here rather than at import: each worker process needs it, and a library changes no global
  # setting before it is used.
  cv2.setNumThreads(1)
