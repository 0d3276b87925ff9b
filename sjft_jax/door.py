"""What the commands share: how a person's mistakes, a full disk and Ctrl-C end them."""

import errno
import os
import sys
from collections.abc import Callable

from absl import flags, logging

_TRACEBACK = flags.DEFINE_bool('traceback', False, 'Show where in the code an error arose.')


def enter(work: Callable[[], object], stopped: str, *, alone: bool = True) -> None:
  """Does the work; an error ends the program with one line, Ctrl-C with the line `stopped`.

  Args:
    alone: whether no other process works with this one.
  """
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save otherwise.
  try:
    work()
  except (ValueError, OSError, ModuleNotFoundError, FloatingPointError) as error:
    if _TRACEBACK.value:
      raise
    message = str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      message = f'the disk is full ({error}); make room and run the same command: it will resume'
    if alone:
      sys.exit(f'error: {message}')
    print(f'error: {message}', file=sys.stderr)
    _leave(1)
  except KeyboardInterrupt:
    print(f'\n{stopped}')
    _leave(130)


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


def _leave(status: int) -> None:
  """At once: else the interpreter waits for the loader's threads, and JAX for other processes."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
