"""Damaged files of a work directory: one line, and its advice leads to the right results."""

import json
import os
import shutil
import struct
import sys
import zipfile

import commands
import numpy as np
import pytest
from etils import epath
from small_run import command, interrupt_at, make_config

import sjft_jax
from sjft_jax import pipeline, results
from sjft_jax.models.weights import run_checkpoint
from sjft_jax.runtime import artifacts

OPTIONS = {'pretrain.steps': 0, 'arms': ('none', 'rounds')}
ADVICE = 'delete it and run the command of its work directory again, which writes it anew'
BINARY = np.random.default_rng(0).bytes(1000)
DAMAGES = {
  'empty': lambda content: b'',
  'object': lambda content: b'{}',
  'list': lambda content: b'[]',
  'cut': lambda content: content[: len(content) // 2],
  'binary': lambda content: BINARY,
  'nested': lambda content: b'[' * 100_000 + b']' * 100_000,
  'objects in objects': lambda content: b'{"a":' * 100_000 + b'1' + b'}' * 100_000,
  'another number': lambda content: content.replace(b'3', b'4', 1),
}
ROUND = 'arms/rounds/rounds/2/round.npz'
READERS = {
  'config.json': sjft_jax.load,
  'network.json': sjft_jax.load,
  'results.json': results.load_predictions,
  'test_images.npz': results.load_predictions,
  ROUND: lambda arm: results.load_predictions(arm, fused=True),
}


@pytest.fixture
def workdir(trained_run, tmp_path):
  return shutil.copytree(trained_run[0], tmp_path / 'run')


def without_seconds(value):
  """Return what results.json holds without times and the device."""
  if isinstance(value, dict):
    return {k: without_seconds(v) for k, v in value.items() if k not in ('seconds', 'device')}
  return [*map(without_seconds, value)] if isinstance(value, list) else value


def refusal(function, *arguments, **options):
  """Return the one-line error of a call."""
  with pytest.raises(ValueError, match=r'\A[^\n]+\Z') as error:
    function(*arguments, **options)
  return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize('name', READERS)
def test_damaged_file_is_named_with_advice(workdir, name):
  file, content = workdir / name, (workdir / name).read_bytes()
  for damage in DAMAGES.values():
    file.write_bytes(damage(content))
    message = refusal(READERS[name], workdir / 'arms' / 'rounds')
    assert message.startswith(f'{file} is damaged')
    assert message.endswith(ADVICE)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['results.json', 'config.json'])
@pytest.mark.parametrize('damage', ['object', 'another number'])
def test_run_refuses_its_damaged_file(workdir, small_data, name, damage):
  file = workdir / name
  file.write_bytes(DAMAGES[damage](file.read_bytes()))
  message = refusal(pipeline.run, make_config(small_data, **OPTIONS), workdir)
  assert message.startswith(f'{file} is damaged')
  assert message.endswith(ADVICE)


@pytest.mark.slow
@pytest.mark.parametrize('name', [*READERS, 'ranking.npz', 'versions.json'])
def test_advice_leads_to_the_same_results(workdir, trained_run, small_data, name):
  arm = workdir / 'arms' / 'rounds'
  before = results.load_predictions(str(arm), fused=True).probabilities
  (workdir / name).unlink()
  again = pipeline.run(make_config(small_data, **OPTIONS), workdir)
  assert without_seconds(again) == without_seconds(trained_run[1])
  assert (workdir / name).exists() or name == 'versions.json'
  np.testing.assert_array_equal(
    results.load_predictions(str(arm), fused=True).probabilities, before
  )
  images = small_data / 'target' / 'test'
  predicted = [
    sjft_jax.load(run / 'arms/rounds').predict(images) for run in (workdir, trained_run[0])
  ]
  np.testing.assert_array_equal(*predicted)


@pytest.mark.slow
def test_scores_of_before_are_not_kept_where_a_round_is_made_anew(workdir, small_data, monkeypatch):
  """A run that is stopped before it writes the new ones would be taken for finished."""
  (workdir / ROUND).unlink()
  interrupt_at(monkeypatch, 'stage', 'Arm 1')
  with pytest.raises(KeyboardInterrupt):
    pipeline.run(make_config(small_data, **OPTIONS), workdir)
  assert not (workdir / 'results.json').exists()


@pytest.mark.slow
def test_report_needs_the_ranking_that_the_run_makes_anew(workdir, small_data, monkeypatch):
  for name in ('ranking.npz', 'neighbors.png'):
    (workdir / name).unlink()
  interrupt_at(monkeypatch, 'stage', 'Arm 1')
  with pytest.raises(KeyboardInterrupt):
    pipeline.run(make_config(small_data, **OPTIONS), workdir)
  assert (workdir / 'ranking.npz').exists()


