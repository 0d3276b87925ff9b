"""Print lines, tables and progress bars while a command runs.

Names come from strangers' files. Here, and in what goes to the standard error, characters that a
terminal acts upon are written as escapes.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TextIO, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# Images, or a tuple of arrays that belong to them.
Batch = TypeVar('Batch', bound=Sized)


# A line is cut in its middle, since what is wrong stands first and the remedy last.
_HEAD, _TAIL = 500, 300

# Columns there are for a table in a file or a pipe; it takes as many as its figures need.
_FILE_WIDTH = 1000


class _Console(Console):
  def on_broken_pipe(self) -> None:
    """Go on without output, where rich would end the program.

    The reader is gone after `| head`, or after Ctrl-C that also ends `| tee`. What a command makes
    is in its files: a run of days should not end for a line.
    """
    flush()

  def render_str(self, text: str, **options: Any) -> Text:
    """Make all text printable, in lines and in the cells of tables."""
    return super().render_str(printable(text), **options)


class _PrintableStream:
  """A stream that makes all text printable; rich writes to the stream below it."""

  def __init__(self, stream: TextIO):
    self.rich_proxied_file = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self.rich_proxied_file, name)

  def write(self, text: str) -> int:
    """Write text; its line breaks stay."""
    self.rich_proxied_file.write('\n'.join(map(printable, text.split('\n'))))
    return len(text)

  def writelines(self, lines: Iterable[str]) -> None:
    """Write several texts."""
    for line in lines:
      self.write(line)


# Names are no markup: '[/b]' would be an error, and ':cat:' a picture.
_console = _Console(highlight=False, markup=False, emoji=False)


def printable(text: str) -> str:
  """Return text with the escapes of `repr` for all characters that have no shape of their own.

  Among them are line breaks, a terminal's control sequences, marks that turn the direction of what
  follows, and the bytes of names that are not UTF-8.
  """
  if text.isprintable():
    return text
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
  """Return a message of any origin as one printable line, cut in its middle if it is long."""
  line = printable(text)
  return line if len(line) <= _HEAD + _TAIL else f'{line[:_HEAD]} … {line[-_TAIL:]}'


def protect_stderr() -> None:
  """Make all text printable that goes to the standard error: of warnings, logs and tracebacks."""
  if sys.stderr is not None and not isinstance(sys.stderr, _PrintableStream):
    sys.stderr = cast(TextIO, _PrintableStream(sys.stderr))


def say(text: str) -> None:
  """Print a line as it is."""
  _console.print(one_line(text), soft_wrap=True)


def stage(name: str) -> None:
  """Print the heading of a stage."""
  _console.print(one_line(name), style='bold')


def print_table(table: Table) -> None:
  """Print a table; what a narrow terminal has no room for goes on in the next line of its cell."""
  for column in table.columns:
    column.overflow = 'fold'
  if not _console.is_terminal:
    _console.width = _FILE_WIDTH
  _console.print(table)


def format_duration(seconds: float) -> str:
  """Return '40 s', '12 min', '3.5 h' or '2.1 days'."""
  for unit, name, digits in ((86400, 'days', 1), (3600, 'h', 1), (60, 'min', 0)):
    if seconds >= 2 * unit:
      return f'{seconds / unit:.{digits}f} {name}'
  return f'{seconds:.0f} s' if seconds >= 10 else f'{seconds:.1f} s'


def format_count(number: int, noun: str) -> str:
  """Return '1 image' or '1,234 images'."""
  return f'{number:,} {noun}' if number == 1 else f'{number:,} {noun}s'


def flush() -> None:
  """Flush the standard output and error; one whose reader is gone is dropped from now on."""
  for stream in (sys.stdout, sys.stderr):
    try:
      if stream is not None:  # It is None where it was closed when the program started.
        stream.flush()
    except BrokenPipeError:
      # The file descriptor, because what is buffered would fail again when the interpreter ends.
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, stream.fileno())
      os.close(nowhere)


def set_quiet(is_quiet: bool) -> None:
  """Print nothing from now on, or everything again."""
  _console.quiet = is_quiet


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Print nothing inside."""
  was_quiet = _console.quiet
  set_quiet(True)
  try:
    yield
  finally:
    set_quiet(was_quiet)


@contextlib.contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
  """Show a bar with the remaining time, and at the end a line with the speed.

  Args:
    what: the work, for both.
    total: how many items there are.
    done: how many of them were done before.

  Yields:
    A function that takes how many more are done and, optionally, a note to show.
  """
  what = one_line(what)
  columns = (
    TextColumn('  {task.description}', markup=False),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn('{task.fields[rate]}', markup=False),
    TimeRemainingColumn(),
    TextColumn('{task.fields[note]}', markup=False),
  )
  start_time, start, last_note = time.monotonic(), done, ''
  is_shown = _console.is_terminal
  # Not redirected: rich would act upon the control sequences in what others print.
  with Progress(
    *columns,
    console=_console,
    transient=True,
    redirect_stdout=False,
    redirect_stderr=False,
    disable=not is_shown,
  ) as bar:
    task = bar.add_task(what, total=total, completed=done, rate='', note='')

    def advance(more: int, note: str = '') -> None:
      nonlocal done, last_note
      done, last_note = done + more, one_line(note)
      rate = (done - start) / max(time.monotonic() - start_time, 1e-9)
      speed = f'{rate:,.0f}/s' if rate > 10 else f'{rate:.1f}/s'
      bar.update(task, completed=done, rate=speed, note=last_note)

    yield advance
  seconds = time.monotonic() - start_time
  note = f'; {last_note}' if last_note else ''
  say(f'  {what}: {done - start:,} in {seconds:.1f} s{note}')


def with_progress(batches: Iterable[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
  """Yield the batches; call `advance` with the number of images once each has been worked on."""
  for batch in batches:
    yield batch
    advance(len(batch[0] if isinstance(batch, tuple) else batch))
