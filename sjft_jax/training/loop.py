"""The loop around the training step: checkpoint → fetch → step → log, in this order."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from sjft_jax import interruption
from sjft_jax.report.journal import Journal
from sjft_jax.training.checkpoints import Checkpoints
from sjft_jax.training.meter import Meter
from sjft_jax.training.step import Metrics, TrainState, unreplicate

# The metrics of a step on the host: sum and count by name.
Sums = dict[str, tuple[float, int]]

_LONG = 1.0  # seconds; of a longer step, handing over the next one costs a negligible part


def fit(
  step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
  state: TrainState,
  batches: Iterator[Any],
  *,
  start: int,
  stop: int,
  progress: dict[str, Any],
  checkpoints: Checkpoints,
  checkpoint_every: int,
  journal: Journal,
  meter: Meter,
  examine: Callable[[int, Sums], None],
  advance: Callable[[int, str], None],
) -> tuple[TrainState, dict[str, Any]]:
  """Takes the steps start..stop-1 and saves the state at the end.

  The devices do not wait for this loop: a short step is handed over before the one before it ends.
  Asked to stop (see `interruption`), it saves the state after the steps that were handed over by
  then: the one under way and, if steps are short, one more.

  Args:
    step: (replicated state, sharded batch) -> (state, metrics); a metric is a (sum, count) pair.
    state: replicated over the devices; at step `start`.
    batches: one for each step, already in the shape that `step` takes.
    start: the first step to take.
    stop: the step to end before.
    progress: of a checkpoint at `start`: 'seconds' spent before, and 'untold', the metrics of steps
      that were not in the journal yet.
    checkpoints: where the state is saved.
    checkpoint_every: steps between saves.
    journal: told the means of every `journal.every` steps, and how fast they were.
    meter: watches `step` and `batches`.
    examine: given a step's number and metrics, before these are saved or told; may raise.
    advance: told the number of steps taken, and which stage is the slower one.

  Returns:
    The state, and the progress there.

  Raises:
    Stopped: it was asked to.
  """
  begun = time.monotonic() - progress['seconds']
  untold: list[Sums] = list(progress['untold'])
  handed: list[tuple[int, Metrics]] = []

  def settle(keep: int = 0) -> None:
    """Looks at the metrics of all steps but the newest `keep`, as soon as they are there."""
    while len(handed) > keep:
      number, metrics = handed.pop(0)
      fetched = jax.device_get(metrics)
      sums = {name: (float(total), int(count)) for name, (total, count) in fetched.items()}
      examine(number, sums)
      untold.append(sums)
      if (number + 1) % journal.every == 0 or number + 1 == stop:
        journal.log(number + 1, _means(untold) | meter.rates())
        untold.clear()
      advance(1, meter.note)

  def save(number: int) -> dict[str, Any]:
    settle()
    journal.flush()
    # A copy: it is written in the background.
    reached = {'seconds': time.monotonic() - begun, 'untold': [*untold]}
    checkpoints.save(number, unreplicate(state), reached)
    return reached

  with interruption.deferred(together=True):
    for number in range(start, stop):
      batch = next(batches)
      settle(keep=1 if meter.step_seconds < _LONG else 0)
      if interruption.is_asked():
        save(number)
        checkpoints.wait()
        interruption.check()
      if number > start and number % checkpoint_every == 0:
        save(number)
      state, metrics = step(state, batch)
      handed.append((number, metrics))
    progress = save(stop)
  return state, progress


def _means(steps: list[Sums]) -> dict[str, float]:
  totals: dict[str, tuple[float, int]] = {}
  for metrics in steps:
    for name, (value, count) in metrics.items():
      before = totals.get(name, (0.0, 0))
      totals[name] = before[0] + value, before[1] + count
  return {name: value / count for name, (value, count) in totals.items() if count}