@pytest.mark.slow
def test_round_is_scored_again_with_its_own_network(workdir, trained_run, small_data):
  """Not with that of the newest checkpoint, which is of a later round."""
  for file in (ROUND, 'results.json'):
    (workdir / file).unlink()
  pipeline.run(make_config(small_data, **OPTIONS), workdir)
  for name in ('test/center', 'hardness', 'seconds', 'num_neighbors'):
    saved, again = (np.load(run / ROUND)[name] for run in (trained_run[0], workdir))
    np.testing.assert_array_equal(saved, again)


@pytest.mark.slow
def test_round_whose_network_is_gone_too_is_trained_anew(workdir, trained_run, small_data):
  arm = workdir / 'arms' / 'rounds'
  (workdir / ROUND).unlink()
  shutil.rmtree(arm / 'rounds' / '2' / 'network')
  message = refusal(pipeline.run, make_config(small_data, **OPTIONS), workdir)
  assert message.endswith(f'delete {arm} and run the same command, which trains it anew')
  shutil.rmtree(arm)
  again = pipeline.run(make_config(small_data, **OPTIONS), workdir)
  assert without_seconds(again) == without_seconds(trained_run[1])


@pytest.mark.slow
def test_only_checkpoint_that_is_damaged_is_trained_anew(workdir, trained_run, small_data):
  arm = workdir / 'arms' / 'rounds'
  older, newest = sorted((arm / 'checkpoints').iterdir(), key=lambda path: int(path.name))
  (newest / 'extra' / 'metadata').write_bytes(b'[' * 100_000)
  message = refusal(sjft_jax.load, arm)
  assert (
    f'; delete it to use the one before, of step {older.name}; to have that of step ' in message
  )
  # The run is finished: its command would not train the last steps again.
  assert f' again, delete {arm} and {workdir / "results.json"} and run the command' in message
  shutil.rmtree(newest)
  assert sjft_jax.load(arm).step == int(older.name)
  (older / 'state' / '_METADATA').write_bytes(b'{}')
  message = refusal(sjft_jax.load, arm)
  assert message.startswith(f'checkpoint {older} is damaged')
  assert f'delete {arm} and {workdir / "results.json"} and run the command' in message
  shutil.rmtree(arm)
  (workdir / 'results.json').unlink()
  pipeline.run(make_config(small_data, **OPTIONS), workdir)
  images = small_data / 'target' / 'test'
  predicted = [
    sjft_jax.load(run / 'arms/rounds').predict(images) for run in (workdir, trained_run[0])
  ]
  np.testing.assert_array_equal(*predicted)


@pytest.mark.slow
def test_changed_bit_of_a_network_is_no_other_prediction(workdir):
  """A checkpoint's own checksums are compared by those who only predict, too."""
  arm = workdir / 'arms' / 'rounds'
  newest = max((arm / 'checkpoints').iterdir(), key=lambda path: int(path.name))
  files = [path for path in (newest / 'state' / 'ocdbt.process_0' / 'd').iterdir()]
  file = max(files, key=lambda path: path.stat().st_size)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  assert f'checkpoint {newest} is damaged' in refusal(sjft_jax.load, arm)


@pytest.mark.slow
def test_number_of_micro_batches_is_not_chosen_again(workdir, tmp_path, small_data):
  file = tmp_path / 'accumulated' / 'accumulation.4.json'
  options = {**OPTIONS, 'arms': ('none',), 'training.accumulation': 0}
  first = pipeline.run(make_config(small_data, **options), file.parent)
  (file.parent / 'results.json').unlink()
  for damage in ('empty', 'list', 'another number'):
    content = file.read_bytes()
    changed = (
      content.replace(b'1', b'2', 1) if damage == 'another number' else DAMAGES[damage](content)
    )
    file.write_bytes(changed)
    message = refusal(pipeline.run, make_config(small_data, **options), file.parent)
    assert message.startswith(f'{file} is damaged')
    file.write_bytes(content)
  file.unlink()
  for name in ('arms', 'pretrain'):
    assert str(file.parent / name) in message
    shutil.rmtree(file.parent / name, ignore_errors=True)
  again = pipeline.run(make_config(small_data, **options), file.parent)
  assert without_seconds(again) == without_seconds(first)


