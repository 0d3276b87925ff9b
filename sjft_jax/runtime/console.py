"""Lines and progress bars on the terminal while a command runs."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(highlight=False)

# Images, or what belongs to them in several arrays.
Batch = TypeVar('Batch', np.ndarray, tuple[np.ndarray, ...])


def say(text: str) -> None:
  console.print(text, markup=False, soft_wrap=True)


def stage(name: str) -> None:
  console.print(f'[bold]{name}[/bold]')


@contextlib.contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
  """A bar with the remaining time, and a line with the speed at the end.

  Yields a function that takes how many more are done and, if there is one, a note to show.
  """
  columns = (
    TextColumn('  {task.description}'),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn('{task.fields[rate]}'),
    TimeRemainingColumn(),
    TextColumn('{task.fields[note]}'),
  )
  begun, first, last = time.monotonic(), done, ''
  with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
    task = bar.add_task(what, total=total, completed=done, rate='', note='')

    def advance(more: int, note: str = '') -> None:
      nonlocal done, last
      done, last = done + more, note
      rate = (done - first) / max(time.monotonic() - begun, 1e-9)
      speed = f'{rate:,.0f}/s' if rate > 10 else f'{rate:.1f}/s'
      bar.update(task, completed=done, rate=speed, note=note)

    yield advance
  seconds = time.monotonic() - begun
  say(f'  {what}: {done - first:,} in {seconds:.1f} s{last and f"; {last}"}')


def with_progress(batches: Iterable[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
  """The batches, telling `advance` how many images have been worked on."""
  for batch in batches:
    yield batch
    advance(len(batch[0] if isinstance(batch, tuple) else batch))
