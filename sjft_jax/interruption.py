"""SIGTERM and Ctrl-C: what is under way is saved first; a second one ends at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_PATIENCE = 60.0  # seconds

_asked: int | None = None  # With which signal.
_passed_on: int | None = None
_deferred = False
_questions = 0


class Stopped(KeyboardInterrupt):
  """The process was asked to stop, and what it had done is saved.

  Attributes:
    status: to exit with, as a shell would report it: 130 after Ctrl-C, 143 after SIGTERM.
  """

  def __init__(self, number: int):
    super().__init__(signal.Signals(number).name)
    self.status = 128 + number


def install() -> None:
  """From now on the signals raise Stopped, inside `deferred` at its next `check`."""
  for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) != signal.SIG_IGN:  # As of a shell's background job.
      signal.signal(number, _ask)


def uninstall() -> None:
  """From now on they end the process at once: all is done."""
  for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, signal.SIG_DFL)


def install_among_others() -> None:
  """For one of several processes: all stop at the same step, whichever was asked.

  JAX's coordination service has taken over SIGTERM and passes it on to all; Ctrl-C joins it.
  """
  signal.signal(signal.SIGINT, _pass_on)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Meanwhile nothing is interrupted but where the code asks `is_asked`, and then stops."""
  global _deferred
  _deferred = True
  try:
    yield
  finally:
    _deferred = False
  check()


def is_asked() -> bool:
  """Whether to save and stop now; all processes must ask equally often, and get one answer."""
  import jax

  global _asked, _questions
  _questions += 1
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    if multihost_utils.reached_preemption_sync_point(_questions):
      _asked = _passed_on or signal.SIGTERM
  return _asked is not None


def check() -> None:
  """Raises Stopped if that was asked for."""
  if _asked is not None:
    raise Stopped(_asked)


def _ask(number: int, frame: FrameType | None) -> None:
  del frame
  global _asked
  if _asked is not None:
    os._exit(128 + number)
  _asked = number
  if not _deferred:
    # Python drops what is raised in a weak reference's callback and the like.
    last = threading.Timer(_PATIENCE, os._exit, [128 + number])
    last.daemon = True
    last.start()
    check()
  os.write(2, b'\nStopping as soon as this step is saved; once more stops at once.\n')


def _pass_on(number: int, frame: FrameType | None) -> None:
  del frame
  global _passed_on
  if _passed_on is not None:
    os._exit(128 + number)
  _passed_on = number
  os.kill(os.getpid(), signal.SIGTERM)
