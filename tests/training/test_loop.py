import json
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.runtime import preemption
from sjft_jax.training.checkpoints import Checkpoints
from sjft_jax.training.loop import fit
from sjft_jax.training.metric_writer import MetricWriter
from sjft_jax.training.step import TrainState, replicate
from sjft_jax.training.throughput import ThroughputMeter


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


def saved(directory, fingerprint='numbers'):
  return Checkpoints(directory / 'checkpoints', fingerprint)


def run(directory: Path, stop=25, feed=numbers, examine=lambda number, sums: None, seconds=0.0):
  """From the newest checkpoint, if there is one, as if a step took so many seconds."""
  taken = []
  with saved(directory) as checkpoints:
    state, known = checkpoints.newest(like=initial()) or (initial(), {'seconds': 0.0, 'untold': []})
    start = int(state.step)
    meter = ThroughputMeter(2, 1)
    meter.step_seconds = seconds
    with MetricWriter(directory, 'run', start, tensorboard=False, wandb='', every=10) as journal:
      state, known = fit(
        add,
        replicate(state),
        feed(start, stop),
        start=start,
        stop=stop,
        progress=known,
        checkpoints=checkpoints,
        checkpoint_every=7,
        journal=journal,
        meter=meter,
        examine=examine,
        advance=lambda steps, note: taken.append(steps),
      )
  return state, known, taken


def log(directory):
  """Without the lines' rates."""
  lines = [json.loads(line) for line in (directory / 'log.jsonl').read_text().splitlines()]
  return [{name: line[name] for name in ('step', 'target_loss')} for line in lines]


EXPECTED = [
  {'step': 10, 'target_loss': 4.5},
  {'step': 20, 'target_loss': 14.5},
  {'step': 25, 'target_loss': 22.0},
]


def test_every_batch_is_taken_once_and_logged_in_means_of_ten(tmp_path):
  state, known, taken = run(tmp_path)
  assert float(state.params[0]) == sum(range(25))
  assert sum(taken) == 25
  assert known['seconds'] > 0
  assert log(tmp_path) == EXPECTED


def dies_at(death):
  def feed(start, stop):
    for number in numbers(start, stop):
      if number == death:
        raise ConnectionError('killed')
      yield number

  return feed


@pytest.mark.parametrize('death', [0, 8, 17, 22])
def test_going_on_from_a_checkpoint_ends_in_the_same_state_and_log(tmp_path, death):
  with pytest.raises(ConnectionError):
    run(tmp_path, feed=dies_at(death))
  state, _, taken = run(tmp_path)
  assert sum(taken) == 25 - death // 7 * 7
  assert float(state.params[0]) == sum(range(25))
  assert log(tmp_path) == EXPECTED


@pytest.mark.parametrize(('seconds', 'reached'), [(0.01, 12), (20.0, 11)])
def test_asked_to_stop_it_saves_what_was_under_way(tmp_path, monkeypatch, seconds, reached):
  """Of long steps no other has been handed over while one is taken."""
  monkeypatch.setattr(preemption, '_stopping', None)
  monkeypatch.setattr(preemption, '_is_asked_here', False)

  def asks_at_10(number, sums):
    if number == 10:
      preemption._ask(signal.SIGTERM, None)

  with pytest.raises(preemption.Stopped) as stopped:
    run(tmp_path, examine=asks_at_10, seconds=seconds)
  assert stopped.value.status == 143
  monkeypatch.setattr(preemption, '_stopping', None)
  with saved(tmp_path) as checkpoints:
    assert checkpoints.steps()[-1] == reached
  state, _, taken = run(tmp_path)
  assert sum(taken) == 25 - reached
  assert float(state.params[0]) == sum(range(25))
  assert log(tmp_path) == EXPECTED


def test_no_steps_left_is_no_work_and_no_second_checkpoint(tmp_path):
  run(tmp_path)
  state, _, taken = run(tmp_path)
  assert taken == []
  assert float(state.params[0]) == sum(range(25))


def test_metrics_are_examined_before_they_are_saved_or_told(tmp_path):
  def refuse(number, sums):
    if sums['target_loss'] == (2.0 * 20, 2):
      raise FloatingPointError(f'step {number}')

  with pytest.raises(FloatingPointError, match='step 20'):
    run(tmp_path, examine=refuse)
  with saved(tmp_path) as checkpoints:
    assert checkpoints.steps() == [7, 14]
  assert log(tmp_path) == EXPECTED[:2]


def truncate(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


@pytest.mark.parametrize('damage', [truncate, flip, Path.unlink])
@pytest.mark.parametrize('part', ['state', 'progress'])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, damage, part):
  run(tmp_path)
  files = [file for file in (tmp_path / 'checkpoints' / '25' / part).rglob('*') if file.is_file()]
  damage(max(files, key=lambda file: file.stat().st_size))
  state, _, taken = run(tmp_path)
  told = ' '.join(capsys.readouterr().out.split())
  assert f'{tmp_path / "checkpoints" / "25"} is damaged' in told
  assert sum(taken) == 4
  assert float(state.params[0]) == sum(range(25))
  assert log(tmp_path) == EXPECTED
  with saved(tmp_path) as checkpoints:
    assert int(checkpoints.newest(like=initial())[0].step) == 25


def test_a_checkpoint_of_another_network_or_of_other_data_is_refused(tmp_path):
  run(tmp_path)
  other = TrainState(jnp.int32(0), {'kernel': jnp.zeros((2, 2))}, {}, {})
  for fingerprint, like in (('numbers', other), ('letters', initial())):
    with (
      saved(tmp_path, fingerprint) as checkpoints,
      pytest.raises(ValueError, match='was made from other data or another version'),
    ):
      checkpoints.newest(like=like)
