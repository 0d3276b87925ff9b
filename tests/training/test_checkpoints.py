from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.training.checkpoints import Checkpoints

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


def truncate(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


@pytest.mark.parametrize('damage', [truncate, flip, Path.unlink])
@pytest.mark.parametrize('part', ['state', 'extra'])
def test_damaged_checkpoint_is_named_and_replaced(tmp_path, capsys, damage, part):
  save(tmp_path, 3, 5)
  files = [file for file in (tmp_path / '5' / part).rglob('*') if file.is_file()]
  damage(max(files, key=lambda file: file.stat().st_size))
  with Checkpoints(tmp_path, 'a run') as checkpoints:
    state, extra = checkpoints.load_newest(like=STATE)
    np.testing.assert_array_equal(state['kernel'], 3 * STATE['kernel'])
    assert extra == {'seconds': 1.5}
    output = ' '.join(capsys.readouterr().out.split())
    assert f'{tmp_path / "5"} is damaged' in output
    checkpoints.save(5, STATE, {})
    checkpoints.wait()
    state, extra = checkpoints.load_newest(like=STATE)
  np.testing.assert_array_equal(state['kernel'], STATE['kernel'])
  assert extra == {}
  assert 'damaged' not in capsys.readouterr().out


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
