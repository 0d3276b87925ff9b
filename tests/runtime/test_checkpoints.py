import asyncio
import contextlib
import errno
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from sjft_jax.runtime.checkpoints import Checkpoints, load_newest

STATE = {'kernel': np.arange(6, dtype=np.float32).reshape(2, 3), 'step': np.array(7, np.int32)}


def save(directory, *steps):
  """Save a state for each step, whose kernel is multiplied by the step."""
  with Checkpoints(directory, 'a run') as checkpoints:
    for step in steps:
      checkpoints.save(step, STATE | {'kernel': STATE['kernel'] * step}, {'seconds': step / 2})


def test_newest_checkpoint_is_loaded_with_its_extra(tmp_path):
  save(tmp_path, 3, 5, 8)
  with Checkpoints(tmp_path, 'a run') as checkpoints:
    assert checkpoints.steps() == [5, 8]
    state, extra = checkpoints.load_newest(like=STATE)
  jax.tree.map(np.testing.assert_array_equal, state, STATE | {'kernel': 8 * STATE['kernel']})
  assert extra == {'seconds': 4.0}


def test_empty_directory_has_no_checkpoint(tmp_path):
  with Checkpoints(tmp_path, 'a run') as checkpoints:
    assert checkpoints.load_newest(like=STATE) is None
    assert checkpoints.steps() == []


def test_saved_step_is_not_saved_again(tmp_path):
  save(tmp_path, 3)
  with Checkpoints(tmp_path, 'a run') as checkpoints:
    checkpoints.save(3, STATE, {'seconds': 100.0})
    checkpoints.wait()
    assert checkpoints.load_newest(like=STATE)[1] == {'seconds': 1.5}


def test_checkpoint_that_is_being_written_is_not_called_damaged(tmp_path, monkeypatch, capsys):
  write = ocp.JsonCheckpointHandler._save_fn

  async def write_late(*arguments):
    await asyncio.sleep(0.5)
    await write(*arguments)

  monkeypatch.setattr(ocp.JsonCheckpointHandler, '_save_fn', write_late)
  with Checkpoints(tmp_path, 'a run') as checkpoints:
    checkpoints.save(3, STATE, {'seconds': 1.5})
    assert checkpoints.load_newest(like=STATE)[1] == {'seconds': 1.5}
  assert not capsys.readouterr().out


