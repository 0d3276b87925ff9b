import json
import shutil

import jax
import numpy as np
import pytest
import untrained_run
from etils import epath
from models.weights.run_directory import (
  DESCRIPTION,
  draw_variables,
  save,
  save_checkpoint,
  write_run,
)

from sjft_jax.descriptors import bank
from sjft_jax.models.weights import run_checkpoint
from sjft_jax.runtime import artifacts

TRUNK = {key: DESCRIPTION[key] for key in ('name', 'width', 'fully_connected')}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A work directory with one arm, and the variables in its checkpoint."""
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  return workdir, write_run(workdir)


def assert_equal(tree, expected):
  assert jax.tree.structure(tree) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


def refusal(function, *args, **kwargs):
  """Return the one-line error of a call."""
  with pytest.raises(ValueError, match=r'\A[^\n]+\Z') as error:
    function(*args, **kwargs)
  return str(error.value)


def test_a_description_is_written_as_json(tmp_path):
  run_checkpoint.save_description(epath.Path(tmp_path), DESCRIPTION)
  saved = json.loads((tmp_path / 'network.json').read_text())
  assert artifacts.unseal(saved) == DESCRIPTION


@pytest.mark.parametrize('folder', ['', 'arms', 'arms/rounds'])
def test_the_only_training_below_a_directory_is_loaded(run, folder):
  workdir, variables = run
  trained = run_checkpoint.load_newest(str(workdir / folder))
  assert trained.directory == epath.Path(workdir / 'arms' / 'rounds')
  assert trained.workdir == epath.Path(workdir)
  assert trained.step == 7
  assert trained.description == DESCRIPTION
  assert_equal(trained.params, variables['params'])
  assert_equal(trained.batch_stats, variables['batch_stats'])


@pytest.mark.parametrize('has_average', [False, True])
def test_the_newest_checkpoint_is_loaded_with_the_averaged_parameters(tmp_path, has_average):
  write_run(tmp_path / 'run')
  newest, average = draw_variables(seed=1), draw_variables(seed=2)
  arm = tmp_path / 'run' / 'arms' / 'rounds'
  save_checkpoint(arm, 12, newest, average['params'] if has_average else None)
  trained = run_checkpoint.load_newest(str(arm))
  assert trained.step == 12
  assert_equal(trained.params, (average if has_average else newest)['params'])
  assert_equal(trained.batch_stats, newest['batch_stats'])


def test_several_trainings_or_none_are_refused(run, tmp_path):
  workdir, _ = run
  message = 'give the folder of one training; with checkpoints there: '
  copy = shutil.copytree(workdir, tmp_path / 'run')
  shutil.copytree(copy / 'arms' / 'rounds', copy / 'pretrain')
  names = f'{copy / "arms" / "rounds"}, {copy / "pretrain"}'
  assert refusal(run_checkpoint.load_newest, str(copy)) == f'{copy}: {message}{names}'
  assert run_checkpoint.load_newest(str(copy / 'pretrain')).workdir == epath.Path(copy)
  nowhere = tmp_path / 'nowhere'
  assert refusal(run_checkpoint.load_newest, str(nowhere)) == f'{nowhere}: {message}none'
  nowhere.mkdir()
  weights = nowhere / 'model.safetensors'
  weights.touch()
  message = refusal(run_checkpoint.load_trunk, str(nowhere), **TRUNK, style='auto')
  assert message == f'{nowhere} holds no training, but weights of a network: give {weights}'


def test_a_training_outside_a_work_directory_is_refused(run, tmp_path):
  arm = shutil.copytree(run[0] / 'arms' / 'rounds', tmp_path / 'rounds')
  message = refusal(run_checkpoint.load_newest, str(arm))
  assert message == f'{arm} lies in no work directory: network.json is missing above it'


def test_a_damaged_checkpoint_is_named_and_the_one_before_loaded_without_it(run, tmp_path):
  arm = shutil.copytree(run[0], tmp_path / 'run') / 'arms' / 'rounds'
  save_checkpoint(arm, 12, draw_variables(seed=1))
  newest = arm / 'checkpoints' / '12'
  for file in [path for path in (newest / 'state').rglob('*') if path.is_file()]:
    file.write_bytes(file.read_bytes()[:10])
  message = refusal(run_checkpoint.load_newest, str(arm))
  assert message.startswith(f'checkpoint {newest} is damaged (')
  assert (
    '); delete it to use the one before, of step 7; to have that of step 12 again, delete '
    in message
  )
  shutil.rmtree(newest)
  assert run_checkpoint.load_newest(str(arm)).step == 7


@pytest.mark.parametrize(('style', 'loaded_style'), [('auto', 'caffe'), ('torch', 'torch')])
def test_a_trunk_is_loaded_as_weights(run, style, loaded_style):
  workdir, variables = run
  weights = run_checkpoint.load_trunk(str(workdir), style=style, **TRUNK)
  assert_equal(weights.params, variables['params']['trunk'])
  assert_equal(weights.batch_stats, variables['batch_stats']['trunk'])
  assert weights.style == loaded_style
  assert weights.normalization == 'inception'
  assert weights.classifier is None


def test_a_style_with_other_variables_is_refused(tmp_path):
  network = {'name': 'resnet18v2', 'style': 'keras'}
  write_run(tmp_path / 'run', **network)
  save_checkpoint(tmp_path / 'run' / 'arms' / 'rounds', 9, draw_variables(**network))
  options = TRUNK | {'name': 'resnet18v2'}
  assert run_checkpoint.load_trunk(str(tmp_path / 'run'), style='auto', **options).style == 'keras'
  message = refusal(run_checkpoint.load_trunk, str(tmp_path / 'run'), style='torch', **options)
  assert message.endswith("has other variables than 'torch'; set style='auto'")


def test_a_trunk_has_the_statistics_of_the_target_alone(tmp_path):
  write_run(tmp_path / 'run')
  variables = draw_variables(batch_norm='per_domain')
  save_checkpoint(tmp_path / 'run' / 'arms' / 'rounds', 9, variables)
  weights = run_checkpoint.load_trunk(str(tmp_path / 'run'), style='auto', **TRUNK)
  stats, expected = weights.batch_stats, variables['batch_stats']['trunk']
  assert set(stats['stem_norm']) == {'mean', 'var'}
  assert set(expected['stem_norm']) == {'mean', 'var', 'source_mean', 'source_var'}
  for name in ('mean', 'var'):
    block = stats['stage4_block2']['norm2'][name]
    np.testing.assert_array_equal(block, expected['stage4_block2']['norm2'][name])


@pytest.mark.parametrize(('option', 'value'), [('name', 'resnet18v2'), ('width', 0.5)])
def test_a_trunk_of_another_network_is_refused(run, option, value):
  workdir, _ = run
  options = TRUNK | {option: value}
  message = refusal(run_checkpoint.load_trunk, str(workdir), style='auto', **options)
  trained = DESCRIPTION[option]
  assert message == (
    f'{workdir / "arms" / "rounds"} holds a network with {option}={trained!r}, not {value!r}; '
    f'set {option}={trained!r}'
  )


def test_fc6_and_fc7_can_be_left_out(tmp_path, monkeypatch):
  # No small trunk has them.
  monkeypatch.setattr(run_checkpoint, '_check_variables', lambda *_: None)
  variables = draw_variables()
  trunk = variables['params']['trunk']
  variables['params']['trunk'] = trunk | {layer: {'bias': np.zeros(2)} for layer in ('fc6', 'fc7')}
  run_checkpoint.save_description(epath.Path(tmp_path), DESCRIPTION)
  save_checkpoint(tmp_path / 'arms' / 'rounds', 7, variables)
  options = TRUNK | {'style': 'auto', 'fully_connected': False}
  assert_equal(run_checkpoint.load_trunk(str(tmp_path), **options).params, trunk)


def test_fc6_and_fc7_cannot_be_added(tmp_path):
  options = {'name': 'alexnet', 'fully_connected': False}
  arm = untrained_run.write(tmp_path / 'run', **options, resize=64, crop=64)
  message = refusal(
    run_checkpoint.load_trunk, str(arm), **TRUNK | {'name': 'alexnet', 'width': 1.0}, style='auto'
  )
  assert message.endswith('fully_connected=False, not True; set fully_connected=False')
  filters = bank.load(name='alexnet', layers=['conv1'], tap='linear', pretrained=str(arm))
  assert filters.num_filters == (64,)


def test_the_network_of_a_round_is_loaded(run, tmp_path):
  variables = draw_variables(seed=3)
  save(tmp_path / 'network', 5, variables)
  trained = run_checkpoint.load_newest(str(run[0]))
  network = run_checkpoint.load_network(epath.Path(tmp_path / 'network'), trained)
  assert network.step == 5
  assert (network.directory, network.description) == (trained.directory, trained.description)
  assert_equal(network.params, variables['params'])
  assert_equal(network.batch_stats, variables['batch_stats'])


def forge(change):
  """Return the state of a training in which a function has changed something in place."""
  variables = draw_variables()
  state = {'step': np.array(7, np.int32), 'opt_state': {'trace': np.zeros(2)}, **variables}
  return change(state) or state


def put(value, *path):
  """Return a function that replaces what lies at a path in a state."""

  def change(state):
    *parents, name = path
    for parent in parents:
      state = state[parent]
    state[name] = value

  return change


KERNEL = ('params', 'target', 'kernel')
FEATURES = draw_variables()['params']['target']['kernel'].shape[0]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (put(np.zeros(3, 'f4'), 'params'), 'another network'),
    (lambda state: state.pop('params') and None, 'no state of a training'),
    (lambda state: state.pop('opt_state') and None, 'no state of a training'),
    (lambda state: [state], 'no state of a training'),
    (put(np.zeros((3, 5), 'f4'), *KERNEL), 'another network'),
    (put(np.zeros((FEATURES, 3), 'i1'), *KERNEL), 'not finite or no float32'),
    (put(np.full((FEATURES, 3), np.nan, 'f4'), *KERNEL), 'not finite or no float32'),
    (put(np.zeros(3, 'f4'), 'params', 'source', 'kernel'), 'another network'),
    (put(np.zeros(3, 'f4'), 'params', 'trunk', 'stem'), 'another network'),
    (put({'average': np.zeros(3)}, 'opt_state'), 'another network'),
    (put({'trunk': np.zeros(3, 'f4')}, 'batch_stats'), 'another network'),
  ],
)
def test_forged_checkpoint_is_one_line(tmp_path, change, message):
  """Its checksums are right: whoever writes a checkpoint computes them."""
  workdir, arm = tmp_path / 'run', tmp_path / 'run' / 'arms' / 'rounds'
  workdir.mkdir()
  run_checkpoint.save_description(epath.Path(workdir), DESCRIPTION)
  save(arm / 'checkpoints', 7, forge(change))
  line = refusal(run_checkpoint.load_newest, str(arm))
  assert line.startswith(f'{arm} holds ')
  assert message in line
  assert f'; delete {arm} and ' in line


def test_a_network_of_another_name_or_classes_is_refused(run, tmp_path):
  copy = shutil.copytree(run[0], tmp_path / 'run')
  for changes, message in (
    ({'name': 'resnet50v1'}, 'holds another network'),
    ({'name': 'no'}, "describes no network: name='no' is unknown"),
    ({'width': 1e300}, 'network.json describes no network'),
    ({'classes': ['a', 'b']}, 'holds another network'),
    ({'classes': ['a', 3, 'c']}, 'has a class that is no text'),
  ):
    run_checkpoint.save_description(epath.Path(copy), DESCRIPTION | changes)
    assert message in refusal(run_checkpoint.load_newest, str(copy))


def test_how_far_the_training_of_a_loaded_trunk_has_come_is_said(run, capsys):
  run_checkpoint.load_trunk(str(run[0]), **TRUNK, style='auto')
  (line,) = capsys.readouterr().out.splitlines()
  assert line.endswith('arms/rounds: the trunk as it is after 7 steps')
