"""What all commands share: flags, and how mistakes, a full disk and Ctrl-C end them."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from sjft_jax.runtime import launch, preemption
from sjft_jax.runtime.errors import disk_error

# Errors whose message alone tells a person what to do.
_CLEAR_ERRORS = (ValueError, OSError, ModuleNotFoundError, FloatingPointError)


def start(define_flags: Callable[[], None], main: Callable[[], None]) -> None:
  """Start a command: define its flags, parse the command line, call `main`.

  Flags are defined here, not when a module is imported: importing a command, or a second one,
  changes nothing.

  Args:
    define_flags: defines the command's own flags.
    main: the command; it reads `flags.FLAGS` and calls `run_command`.
  """
  launch.reexec_with_huge_pages()
  flags.DEFINE_bool('traceback', False, 'Show where in the code an error arose.')
  define_flags()
  app.run(lambda argv: main(), flags_parser=parse_flags)


def run_command(
  work: Callable[[], object], interrupted_message: str, *, single_process: bool = True
) -> None:
  """Do the work of a command; an error ends the program with one line.

  Args:
    work: what the command does.
    interrupted_message: the line to print after Ctrl-C or SIGTERM.
    single_process: whether no other process works with this one.
  """
  if not flags.FLAGS['verbosity'].present:
    # Orbax logs every step of a save, and each of its threads the traceback of the same error.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _ignore_closed_event_loops
  preemption.install_handlers()
  try:
    work()
    preemption.restore_handlers()
  except Exception as error:
    message = disk_error(error)
    is_clear = not flags.FLAGS.traceback and (message or isinstance(error, _CLEAR_ERRORS))
    message = message or str(error)
    if single_process:
      if not is_clear:
        raise
      sys.exit(f'error: {message}')
    if is_clear:
      print(f'error: {message}', file=sys.stderr)
    else:
      traceback.print_exception(error)
    _hard_exit(1, message or type(error).__name__)
  except KeyboardInterrupt as error:
    print(f'\n{interrupted_message}')
    _hard_exit(getattr(error, 'status', 130))


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parse the command line; a wrong flag, option or argument ends the program with one line."""
  try:
    remaining: list[str] = flags.FLAGS(argv)
  except flags.Error as error:
    # An error in a configuration comes with its traceback.
    first, *rest = str(error).strip().splitlines()
    sys.exit(f'error: {" ".join([first, *rest[-1:]])}')
  except (AttributeError, KeyError, TypeError) as error:
    reason: object = error
    while isinstance(reason, Exception):  # They come wrapped in one another.
      reason = reason.args[0]
    sys.exit(f'error: unknown option {", ".join(str(reason).splitlines())}')
  if remaining[1:]:
    form = '--config.a.b=value' if 'config' in flags.FLAGS else '--name=value'
    sys.exit(f'error: unexpected {remaining[1]!r}; options are written {form}')
  return remaining


def config_file() -> Path:
  """Return the file that --config names, without the argument in `configs/indoor.py:places`.

  A file that is not there ends the program with one line.
  """
  value = config_flags.get_config_filename(flags.FLAGS['config'])
  path = Path(re.sub(r'(?<=\.py):.*', '', value, flags=re.DOTALL))
  if not path.is_file():
    sys.exit(f'error: --config={value}: no such file; see configs/')
  return path


def _ignore_closed_event_loops(unraisable: Any) -> None:
  # After a failed write TensorStore's threads say so, many times; the failure itself is raised.
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


def _hard_exit(status: int, error: str | None = None) -> None:
  """Exit at once; else the interpreter waits for loader threads, and JAX for other processes."""
  sys.stdout.flush()
  sys.stderr.flush()
  preemption.leave_processes(error)
  # Nothing in between: when the first process exits, the others lose their connection.
  os._exit(status)
