"""The average of several runs, through the command line."""

import dataclasses
import sys
from types import SimpleNamespace

import commands
import numpy as np
import pyarrow.csv
import pytest
from etils import epath

from sjft_jax import fuse as fuse_command
from sjft_jax import results, round_files
from sjft_jax.data.dataset import ImageArrays
from sjft_jax.runtime import artifacts


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


@pytest.mark.slow
def test_rounds_are_averaged_first_on_request(trained_run):
  workdir, saved = trained_run
  fused = results.load_predictions(str(workdir / 'arms' / 'rounds'), 'center', fused=True)
  np.testing.assert_allclose(fused.probabilities, probabilities(workdir, 'rounds', 1, 2, 3))
  assert fused.scores() == pytest.approx(saved['arms']['rounds']['fused']['center'])


def test_every_run_is_averaged_in_the_first_view_of_the_first_run(tmp_path):
  """The ten crops are all right and the central ones all wrong."""
  p = np.eye(2, dtype=np.float32)[[0, 1] * 5]
  for number, view in enumerate(('ten_crop', 'center'), 1):
    workdir = epath.Path(tmp_path / f'run{number}')
    test = ImageArrays(np.zeros((10, 8, 8, 3), np.uint8))
    test.classes, test.labels = ('a', 'b'), p.argmax(axis=1)
    results.save_test_images(workdir, 'f', test)
    trainer = SimpleNamespace(directory=workdir / 'arms' / 'none', fingerprint='f')
    round_ = round_files.Round(
      num_neighbors=np.zeros(1, int),
      source_images=0,
      hardness=np.zeros(1),
      is_correct=np.ones(1, bool),
      test={'ten_crop': p, 'center': 1 - p},
      seconds=1.0,
    )
    round_files.save_round(trainer, 0, round_)
    summary = results.summarize({'none': [round_]}, test, (view,))
    start = {'fingerprint': 'f', 'seed': 0, 'device': '', 'seconds': {}}
    artifacts.write_json(workdir / 'results.json', start | summary)
  runs = [f'--run={tmp_path}/run{number}/arms/none' for number in (1, 2)]
  process = fuse(*runs, f'--output={tmp_path}/right.csv')
  wrong = fuse(runs[0], '--view=center', f'--output={tmp_path}/wrong.csv')
  printed, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors
  assert printed.count('100.0%') == 6  # Class accuracy and top-1 of both runs and their average.
  printed, errors = wrong.communicate(timeout=300)
  assert wrong.returncode == 0, errors
  assert 'average of' not in printed  # Of one run there is none.
  # The columns are those of `predict`: the label is true, and the class is the likeliest.
  for name, likeliest in (('right', ['a', 'b'] * 5), ('wrong', ['b', 'a'] * 5)):
    table = pyarrow.csv.read_csv(tmp_path / f'{name}.csv').to_pydict()
    probability_columns = ['probability', 'probability of a', 'probability of b']
    assert [*table] == ['image', 'label', 'class', *probability_columns]
    assert (table['label'], table['class']) == (['a', 'b'] * 5, likeliest)
    assert table['probability'] == [1] * 10


def test_a_run_that_is_given_twice_is_refused(tmp_path):
  (tmp_path / 'link').symlink_to(tmp_path)
  run = f'{tmp_path}/arms/none'
  fuse_command.check_distinct([run, f'{tmp_path}/arms/rounds'])
  for same in (run, f'{run}/', f'{tmp_path}/link/arms/none'):
    with pytest.raises(ValueError, match=f'--run={same} and --run={run} are one run; give it once'):
      fuse_command.check_distinct([run, same])


@pytest.mark.slow
def test_other_test_images_and_unfinished_runs_are_refused(trained_run, tmp_path):
  workdir, _ = trained_run
  arm = f'--run={workdir}/arms/rounds'
  assert 'is no arm of a finished run' in commands.refusal(fuse(arm, f'--run={tmp_path}/arms/x'))
  assert 'no predictions in view' in commands.refusal(fuse(arm, '--view=multi_scale'))
  one = results.load_predictions(str(workdir / 'arms' / 'rounds'), 'center')
  other = dataclasses.replace(one, name='other', images=one.images[::-1])
  with pytest.raises(ValueError, match='other were tested on different images'):
    results.fuse_predictions([one, other])
