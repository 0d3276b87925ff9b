"""What the commands share: how a person's mistakes, a full or lost disk and Ctrl-C end them."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags, logging

from sjft_jax import interruption

_TRACEBACK = flags.DEFINE_bool('traceback', False, 'Show where in the code an error arose.')

# What keeps a disk from working, and the remedy.
_DISK = {
  errno.ENOSPC: ('the disk is full', 'make room'),
  errno.EDQUOT: ('the quota of this disk is used up', 'make room'),
  errno.EROFS: ('the disk can only be read', 'mount it for writing'),
  errno.EIO: ('reading or writing failed', 'see to the disk'),
  errno.ESTALE: ('the network disk is gone', 'mount it'),
  errno.ENOTCONN: ('the network disk is gone', 'mount it'),
}


def enter(work: Callable[[], object], stopped: str, *, alone: bool = True) -> None:
  """Does the work; an error ends the program with one line, Ctrl-C with the line `stopped`.

  Args:
    alone: whether no other process works with this one.
  """
  if not flags.FLAGS['verbosity'].present:
    # Orbax tells every step of a save, and each of its threads the traceback of the same error.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _without_closed_loops
  interruption.install()
  try:
    work()
    interruption.uninstall()
  except Exception as error:
    message = disk_error(error)
    expected = (ValueError, OSError, ModuleNotFoundError, FloatingPointError)
    is_clear = not _TRACEBACK.value and (message or isinstance(error, expected))
    message = message or str(error)
    if alone:
      if not is_clear:
        raise
      sys.exit(f'error: {message}')
    if is_clear:
      print(f'error: {message}', file=sys.stderr)
    else:
      traceback.print_exception(error)
    _leave(1, message or type(error).__name__)
  except KeyboardInterrupt as error:
    print(f'\n{stopped}')
    _leave(getattr(error, 'status', 130))


def disk_error(error: BaseException) -> str | None:
  """What the disk has to do with an error, in a line with the remedy; None: nothing."""
  for cause in _causes(error):
    # TensorStore, which writes Orbax's checkpoints, has no exceptions of its own.
    told = re.search(r"\[os_error_code='(\d+)'", str(cause))
    number = cause.errno if isinstance(cause, OSError) else told and int(told[1])
    if number in _DISK:
      what, remedy = _DISK[number]
      path = getattr(cause, 'filename', None) or re.search(r'(?<=")/[^"]+', str(cause))
      where = f' at {path if isinstance(path, str) else path[0]}' if path else ''
      return f'{what}{where}; {remedy} and run the same command: it goes on'
  return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def _without_closed_loops(unraisable: Any) -> None:
  # After a failed write TensorStore's threads say so, many times; the failure itself is raised.
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


def parse(argv: list[str]) -> list[str]:
  """absl's flags; a wrong one, or an option that the configuration does not have, is one line."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    # An error in a configuration comes with its traceback.
    first, *rest = str(error).strip().splitlines()
    sys.exit(f'error: {" ".join([first, *rest[-1:]])}')
  except (AttributeError, KeyError, TypeError) as error:
    reason: object = error
    while isinstance(reason, Exception):  # They come wrapped in one another.
      reason = reason.args[0]
    sys.exit(f'error: unknown option {", ".join(str(reason).splitlines())}')


def _leave(status: int, error: str | None = None) -> None:
  """At once: else the interpreter waits for the loader's threads, and JAX for other processes."""
  sys.stdout.flush()
  sys.stderr.flush()
  interruption.leave(error)
  os._exit(status)  # Nothing in between: with the first process the others' connection goes.
