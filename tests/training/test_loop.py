import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.training.checkpoints import Checkpoints
from sjft_jax.training.loop import fit
from sjft_jax.training.step import TrainState, replicate


@jax.pmap
def _add(state, batch):
  return state.replace(step=state.step + 1, params=state.params + batch)


def add(state, batch):
  """A 'training step' that sums what it is fed; its loss is the batch."""
  devices = jax.local_device_count()
  state = _add(state, jnp.full(devices, batch))
  return state, {'target_loss': (jnp.float32(2 * batch), jnp.int32(2))}


def initial():
  return TrainState(jnp.int32(0), jnp.float32(0), {}, {})


def numbers(start, stop):
  return (np.float32(n) for n in range(start, stop))


def run(directory: Path, start=0, stop=25, state=None, seconds=0.0, feed=numbers):
  taken = []
  with Checkpoints(directory / 'checkpoints') as checkpoints:
    state, seconds = fit(
      add,
      replicate(state or initial()),
      feed(start, stop),
      start=start,
      stop=stop,
      seconds=seconds,
      checkpoints=checkpoints,
      checkpoint_every=10,
      log=directory / 'log.jsonl',
      advance=taken.append,
    )
  return state, seconds, taken


def test_every_batch_is_taken_once_and_logged_in_means_of_ten(tmp_path):
  state, seconds, taken = run(tmp_path)
  assert float(state.params[0]) == sum(range(25))
  assert sum(taken) == 25
  assert seconds > 0
  log = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
  assert log == [
    {'step': 10, 'target_loss': 4.5},
    {'step': 20, 'target_loss': 14.5},
    {'step': 25, 'target_loss': 22.0},
  ]


def test_going_on_from_a_checkpoint_ends_in_the_same_state(tmp_path):
  def dies_at_17(start, stop):
    for number in numbers(start, stop):
      if number == 17:
        raise ConnectionError('killed')
      yield number

  with pytest.raises(ConnectionError):
    run(tmp_path, feed=dies_at_17)
  with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
    state, progress = checkpoints.newest(like=initial())
  assert int(state.step) == 10
  assert progress['seconds'] > 0
  state, seconds, _ = run(tmp_path, start=10, state=state, seconds=1000.0)
  assert float(state.params[0]) == sum(range(25))
  assert seconds > 1000


def test_no_steps_left_is_no_work_and_no_second_checkpoint(tmp_path):
  run(tmp_path)
  with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
    state, _ = checkpoints.newest(like=initial())
  state, _, taken = run(tmp_path, start=25, state=state)
  assert taken == []
  assert float(state.params[0]) == sum(range(25))


def test_a_loss_that_is_not_finite_stops_with_the_remedy(tmp_path):
  with pytest.raises(FloatingPointError, match=r'at step 10; lower solver\.learning_rate'):
    run(tmp_path, feed=lambda *_: iter([np.float32('nan')] * 25))


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
  run(tmp_path)
  other = TrainState(jnp.int32(0), {'kernel': jnp.zeros((2, 2))}, {}, {})
  with (
    Checkpoints(tmp_path / 'checkpoints') as checkpoints,
    pytest.raises(ValueError, match='do not match'),
  ):
    checkpoints.newest(like=other)
