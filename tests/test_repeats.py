"""Several seeds of one configuration: the mean, its spread, and what the repeats share."""

import json
import subprocess

import commands
import numpy as np
import pytest
from etils import epath
from small_run import command

from sjft_jax import config as configs
from sjft_jax import repeats, workdir


def make_result(seed, accuracy, gain):
  rows = [
    {'name': 'no source', 'source_images': 0, 'mean_class_accuracy': 0.5, 'top1': 0.5},
    {
      'name': 'selected',
      'source_images': 100 + seed,
      'mean_class_accuracy': accuracy,
      'top1': accuracy,
      'fused': accuracy + 0.01,
      'gain': gain,
    },
  ]
  for row in rows:
    row['cross_entropy'] = 1 - row['top1']
  return {'seed': seed, 'view': 'center', 'test_images': 9, 'table': rows}


def test_every_score_has_its_mean_and_deviation():
  gains = [0.01, 0.03, 0.02]
  results = [make_result(seed, 0.5 + gain, gain) for seed, gain in enumerate(gains)]
  summary = repeats.summarize(results)
  assert (summary['seeds'], summary['view'], summary['test_images']) == ([0, 1, 2], 'center', 9)
  plain, selected = summary['table']
  assert 'gain' not in plain
  assert plain['top1']['standard_deviation'] == 0
  assert plain['cross_entropy']['values'] == [0.5] * 3
  assert selected['source_images'] == 101
  gain = selected['gain']
  assert gain['values'] == gains
  assert gain['mean'] == pytest.approx(0.02)
  assert gain['standard_deviation'] == pytest.approx(0.01)
  # Student's t with two degrees of freedom: 4.3027.
  half = 4.3027 * 0.01 / np.sqrt(3)
  assert gain['interval'] == pytest.approx([0.02 - half, 0.02 + half], abs=1e-6)


def test_repeats_are_added_to_those_that_are_there(tmp_path, monkeypatch):
  def run_one(config, path, **_):
    workdir.check_unchanged(config, path)
    workdir.save_config(config, path)
    return make_result(config.seed, 0.5, 0.01)

  monkeypatch.setattr(repeats.pipeline, 'run', run_one)
  config = configs.default()
  for config.repeats in (2, 4, 4):
    assert repeats.run(config, tmp_path)['seeds'] == [*range(config.repeats)]
    saved = json.loads((tmp_path / 'results.json').read_text())
    assert saved['seeds'] == [*range(config.repeats)]
  assert workdir.load_config(epath.Path(tmp_path))['repeats'] == 4
  config.repeats = 3  # Results of four would be lost.
  with pytest.raises(ValueError, match=r'\(repeats was 4, now 3\)'):
    repeats.run(config, tmp_path)
  config.repeats, config.seed = 5, 1
  with pytest.raises(ValueError, match=r'\(seed was 0, now 1\)'):
    repeats.run(config, tmp_path)


def test_repeats_that_were_begun_can_be_given_up(tmp_path, monkeypatch):
  def run_one(config, path, **_):
    if config.seed == 2:
      raise KeyboardInterrupt
    return make_result(config.seed, 0.5, 0.01)

  monkeypatch.setattr(repeats.pipeline, 'run', run_one)
  config = configs.default()
  config.repeats = 2
  repeats.run(config, tmp_path)
  config.repeats = 20
  with pytest.raises(KeyboardInterrupt):
    repeats.run(config, tmp_path)
  config.repeats = 2
  assert repeats.run(config, tmp_path)['seeds'] == [0, 1]


def run(command_line):
  process = commands.start(command_line, subprocess.STDOUT)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  return output


@pytest.mark.slow
def test_repeats_share_what_is_the_same_and_are_not_run_twice(small_data, tmp_path):
  options = ['--config.repeats=2', '--config.seed=5', '--config.pretrain.steps=0']
  command_line = command(
    small_data, tmp_path / 'run', *options, '--config.arms=("none","constant")'
  )
  output = run(command_line)
  assert 'Repeat 2 of 2, seed 6' in output
  assert output.count('histograms of') == 1  # The ranking is made once.
  assert '2 repeats, seeds 5 to 6; center; mean ± standard deviation' in output
  saved = json.loads((tmp_path / 'run' / 'results.json').read_text())
  singles = [
    json.loads((tmp_path / 'run' / f'repeat{number}' / 'results.json').read_text())
    for number in (1, 2)
  ]
  assert [single['seed'] for single in singles] == saved['seeds'] == [5, 6]
  for position, row in enumerate(saved['table']):
    values = [single['table'][position]['top1'] for single in singles]
    assert row['top1']['values'] == values
  first, second = (
    np.load(tmp_path / 'run' / f'repeat{number}/arms/none/rounds/1/round.npz')['test/center']
    for number in (1, 2)
  )
  assert not np.array_equal(first, second)  # Another seed is another training.
  again = run(command_line)
  assert again.count('is finished, nothing is repeated') == 2
  assert json.loads((tmp_path / 'run' / 'results.json').read_text()) == saved
