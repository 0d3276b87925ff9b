"""Draw the accuracy of each arm against the number of updates, over the seeds of a run.

  python -m experiments.curves --run=runs/flowers_with_letters --output=curves.png

The run is the work directory of a training with repeats. The table has the mean class accuracy of
every arm and round on the test images, per cent, in the view of the closing table, and the gain
over the first arm that trains with its 95 % interval (Student's t over seeds, paired); above it
stands how many repeats are finished, which alone count. Updates are the arm's own, without a
pretraining. The picture has the means, with their standard deviation over seeds as bands.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import altair as alt
import vl_convert
from absl import app, flags
from etils import epath
from rich.table import Table

from sjft_jax.config import FROZEN_ARMS
from sjft_jax.repeats import spread
from sjft_jax.runtime import artifacts, console

RUN = flags.DEFINE_string('run', None, 'Work directory with repeats.', required=True)
OUTPUT = flags.DEFINE_string('output', None, 'The picture to write (.png).')


class Point(NamedTuple):
  """An arm after a round: what its accuracy and its gain are over the seeds, see `spread`."""

  arm: str
  updates: int
  accuracy: dict[str, Any]
  gain: dict[str, Any] | None


def load_points(run: epath.Path) -> list[Point]:
  """Return the points of all arms that train, round by round.

  Raises:
    app.UsageError: the run has fewer than two finished repeats, or no arm that trains.
  """
  paths = sorted(artifacts.glob(run, 'repeat*/results.json'))
  if not paths:
    raise app.UsageError(f'{run} has no repeat*/results.json; give a finished run with repeats')
  if len(paths) < 2:
    raise app.UsageError(f'{run} has one finished repeat, which has no spread; finish a second one')
  options = artifacts.load_json(paths[0].parent / 'config.json', {'options': dict})['options']
  repeats = [
    artifacts.load_json(path, {'arms': dict, 'view': str, 'table': list}) for path in paths
  ]
  titles = {row['arm']: row['name'] for row in repeats[0]['table'] if row['arm'] not in FROZEN_ARMS}
  if not titles:
    raise app.UsageError(f'{run} has no arm that trains; there are no updates to draw')
  scores = {
    arm: list(zip(*(_scores(repeat, arm) for repeat in repeats), strict=True)) for arm in titles
  }
  first, *_ = titles
  return [
    Point(
      titles[arm],
      _steps(options, arm) * (number + 1),
      spread(values),
      None if arm == first else spread([a - b for a, b in zip(values, base, strict=True)]),
    )
    for arm, rounds in scores.items()
    for number, (values, base) in enumerate(zip(rounds, scores[first], strict=True))
  ]


def _steps(options: dict[str, Any], arm: str) -> int:
  """Return the updates of an arm in a round, which may be its own, as after `sjft_jax.tune`."""
  own = options.get('overrides', {}).get(arm, {}).get('training', {})
  return int(own.get('steps', options['training']['steps']))


def _scores(repeat: dict[str, Any], arm: str) -> list[float]:
  rounds = repeat['arms'][arm]['rounds']
  return [100 * round_['test'][repeat['view']]['mean_class_accuracy'] for round_ in rounds]


def print_points(points: Iterable[Point]) -> None:
  """Print the points as a table."""
  points = list(points)
  table = Table(title=f'{len(points[0].accuracy["values"])} seeds')
  for heading in ('arm', 'updates', 'accuracy', 'gain', '95 % interval'):
    table.add_column(heading, justify='left' if heading == 'arm' else 'right')
  for arm, updates, accuracy, gain in points:
    row = [arm, f'{updates:,}', f'{accuracy["mean"]:.1f} ± {accuracy["standard_deviation"]:.1f}']
    if gain:
      low, high = gain['interval']
      row += [f'{gain["mean"]:+.1f}', f'{low:+.1f} to {high:+.1f}']
    table.add_row(*row)
  console.print_table(table)


def draw(points: Iterable[Point]) -> bytes:
  """Return the picture of the points as PNG."""
  data = [
    {
      'arm': arm,
      'updates': updates,
      'accuracy': accuracy['mean'],
      'low': accuracy['mean'] - accuracy['standard_deviation'],
      'high': accuracy['mean'] + accuracy['standard_deviation'],
    }
    for arm, updates, accuracy, _ in points
  ]
  arms = list(dict.fromkeys(row['arm'] for row in data))
  base = alt.Chart(alt.Data(values=data)).encode(
    x=alt.X('updates:Q', title='updates'),
    color=alt.Color('arm:N', sort=arms, title=None),
  )
  scale = alt.Scale(zero=False)
  line = base.mark_line(point=True).encode(
    y=alt.Y('accuracy:Q', title='mean class accuracy, per cent', scale=scale)
  )
  band = base.mark_area(opacity=0.15).encode(y=alt.Y('low:Q', scale=scale), y2='high:Q')
  chart = (band + line).properties(width=480, height=300)
  return bytes(vl_convert.vegalite_to_png(chart.to_json(), scale=2))


def main(_: object) -> None:
  points = load_points(epath.Path(RUN.value))
  print_points(points)
  if OUTPUT.value:
    epath.Path(OUTPUT.value).write_bytes(draw(points))


if __name__ == '__main__':
  app.run(main)
