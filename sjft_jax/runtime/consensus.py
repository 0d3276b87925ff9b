"""Agree among processes where to stop: all at one step, or each by itself where none needs others.

A request to stop, or the error that one process fails with, reaches the others through the
key-value store of JAX's coordination service.

This stays beside JAX's own sync point for preemption, which serves only SIGTERM and takes it away
from the program, serves only steps that all processes take in lockstep (ranking has none), and
reports no errors.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

TIMEOUT_S = 60.0  # seconds that other processes have to answer or to end
_POLL_INTERVAL_S = 1.0  # seconds
_EXIT_GRACE_S = 3.0  # seconds; with 0.5 a process was cut off once on a busy machine


class KeyValueStore(Protocol):
  """Strings by key, the same for all processes."""

  def set(self, key: str, value: str) -> None:
    """Set the value of a key; raise an error if it has one already."""

  def try_get(self, key: str) -> str | None:
    """Return the value of a key, or None if it has none."""

  def get(self, key: str, timeout_s: float) -> str:
    """Wait until a key has a value and return it; raise an error if that takes too long."""


class StopConsensus:
  """The agreement of this process with the others on where to stop.

  In a section of the program that the processes run in lockstep, none gets on without the others.
  All processes pass the same sync points in the same order: one when they enter a section, any
  number within it, and one when they leave it. Once a stop is requested, a thread of each process
  publishes how many sync points the process has passed, and keeps it from passing another until all
  have published. If the process that is furthest is within a section, all stop at the sync point
  that comes next for it: no process is past that one, and every process reaches it. A process that
  is outside, and that no other one needs inside, is released at once.
  """

  def __init__(
    self,
    store: KeyValueStore,
    process: int,
    num_processes: int,
    *,
    release: Callable[[str], None],
    abandon: Callable[[str], None],
  ):
    """Start to watch for requests and failures of the other processes.

    Args:
      store: where the processes meet.
      process: the number of this process.
      num_processes: how many there are.
      release: called by a thread, with the reason, if a stop need not wait for a sync point.
      abandon: called by a thread, with the error that another process failed with.
    """
    self._store, self._process, self._num_processes = store, process, num_processes
    self._release, self._abandon = release, abandon
    self._lock = threading.Lock()
    self._num_passed, self._is_inside = 0, False
    self._is_requested = self._is_closed = False
    self._reason = ''
    self._last_sync_point: Future[int] = Future()
    self._wake = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()

  def request_stop(self, reason: str) -> None:
    """Request that all processes stop; of several reasons the first counts."""
    self._is_requested = True  # Without the lock, because this may run in a signal handler.
    self._publish('stop', reason)
    self._wake.set()

  def sync_point(self, *, is_inside: bool) -> str | None:
    """Pass a sync point; return the reason if this is the one to stop at, or None to go on.

    Args:
      is_inside: whether a lockstep section begins or goes on after this sync point.
    """
    with self._lock:
      if not self._is_requested:
        self._num_passed, self._is_inside = self._num_passed + 1, is_inside
        return None
    last = self._last_sync_point.result(2 * TIMEOUT_S)
    self._num_passed += 1
    return self._reason if self._num_passed >= last else None

  def leave(self, error: str | None = None) -> None:
    """Announce the end of this process, as the last thing that it does.

    A process that fails waits until the others have read its error: otherwise all that they see is
    a connection that breaks. Process 0, whose end takes the others along, ends last.

    Args:
      error: what this process fails with, if it does.
    """
    self._publish(f'heard/{self._process}', '')
    if error is not None:
      self._publish('failed', f'{self._process} {error}')
      self._wait_for_all('heard')
    self._publish(f'left/{self._process}', '')
    if self._process == 0:
      self._wait_for_all('left')
      time.sleep(_EXIT_GRACE_S)  # The others have published that, and are about to end.

  def close(self) -> None:
    """Announce that no sync point follows, and join the thread.

    A daemon thread that still runs when the interpreter shuts down can crash it.
    """
    self._publish(f'passed/{self._process}', f'{self._num_passed} 0')
    self._is_closed = True
    self._wake.set()
    self._thread.join()

  def _publish(self, key: str, value: str) -> None:
    with contextlib.suppress(Exception):  # The key has a value already, or the service is gone.
      self._store.set(key, value)

  def _wait_for_all(self, event: str) -> None:
    with contextlib.suppress(Exception):
      for process in range(self._num_processes):
        self._store.get(f'{event}/{process}', TIMEOUT_S)

  def _watch(self) -> None:
    has_agreed = False
    while not self._is_closed:
      failure, reason = self._store.try_get('failed'), self._store.try_get('stop')
      if failure is not None:
        process, error = failure.split(maxsplit=1)
        if int(process) != self._process:
          self._abandon(f'process {process}: {error}')
      elif reason is not None and not has_agreed:
        has_agreed = True
        self._agree(reason)
      self._wake.wait(_POLL_INTERVAL_S)
      self._wake.clear()

  def _agree(self, reason: str) -> None:
    """Choose the last sync point from where all processes are; release this one if it is free."""
    with self._lock:
      self._is_requested, self._reason = True, reason
      num_passed, is_inside = self._num_passed, self._is_inside
    self._publish(f'passed/{self._process}', f'{num_passed} {is_inside:d}')
    positions = [(num_passed, is_inside)]
    try:
      for process in range(self._num_processes):
        number, inside = self._store.get(f'passed/{process}', TIMEOUT_S).split()
        positions.append((int(number), inside == '1'))
      is_needed = is_inside or any(inside and number > num_passed for number, inside in positions)
    except Exception:  # A process does not answer: no section can be completed any more.
      is_needed = False
    furthest, is_furthest_inside = max(positions)
    self._last_sync_point.set_result(furthest + is_furthest_inside if is_needed else 0)
    if not is_needed:
      self._release(reason)
