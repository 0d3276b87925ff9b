"""Compare arms over seeds: each pair's mean difference, with its 95 % confidence interval.

  python -m experiments.paired_differences --run=runs/textures

A run is the work directory of a training with repeats; --run can be given several times, for runs
with the same seeds. Then come the differences of one run less those of another as well: what a
source of the one kind gives more than a source of the other, for example. Differences are paired by
seed, in per cent of test images, and their interval is Student's t. It holds for new seeds and
these test images.
"""

import itertools

from absl import app, flags
from etils import epath
from rich.table import Table

from sjft_jax.repeats import spread
from sjft_jax.runtime import artifacts, console

RUNS = flags.DEFINE_multi_string('run', None, 'Work directory with repeats.', required=True)
SCORE = flags.DEFINE_enum(
  'score', 'mean_class_accuracy', ['mean_class_accuracy', 'top1', 'fused'], 'Score to compare.'
)


def load_scores(run: str) -> tuple[str, list[int], dict[str, list[float]]]:
  """Return the view and the seeds of a run with repeats, and the scores of each arm, per cent."""
  path = epath.Path(run) / 'results.json'
  if not path.exists():
    raise app.UsageError(f'{run} has no results.json, so it is no finished run with repeats')
  results = artifacts.load_json(path, {'table': list, 'view': str})
  if 'seeds' not in results:
    raise app.UsageError(f'{run} is a single run; train it with repeats of 2 or more')
  scores: dict[str, list[float]] = {}
  for number, row in enumerate(results['table'], 1):
    if SCORE.value not in row:
      continue  # An arm of one round has nothing to fuse.
    name = row['name']
    if name in scores:  # With one round, both selected arms have the same title.
      name += f', row {number}'
    scores[name] = [100 * value for value in row[SCORE.value]['values']]
  if not scores:  # Of one round.
    raise app.UsageError(f'{run} has no rounds to fuse; compare another --score')
  return results['view'], results['seeds'], scores


def subtract(first: list[float], second: list[float]) -> list[float]:
  """Return the differences of two lists, place by place."""
  return [a - b for a, b in zip(first, second, strict=True)]


def main(_: object) -> None:
  loaded = {run: load_scores(run) for run in RUNS.value}
  views = {view for view, _, _ in loaded.values()}
  if len(views) > 1:
    raise app.UsageError(f'the runs are scored in different views: {", ".join(sorted(views))}')
  seeds = {tuple(each) for _, each, _ in loaded.values()}
  if len(seeds) > 1:
    raise app.UsageError(f'the runs have different seeds: {", ".join(map(str, sorted(seeds)))}')
  table = Table(title=f'{SCORE.value}, {len(*seeds)} seeds, per cent')
  for heading in ('arms', 'difference', '95 % interval'):
    table.add_column(heading, justify='left' if heading == 'arms' else 'right')

  def add_difference(name: str, values: list[float]) -> None:
    difference = spread(values)
    low, high = difference['interval']
    table.add_row(name, f'{difference["mean"]:+.1f}', f'{low:+.1f} to {high:+.1f}')

  arms_of_runs = {run: arms for run, (_, _, arms) in loaded.items()}
  scores = {
    name if len(loaded) == 1 else f'{run}: {name}': values
    for run, arms in arms_of_runs.items()
    for name, values in arms.items()
  }
  for name, values in scores.items():
    summary = spread(values)
    table.add_row(name, f'{summary["mean"]:.1f} ± {summary["standard_deviation"]:.1f}')
  for (name, values), (other, other_values) in itertools.combinations(scores.items(), 2):
    add_difference(f'{other} − {name}', subtract(other_values, values))
  for (run, arms), (other_run, other_arms) in itertools.combinations(arms_of_runs.items(), 2):
    for name, other in itertools.combinations([name for name in arms if name in other_arms], 2):
      first = subtract(arms[other], arms[name])
      second = subtract(other_arms[other], other_arms[name])
      add_difference(f'{run}: {other} − {name}, less {other_run}', subtract(first, second))
  console.print_table(table)


if __name__ == '__main__':
  app.run(main)
