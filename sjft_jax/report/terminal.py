"""What a person sees while a run goes on: stages, progress bars, and the closing table."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

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


def counted(batches: Iterable[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
  """The batches, telling `advance` how many images have been worked on."""
  for batch in batches:
    yield batch
    advance(len(batch[0] if isinstance(batch, tuple) else batch))


def table(results: dict[str, Any]) -> None:
  """Each arm's scores, and what they gain over plain fine-tuning where that was trained too."""
  view = results['view'].replace('_', ' ')
  grid = Table(title=f'{results["test_images"]:,} test images, {view}')
  for heading in ('training', 'source', 'class accuracy', 'top-1', 'gain'):
    grid.add_column(heading, justify='left' if heading == 'training' else 'right', no_wrap=True)
  for row in results['table']:
    grid.add_row(
      row['name'],
      f'{row["source_images"]:,}' if row['source_images'] else '–',
      f'{row["mean_class_accuracy"]:.1%}',
      f'{row["top1"]:.1%}',
      f'{100 * row["gain"]:+.1f} ± {100 * row["standard_error"]:.1f}' if 'gain' in row else '',
    )
  console.print(grid)
  for row in results['table']:
    if 'gain' in row and row['name'].startswith('selected'):
      say(verdict(row))


def verdict(row: dict[str, Any]) -> str:
  """One line that claims no more than the numbers do."""
  gain, error = 100 * row['gain'], 100 * row['standard_error']
  if gain <= 0:
    found = 'no gain over plain fine-tuning'
  elif gain < 2 * error:
    found = 'a gain within two standard errors: with these test images it may be chance'
  else:
    found = 'a gain beyond two standard errors over test images; another seed may differ'
  return f'{row["name"]}: {gain:+.1f} points, {found}.'
