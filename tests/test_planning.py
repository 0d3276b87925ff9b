"""The plan of a run, runs that end after a stage, and traces of a training's steps."""

import gzip
import json
import subprocess

import commands
import jax.numpy as jnp
import numpy as np
import pytest
from data.numbered import NumberedDataset
from etils import epath
from small_run import command, make_config

import sjft_jax
from sjft_jax import calibration, planning
from sjft_jax import results as result_files
from sjft_jax.report import summary
from sjft_jax.training.profile import WARMUP, StepProfile

ARMS = {'pretrain.steps': 0, 'arms': ('none', 'rounds')}


@pytest.mark.slow
def test_a_plan_counts_what_the_run_has(small_data, trained_run, capsys):
  plan = sjft_jax.plan(make_config(small_data, **ARMS))
  assert plan.images == (12, 9, 48)
  assert plan.classes == (3, 3, 6)
  assert (plan.descriptor_size, plan.depth, plan.steps) == (64 * 8, 27, 2 * 3 * 3)
  assert plan.product_flops == 2 * 2 * 64 * 8 * 12 * 48
  names = [stage.name for stage in plan.stages]
  arms = ('no source', 'selected, growing')
  trained = [f'{what}, {arm}' for arm in arms for what in ('training', 'scoring')]
  assert names[1:-1] == ['screening', 'ranking', *trained, 'drawing the report']
  assert plan.stages[1][1:] == ('done before', 0)
  assert all(stage.seconds > 0 for stage in plan.stages[2:-1])
  assert 0 < plan.seconds < 600
  files = [file for file in trained_run[0].rglob('*') if file.is_file()]
  assert plan.disk_bytes == pytest.approx(sum(file.stat().st_size for file in files), rel=0.3)
  # A trunk of 2.5 million numbers, its momentum and its gradient.
  assert plan.device_bytes > 2 * 4 * 2.4e6
  assert plan.host_bytes > plan.device_bytes
  capsys.readouterr()
  planning.print_plan(plan)
  output = capsys.readouterr().out
  assert '12 × 48 images, 27 neighbours' in output
  assert '12 training and 9 test images, 3 classes' in output


@pytest.mark.parametrize(('size', 'count'), [(99, 16), (99, 48), (99, 55), (50, 48), (10, 25)])
def test_measured_images_are_runs_of_neighbours_from_all_over(size, count):
  sample = calibration._sample(NumberedDataset('numbered', np.zeros(size)), count).indices
  assert len(sample) == count
  distinct = sample[:size]
  assert len(set(distinct)) == min(count, size)
  np.testing.assert_array_equal(sample, np.resize(distinct, count))
  for start in range(0, len(distinct), 16):
    run = distinct[start : start + 16]
    np.testing.assert_array_equal(run, run[0] + np.arange(len(run)))
  if count > 16:
    assert distinct[-1] == size - 1


@pytest.mark.slow
def test_dry_run_writes_nothing_into_the_work_directory(small_data, tmp_path):
  process = commands.start(
    command(small_data, tmp_path / 'run', '--dry_run', '--config.pretrain.steps=0'),
    subprocess.STDOUT,
  )
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  assert 'Plan: about' in output
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_run_ends_after_each_stage_and_goes_on(small_data, trained_run, tmp_path, capsys):
  options, workdir = make_config(small_data, **ARMS), tmp_path / 'run'

  def names():
    return {path.name for path in workdir.iterdir()}

  assert sjft_jax.train(options, workdir, stop_after='screen') == {}
  assert {'config.json', 'duplicates.csv'} <= names()
  assert 'ranking.npz' not in names()
  assert sjft_jax.train(options, workdir, stop_after='rank') == {}
  assert f'Stopped after rank; without stop_after, {workdir} goes on' in capsys.readouterr().out
  assert 'ranking.npz' in names()
  assert 'arms' not in names()
  results = sjft_jax.train(options, workdir)
  assert results['table'] == trained_run[1]['table']


@pytest.mark.slow
def test_every_repeat_ends_after_the_stage(small_data, tmp_path):
  options = make_config(small_data, **{'repeats': 2, 'pretrain.steps': 2, 'arms': ('none',)})
  assert sjft_jax.train(options, tmp_path / 'run', stop_after='pretrain') == {}
  for number in (1, 2):
    names = {path.name for path in (tmp_path / 'run' / f'repeat{number}').iterdir()}
    assert 'pretrain' in names
    assert 'arms' not in names