@pytest.mark.slow
def test_commands_end_with_one_line(workdir, small_data, tmp_path):
  arm, output = workdir / 'arms' / 'rounds', tmp_path / 'p.csv'
  main = command(small_data, workdir, '--config.pretrain.steps=0', '--config.arms=none,rounds')
  predict = ['sjft_jax.predict', f'--images={small_data}', f'--output={output}', f'--run={arm}']
  for name, start in {
    'config.json': main,
    'results.json': [sys.executable, '-m', 'sjft_jax.fuse', f'--run={arm}'],
    'network.json': [sys.executable, '-m', *predict],
  }.items():
    file, content = workdir / name, (workdir / name).read_bytes()
    file.write_bytes(b'[' * 100_000)
    message = commands.refusal(commands.start(start))
    assert message == f'error: {file} is damaged: it is nested too deep; {ADVICE}\n'
    file.write_bytes(content)


@pytest.mark.parametrize('kind', ['folder', 'pipe', 'large'])
def test_what_is_no_file_is_not_read(tmp_path, kind):
  path = epath.Path(tmp_path / 'results.json')
  if kind == 'folder':
    path.mkdir()
  elif kind == 'pipe':
    os.mkfifo(path)
  else:
    with open(path, 'wb') as file:
      file.truncate(2**40)
  message = refusal(artifacts.load_json, path, {})
  assert message.startswith(f'{path} is damaged: it ')
  if kind != 'large':
    assert refusal(artifacts.load, path, 'x').startswith(f'{path} is damaged (it is no file)')


@pytest.mark.parametrize(
  'attack', ['compressed', 'overlapping', 'empty elements', 'objects', 'without the last']
)
def test_arrays_take_no_more_memory_than_their_file(tmp_path, attack):
  path = tmp_path / 'a.npz'
  if attack == 'compressed':
    np.savez_compressed(path, fingerprint='x', zeros=np.zeros(2**24))
  elif attack == 'empty elements':
    with open(tmp_path / 'a.npy', 'wb') as file:
      header = {'descr': '<U0', 'fortran_order': False, 'shape': (2**50,)}
      np.lib.format.write_array_header_1_0(file, header)
    with zipfile.ZipFile(path, 'w') as archive:
      archive.write(tmp_path / 'a.npy', 'images.npy')
  elif attack == 'without the last':
    np.savez(path, fingerprint='x', a=np.zeros(3), b=np.zeros(3))
    content = path.read_bytes()
    second, end = content.rindex(b'PK\1\2'), content.rindex(b'PK\5\6')
    counts = struct.pack('<HHI', 2, 2, second - content.index(b'PK\1\2'))
    path.write_bytes(content[:second] + content[end : end + 8] + counts + content[end + 16 :])
  elif attack == 'objects':
    np.savez(path, fingerprint='x', a=np.array([{}], object))
  else:
    np.savez(path, fingerprint='x', a=np.zeros(1000), b=np.zeros(1000))
    content = path.read_bytes()
    first, second = (content.index(name) for name in (b'a.npy', b'b.npy'))
    # The directory says where each member begins.
    end = content.rindex(b'b.npy')
    assert second > first
    path.write_bytes(content[: end - 4] + (first - 30).to_bytes(4, 'little') + content[end:])
  message = refusal(artifacts.load, path, 'x')
  assert message.startswith(f'{path} is damaged')


@pytest.mark.slow
def test_description_of_another_network_is_refused(trained_run, tmp_path):
  workdir = shutil.copytree(trained_run[0], tmp_path / 'run')
  saved = artifacts.unseal(json.loads((workdir / 'network.json').read_text()))
  for changes in ({'width': '1'}, {'classes': 3}, {'name': None}):
    artifacts.write_json(workdir / 'network.json', saved | changes)
    message = refusal(run_checkpoint.load_newest, str(workdir / 'arms' / 'rounds'))
    assert message.endswith(f'it has no {next(iter(changes))} of the right type; {ADVICE}')


@pytest.mark.slow
def test_other_weights_under_the_same_name_are_refused(small_data, trained_run, tmp_path):
  weights = tmp_path / 'weights'
  for name in ('arms/none/checkpoints', 'arms/rounds/checkpoints'):
    shutil.copytree(trained_run[0] / name, weights / name)
  shutil.copy(trained_run[0] / 'network.json', weights)
  options = [
    *(f'--config.model.pretrained={weights}/arms/none', '--config.arms=none'),
    *('--config.pretrain.steps=0', '--config.training.steps=2', '--config.selection.rounds=1'),
  ]
  command_line = command(small_data, tmp_path / 'run', *options)
  for message in ('results.json', 'is finished, nothing is repeated'):
    output, errors = commands.start(command_line).communicate(timeout=300)
    assert message in output, errors
  shutil.rmtree(weights / 'arms/none/checkpoints')
  (weights / 'arms/rounds/checkpoints').rename(weights / 'arms/none/checkpoints')
  output, errors = commands.start(command_line).communicate(timeout=300)
  assert 'the trunk as it is after' in output
  assert errors.startswith('error: ')
  assert 'was made from other data or weights' in errors
