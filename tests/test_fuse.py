"""The average of several runs, through the command line."""

import sys

import commands
import numpy as np
import pyarrow.csv
import pytest

from sjft_jax import results


def fuse(*options):
  return commands.start([sys.executable, '-m', 'sjft_jax.fuse', *options])


def probabilities(workdir, arm, *numbers):
  files = [workdir / 'arms' / arm / 'rounds' / str(n) / 'round.npz' for n in numbers]
  return np.mean([np.load(file)['test/center'] for file in files], axis=0)


@pytest.mark.slow
def test_average_of_two_runs_is_that_of_their_probabilities(trained_run, tmp_path):
  workdir, saved = trained_run
  arms = [f'--run={workdir}/arms/{arm}' for arm in ('none', 'rounds')]
  output = tmp_path / 'fused.csv'
  process = fuse(*arms, '--view=center', f'--output={output}')
  printed, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  assert 'average of 2 runs' in printed
  table = pyarrow.csv.read_csv(output).to_pydict()
  names = [name for name in table if name.startswith('probability of ')]
  p = np.stack([table[name] for name in names], axis=1)
  expected = (probabilities(workdir, 'none', 3) + probabilities(workdir, 'rounds', 3)) / 2
  np.testing.assert_allclose(p, expected, rtol=1e-6)
  top1 = saved['arms']['rounds']['rounds'][-1]['test']['center']['top1']
  assert f'{top1:.1%}' in printed


def test_rounds_are_averaged_first_on_request(trained_run):
  workdir, saved = trained_run
  fused = results.load_predictions(str(workdir / 'arms' / 'rounds'), 'center', fused=True)
  np.testing.assert_allclose(fused.probabilities, probabilities(workdir, 'rounds', 1, 2, 3))
  assert fused.scores() == pytest.approx(saved['arms']['rounds']['fused']['center'])


def test_other_test_images_and_unfinished_runs_are_refused(trained_run, tmp_path):
  workdir, _ = trained_run
  arm = f'--run={workdir}/arms/rounds'
  assert 'is no arm of a finished run' in commands.refusal(fuse(arm, f'--run={tmp_path}/arms/x'))
  assert 'no predictions in view' in commands.refusal(fuse(arm, '--view=multi_scale'))
  one = results.load_predictions(str(workdir / 'arms' / 'rounds'), 'center')
  other = results.Predictions('other', one.images[::-1], one.labels, one.classes, one.probabilities)
  with pytest.raises(ValueError, match='other were tested on different images'):
    results.fuse_predictions([one, other])