def test_an_unknown_stage_is_refused(small_data, tmp_path):
  with pytest.raises(ValueError, match=r"stop_after='round:1' is unknown; use one of screen, "):
    sjft_jax.train(make_config(small_data), tmp_path / 'run', stop_after='round:1')
  assert not (tmp_path / 'run').exists()


def test_a_trace_of_more_steps_than_a_round_has_is_refused(small_data, tmp_path):
  message = r'profile_steps=7 and the 3 steps before it exceed the 9 steps of a round; use 6 or'
  with pytest.raises(ValueError, match=message):
    StepProfile(epath.Path(tmp_path), 7, available=9)
  with pytest.raises(ValueError, match=r'the 3 steps of a round; use 0 or less, or raise'):
    sjft_jax.train(make_config(small_data, **ARMS), tmp_path / 'run', profile_steps=1)
  assert not (tmp_path / 'run').exists()


def test_a_trace_that_no_training_would_leave_is_refused_or_missed(small_data, tmp_path, capsys):
  options = make_config(small_data, **ARMS, **{'training.steps': 9})
  with pytest.raises(
    ValueError, match='profile_steps=1 traces .*stop_after=rank ends before these'
  ):
    sjft_jax.train(options, tmp_path / 'run', profile_steps=1, stop_after='rank')
  options.arms = ('knn', 'probe')
  with pytest.raises(ValueError, match='profile_steps=1 traces .* arms has none of these'):
    sjft_jax.train(options, tmp_path / 'run', profile_steps=1)
  assert not (tmp_path / 'run').exists()
  capsys.readouterr()
  for steps in (0, 2):
    StepProfile(epath.Path(tmp_path), steps, available=WARMUP + 2).report_missing()
  assert capsys.readouterr().out.count('no step is traced') == 1


def test_a_trace_of_a_finished_run_is_missed(small_data, tmp_path, monkeypatch, capsys):
  """The first one of several repeats can be finished while others are trained."""
  monkeypatch.setattr(result_files, 'load_results', lambda *_: {'finished': True})
  monkeypatch.setattr(summary, 'print_table', lambda _: None)
  options = make_config(small_data, **ARMS, **{'training.steps': 9})
  sjft_jax.train(options, tmp_path / 'run', profile_steps=1)
  assert 'no step is traced' in capsys.readouterr().out


@pytest.mark.parametrize('option', ['--stop_after=rank', '--profile=3'])
def test_a_plan_of_a_part_is_refused(small_data, tmp_path, option):
  message = commands.refusal(
    commands.start(command(small_data, tmp_path / 'run', '--dry_run', option))
  )
  assert f'--dry_run plans a whole run; leave {option.partition("=")[0]} out' in message


def traced_steps(folder):
  """Return the numbers of the steps in the only trace below a folder."""
  (file,) = folder.rglob('*.trace.json.gz')
  with gzip.open(file) as stream:
    events = json.load(stream)['traceEvents']
  return {int(e['args']['step_num']) for e in events if e.get('args', {}).get('step_num')}


def test_the_steps_after_the_warm_up_are_traced_once(tmp_path, capsys):
  profile = StepProfile(epath.Path(tmp_path / 'profile'), 2, available=WARMUP + 2)

  def step(state, batch):
    return state + batch, {}

  for _ in range(2):
    with profile(step) as traced_step:
      state = jnp.zeros(())
      for number in range(WARMUP + 4):
        state, _ = traced_step(state, float(number))
  assert state == sum(range(WARMUP + 4))
  assert traced_steps(tmp_path) == {WARMUP, WARMUP + 1}
  output = capsys.readouterr().out
  assert output.count('2 steps are traced in') == 1
  assert 'open that file at https://ui.perfetto.dev' in output


def test_without_steps_nothing_is_traced(tmp_path):
  profile = StepProfile(epath.Path(tmp_path), 0, available=2)
  with profile(divmod) as step:
    assert step is divmod


@pytest.mark.slow
def test_a_stopped_training_leaves_the_trace_of_its_steps(small_data, tmp_path):
  options = make_config(small_data, **ARMS, **{'training.steps': WARMUP + 2, 'selection.rounds': 1})
  sjft_jax.train(options, tmp_path / 'run', profile_steps=2)
  assert traced_steps(tmp_path / 'run' / 'profile') == {WARMUP, WARMUP + 1}
