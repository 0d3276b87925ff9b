"""The loop around the training step: checkpoint → fetch → step → log, in this order."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax

from sjft_jax.runtime import preemption
from sjft_jax.training.checkpoints import Checkpoints
from sjft_jax.training.metric_writer import MetricWriter
from sjft_jax.training.step import Metrics, TrainState, unreplicate
from sjft_jax.training.throughput import ThroughputMeter

# The metrics of a step on the host: (sum, count) by name.
Sums = dict[str, tuple[float, int]]

# Seconds. Handing over a step that takes longer costs a negligible part of its time.
_LONG_STEP_S = 1.0


@dataclass(frozen=True)
class Progress:
  """How far a training has come.

  Attributes:
    state: replicated over the devices.
    step: how many steps it has taken.
    seconds: the time that they took.
    pending_metrics: of the latest steps, which are not in the log yet.
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
  meter: ThroughputMeter,
  check_metrics: Callable[[int, Sums], None],
  advance: Callable[[int, str], None],
) -> Progress:
  """Train from `progress` up to step `stop` and save a checkpoint there.

  The devices do not wait for this loop: a short step is handed over before the one before it ends.
  When the process is asked to stop (see `preemption`), the state is saved after the steps that were
  handed over by then: the one under way and, if steps are short, one more.

  Args:
    train_step: (replicated state, sharded batch) -> (state, metrics); a metric is a (sum, count)
      pair. It consumes the state.
    progress: where to go on.
    batches: one for each step, already in the shape that `train_step` takes.
    stop: the step to end before.
    checkpoints: where the state is saved.
    checkpoint_every: steps between saves.
    writer: gets the means of every `writer.every` steps, and the throughput.
    meter: watches `train_step` and `batches`.
    check_metrics: called with a step's number and metrics before they are saved or logged; may
      raise.
    advance: called with the number of steps taken and a note on the slower stage.

  Returns:
    The progress at `stop`.

  Raises:
    Stopped: the process was asked to stop.
  """
  start, state = progress.step, progress.state
  start_time = time.monotonic() - progress.seconds
  pending_metrics = list(progress.pending_metrics)
  in_flight: list[tuple[int, Metrics]] = []

  def flush_metrics(keep: int = 0) -> None:
    """Wait for the metrics of all steps but the newest `keep`; check and log them."""
    while len(in_flight) > keep:
      number, metrics = in_flight.pop(0)
      on_host = jax.device_get(metrics)
      sums = {name: (float(total), int(count)) for name, (total, count) in on_host.items()}
      check_metrics(number, sums)
      pending_metrics.append(sums)
      if (number + 1) % writer.every == 0 or number + 1 == stop:
        writer.log(number + 1, _means(pending_metrics) | meter.rates())
        pending_metrics.clear()
      advance(1, meter.note)

  def save(number: int) -> Progress:
    flush_metrics()
    writer.flush()
    seconds = time.monotonic() - start_time
    # A copy: the checkpoint is written in the background.
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


def _means(steps: list[Sums]) -> dict[str, float]:
  totals: dict[str, tuple[float, int]] = {}
  for metrics in steps:
    for name, (value, count) in metrics.items():
      before = totals.get(name, (0.0, 0))
      totals[name] = before[0] + value, before[1] + count
  return {name: value / count for name, (value, count) in totals.items() if count}
