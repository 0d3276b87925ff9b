"""One factor at a time: every level can be configured, and gains are paired by seed."""

import jax
import numpy as np
import pytest
import small_run

from experiments import factors, tables, tasks
from sjft_jax import config as configs
from sjft_jax import inputs, option_checks, repeats
from sjft_jax.ranking import DescriptorOptions
from sjft_jax.selection.growth import SelectionOptions
from sjft_jax.training.optimizer import SolverOptions, learning_rates
from sjft_jax.training.trainer import TrainingOptions


@pytest.mark.parametrize('task', ['textures', 'satellite_related'])
def test_every_level_has_possible_options_that_differ_from_the_others(task):
  runs = factors.get_runs(task, [])
  made = []
  for run in runs.values():
    config = tables.make_config(run, seed=3)
    option_checks.check_consumers(config, inputs.CONSUMERS)
    for options in configs.arm_configs(config).values():
      option_checks.check_ranges(options)
      DescriptorOptions(**options.descriptors)
      assert SelectionOptions(**options.selection).increments == {'sigma0': 0, 'sigma1': 0}
    made.append(config.to_json())
  assert len(set(made)) == len(runs) > 15


def test_plain_fine_tuning_is_trained_where_its_options_change():
  runs = factors.get_runs('textures', ['bins', 'source weight', 'updates', 'weights'])
  assert [run.arms for run in runs.values()] == [
    factors.ARMS,
    *4 * [('random', 'constant')],
    *3 * [factors.ARMS],
  ]
  with pytest.raises(ValueError, match="--factors='bin' is unknown; did you mean 'bins'"):
    factors.get_runs('textures', ['bin'])


def test_gains_are_paired_by_seed_with_the_plain_fine_tuning_of_the_same(monkeypatch, tmp_path):
  scores = {
    (factors.BASE, 0): {'none': 10.0, 'random': 11.0, 'constant': 14.0},
    (factors.BASE, 1): {'none': 20.0, 'random': 21.0, 'constant': 26.0},
    ('bins/8', 0): {'random': 12.0, 'constant': 13.0},
    ('bins/8', 1): {'random': 13.0, 'constant': 25.0},
    ('weights/of-ImageNet', 1): {'none': 60.0, 'random': 50.0, 'constant': 55.0},
  }
  monkeypatch.setattr(factors, 'load_scores', lambda _, run, seed: scores.get((run, seed), {}))
  runs = [factors.BASE, 'bins/8', 'weights/of-ImageNet']
  base, bins, weights = factors.summarize(tmp_path, runs, seeds=3)
  assert base['constant - none'] == repeats.spread([4.0, 6.0])
  assert base['constant - random'] == repeats.spread([3.0, 5.0])
  assert bins['constant - none'] == repeats.spread([3.0, 5.0])
  assert bins['constant - random'] == repeats.spread([1.0, 12.0])
  assert weights['scores'] == {'none': [60.0], 'random': [50.0], 'constant': [55.0]}
  assert 'constant - none' not in weights
  factors.print_rows([base, bins, weights], 'title')


def test_one_schedule_drops_where_the_schedules_of_the_rounds_do():
  runs = factors.get_runs('textures', ['rounds'])
  rates = {}
  for name in ('rounds/one-schedule', 'rounds/one'):
    options = configs.arm_config(tables.make_config(runs[name], seed=0), 'constant')
    steps = TrainingOptions(**options.training).schedule_steps(options.selection.rounds)
    rates[name] = learning_rates(steps, SolverOptions(**options.solver))
  np.testing.assert_array_equal(rates['rounds/one-schedule'], rates['rounds/one'])


@pytest.mark.slow
def test_levels_are_run_and_a_failure_stops_no_other(small_data, tmp_path, monkeypatch):
  one_device = jax.local_devices()[:1]
  monkeypatch.setattr(jax, 'local_devices', lambda: one_device)

  def get_config(_):
    options = {'evaluation.views': ('center',), 'training.steps': 4, 'selection.rounds': 2}
    return small_run.make_config(small_data, **options)

  monkeypatch.setattr(tasks, 'get_config', get_config)
  runs = factors.get_runs('textures', ['bins', 'bank'])
  names = [factors.BASE, 'bins/8', 'bank/conv4-and-conv5']
  runs = {name: runs[name] for name in names}
  runs[names[2]] = runs[names[2]]._replace(changes={'descriptors.num_bins': 1})
  errors = tables.train(runs, tmp_path, 2, None)
  assert len(errors) == 2
  base, bins, bank = factors.summarize(tmp_path, names, seeds=2)
  assert base['seeds'] == bins['seeds'] == 2
  assert bins['scores']['none'] == base['scores']['none']
  assert bank['seeds'] == 0
  factors.print_rows([base, bins, bank], 'title')


def test_scores_of_runs_that_were_refused_are_left_out(monkeypatch, tmp_path):
  scores = {'none': 10.0, 'random': 11.0, 'constant': 14.0}
  monkeypatch.setattr(factors, 'load_scores', lambda *_: scores)
  failed = {str(tmp_path / 'bins/8/seed1')}
  base, bins = factors.summarize(tmp_path, [factors.BASE, 'bins/8'], 2, failed)
  assert (base['seeds'], bins['seeds']) == (2, 1)


@pytest.mark.parametrize('task', ['textures', 'satellite_with_letters'])
def test_the_limit_of_k0_does_not_hold_back_twice_as_many_neighbours(task):
  runs = factors.get_runs(task, ['K0'])
  own, twice = (tables.make_config(runs[name], 0).selection for name in (factors.BASE, 'K0/twice'))
  assert twice.num_neighbors == 2 * own.num_neighbors
  assert twice.min_source_images == 2 * own.min_source_images
