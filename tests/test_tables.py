"""The paper's tables: every run can be configured, and one table is run on striped images."""

import json
import re

import jax
import pytest
import small_run
from etils import epath

import sjft_jax
from experiments import tables, tasks
from sjft_jax import config as configs
from sjft_jax import inputs, option_checks, tuned_settings, workdir
from sjft_jax.ranking import DescriptorOptions
from sjft_jax.runtime import artifacts
from sjft_jax.selection.growth import SelectionOptions

TABLES = [(number, 'paper') for number in '12345'] + [(number, 'small') for number in '1234']


@pytest.mark.parametrize(('number', 'scale'), TABLES)
def test_every_run_has_possible_options_and_every_row_a_run(number, scale):
  table = tables.get_table(number, scale)
  for run in table.runs.values():
    config = tables.make_config(run, seed=3)
    option_checks.check_consumers(config, inputs.CONSUMERS)
    for options in configs.arm_configs(config).values():
      option_checks.check_ranges(options)
      DescriptorOptions(**options.descriptors)
      SelectionOptions(**options.selection)
    assert config.seed == config.target.split_seed == 3
  for row in table.rows:
    assert all(row.arm in table.runs[name].arms for name in row.runs)
  used = {(name, row.arm) for row in table.rows for name in row.runs}
  assert used == {(name, arm) for name, run in table.runs.items() for arm in run.arms}


def test_table_of_two_sources_has_no_small_version():
  with pytest.raises(ValueError, match='table 5 compares two sources'):
    tables.get_table('5', 'small')


def test_a_run_whose_images_are_not_there_has_no_cost(tmp_path, capsys):
  config = tables.make_config(tables.get_table('2', 'paper').runs['gabor'], seed=0)
  config.target.path = str(tmp_path)
  tables.print_cost(config, None, is_whole=False)
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith('  data not prepared: config.target: there is no prepared stanford_dogs')


@pytest.mark.slow
def test_the_cost_of_a_run_comes_from_its_plan(small_data, capsys):
  config = small_run.make_config(small_data, **{'arms': ('none',), 'pretrain.steps': 0})
  tables.print_cost(config, None, is_whole=False)
  (line,) = capsys.readouterr().out.splitlines()
  assert re.fullmatch(r'  about [\d.]+ (s|min) for each seed', line)
  config.training.batch_size = 3
  tables.print_cost(config, None, is_whole=True)
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith('  no estimate: training.batch_size=3 does not divide')


@pytest.mark.slow
def test_rows_are_run_resumed_and_set_beside_the_papers(small_data, tmp_path, monkeypatch, capsys):
  one_device = jax.local_devices()[:1]
  monkeypatch.setattr(jax, 'local_devices', lambda: one_device)

  def get_config():
    options = {'evaluation.views': ('center',), 'training.steps': 2, 'selection.rounds': 2}
    return small_run.make_config(small_data, **options)

  monkeypatch.setattr(tasks, 'get_config', get_config)
  table = tables.get_table('2', 'small')
  assert len(table.rows) == 15
  # With fewer arms, and few steps.
  arms = ('probe', 'none', 'rounds')
  runs = {
    name: run._replace(
      arms=[arm for arm in run.arms if arm in arms], changes={**run.changes, 'pretrain.steps': 1}
    )
    for name, run in table.runs.items()
  }
  # They are not trained here, and their rows remain empty.
  del runs['as many images'], runs['l2-sp']
  # It fails; the other rows are run all the same.
  runs['gabor'] = runs['gabor']._replace(changes={'selection.num_neighbors': 10_000})
  table = table._replace(runs=runs, rows=[row for row in table.rows if row.arm in arms])
  tables.run(table, 'Table 2, small', tmp_path, seeds=2)
  first = capsys.readouterr().out
  tables.run(table, 'Table 2, small', tmp_path, seeds=2)
  record = json.loads((tmp_path / 'table.json').read_text())
  rows = {row['row']: row for row in record['rows']}
  assert rows['Selective joint FT with Gabor filter bank']['scores'] == [None, None]
  assert len(record['errors']) == 2
  assert 'gabor/seed0 failed: ValueError: selection.num_neighbors=10000' in first
  results = json.loads((tmp_path / 'fine-tuned/seed1/results.json').read_text())
  arms = {row['arm']: row for row in results['table']}
  growing = rows['Selective joint fine-tuning']
  assert growing['paper'] == 90.2
  probe = rows['Linear probe on the frozen trunk']
  assert probe['paper'] is None
  assert probe['scores'][1] == pytest.approx(100 * arms['probe']['mean_class_accuracy'])
  assert growing['scores'][1] == pytest.approx(100 * arms['rounds']['mean_class_accuracy'])
  assert rows['with model fusion']['scores'][1] == pytest.approx(100 * arms['rounds']['fused'])
  again = capsys.readouterr().out
  assert again.count('is finished, nothing is repeated') == 4


def test_what_an_earlier_command_left_is_no_score_of_a_run_that_is_refused(tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise ValueError('made with other options')

  monkeypatch.setattr(sjft_jax, 'train', refuse)
  path = tmp_path / 'run' / 'seed0'
  path.mkdir(parents=True)
  (path / 'results.json').write_text('that of other options')
  runs = {'run': tables.get_table('4', 'small').runs['2 per class']}
  table = tables.Table('top1', runs, [tables.Row('row', ['run'], 'none')])
  tables.run(table, 'Table', tmp_path, seeds=1)
  record = json.loads((tmp_path / 'table.json').read_text())
  assert record['rows'][0]['scores'] == [None]
  assert list(record['errors']) == [str(path)]


def write_tuned(path, run, arms, **more):
  options = workdir.result_options(tables.make_config(run, 0), *tuned_settings.SECTIONS)
  setting = {'setting': {'solver.learning_rate': 0.003, **more}}
  content = {'arms': dict.fromkeys(arms, setting), 'options': options}
  artifacts.write_json(epath.Path(path), content)
  return str(path)


def test_every_seed_and_the_commands_have_the_settings_of_a_tuned_json(tmp_path):
  run = tables.get_table('2', 'small').runs['l2-sp']
  tuned = write_tuned(tmp_path / 'tuned.json', run, ['none'])
  for seed in (0, 2):
    config = tables.make_config(run, seed, 3, tuned)
    assert (config.seed, config.target.split_seed, config.repeats) == (seed, seed, 1)
    assert configs.arm_config(config, 'none').solver.learning_rate == 0.003
  assert f'--tuned={tuned}' in tables.command(run, tmp_path, tuned)


def test_a_tuned_json_does_not_replace_what_a_row_is_about(tmp_path):
  run = tables.get_table('2', 'small').runs['l2-sp']
  more = {'solver.l2_sp': 0.1}
  tuned = write_tuned(tmp_path / 'tuned.json', run, ['none'], **more)
  with pytest.raises(ValueError, match=r'none solver\.l2_sp=0\.1, but this run is about .*=0\.01'):
    tables.make_config(run, 0, 1, tuned)
  plain = tables.get_table('2', 'small').runs['as many images']
  config = tables.make_config(plain, 0, 1, tuned)
  assert configs.arm_config(config, 'none').solver.l2_sp == 0.1


def test_further_seeds_do_not_test_on_what_tune_has_seen(tmp_path):
  run = tables.get_table('4', 'paper').runs['15 per class']
  tuned = write_tuned(tmp_path / 'tuned.json', run, run.arms)
  tables.make_config(run, 0, 1, tuned)
  with pytest.raises(ValueError, match='has seen the training images of one split'):
    tables.make_config(run, 1, 2, tuned)
