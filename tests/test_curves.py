"""The curves of a run: accuracy and gain of each arm after each round, over the seeds."""

import sys

import commands
import numpy as np
import pytest
from etils import epath
from scipy import stats

from sjft_jax.runtime import artifacts

# Mean class accuracy by arm, seed and round.
SCORES = {
  'none': [[0.1, 0.2], [0.2, 0.2], [0.3, 0.5]],
  'constant': [[0.2, 0.4], [0.2, 0.5], [0.5, 0.9]],
}
TITLES = {'none': 'no source', 'constant': 'selected'}


def write_run(folder, seeds=3, arms=None, **options):
  arms = arms or SCORES
  for seed in range(seeds):
    repeat = epath.Path(folder) / f'repeat{seed + 1}'
    repeat.mkdir(parents=True)
    artifacts.write_json(repeat / 'config.json', {'options': {'training': {'steps': 50}} | options})
    saved = {
      arm: {
        'rounds': [{'test': {'center': {'mean_class_accuracy': score}}} for score in scores[seed]]
      }
      for arm, scores in arms.items()
    }
    table = [{'arm': arm, 'name': TITLES.get(arm, arm)} for arm in arms]
    artifacts.write_json(repeat / 'results.json', {'view': 'center', 'table': table, 'arms': saved})


def draw(*options):
  command = [sys.executable, '-m', 'experiments.curves', *options]
  output, errors = commands.start(command, COLUMNS='500').communicate(timeout=300)
  return output, errors


@pytest.mark.slow
def test_points_and_picture(tmp_path):
  write_run(tmp_path / 'run')
  picture = tmp_path / 'curves.png'
  output, _ = draw(f'--run={tmp_path}/run', f'--output={picture}')
  assert '3 seeds' in output
  rows = [[cell.strip() for cell in line.split('│')[1:-1]] for line in output.splitlines()]
  rows = [row for row in rows if len(row) == 5]
  gains = 100 * (np.array(SCORES['constant']) - SCORES['none'])[:, 1]
  interval = stats.t.interval(0.95, 2, gains.mean(), stats.sem(gains))
  assert [row[:2] for row in rows] == [
    ['no source', '50'],
    ['no source', '100'],
    ['selected', '50'],
    ['selected', '100'],
  ]
  assert rows[0][2:] == ['20.0 ± 10.0', '', '']
  assert rows[3][3:] == [f'{gains.mean():+.1f}', '{:+.1f} to {:+.1f}'.format(*interval)]
  assert picture.read_bytes().startswith(b'\x89PNG')


@pytest.mark.slow
def test_arms_have_their_own_updates_and_those_without_are_left_out(tmp_path):
  arms = {'knn': [[0.1]] * 3, **SCORES}
  write_run(tmp_path, arms=arms, overrides={'constant': {'training': {'steps': 70}}})
  output, errors = draw(f'--run={tmp_path}')
  rows = [[cell.strip() for cell in line.split('│')[1:-1]] for line in output.splitlines()]
  assert [(row[0], row[1], row[3] == '') for row in rows if len(row) == 5] == [
    ('no source', '50', True),
    ('no source', '100', True),
    ('selected', '70', False),
    ('selected', '140', False),
  ], errors


@pytest.mark.slow
@pytest.mark.parametrize(
  ('seeds', 'arms', 'message'),
  [(1, None, 'has one finished repeat'), (2, {'knn': [[0.1]] * 2}, 'has no arm that trains')],
)
def test_a_run_without_curves_is_named(tmp_path, seeds, arms, message):
  write_run(tmp_path, seeds, arms)
  _, errors = draw(f'--run={tmp_path}')
  assert f'{tmp_path} {message}' in errors


@pytest.mark.slow
def test_a_run_without_repeats_is_named(tmp_path):
  _, errors = draw(f'--run={tmp_path}')
  assert f'{tmp_path} has no repeat*/results.json' in errors
