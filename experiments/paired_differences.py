"""Compare arms over seeds: each pair's mean difference, with its 95 % confidence interval.

  python -m experiments.paired_differences --run=runs/textures

A run is the work directory of a training with repeats; --run can be given several times, for runs
with the same seeds. Differences are paired by seed, in per cent of test images, and their interval
is Student's t. It holds for new seeds and these test images.
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


def main(_: object) -> None:
  scores: dict[str, list[float]] = {}
  seeds = set()
  for run in RUNS.value:
    content = {'seeds': list, 'table': list}
    results = artifacts.load_json(epath.Path(run) / 'results.json', content)
    seeds.add(tuple(results['seeds']))
    for number, row in enumerate(results['table'], 1):
      if SCORE.value not in row:
        continue  # An arm of one round has nothing to fuse.
      name = row['name'] if len(RUNS.value) == 1 else f'{run}: {row["name"]}'
      if name in scores:  # With one round, both selected arms have the same title.
        name += f', row {number}'
      scores[name] = [100 * value for value in row[SCORE.value]['values']]
  if len(seeds) > 1:
    raise app.UsageError(f'the runs have different seeds: {", ".join(map(str, sorted(seeds)))}')
  table = Table(title=f'{SCORE.value}, {len(*seeds)} seeds, per cent')
  for heading in ('arms', 'difference', '95 % interval'):
    table.add_column(heading, justify='left' if heading == 'arms' else 'right')
  for name, values in scores.items():
    summary = spread(values)
    table.add_row(name, f'{summary["mean"]:.1f} ± {summary["standard_deviation"]:.1f}')
  for (name, values), (other, other_values) in itertools.combinations(scores.items(), 2):
    difference = spread([b - a for a, b in zip(values, other_values, strict=True)])
    low, high = difference['interval']
    table.add_row(f'{other} − {name}', f'{difference["mean"]:+.1f}', f'{low:+.1f} to {high:+.1f}')
  console.print_table(table)


if __name__ == '__main__':
  app.run(main)
