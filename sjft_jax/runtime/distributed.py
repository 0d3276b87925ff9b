"""What several processes under `jax.distributed` have to do together; one alone does nothing."""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

_A_WEEK = 7 * 24 * 3600 * 1000  # ms


class KeyValueStore:
  """Strings by key, of JAX's coordination service; see `consensus.KeyValueStore`."""

  def __init__(self) -> None:
    self._client: Any = distributed.global_state.client

  def set(self, key: str, value: str) -> None:
    self._client.key_value_set(f'sjft_jax/{key}', value)

  def find(self, key: str) -> str | None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      return self._client.key_value_try_get(f'sjft_jax/{key}')
    return None

  def get(self, key: str, seconds: float) -> str:
    return self._client.blocking_key_value_get(f'sjft_jax/{key}', int(1000 * seconds))


def is_lead_host() -> bool:
  """Whether this is the process that writes and speaks for all."""
  return jax.process_index() == 0


def barrier() -> None:
  """Waits until all processes are here."""
  if jax.process_count() == 1:
    return
  call_in_thread(multihost.get_barrier_sync_fn(), key='meet', timeout_ms=_A_WEEK)


def call_in_thread(work: Callable[..., object], *args: Any, **options: Any) -> None:
  """Does the work in a thread: Ctrl-C does not reach a wait outside of Python."""
  ThreadPoolExecutor(1).submit(work, *args, **options).result()


def broadcast(array: np.ndarray) -> np.ndarray:
  """The array that the first process has; of the same shape in all."""
  if jax.process_count() == 1:
    return array
  barrier()  # Collectives on CPUs give up after 30 seconds.
  return np.asarray(multihost_utils.broadcast_one_to_all(array))


def all_gather(array: np.ndarray) -> np.ndarray:
  """[process, …]: the arrays of all processes, which have one shape."""
  if jax.process_count() == 1:
    return array[None]
  barrier()
  return np.asarray(multihost_utils.process_allgather(array))


def shard_bounds(size: int, unit: int = 1, process: int | None = None) -> tuple[int, int]:
  """Which part start..stop-1 of 0..size-1 is a process's (None: this one's).

  Whole units, as even as they allow.
  """
  process = jax.process_index() if process is None else process
  units, number = -(-size // unit), jax.process_count()
  start, stop = (min(units * i // number * unit, size) for i in (process, process + 1))
  return start, stop


def gather_shards(part: np.ndarray, size: int) -> np.ndarray:
  """[size, …] from the parts that all processes have of it, as `shard_bounds` says."""
  number = jax.process_count()
  if number == 1:
    return part
  shares = [shard_bounds(size, process=process) for process in range(number)]
  longest = max(stop - start for start, stop in shares)
  padded = np.pad(part, [(0, longest - len(part))] + [(0, 0)] * (part.ndim - 1))
  parts = zip(all_gather(padded), shares, strict=True)
  return np.concatenate([rows[: stop - start] for rows, (start, stop) in parts])
