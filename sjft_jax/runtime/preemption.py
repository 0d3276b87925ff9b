"""SIGTERM and Ctrl-C: what is under way is saved first; a second one ends at once."""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from sjft_jax.runtime.consensus import TIMEOUT_S, KeyValueStore, StopConsensus

_is_asked_here = False
_stopping: int | None = None  # Because of which signal, to here or to another process.
_deferred = _together = False
_others: StopConsensus | None = None
_released: int | None = None  # By the others; not handled yet.


class Stopped(KeyboardInterrupt):
  """The process was asked to stop, and what it had done is saved.

  Attributes:
    status: to exit with, as a shell would report it: 130 after Ctrl-C, 143 after SIGTERM.
  """

  def __init__(self, number: int):
    super().__init__(signal.Signals(number).name)
    self.status = 128 + number


def install_handlers() -> None:
  """From now on the signals raise Stopped, inside `defer_signals` at its next `raise_if_stopping`."""
  for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) != signal.SIG_IGN:  # As of a shell's background job.
      signal.signal(number, _ask)


def restore_handlers() -> None:
  """From now on they end the process at once: all is done."""
  for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, signal.SIG_DFL)


def join_processes(store: KeyValueStore, process: int, num_processes: int) -> None:
  """From now on all processes stop if one of them is asked to, or fails; see `agreement`."""
  global _others
  _others = StopConsensus(store, process, num_processes, release=_release, abandon=_abandon)
  atexit.register(_others.close)


def leave_processes(error: str | None = None) -> None:
  """To be called before this process ends, with what it fails with, if it does."""
  if _others is not None:
    _others.leave(error)


@contextlib.contextmanager
def defer_signals(*, together: bool = False) -> Iterator[None]:
  """Meanwhile nothing is interrupted but where the code asks `should_stop`, and then stops.

  Args:
    together: no process gets on without the others; all ask equally often, and get one answer.
  """
  global _deferred, _together
  _deferred, _together = True, together
  try:
    _pass(into=True)
    raise_if_stopping()  # The others may have left already.
    yield
    _pass(into=False)
  finally:
    _deferred = _together = False
  raise_if_stopping()


def should_stop() -> bool:
  """Whether to save and stop now."""
  _pass(into=True)
  return _stopping is not None


def raise_if_stopping() -> None:
  """Raises Stopped if that was asked for."""
  if _stopping is not None:
    raise Stopped(_stopping)


def _pass(*, into: bool) -> None:
  global _stopping
  if _together and _others is not None:
    reason = _others.passes(into=into)
    if reason is not None:
      _stopping = signal.Signals[reason]


def _ask(number: int, frame: FrameType | None) -> None:
  del frame
  global _is_asked_here, _released, _stopping
  if _released is not None:
    _stopping, _released = _released, None
  elif _is_asked_here:
    os._exit(128 + number)
  else:
    _is_asked_here = True
    if _deferred or _others is not None:
      os.write(2, b'\nStopping as soon as this step is saved; once more stops at once.\n')
    if _others is not None:
      _others.ask(signal.Signals(number).name)
      return
    _stopping = number
  if not _deferred:
    _end_in_a_while(_stopping)
    raise_if_stopping()


def _release(reason: str) -> None:
  global _released
  if signal.getsignal(signal.SIGTERM) is _ask:
    _released = signal.Signals[reason]
    if not _deferred:
      _end_in_a_while(_released)  # If the main thread waits outside of Python for the others.
    os.kill(os.getpid(), signal.SIGTERM)


def _abandon(error: str) -> None:
  print(f'error: {error}', file=sys.stderr, flush=True)
  leave_processes()
  os._exit(1)


def _end_in_a_while(number: int) -> None:
  # Python drops what is raised in a weak reference's callback and the like.
  last = threading.Timer(TIMEOUT_S, os._exit, [128 + number])
  last.daemon = True
  last.start()
