"""Who compares tiles of sources with the targets: the host's cores, or its accelerators.

Both are asked alike: `start` sets to work on a tile and gives its divergences to come; `capacity`
says how many tiles keep everyone busy.
"""

import functools
import os
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
TARGETS = 4096

Targets = Float[np.ndarray, 'target filter bin']
Weights = Float[np.ndarray, 'filter']
# The sources of one tile, in parts.
Parts = Sequence[Float[Array | np.ndarray, '_source filter bin']]


class OnDevice:
  """The divergences of a tile while a device works on them, as a `Future`."""

  def __init__(self, parts: list[Any]):
    self._parts = parts

  def done(self) -> bool:
    return all(part.is_ready() for part in self._parts)

  def result(self) -> Float[np.ndarray, 'target source']:
    return np.concatenate([np.asarray(part) for part in self._parts])


ToCome = Future | OnDevice


def of_this_process(
  targets: Targets, weights: Weights, devices: Sequence[jax.Device] | None
) -> 'Cores | Devices':
  """The workers there are; `devices`: these ones."""
  if devices is None:
    if jax.default_backend() == 'cpu':
      return Cores(targets, weights)
    devices = jax.local_devices()
  return Devices(targets, weights, devices)


class Cores:
  """A tile a core: BLAS is faster than XLA's product, and nobody waits for one another.

  As long as it is there, BLAS has one thread in this process; `close` ends that.
  """

  def __init__(self, targets: Targets, weights: Weights):
    num_cores = os.cpu_count() or 1
    self.capacity = num_cores + 1  # One is ready when another is done.
    self._pool = ThreadPoolExecutor(num_cores)
    limits = threadpoolctl.threadpool_limits(1, user_api='blas')
    self.close = weakref.finalize(self, limits.restore_original_limits)
    self._center = _center(targets, weights)
    of_target = functools.partial(target_factors, center=self._center)
    self._factors = list(self._pool.map(of_target, _parts(targets)))
    self._num_factors = 2 * targets.size
    self._memory: deque[Any] = deque()

  def unit(self, tile: int) -> int:
    """Of what the size of the last tile is a multiple, that its products sum in the same order."""
    # OpenBLAS has other kernels for products of up to 10^6 multiplications.
    eighth = tile // 8
    return eighth if eighth * self._num_factors > 2**22 else tile

  def start(self, parts: Parts) -> ToCome:
    return self._pool.submit(self._divergences, parts)

  def _divergences(self, parts: Parts) -> np.ndarray:
    hosts = [np.asarray(part) for part in parts]
    tile = hosts[0] if len(hosts) == 1 else np.concatenate(hosts)
    memory = self._memory.pop() if self._memory else None
    if memory is not None and len(memory) != len(tile):
      memory = None
    sources = source_factors(tile, self._center, memory)
    found: list[Any] = [divergences(targets, sources) for targets in self._factors]
    self._memory.append(sources.factors)
    return found[0] if len(found) == 1 else np.concatenate(found)


class Devices:
  """Every device in turn; `targets` that are too many for one are fetched for every tile."""

  def __init__(self, targets: Targets, weights: Weights, devices: Sequence[jax.Device]):
    self.capacity = len(devices)
    self._turns = deque(devices)
    around = _center(targets, weights)
    self._centers = {device: jax.device_put(around, device) for device in devices}
    self._factors = {device: self._target_factors(targets, device) for device in devices}
    self._memory: dict[jax.Device, Any] = {}

  def close(self) -> None:
    """Nothing is kept."""

  def unit(self, tile: int) -> int:
    """As of `Cores`: one shape for all, and to compile for."""
    return tile

  def _target_factors(self, targets: Targets, device: jax.Device) -> list[Factors]:
    fits = _fits(2 * targets.nbytes, device)
    factors = []
    for part in _parts(targets):
      made = target_factors(jax.device_put(part, device), self._centers[device])
      factors.append(made if fits else jax.device_get(made))
    return factors

  def start(self, parts: Parts) -> ToCome:
    device = self._turns[0]
    self._turns.rotate(-1)
    there = [jax.device_put(part, device) for part in parts]
    tile = there[0] if len(there) == 1 else jnp.concatenate(there)
    memory = self._memory.pop(device, None)
    if memory is not None and len(memory) != len(tile):
      memory = None
    sources = source_factors(tile, self._centers[device], memory)
    found: list[Any] = []
    for targets in self._factors[device]:
      found.append(divergences(jax.device_put(targets, device), sources))
      found[-1].copy_to_host_async()
    self._memory[device] = sources.factors
    return OnDevice(found)


def _center(targets, weights):
  # Any constant would do for a center: a sample of the targets is as good as all.
  return center(targets[:: -(-len(targets) // TARGETS)], weights)


def _parts(targets):
  return [targets[start : start + TARGETS] for start in range(0, len(targets), TARGETS)]


def _fits(num_bytes: int, device: jax.Device) -> bool:
  """Whether so much leaves half of the device's memory for everything else."""
  return num_bytes <= (device.memory_stats() or {}).get('bytes_limit', np.inf) / 2
