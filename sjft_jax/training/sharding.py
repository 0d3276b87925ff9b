"""Bring states and batches to the devices of this process, and states back."""

from typing import Any

import jax
import numpy as np

PyTree = Any


def replicate(tree: PyTree, num_devices: int | None = None) -> PyTree:
  """Copy `tree` to each of this process's first `num_devices` devices (None: all)."""
  devices = np.arange(num_devices or jax.local_device_count())
  # The axis has the name of the step's: arrays of another would make the step compile again.
  return jax.pmap(lambda _, tree: tree, axis_name='batch', in_axes=(0, None))(devices, tree)


def unreplicate(tree: PyTree) -> PyTree:
  """Copy the replica on this process's first device to the host, as numpy arrays."""
  # x[0] would be compiled for every shape. np.array copies, since the next step reuses the memory.
  return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data).squeeze(0), tree)


def local_pairs(batch_size: int, accumulation: int) -> np.ndarray:
  """Return which pairs of a batch this process's devices take, in the order of `shard_batch`."""
  pairs = np.arange(batch_size).reshape(accumulation, jax.process_count(), -1)
  return pairs[:, jax.process_index()].ravel()


def shard_batch(
  batch: dict[str, np.ndarray], *, accumulation: int, num_devices: int | None = None
) -> dict[str, np.ndarray]:
  """Reshape leaves `[image, ...]` to `[device, micro_batch, image, ...]`, for the training step.

  Micro-batches are consecutive runs of images, and so are the devices' parts of one. Hence a
  micro-batch holds the same images (and batch norm sees the same mixture) on any number of
  devices. A target image and its neighbour should therefore stand side by side.

  Args:
    batch: the images of this process.
    accumulation: micro-batches in a step.
    num_devices: of this process; None: all.

  Raises:
    ValueError: the images cannot be divided evenly.
  """
  devices = num_devices or jax.local_device_count()
  (images,) = {len(leaf) for leaf in batch.values()}
  if images % (devices * accumulation):
    raise ValueError(
      f'{images} images cannot be divided among {devices} devices and accumulation={accumulation} '
      'micro-batches; change the batch size or accumulation'
    )
  return {
    name: leaf.reshape(accumulation, devices, -1, *leaf.shape[1:]).swapaxes(0, 1)
    for name, leaf in batch.items()
  }
