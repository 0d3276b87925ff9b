"""The closing table of a run, and verdicts that claim no more than the numbers do."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from sjft_jax.runtime import console

MAX_PRINTED = 100  # Predictions; a file holds more.
# Those that verdicts are of, and those that they are compared with.
_SELECTING_ARMS = ('classes', 'similar', 'constant', 'rounds')
_OTHER_ARMS = ('knn', 'probe', 'none', 'random', 'all')
# Of the closing table.
HEADINGS = ('training', 'source', 'class accuracy', 'top-1', 'gain', 'fused')


def print_table(results: dict[str, Any]) -> None:
  """Print the scores of each arm and its gain over plain fine-tuning, if that was trained too.

  Args:
    results: what results.json holds.
  """
  table = _make_table(table_title(results), HEADINGS)
  for row in results['table']:
    table.add_row(*table_row(row))
  console.print_table(table)
  for line in verdicts(results):
    console.say(line)


def _make_table(title: str, headings: Iterable[str]) -> Table:
  """Return a table without rows, of names and the numbers that belong to each."""
  table = Table(title=title)
  for position, heading in enumerate(headings):
    table.add_column(heading, justify='right' if position else 'left', no_wrap=True)
  return table


def table_title(results: dict[str, Any]) -> str:
  """Return the title of the closing table."""
  return f'{results["test_images"]:,} test images, {results["view"].replace("_", " ")}'


def table_row(row: dict[str, Any]) -> list[str]:
  """Return the cells of a row of the closing table, below `HEADINGS`."""
  return [
    row['name'],
    f'{row["source_images"]:,}' if row['source_images'] else '–',
    f'{row["mean_class_accuracy"]:.1%}',
    f'{row["top1"]:.1%}',
    f'{100 * row["gain"]:+.1f} ± {100 * row["standard_error"]:.1f}' if 'gain' in row else '',
    f'{row["fused"]:.1%}' if 'fused' in row else '',
  ]


def verdicts(results: dict[str, Any]) -> list[str]:
  """Return a line on the gain of each of the `verdict_arms`; the growing one is the last."""
  return [verdict(row) for row in verdict_rows(results)]


def verdict_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
  """Return the rows of the table that `verdicts` are of, in their order."""
  rows = {row['arm']: row for row in results['table'] if 'gain' in row}
  return [rows[arm] for arm in verdict_arms(rows)]


def verdict_arms(arms: Iterable[str]) -> list[str]:
  """Return which arms of a run select, or were added by its configuration; the last one answers."""
  arms = list(arms)
  added = [arm for arm in arms if arm not in (*_SELECTING_ARMS, *_OTHER_ARMS)]
  return added + [arm for arm in _SELECTING_ARMS if arm in arms]


def verdict(row: dict[str, Any]) -> str:
  """Return a line on the gain of one row of the table, by its p-value (see `significance`)."""
  gain, p_value = 100 * row['gain'], row['p_value']
  if gain <= 0:
    meaning = 'no gain over plain fine-tuning'
  elif not row['is_significant']:
    meaning = f'a gain that may be chance with these test images (p = {p_value:.2f})'
  else:
    # Two digits of 0.0496 would be the level that it is below.
    p = f'{p_value:.3g}' if p_value > 0.049 else f'{p_value:.2g}'
    meaning = (
      f'a gain that the choice of test images does not explain (p = {p}); another seed may differ'
    )
  return f'{row["name"]}: {gain:+.1f} points, {meaning}.'


def print_tuning(record: dict[str, Any]) -> None:
  """Print the chosen setting of every arm with its held-out scores, and the chosen arm.

  Args:
    record: what tuned.json holds.
  """
  table = Table(title=f'{record["held_out_images"]:,} held-out training images, center')
  for heading in ('arm', 'class accuracy', 'cross-entropy', 'gain', 'setting'):
    is_text = heading in ('arm', 'setting')
    table.add_column(heading, justify='left' if is_text else 'right', no_wrap=heading != 'setting')
  for name, arm in record['arms'].items():
    gain = arm.get('gain')
    table.add_row(
      name,
      f'{arm["accuracy"]:.1%}',
      f'{arm["cross_entropy"]:z.3f}',
      f'{100 * gain["gain"]:+.1f} ± {100 * gain["standard_error"]:.1f}' if gain else '',
      ', '.join(f'{key} {value:g}' for key, value in arm['setting'].items()),
    )
  console.print_table(table)
  if not record['complete']:
    folds = record['num_completed_folds']
    choice = f'by {folds} of {record["num_folds"]} folds'
    if not folds:
      choice = 'among the settings that all arms have tried on the first fold'
    console.say(f'Not everything was tried: the choice is {choice}.')
  tried = Counter(trial['arm'] for trial in record['tried'] if trial['fold'] == 1)
  caution = ''
  if max(tried.values()) > 1:
    caution = ' Scores are of the best of several settings, so another image set gives less.'
  console.say(
    f'Use the arm {record["arm"]}: the cheapest within one standard error of the most accurate.'
    f'{caution}'
  )


def print_repeats(results: dict[str, Any]) -> None:
  """Print the mean and the standard deviation of every score over the repeats of a run.

  Args:
    results: what results.json of a run with repeats holds.
  """
  view, seeds = results['view'].replace('_', ' '), results['seeds']
  title = (
    f'{len(seeds)} repeats, seeds {seeds[0]} to {seeds[-1]}; {view}; mean ± standard deviation'
  )
  scores = {
    'class accuracy': 'mean_class_accuracy',
    'top-1': 'top1',
    'gain': 'gain',
    '95 % interval of its mean': 'interval',
    'fused': 'fused',
  }
  table = _make_table(title, ('training', 'source', *scores))
  for row in results['table']:
    source = f'{row["source_images"]:,}' if row['source_images'] else '–'
    table.add_row(row['name'], source, *(_spread(row, score) for score in scores.values()))
  console.print_table(table)


def _spread(row: dict[str, Any], score: str) -> str:
  if score == 'interval':
    if 'gain' not in row:
      return ''
    low, high = row['gain']['interval']
    return f'{100 * low:+.1f} to {100 * high:+.1f}'
  if score not in row:
    return ''
  mean, deviation = row[score]['mean'], row[score]['standard_deviation']
  sign = '+' if score == 'gain' else ''
  return f'{100 * mean:{sign}.1f} ± {100 * deviation:.1f}'


def print_predictions(headings: Sequence[str], columns: Sequence[Any]) -> None:
  """Print the classes of images, one a row; of very many, the first.

  Args:
    headings: of the columns; those that begin with 'probability' hold shares.
    columns: the values of each.
  """
  table = Table()
  for heading in headings:
    table.add_column(heading, justify='right' if heading.startswith('probability') else 'left')
  for row in itertools.islice(zip(*columns, strict=True), MAX_PRINTED):
    table.add_row(*(f'{x:.1%}' if isinstance(x, float | np.floating) else str(x) for x in row))
  console.print_table(table)
  if len(columns[0]) > MAX_PRINTED:
    console.say(f'{len(columns[0]) - MAX_PRINTED:,} more images; --output=FILE writes all.')


def print_scores(rows: Sequence[tuple[str, dict[str, float]]], title: str) -> None:
  """Print the scores of several predictions, one a row."""
  table = _make_table(title, ('predictions', 'class accuracy', 'top-1', 'cross-entropy'))
  for name, scores in rows:
    accuracy, top1 = scores['mean_class_accuracy'], scores['top1']
    table.add_row(name, f'{accuracy:.1%}', f'{top1:.1%}', f'{scores["cross_entropy"]:z.3f}')
  console.print_table(table)
