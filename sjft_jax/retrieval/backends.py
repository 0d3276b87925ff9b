"""Compute the divergences of tiles of sources, on the host's cores or on its accelerators.

Both backends have one interface: `start` begins to work on a tile and returns its pending
divergences; `close` ends the work. `capacity` is the number of tiles that keep all cores or devices
busy. The number of sources in a tile is a multiple of `unit`, so that its products sum in the same
order as those of other tiles.
"""

import functools
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jaxtyping import Array, Float

from sjft_jax.retrieval.divergence import (
  Center,
  Factors,
  divergences,
  make_center,
  source_factors,
  target_factors,
)

# The most targets in one product.
MAX_TARGETS = 4096

Targets = Float[np.ndarray, 'target filter bin']
Weights = Float[np.ndarray, ' filter']
# The sources of one tile, in consecutive blocks.
Blocks = Sequence[Float[Array | np.ndarray, '_source filter bin']]


class DeviceTile:
  """The divergences of a tile while a device computes them, with the methods of a `Future`."""

  def __init__(self, parts: list[Any]):
    self._parts = parts

  def done(self) -> bool:
    """Return whether `result` will not wait."""
    return all(part.is_ready() for part in self._parts)

  def result(self) -> Float[np.ndarray, 'target source']:
    """Wait for the divergences and return them."""
    return np.concatenate([np.asarray(part) for part in self._parts])


PendingTile = Future | DeviceTile


def make_backend(
  targets: Targets, weights: Weights, tile_size: int, devices: Sequence[jax.Device] | None
) -> 'CpuBackend | DeviceBackend':
  """Make the backend for a search.

  Args:
    targets: their histograms.
    weights: w_h of Eq. 1.
    tile_size: the most sources in a tile.
    devices: the devices to use; None: this process's accelerators, or its cores if it has none.
  """
  if devices is None:
    if jax.default_backend() == 'cpu':
      return CpuBackend(targets, weights, tile_size)
    devices = jax.local_devices()
  return DeviceBackend(targets, weights, tile_size, devices)


class CpuBackend:
  """Computes a tile on each core: BLAS is faster than XLA's product, and no core waits for another.

  BLAS has one thread in this process until `close` is called or the backend is collected.
  """

  def __init__(self, targets: Targets, weights: Weights, tile_size: int):
    cores = num_threads(targets, tile_size)
    self.capacity = cores + 1  # One tile waits for the next core that is free.
    # OpenBLAS has other kernels for products of up to 10^6 multiplications.
    is_large = tile_size // 8 * 2 * targets.size > 2**22
    self.unit = tile_size // 8 if is_large else tile_size
    self._pool = ThreadPoolExecutor(cores)
    limits = threadpoolctl.threadpool_limits(1, user_api='blas')
    self.close = weakref.finalize(self, limits.restore_original_limits)
    self._center = _center(targets, weights)
    make_factors = functools.partial(target_factors, center=self._center)
    self._factors = list(self._pool.map(make_factors, _split(targets)))
    self._thread = threading.local()  # The memory that each thread uses again.

  def start(self, blocks: Blocks) -> PendingTile:
    """Begin to compute the divergences of a tile, whose blocks must not be changed any more."""
    return self._pool.submit(self._divergences, blocks)

  def _divergences(self, blocks: Blocks) -> np.ndarray:
    tile = _concatenate(np, [np.asarray(block) for block in blocks])
    out = getattr(self._thread, 'factors', None)
    if out is not None and len(out) != len(tile):
      out = None
    sources = source_factors(tile, self._center, out)
    self._thread.factors = sources.factors
    return _concatenate(np, [divergences(targets, sources) for targets in self._factors])


class DeviceBackend:
  """Computes a tile on each device in turn.

  Targets that are too many for a device's memory are sent to it for every tile.
  """

  def __init__(
    self, targets: Targets, weights: Weights, tile_size: int, devices: Sequence[jax.Device]
  ):
    self.capacity = len(devices)
    self.unit = tile_size  # With one shape of tiles, XLA also compiles only once.
    self._turns = deque(devices)
    center = _center(targets, weights)
    self._centers = {device: jax.device_put(center, device) for device in devices}
    self._factors = {device: self._target_factors(targets, device) for device in devices}
    self._source_factors: dict[jax.Device, Any] = {}  # Memory that is used again.

  def close(self) -> None:
    """Do nothing: devices need no closing."""

  def _target_factors(self, targets: Targets, device: jax.Device) -> list[Factors]:
    fits = _fits(2 * targets.nbytes, device)
    parts = []
    for part in _split(targets):
      factors = target_factors(jax.device_put(part, device), self._centers[device])
      parts.append(factors if fits else jax.device_get(factors))
    return parts

  def start(self, blocks: Blocks) -> PendingTile:
    """Begin to compute the divergences of a tile."""
    device = self._turns[0]
    self._turns.rotate(-1)
    tile = _concatenate(jnp, [jax.device_put(block, device) for block in blocks])
    out = self._source_factors.pop(device, None)
    sources = source_factors(tile, self._centers[device], out)
    parts: list[Any] = []
    for targets in self._factors[device]:
      parts.append(divergences(jax.device_put(targets, device), sources))
      parts[-1].copy_to_host_async()
    self._source_factors[device] = sources.factors
    return DeviceTile(parts)


def num_threads(targets: Targets, tile_size: int) -> int:
  """Return the number of cores, or fewer if their tiles exceed a quarter of the host's memory."""
  # The histograms of a tile, their factors, which are twice as large, and its divergences.
  bytes_each = 4 * tile_size * (3 * targets[0].size + len(targets))
  memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return min(os.cpu_count() or 1, max(memory // 4 // bytes_each, 1))


def _center(targets: Targets, weights: Weights) -> Center:
  # Any constant would do for a center: a sample of the targets is as good as all.
  return make_center(targets[:: -(-len(targets) // MAX_TARGETS)], weights)


def _split(targets: Targets) -> list[np.ndarray]:
  return [targets[start : start + MAX_TARGETS] for start in range(0, len(targets), MAX_TARGETS)]


def _concatenate(library: Any, arrays: list[Any]) -> Any:
  return arrays[0] if len(arrays) == 1 else library.concatenate(arrays)  # One is not copied.


def _fits(num_bytes: int, device: jax.Device) -> bool:
  """Return whether so many bytes leave half of the device's memory for everything else."""
  return num_bytes <= (device.memory_stats() or {}).get('bytes_limit', np.inf) / 2
