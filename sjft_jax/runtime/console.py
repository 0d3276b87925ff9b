"""Print lines, tables and progress bars while a command runs."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# Images, or a tuple of arrays that belong to them.
Batch = TypeVar('Batch', bound=Sized)


# Columns there are for a table in a file or a pipe; it takes as many as its figures need.
_FILE_WIDTH = 1000


class _Console(Console):
  def on_broken_pipe(self) -> None:
    """Go on without output, where rich would end the program.

    The reader is gone after `| head`, or after Ctrl-C that also ends `| tee`. What a command makes
    is in its files: a run of days should not end for a line.
    """
    flush()


_console = _Console(highlight=False)


def say(text: str) -> None:
  """Print a line as it is."""
  _console.print(text, markup=False, soft_wrap=True)


def stage(name: str) -> None:
  """Print the heading of a stage."""
  _console.print(f'[bold]{name}[/bold]')


def print_table(table: Table) -> None:
  """Print a table; what a narrow terminal has no room for goes on in the next line of its cell."""
  for column in table.columns:
    column.overflow = 'fold'
  if not _console.is_terminal:
    _console.width = _FILE_WIDTH
  _console.print(table)


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


def use_stderr() -> None:
  """Print to the standard error from now on; the standard output is left to the caller."""
  _console.stderr = True


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
  columns = (
    TextColumn('  {task.description}'),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn('{task.fields[rate]}'),
    TimeRemainingColumn(),
    TextColumn('{task.fields[note]}'),
  )
  start_time, start, last_note = time.monotonic(), done, ''
  is_shown = _console.is_terminal
  with Progress(*columns, console=_console, transient=True, disable=not is_shown) as bar:
    task = bar.add_task(what, total=total, completed=done, rate='', note='')

    def advance(more: int, note: str = '') -> None:
      nonlocal done, last_note
      done, last_note = done + more, note
      rate = (done - start) / max(time.monotonic() - start_time, 1e-9)
      speed = f'{rate:,.0f}/s' if rate > 10 else f'{rate:.1f}/s'
      bar.update(task, completed=done, rate=speed, note=note)

    yield advance
  seconds = time.monotonic() - start_time
  note = f'; {last_note}' if last_note else ''
  say(f'  {what}: {done - start:,} in {seconds:.1f} s{note}')


def with_progress(batches: Iterable[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
  """Yield the batches; call `advance` with the number of images once each has been worked on."""
  for batch in batches:
    yield batch
    advance(len(batch[0] if isinstance(batch, tuple) else batch))
