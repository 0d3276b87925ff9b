"""Stop at SIGTERM and Ctrl-C once the work under way is saved; a second one ends at once."""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from sjft_jax.runtime.consensus import TIMEOUT_S, KeyValueStore, StopConsensus

_is_requested = False  # This process got a signal; the next one ends it.
_stop_signal: int | None = None  # The signal, to this process or another one, to stop because of.
_is_deferred = _is_lockstep = False
_has_thrown = False  # A signal's handler has raised Stopped, wherever the main thread was.
_consensus: StopConsensus | None = None
_release_signal: int | None = None  # Set by the consensus' thread for the main thread's handler.


class Stopped(KeyboardInterrupt):
  """The process was asked to stop, and its work is saved.

  Attributes:
    status: the exit status that a shell would report: 130 after Ctrl-C, 143 after SIGTERM.
  """

  def __init__(self, number: int):
    super().__init__(signal.Signals(number).name)
    self.status = 128 + number


def install_handlers() -> None:
  """Raise Stopped at SIGTERM and Ctrl-C, or within `defer_signals` at `raise_if_stopping`."""
  for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) != signal.SIG_IGN:  # A shell's background job ignores Ctrl-C.
      signal.signal(number, _handle_signal)


def init_worker(*_: int) -> None:
  """Let a worker process, such as a loader's, end when its parent ends, and not before.

  Ctrl-C, and a scheduler's SIGTERM, reach all processes of a job; but the parent may need another
  batch before it can save and stop. A worker whose parent was killed would wait forever for a place
  in the queue between them.
  """
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_exit_with_parent, daemon=True).start()


def restore_handlers() -> None:
  """End the process at SIGTERM and Ctrl-C without more ado: all work is done."""
  for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, signal.SIG_DFL)


def join_processes(store: KeyValueStore, process: int, num_processes: int) -> None:
  """Stop with the other processes from now on, if one is asked to or fails; see `consensus`."""
  global _consensus
  _consensus = StopConsensus(store, process, num_processes, release=_release, abandon=_abandon)
  atexit.register(_consensus.close)


def leave_processes(error: str | None = None) -> None:
  """Announce the end of this process to the others, with the error that it fails with, if any."""
  if _consensus is not None:
    _consensus.leave(error)


@contextlib.contextmanager
def defer_signals(*, together: bool = False) -> Iterator[None]:
  """Handle signals only where the code inside calls `should_stop`, and then stops, or at the end.

  Args:
    together: whether the processes run the code inside in lockstep. All then call `should_stop`
      equally often, and get the same answers.

  Raises:
    Stopped: the process was asked to stop, before the code inside began or by its end.
  """
  global _is_deferred, _is_lockstep
  _is_deferred, _is_lockstep = True, together
  try:
    _sync_point(is_inside=True)
    raise_if_stopping()  # The other processes may have left already.
    yield
    _sync_point(is_inside=False)
  finally:
    _is_deferred = _is_lockstep = False
  raise_if_stopping()


def should_stop() -> bool:
  """Return whether to save and stop now."""
  _sync_point(is_inside=True)
  return _stop_signal is not None


def raise_if_stopping() -> None:
  """Raise Stopped if the process is to stop."""
  if _stop_signal is not None:
    raise Stopped(_stop_signal)


def stopped_by(error: BaseException) -> BaseException:
  """Return the Stopped that an error results from, or the error.

  What is thrown amid an import or a library may come out as another error.
  """
  if _has_thrown and _stop_signal is not None and not isinstance(error, KeyboardInterrupt):
    return Stopped(_stop_signal)
  return error


def _sync_point(*, is_inside: bool) -> None:
  global _stop_signal
  if _is_lockstep and _consensus is not None:
    reason = _consensus.sync_point(is_inside=is_inside)
    if reason is not None:
      _stop_signal = signal.Signals[reason]


def _handle_signal(number: int, frame: FrameType | None) -> None:
  del frame
  global _has_thrown, _is_requested, _release_signal, _stop_signal
  if _release_signal is not None:
    _stop_signal, _release_signal = _release_signal, None
  elif _is_requested:
    os._exit(128 + number)
  else:
    _is_requested = True
    if _is_deferred or _consensus is not None:
      with contextlib.suppress(OSError):  # Ctrl-C has ended `2>&1 | tee` too.
        os.write(2, b'\nStopping as soon as this step is saved; once more stops at once.\n')
    if _consensus is not None:
      _consensus.request_stop(signal.Signals(number).name)
      return
    _stop_signal = number
  if not _is_deferred:
    _exit_after_timeout(_stop_signal)
    _has_thrown = True
    raise_if_stopping()


def _release(reason: str) -> None:
  global _release_signal
  if signal.getsignal(signal.SIGTERM) is _handle_signal:
    _release_signal = signal.Signals[reason]
    if not _is_deferred:
      # The main thread may wait for the other processes outside of Python.
      _exit_after_timeout(_release_signal)
    os.kill(os.getpid(), signal.SIGTERM)


def _abandon(error: str) -> None:
  with contextlib.suppress(OSError):
    print(f'error: {error}', file=sys.stderr, flush=True)
  leave_processes()
  os._exit(1)


def _exit_with_parent() -> None:
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


def _exit_after_timeout(number: int) -> None:
  # Python drops an exception that is raised in the callback of a weak reference and the like.
  timer = threading.Timer(TIMEOUT_S, os._exit, [128 + number])
  timer.daemon = True
  timer.start()
