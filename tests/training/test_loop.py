import json
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.runtime import preemption
from sjft_jax.runtime.checkpoints import Checkpoints
from sjft_jax.training.loop import Progress, fit
from sjft_jax.training.metric_writer import LoggingOptions, MetricWriter
from sjft_jax.training.sharding import replicate
from sjft_jax.training.step import TrainState
from sjft_jax.training.throughput import ThroughputMeter

STEPS = 25


@jax.pmap
def _add(state, batch):
  return state.replace(step=state.step + 1, params=state.params + batch)


def add(state, batch):
  """Take a 'training step' that adds up its batches; its loss is the batch."""
  devices = jax.local_device_count()
  state = _add(state, jnp.full(devices, batch))
  return state, {'target_loss': (jnp.float32(2 * batch), jnp.int32(2))}


def initial_state():
  return TrainState(jnp.int32(0), jnp.float32(0), {}, {})


def numbers(start, stop):
  return (np.float32(n) for n in range(start, stop))


def open_checkpoints(directory, fingerprint='numbers'):
  return Checkpoints(directory / 'checkpoints', fingerprint)


def run(
  directory: Path, make_batches=numbers, check_metrics=lambda number, sums: None, step_seconds=0.0
):
  """Train from the newest checkpoint, if there is one, as if a step took `step_seconds`.

  Returns the progress and a list of the numbers of steps that ended.
  """
  ended = []
  with open_checkpoints(directory) as checkpoints:
    state, extra = checkpoints.load_newest(like=initial_state()) or (initial_state(), {})
    start = int(state.step)
    meter = ThroughputMeter(2, 1)
    meter.step_seconds = step_seconds
    options = LoggingOptions(every=10, tensorboard=False, wandb='')
    with MetricWriter(directory, name='run', step=start, options=options) as writer:
      progress = fit(
        add,
        Progress(replicate(state), start, **extra),
        make_batches(start, STEPS),
        stop=STEPS,
        checkpoints=checkpoints,
        checkpoint_every=7,
        writer=writer,
        learning_rate=lambda number: number / 100,
        meter=meter,
        check_metrics=check_metrics,
        advance=lambda steps, note: ended.append(steps),
      )
  assert progress.step == STEPS
  return progress, ended


def read_log(directory):
  """Read the lines of the log, without the throughput."""
  lines = [json.loads(line) for line in (directory / 'log.jsonl').read_text().splitlines()]
  return [{name: line[name] for name in ('step', 'target_loss', 'learning_rate')} for line in lines]


EXPECTED_LOG = [
  {'step': 10, 'target_loss': 4.5, 'learning_rate': 0.09},
  {'step': 20, 'target_loss': 14.5, 'learning_rate': 0.19},
  {'step': 25, 'target_loss': 22.0, 'learning_rate': 0.24},
]


def test_fit_takes_every_batch_once_and_logs_means_of_ten_steps(tmp_path):
  progress, ended = run(tmp_path)
  assert float(progress.state.params[0]) == sum(range(25))
  assert sum(ended) == 25
  assert progress.seconds > 0
  assert read_log(tmp_path) == EXPECTED_LOG


def failing_at(step):
  def make_batches(start, stop):
    for number in numbers(start, stop):
      if number == step:
        raise ConnectionError('killed')
      yield number

  return make_batches


@pytest.mark.parametrize('step', [0, 8, 17, 22])
def test_resumed_training_ends_in_the_same_state_and_log(tmp_path, step):
  with pytest.raises(ConnectionError):
    run(tmp_path, make_batches=failing_at(step))
  progress, ended = run(tmp_path)
  assert sum(ended) == 25 - step // 7 * 7
  assert float(progress.state.params[0]) == sum(range(25))
  assert read_log(tmp_path) == EXPECTED_LOG


@pytest.mark.parametrize(('step_seconds', 'saved_step'), [(0.01, 12), (20.0, 11)])
def test_stopped_training_saves_the_steps_in_flight(
  tmp_path, monkeypatch, step_seconds, saved_step
):
  """While a long step is taken, the devices do not have the next one yet."""
  monkeypatch.setattr(preemption, '_stop_signal', None)
  monkeypatch.setattr(preemption, '_is_requested', False)

  def stop_at_10(number, sums):
    if number == 10:
      preemption._handle_signal(signal.SIGTERM, None)

  with pytest.raises(preemption.Stopped) as stopped:
    run(tmp_path, check_metrics=stop_at_10, step_seconds=step_seconds)
  assert stopped.value.status == 143
  monkeypatch.setattr(preemption, '_stop_signal', None)
  with open_checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps()[-1] == saved_step
  progress, ended = run(tmp_path)
  assert sum(ended) == 25 - saved_step
  assert float(progress.state.params[0]) == sum(range(25))
  assert read_log(tmp_path) == EXPECTED_LOG


def test_finished_training_takes_no_step(tmp_path):
  run(tmp_path)
  progress, ended = run(tmp_path)
  assert ended == []
  assert float(progress.state.params[0]) == sum(range(25))


def test_metrics_are_checked_before_they_are_saved_or_logged(tmp_path):
  def refuse(number, sums):
    if sums['target_loss'] == (2.0 * 20, 2):
      raise FloatingPointError(f'step {number}')

  with pytest.raises(FloatingPointError, match='step 20'):
    run(tmp_path, check_metrics=refuse)
  with open_checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps() == [7, 14]
  assert read_log(tmp_path) == EXPECTED_LOG[:2]


@pytest.mark.parametrize('part', ['state', 'extra'])
def test_training_repeats_the_steps_of_a_damaged_checkpoint(tmp_path, capsys, part):
  run(tmp_path)
  files = [file for file in (tmp_path / 'checkpoints' / '25' / part).rglob('*') if file.is_file()]
  largest = max(files, key=lambda file: file.stat().st_size)
  largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
  progress, ended = run(tmp_path)
  output = ' '.join(capsys.readouterr().out.split())
  assert f'{tmp_path / "checkpoints" / "25"} is damaged' in output
  assert sum(ended) == 4
  assert float(progress.state.params[0]) == sum(range(25))
  assert read_log(tmp_path) == EXPECTED_LOG
  with open_checkpoints(tmp_path) as checkpoints:
    assert int(checkpoints.load_newest(like=initial_state())[0].step) == 25
