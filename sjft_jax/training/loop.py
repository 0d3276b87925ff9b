"""The loop around the training step: checkpoint → fetch → step → log, in this order."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sjft_jax.training.checkpoints import Checkpoints
from sjft_jax.training.step import Metrics, TrainState, unreplicate

LOG_EVERY = 10  # steps


def fit(
  step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
  state: TrainState,
  batches: Iterator[Any],
  *,
  start: int,
  stop: int,
  seconds: float,
  checkpoints: Checkpoints,
  checkpoint_every: int,
  log: Path,
  advance: Callable[[int], None],
) -> tuple[TrainState, float]:
  """Takes the steps start..stop-1 and saves the state at the end.

  Args:
    step: (replicated state, sharded batch) -> (state, metrics); a metric is a (sum, count) pair.
    state: replicated over the devices; at step `start`.
    batches: one for each step, already in the shape that `step` takes.
    start: the first step to take.
    stop: the step to end before.
    seconds: what the run has spent before; goes on counting in the checkpoints.
    checkpoints: where the state is saved.
    checkpoint_every: steps between saves.
    log: JSON lines, the means of every 10 steps, are appended here.
    advance: told the number of steps taken, for a progress bar.

  Returns:
    The state and the seconds spent, `seconds` included.

  Raises:
    FloatingPointError: the loss is not finite; the last checkpoint is from before that.
  """
  begun = time.monotonic() - seconds
  total: Metrics = {}
  with log.open('a') as lines:
    for number in range(start, stop):
      if number > start and number % checkpoint_every == 0:
        checkpoints.save(number, unreplicate(state), {'seconds': time.monotonic() - begun})
      state, metrics = step(state, next(batches))
      # Sums and counts add up on the device; fetching them at every step would make it wait.
      total = jax.tree.map(jnp.add, total, metrics) if total else metrics
      if (number + 1) % LOG_EVERY == 0 or number + 1 == stop:
        means = {name: float(value) / int(count) for name, (value, count) in total.items() if count}
        total = {}
        lines.write(json.dumps({'step': number + 1, **means}) + '\n')
        lines.flush()
        for name, mean in means.items():
          if not math.isfinite(mean):
            raise FloatingPointError(
              f'{name} is {mean} at step {number + 1}; lower solver.learning_rate'
            )
      advance(1)
  seconds = time.monotonic() - begun
  checkpoints.save(stop, unreplicate(state), {'seconds': seconds})
  return state, seconds
