"""The loop around the training step: fetch → log → checkpoint → step, in this order.

What is logged are steps that have ended; the devices work on the next one meanwhile.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax

from sjft_jax.runtime import preemption
from sjft_jax.runtime.checkpoints import Checkpoints
from sjft_jax.training.metric_writer import MetricWriter
from sjft_jax.training.sharding import unreplicate
from sjft_jax.training.step import Metrics, TrainState
from sjft_jax.training.throughput import ThroughputMeter

# The metrics of a step on the host: (sum, count) by name.
Sums = dict[str, tuple[float, int]]

# Seconds. Waiting for a step that takes longer, before the next one is handed to the devices, costs
# a negligible part of its time.
_LONG_STEP_S = 1.0


@dataclass(frozen=True)
class Progress:
  """How far a training has come.

  Attributes:
    state: replicated over the devices.
    step: how many steps it has taken.
    seconds: the time that they took.
    pending_metrics: those of the latest steps, which are not logged yet.
  """

  state: TrainState
  step: int
  seconds: float = 0.0
  pending_metrics: list[Sums] = field(default_factory=list)


def fit(
  train_step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
  progress: Progress,
  batches: Iterator[Any],
  *,
  stop: int,
  checkpoints: Checkpoints,
  checkpoint_every: int,
  writer: MetricWriter,
  learning_rate: Callable[[int], float],
  meter: ThroughputMeter,
  check_metrics: Callable[[int, Sums], None],
  advance: Callable[[int, str], None],
) -> Progress:
  """Train from `progress` up to step `stop` and save a checkpoint there.

  The devices do not wait for this loop: a short step is handed to them before the one before it
  ends. When the process is asked to stop (see `preemption`), the state is saved after the steps
  that the devices have by then: the one under way and, if steps are short, one more.

  Args:
    train_step: (replicated state, sharded batch) -> (state, metrics); a metric is a (sum, count)
      pair. It consumes the state.
    progress: where to go on.
    batches: one for each step, already in the shape that `train_step` takes.
    stop: the step to end before.
    checkpoints: where the state is saved.
    checkpoint_every: steps between saves.
    writer: logs the means of every `writer.every` steps, the learning rate of the last of them, and
      the throughput.
    learning_rate: of a step by its number, from 0.
    meter: measures `train_step` and `batches`.
    check_metrics: called with a step's number, from 0, and its metrics before they are saved or
      logged; may raise.
    advance: called with the number of steps that have ended and a note on the slower stage.

  Returns:
    The progress at `stop`.

  Raises:
    Stopped: the process was asked to stop.
  """
  start, state = progress.step, progress.state
  start_time = time.monotonic() - progress.seconds
  pending_metrics = list(progress.pending_metrics)
  in_flight: list[tuple[int, Metrics]] = []  # Of steps that may not have ended.

  def flush_metrics(keep: int = 0) -> None:
    """Wait for all steps in flight but the newest `keep`; check and log their metrics."""
    while len(in_flight) > keep:
      number, metrics = in_flight.pop(0)
      on_host = jax.device_get(metrics)
      sums = {name: (float(total), int(count)) for name, (total, count) in on_host.items()}
      check_metrics(number, sums)
      pending_metrics.append(sums)
      if (number + 1) % writer.every == 0 or number + 1 == stop:
        rates = {'learning_rate': learning_rate(number)} | meter.rates()
        writer.log(number + 1, _mean_metrics(pending_metrics) | rates)
        pending_metrics.clear()
      advance(1, meter.note)

  def save(number: int) -> Progress:
    """Save the state after `number` steps."""
    flush_metrics()
    writer.flush()
    seconds = time.monotonic() - start_time
    # A copy, since the checkpoint is written in the background.
    pending = [*pending_metrics]
    extra = {'seconds': seconds, 'pending_metrics': pending}
    checkpoints.save(number, unreplicate(state), extra)
    return Progress(state, number, seconds, pending)

  with preemption.defer_signals(together=True):
    for number in range(start, stop):
      batch = next(batches)
      flush_metrics(keep=1 if meter.step_seconds < _LONG_STEP_S else 0)
      if preemption.should_stop():
        save(number)
        checkpoints.wait()
        preemption.raise_if_stopping()
      if number > start and number % checkpoint_every == 0:
        save(number)
      state, metrics = train_step(state, batch)
      in_flight.append((number, metrics))
    return save(stop)


def _mean_metrics(steps: list[Sums]) -> dict[str, float]:
  """Return the means over steps; a metric that counted nothing has none."""
  totals: dict[str, tuple[float, int]] = {}
  for metrics in steps:
    for name, (value, count) in metrics.items():
      total, total_count = totals.get(name, (0.0, 0))
      totals[name] = total + value, total_count + count
  return {name: total / count for name, (total, count) in totals.items() if count}
