"""Who compares tiles of sources with the targets: the host's cores, or its accelerators.

Both are asked alike: `start` sets to work on a tile and gives its divergences to come; `capacity`
says how many tiles keep everyone busy, and the size of a tile is a multiple of `unit`, that its
products sum in the same order as those of other tiles.
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
  Factors,
  center,
  divergences,
  source_factors,
  target_factors,
)

# The most targets in one product.
MAX_TARGETS = 4096

Targets = Float[np.ndarray, 'target filter bin']
Weights = Float[np.ndarray, ' filter']
# The sources of one tile, in parts.
Parts = Sequence[Float[Array | np.ndarray, '_source filter bin']]


class DeviceTile:
  """The divergences of a tile while a device works on them, as a `Future`."""

  def __init__(self, parts: list[Any]):
    self._parts = parts

  def done(self) -> bool:
    return all(part.is_ready() for part in self._parts)

  def result(self) -> Float[np.ndarray, 'target source']:
    return np.concatenate([np.asarray(part) for part in self._parts])


PendingTile = Future | DeviceTile


def make_backend(
  targets: Targets, weights: Weights, tile: int, devices: Sequence[jax.Device] | None
) -> 'CpuBackend | DeviceBackend':
  """The workers there are, for tiles of so many sources at most; `devices`: these ones."""
  if devices is None:
    if jax.default_backend() == 'cpu':
      return CpuBackend(targets, weights, tile)
    devices = jax.local_devices()
  return DeviceBackend(targets, weights, tile, devices)


class CpuBackend:
  """A tile a core: BLAS is faster than XLA's product, and nobody waits for one another.

  As long as it is there, BLAS has one thread in this process; `close` ends that.
  """

  def __init__(self, targets: Targets, weights: Weights, tile: int):
    cores = num_threads(tile, targets)
    self.capacity = cores + 1  # One is ready when another is done.
    # OpenBLAS has other kernels for products of up to 10^6 multiplications.
    self.unit = tile // 8 if tile // 8 * 2 * targets.size > 2**22 else tile
    self._pool = ThreadPoolExecutor(cores)
    limits = threadpoolctl.threadpool_limits(1, user_api='blas')
    self.close = weakref.finalize(self, limits.restore_original_limits)
    self._center = _center(targets, weights)
    of_target = functools.partial(target_factors, center=self._center)
    self._factors = list(self._pool.map(of_target, _parts(targets)))
    self._of_core = threading.local()

  def start(self, parts: Parts) -> PendingTile:
    return self._pool.submit(self._divergences, parts)

  def _divergences(self, parts: Parts) -> np.ndarray:
    hosts = [np.asarray(part) for part in parts]
    tile = hosts[0] if len(hosts) == 1 else np.concatenate(hosts)
    memory = getattr(self._of_core, 'memory', None)
    if memory is not None and len(memory) != len(tile):
      memory = None
    sources = source_factors(tile, self._center, memory)
    self._of_core.memory = sources.factors
    found: list[Any] = [divergences(targets, sources) for targets in self._factors]
    return found[0] if len(found) == 1 else np.concatenate(found)


class DeviceBackend:
  """Every device in turn; `targets` that are too many for one are fetched for every tile."""

  def __init__(self, targets: Targets, weights: Weights, tile: int, devices: Sequence[jax.Device]):
    self.capacity = len(devices)
    self.unit = tile  # Only one shape to compile for, too.
    self._turns = deque(devices)
    around = _center(targets, weights)
    self._centers = {device: jax.device_put(around, device) for device in devices}
    self._factors = {device: self._target_factors(targets, device) for device in devices}
    self._memory: dict[jax.Device, Any] = {}

  def close(self) -> None:
    """Nothing is kept."""

  def _target_factors(self, targets: Targets, device: jax.Device) -> list[Factors]:
    fits = _fits(2 * targets.nbytes, device)
    factors = []
    for part in _parts(targets):
      made = target_factors(jax.device_put(part, device), self._centers[device])
      factors.append(made if fits else jax.device_get(made))
    return factors

  def start(self, parts: Parts) -> PendingTile:
    device = self._turns[0]
    self._turns.rotate(-1)
    there = [jax.device_put(part, device) for part in parts]
    tile = there[0] if len(there) == 1 else jnp.concatenate(there)
    sources = source_factors(tile, self._centers[device], self._memory.pop(device, None))
    found: list[Any] = []
    for targets in self._factors[device]:
      found.append(divergences(jax.device_put(targets, device), sources))
      found[-1].copy_to_host_async()
    self._memory[device] = sources.factors
    return DeviceTile(found)


def num_threads(tile: int, targets: Targets) -> int:
  """One a core, if a quarter of the memory has room for the tile and the divergences of each."""
  # Its histograms, and twice as many factors.
  bytes_each = 4 * tile * (3 * targets[0].size + len(targets))
  memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return min(os.cpu_count() or 1, max(memory // 4 // bytes_each, 1))


def _center(targets, weights):
  # Any constant would do for a center: a sample of the targets is as good as all.
  return center(targets[:: -(-len(targets) // MAX_TARGETS)], weights)


def _parts(targets):
  return [targets[start : start + MAX_TARGETS] for start in range(0, len(targets), MAX_TARGETS)]


def _fits(num_bytes: int, device: jax.Device) -> bool:
  """Whether so much leaves half of the device's memory for everything else."""
  return num_bytes <= (device.memory_stats() or {}).get('bytes_limit', np.inf) / 2
