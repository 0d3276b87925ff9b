"""Start and end a command: its flags, one line for an error, exit statuses, Ctrl-C and SIGTERM."""

import contextlib
import io
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from sjft_jax.runtime import console, launch, preemption
from sjft_jax.runtime.errors import system_error

# Errors whose message alone says what to do.
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
  if isinstance(sys.stdout, io.TextIOWrapper):
    # An output that cannot encode a dash (PYTHONIOENCODING=ascii) gets a question mark instead.
    sys.stdout.reconfigure(errors='replace')
  console.protect_stderr()
  logging.get_absl_handler().python_handler.stream = sys.stderr
  preemption.install_handlers()
  if os.path.expanduser('~') == '~':
    # No HOME, and a user whom the system does not list, as in containers: Altair needs one.
    from sjft_jax.runtime import artifacts

    os.environ['HOME'] = str(artifacts.private_temporary_dir())
  # Shells expand the ~ of a home directory only at the beginning of a word, in no --flagfile.
  sys.argv[1:] = _expand_home(_read_flagfiles(_expand_home(sys.argv[1:])))
  try:
    launch.check_limits()
    flags.DEFINE_bool('traceback', False, 'Show where in the code an error arose.')
    define_flags()
    app.run(lambda argv: main(), flags_parser=parse_flags)
  except (Exception, KeyboardInterrupt) as error:  # As while JAX is imported.
    _exit_with(error, 'Stopped.')


def run_command(
  work: Callable[[], object], interrupted_message: str, *, single_process: bool = True
) -> None:
  """Do the work of a command; an error ends the program with one line.

  Args:
    work: does it.
    interrupted_message: the line to print after Ctrl-C or SIGTERM.
    single_process: whether no other process works with this one.
  """
  if not flags.FLAGS['verbosity'].present:
    # Orbax logs every step of a save, and each of its threads the traceback of the same error.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _ignore_closed_event_loops
  try:
    work()
    preemption.restore_handlers()
  except (Exception, KeyboardInterrupt) as error:
    _exit_with(error, interrupted_message, single_process=single_process)


def _exit_with(
  error: BaseException, interrupted_message: str, *, single_process: bool = True
) -> NoReturn:
  """End the program: with a line for an error that is clear, its traceback for any other one."""
  error = preemption.stopped_by(error)
  if isinstance(error, KeyboardInterrupt):
    with contextlib.suppress(BrokenPipeError):
      print(f'\n{console.one_line(interrupted_message)}')
    _hard_exit(getattr(error, 'status', 130))
  message = system_error(error)
  is_clear = message is not None or isinstance(error, _CLEAR_ERRORS)
  if flags.FLAGS.is_parsed() and flags.FLAGS.traceback:
    is_clear = False
  message = message or str(error) or type(error).__name__
  line = f'error: {console.one_line(message)}'
  if single_process:
    if is_clear:
      sys.exit(line)
    raise error
  with contextlib.suppress(BrokenPipeError):
    if is_clear:
      print(line, file=sys.stderr)
    else:
      traceback.print_exception(error)
  _hard_exit(1, message)


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parse the command line; a wrong flag, option or argument ends the program with one line."""
  try:
    remaining: list[str] = flags.FLAGS(argv)
  except (SystemExit, BrokenPipeError) as error:
    # Absl exits with 1 after --help; the output of `--help | head` has no reader at its end.
    if isinstance(error, SystemExit) and error.code != 1:
      raise
    console.flush()
    sys.exit(0)
  except flags.Error as error:
    # An error in a configuration comes with its traceback.
    first, *rest = str(error).strip().splitlines()
    sys.exit(f'error: {" ".join([first, *rest[-1:]])}')
  if remaining[1:]:
    form = '--config.a.b=value' if 'config' in flags.FLAGS else '--name=value'
    sys.exit(f'error: unexpected {remaining[1]!r}; options are written {form}')
  for name in flags.FLAGS:
    value = flags.FLAGS[name].value
    # Not a number is within any bounds of absl's, and a guard that compares with it is off.
    if isinstance(value, float) and math.isnan(value):
      sys.exit(f'error: --{name}={value} is not a number; give one')
  return remaining


def _read_flagfiles(words: Sequence[str]) -> list[str]:
  """Return the command line with the flags of its --flagfile in their place."""
  try:
    return list(flags.FLAGS.read_flags_from_files(words, force_gnu=False))
  except flags.Error as error:
    sys.exit(f'error: {error}')


def _expand_home(words: Sequence[str]) -> list[str]:
  return [re.sub(r'(?<==)~(?=/|$)', lambda m: os.path.expanduser(m[0]), word) for word in words]


def _ignore_closed_event_loops(unraisable: Any) -> None:
  # TensorStore's threads report this many times after a failed write; the failure itself is raised.
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


def _hard_exit(status: int, error: str | None = None) -> NoReturn:
  """Exit at once: the interpreter would wait for loader threads, and JAX for other processes."""
  console.flush()
  preemption.leave_processes(error)
  # Nothing may happen in between: when process 0 exits, the others lose their connection.
  os._exit(status)