def truncate(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


def empty(file):
  file.write_bytes(b'')


@pytest.mark.parametrize('damage', [truncate, flip, Path.unlink, empty])
def test_damage_of_any_file_is_named_or_does_not_matter(tmp_path, capsys, damage):
  """What is loaded is right to the bit, of this checkpoint or of the one before."""
  save(tmp_path / 'saved', 3, 5)
  files = [file for file in (tmp_path / 'saved' / '5').rglob('*') if file.is_file()]
  named = set()
  for number, name in enumerate(file.relative_to(tmp_path / 'saved') for file in files):
    directory = shutil.copytree(tmp_path / 'saved', tmp_path / str(number))
    damage(directory / name)
    with Checkpoints(directory, 'a run') as checkpoints:
      state, extra = checkpoints.load_newest(like=STATE)
      step = round(2 * extra['seconds'])
      np.testing.assert_array_equal(state['kernel'], step * STATE['kernel'])
      output = ' '.join(capsys.readouterr().out.split())
      if step == 3 and checkpoints.steps() == [3, 5]:
        named.add(name.parts[1])
        assert f'{directory / "5"} is damaged' in output
        assert output.endswith('the one before is used')
      checkpoints.save(5, STATE, {'seconds': 2.5})
      checkpoints.wait()
      state, _ = checkpoints.load_newest(like=STATE)
      if step == 3:
        np.testing.assert_array_equal(state['kernel'], STATE['kernel'])
    assert 'damaged' not in capsys.readouterr().out
  assert {'state', 'extra'} <= named


def test_only_checkpoint_that_is_damaged_is_named(tmp_path, capsys):
  save(tmp_path, 5)
  truncate(tmp_path / '5' / 'extra' / 'metadata')
  with Checkpoints(tmp_path, 'a run') as checkpoints:
    assert checkpoints.load_newest(like=STATE) is None
  assert 'there is none before it' in ' '.join(capsys.readouterr().out.split())


def test_failed_read_leaves_no_other_pending(tmp_path):
  """Orbax closes the event loop then, and every read that ends later prints a traceback."""
  state = {f'w{i}': np.random.default_rng(i).normal(size=(64, 64)) for i in range(100)}
  with Checkpoints(tmp_path, 'a run') as checkpoints:
    checkpoints.save(5, state, {})
  metadata = tmp_path / '5' / 'state' / '_METADATA'
  content = metadata.read_text()
  assert "'w0'" in content
  metadata.write_text(content.replace('w0', 'v0'))
  for _ in range(5):
    with pytest.raises(ValueError, match='is damaged'):
      load_newest(tmp_path)


SIDE = 2**20


@pytest.mark.parametrize(
  'forged', [{'shape': [SIDE, SIDE]}, {'chunks': [SIDE, SIDE]}, {'shape': [2**60, SIDE]}]
)
def test_array_that_declares_terabytes_is_not_read(tmp_path, capsys, forged):
  """TensorStore would allocate them, and abort the process."""
  save(tmp_path, 3, 5)
  base = f'file://{tmp_path / "5" / "state"}/'
  store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
  content = json.loads(store.read('kernel/.zarray').result().value)
  store.write('kernel/.zarray', json.dumps(content | forged).encode()).result()
  with pytest.raises(ValueError, match='declare .* and 192 MiB may be read'):
    load_newest(tmp_path)
  with Checkpoints(tmp_path, 'a run') as checkpoints:
    state, _ = checkpoints.load_newest(like=STATE)
  np.testing.assert_array_equal(state['kernel'], 3 * STATE['kernel'])
  assert 'declare' in capsys.readouterr().out


def change_tree(directory, change):
  """Replace the entries of the tree of arrays that a checkpoint describes."""
  file = directory / 'state' / '_METADATA'
  content = json.loads(file.read_text())
  content['tree_metadata'] = change(content['tree_metadata'])
  file.write_text(json.dumps(content))


def test_tree_of_many_or_deep_arrays_is_not_built(tmp_path):
  save(tmp_path, 3)
  key = {'key': 'a', 'key_type': 2}

  def nest(tree):
    return {'a': {**tree["('kernel',)"], 'key_metadata': [key] * 5000}}

  change_tree(tmp_path / '3', nest)
  with pytest.raises(ValueError, match='3 is damaged .its arrays are nested more than 64 deep'):
    load_newest(tmp_path)
  change_tree(tmp_path / '3', lambda tree: {f'{i}': tree['a'] for i in range(20)})
  with pytest.raises(ValueError, match='3 is damaged .its _METADATA has .* the limit is 2,097,152'):
    load_newest(tmp_path)


def test_description_of_other_types_is_named(tmp_path):
  save(tmp_path, 3)
  file = tmp_path / '3' / '_CHECKPOINT_METADATA'
  file.write_text(json.dumps(json.loads(file.read_text()) | {'metrics': 'x'}))
  with pytest.raises(ValueError, match=f'{tmp_path}.* is damaged'):
    load_newest(tmp_path)


def test_class_that_a_checkpoint_names_is_not_imported(tmp_path, monkeypatch):
  save(tmp_path / 'saved', 3)
  (tmp_path / 'payload.py').write_text(f'open({str(tmp_path / "marker")!r}, "w").close()')
  monkeypatch.syspath_prepend(tmp_path)
  for name in ('_CHECKPOINT_METADATA', 'state/_METADATA'):
    file = tmp_path / 'saved' / '3' / name
    content = file.read_text()
    changed = re.sub(r'"(orbax\.[.\w]+|np\.ndarray)"', '"payload.Evil"', content)
    assert 'payload.Evil' in changed
    file.write_text(changed)
    with contextlib.suppress(ValueError):
      load_newest(tmp_path / 'saved')
    assert not (tmp_path / 'marker').exists()
    file.write_text(content)


def test_reading_writes_nothing_and_logs_no_warning(tmp_path, caplog):
  save(tmp_path, 3)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
  step, state = load_newest(tmp_path)
  assert step == 3
  np.testing.assert_array_equal(state['kernel'], 3 * STATE['kernel'])
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before
  assert not caplog.records


def test_what_the_system_refuses_is_no_damage(tmp_path, monkeypatch):
  """The newest checkpoint would be deleted at the next save."""
  save(tmp_path, 3, 5)
  for error in (
    OSError(errno.EMFILE, 'Too many open files'),
    OSError(errno.ETIMEDOUT, 'Connection timed out'),
    ValueError('UNAVAILABLE: Error reading "gs://bucket/x": HTTP response code: 503'),
    MemoryError(),
  ):

    def restore(*_, error=error, **__):
      raise error

    with Checkpoints(tmp_path, 'a run') as checkpoints:
      monkeypatch.setattr(checkpoints._manager, 'restore', restore)
      with pytest.raises(type(error)):
        checkpoints.load_newest(like=STATE)
      assert checkpoints.steps() == [3, 5]


@pytest.mark.parametrize(
  ('fingerprint', 'like'),
  [
    ('another run', STATE),
    ('a run', STATE | {'kernel': jnp.zeros((2, 2))}),
    ('a run', STATE | {'bias': jnp.zeros(3)}),
    ('a run', STATE | {'step': np.array(7, np.float32)}),
  ],
)
def test_checkpoint_of_another_run_or_network_is_refused(tmp_path, fingerprint, like):
  save(tmp_path, 3)
  with (
    Checkpoints(tmp_path, fingerprint) as checkpoints,
    pytest.raises(ValueError, match='was made from other data or another version'),
  ):
    checkpoints.load_newest(like=like)
