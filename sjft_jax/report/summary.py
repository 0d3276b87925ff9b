"""The closing table of a run, and a verdict that claims no more than the numbers do."""

from typing import Any

from rich.table import Table

from sjft_jax.runtime import console


def print_table(results: dict[str, Any]) -> None:
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
  console.print_table(grid)
  for row in results['table']:
    if 'gain' in row and row['name'].startswith('selected'):
      console.say(verdict(row))


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
