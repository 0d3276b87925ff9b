"""How several processes stop: at one step where each needs the others, else each by itself.

What one of them is asked for, or fails with, it tells all through the key-value store of JAX's
coordination service.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

TIMEOUT_S = 60.0  # seconds, for others that are to leave too
_POLL_INTERVAL_S = 1.0  # seconds
_EXIT_GRACE_S = 3.0  # seconds; with half of one a process was cut off once on a busy machine


class KeyValueStore(Protocol):
  """Strings by key, the same for all processes."""

  def set(self, key: str, value: str) -> None:
    """Raises an error where the key has a value."""

  def find(self, key: str) -> str | None:
    """Its value, if it has one."""

  def get(self, key: str, seconds: float) -> str:
    """Waits until the key has a value; raises an error if that takes longer."""


class StopConsensus:
  """What this process and the others know of a stop.

  All processes pass the same gates in the same order: one into every stretch in which none gets on
  without the others, any number within it, and one out of it. Once a stop is asked for, a thread of
  each process tells the others how many gates it has passed, and no further gate opens before all
  have told. If the foremost is within a stretch, all stop at the gate that comes next for it:
  nobody is past that one, and everybody gets there. Who is outside, and not needed within, is
  released at once.
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
    """
    Args:
      process: which one this is.
      release: called by a thread, with the reason, if a stop need not wait for the next gate.
      abandon: called by a thread, with what another process failed with.
    """
    self._store, self._process, self._num_processes = store, process, num_processes
    self._release, self._abandon = release, abandon
    self._lock = threading.Lock()
    self._passed, self._is_inside = 0, False
    self._is_asked = self._is_closed = False
    self._reason = ''
    self._last_gate: Future[int] = Future()
    self._hurry = threading.Event()
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()

  def ask(self, reason: str) -> None:
    """Asks all processes to stop; of several reasons the first counts."""
    self._is_asked = True  # Without the lock: this may be a signal's handler.
    self._tell('stop', reason)
    self._hurry.set()

  def close(self) -> None:
    """All gates are passed. The thread ends too: a Python that ends does not bear it."""
    self._tell(f'passed/{self._process}', f'{self._passed} 0')
    self._is_closed = True
    self._hurry.set()
    self._thread.join()

  def leave(self, error: str | None = None) -> None:
    """To be called last, with what this process fails with, if it does.

    One that fails waits until the others have heard it: what they get to see should not be a
    connection that breaks. The first process, whose end takes the others along, ends last.
    """
    self._tell(f'heard/{self._process}', '')
    if error is not None:
      self._tell('failed', f'{self._process} {error}')
      self._wait_for('heard')
    self._tell(f'left/{self._process}', '')
    if self._process == 0:
      self._wait_for('left')
      time.sleep(_EXIT_GRACE_S)  # They have told, and are about to end.

  def passes(self, *, into: bool) -> str | None:
    """At the next gate: the reason to stop here, or None to go on.

    Args:
      into: whether a stretch with the others begins here, or goes on.
    """
    with self._lock:
      if not self._is_asked:
        self._passed, self._is_inside = self._passed + 1, into
        return None
    last = self._last_gate.result(2 * TIMEOUT_S)
    self._passed += 1
    return self._reason if self._passed >= last else None

  def _tell(self, key: str, value: str) -> None:
    with contextlib.suppress(Exception):  # It is told already, or the service has gone.
      self._store.set(key, value)

  def _wait_for(self, what: str) -> None:
    with contextlib.suppress(Exception):
      for other in range(self._num_processes):
        self._store.get(f'{what}/{other}', TIMEOUT_S)

  def _listen(self) -> None:
    has_heard = False
    while not self._is_closed:
      failure, reason = self._store.find('failed'), self._store.find('stop')
      if failure is not None:
        process, error = failure.split(maxsplit=1)
        if int(process) != self._process:
          self._abandon(f'process {process}: {error}')
      elif reason is not None and not has_heard:
        has_heard = True
        self._agree(reason)
      self._hurry.wait(_POLL_INTERVAL_S)
      self._hurry.clear()

  def _agree(self, reason: str) -> None:
    with self._lock:
      self._is_asked, self._reason = True, reason
      passed, is_inside = self._passed, self._is_inside
    self._tell(f'passed/{self._process}', f'{passed} {is_inside:d}')
    places = [(passed, is_inside)]
    try:
      for other in range(self._num_processes):
        number, inside = self._store.get(f'passed/{other}', TIMEOUT_S).split()
        places.append((int(number), inside == '1'))
      is_free = not is_inside and not any(inside and number > passed for number, inside in places)
    except Exception:  # Someone does not answer; nobody gets on together any more.
      is_free = True
    foremost, inside_there = max(places)
    self._last_gate.set_result(0 if is_free else foremost + inside_there)
    if is_free:
      self._release(reason)
