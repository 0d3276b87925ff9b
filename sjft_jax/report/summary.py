"""The closing table of a run, and verdicts that claim no more than the numbers do."""

from typing import Any

from rich.table import Table

from sjft_jax.runtime import console


def print_table(results: dict[str, Any]) -> None:
  """Print the scores of each arm and its gain over plain fine-tuning, if that was trained too.

  Args:
    results: what results.json holds.
  """
  view = results['view'].replace('_', ' ')
  table = Table(title=f'{results["test_images"]:,} test images, {view}')
  for heading in ('training', 'source', 'class accuracy', 'top-1', 'gain'):
    table.add_column(heading, justify='left' if heading == 'training' else 'right', no_wrap=True)
  for row in results['table']:
    table.add_row(
      row['name'],
      f'{row["source_images"]:,}' if row['source_images'] else '–',
      f'{row["mean_class_accuracy"]:.1%}',
      f'{row["top1"]:.1%}',
      f'{100 * row["gain"]:+.1f} ± {100 * row["standard_error"]:.1f}' if 'gain' in row else '',
    )
  console.console.print(table)
  for row in results['table']:
    if 'gain' in row and row['name'].startswith('selected'):
      console.say(verdict(row))


def verdict(row: dict[str, Any]) -> str:
  """Return a line on the gain of one row of the table, held against its standard error."""
  gain, error = 100 * row['gain'], 100 * row['standard_error']
  if gain <= 0:
    meaning = 'no gain over plain fine-tuning'
  elif gain < 2 * error:
    meaning = 'a gain within two standard errors: with these test images it may be chance'
  else:
    meaning = 'a gain beyond two standard errors over test images; another seed may differ'
  return f'{row["name"]}: {gain:+.1f} points, {meaning}.'
