"""Helpers for several processes under `jax.distributed`; in a single process they do nothing."""

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

_WEEK_MS = 7 * 24 * 3600 * 1000


class KeyValueStore:
  """The strings of JAX's coordination service, see `consensus.KeyValueStore`."""

  def __init__(self) -> None:
    # The only way to the service's client: jax.distributed gives no access to it.
    from jax._src import distributed

    self._client: Any = distributed.global_state.client

  def set(self, key: str, value: str) -> None:
    """Set the value of a key; raise an error if it has one already."""
    self._client.key_value_set(f'sjft_jax/{key}', value)

  def try_get(self, key: str) -> str | None:
    """Return the value of a key, or None if it has none."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      return self._client.key_value_try_get(f'sjft_jax/{key}')
    return None

  def get(self, key: str, timeout_s: float) -> str:
    """Wait until a key has a value and return it; raise an error if that takes too long."""
    return self._client.blocking_key_value_get(f'sjft_jax/{key}', int(1000 * timeout_s))


def is_primary_process() -> bool:
  """Return whether this is the process that writes and prints for all."""
  return jax.process_index() == 0


def describe_devices() -> str:
  """Return number and kind of this process's devices, and the version of JAX."""
  return f'{jax.local_device_count()} × {jax.local_devices()[0].device_kind}, jax {jax.__version__}'


def barrier() -> None:
  """Wait until all processes are here."""
  if jax.process_count() == 1:
    return
  call_in_thread(multihost.get_barrier_sync_fn(), key='barrier', timeout_ms=_WEEK_MS)


def call_in_thread(work: Callable[..., object], *args: Any, **options: Any) -> None:
  """Call a function in a thread and wait for it: Ctrl-C cannot interrupt a wait outside Python."""
  ThreadPoolExecutor(1).submit(work, *args, **options).result()


def broadcast(array: np.ndarray) -> np.ndarray:
  """Return the array of process 0; those of the others have the same shape."""
  if jax.process_count() == 1:
    return array
  barrier()  # Collectives on CPUs give up after 30 seconds.
  return np.asarray(multihost_utils.broadcast_one_to_all(array))


def all_gather(array: np.ndarray) -> np.ndarray:
  """Return [process, …], the arrays of all processes, which have one shape."""
  if jax.process_count() == 1:
    return array[None]
  barrier()
  return np.asarray(multihost_utils.process_allgather(array))


def check_devices() -> None:
  """Check that all processes have the same number of devices, which they divide their work by.

  Raises:
    ValueError: they have not; all processes raise it.
  """
  counts = np.bincount([device.process_index for device in jax.devices()])
  if (counts != counts[0]).any():
    process = int(np.argmax(counts != counts[0]))
    raise ValueError(
      f'process {process} has {counts[process]} devices, process 0 has {counts[0]}; start all '
      'processes with the same number of devices, such as by CUDA_VISIBLE_DEVICES'
    )


def check_same(values: Mapping[str, str]) -> None:
  """Check that all processes have the same values, which they would divide their work by.

  Args:
    values: by what they are of, for the message; the same keys in every process.

  Raises:
    ValueError: another process has another one; all processes raise it.
  """
  if jax.process_count() == 1:
    return
  digests = [hashlib.sha256(value.encode()).digest() for value in values.values()]
  all_digests = all_gather(np.frombuffer(b''.join(digests), np.uint8).reshape(len(digests), -1))
  is_other = (all_digests != all_digests[0]).any(axis=2)
  for process, what in np.argwhere(is_other):
    raise ValueError(
      f'process {process} has other {list(values)[what]} than process 0; all processes need the '
      'same files and the same options'
    )


def shard_bounds(size: int, unit: int = 1, process: int | None = None) -> tuple[int, int]:
  """Return which part start..stop-1 of 0..size-1 belongs to a process.

  Args:
    size: how much there is in all.
    unit: parts begin at multiples of it and are as even as that allows.
    process: whose part; None: this process.
  """
  process = jax.process_index() if process is None else process
  num_units, num_processes = -(-size // unit), jax.process_count()
  start, stop = (min(num_units * i // num_processes * unit, size) for i in (process, process + 1))
  return start, stop


def gather_shards(part: np.ndarray, size: int) -> np.ndarray:
  """Return [size, …], joined from the parts that all processes have of it by `shard_bounds`."""
  num_processes = jax.process_count()
  if num_processes == 1:
    return part
  bounds = [shard_bounds(size, process=process) for process in range(num_processes)]
  longest = max(stop - start for start, stop in bounds)
  padded = np.pad(part, [(0, longest - len(part))] + [(0, 0)] * (part.ndim - 1))
  parts = zip(all_gather(padded), bounds, strict=True)
  return np.concatenate([rows[: stop - start] for rows, (start, stop) in parts])
