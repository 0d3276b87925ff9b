"""Gradient accumulation: find the fewest micro-batches whose training step fits in memory.

XLA plans a program's memory when it compiles it; nothing is allocated to find out.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sjft_jax.runtime import console
from sjft_jax.runtime.compilation import CompiledFunction
from sjft_jax.runtime.memory import (
  OutOfMemoryError,
  available_bytes,
  format_bytes,
  is_out_of_memory,
  planned_bytes,
  tree_bytes,
)
from sjft_jax.training.step import TrainState, shard_batch


def choose_accumulation(
  step: CompiledFunction,
  state: TrainState,
  batch: dict[str, Any],
  *,
  batch_size: int,
  num_devices: int,
  limit: float | None = None,
) -> int:
  """The fewest micro-batches whose training step fits the devices' memory; says so in one line.

  A step is compiled for two or three candidates, for the largest micro-batch first: planned memory
  falls as micro-batches shrink, near enough to bracket and to extrapolate. Only a candidate that
  fits, next to a smaller number that does not, is the answer. The program of the answer is kept in
  `step`. A backend that does not plan, or tell its size, runs the candidates instead, one by one.

  Args:
    step: as `make_train_step` makes it.
    state: not replicated; arrays or their shapes.
    batch: of this process, leaves [image, ...]; arrays or their shapes.
    batch_size: that the micro-batches have to divide (`training.batch_size`), of all processes.
    num_devices: of all processes.
    limit: bytes that a device may use. Processes must agree on it. Default: `available_bytes()`.

  Raises:
    OutOfMemoryError: the smallest micro-batch does not fit.
  """
  limit = available_bytes() if limit is None else limit
  per_device = batch_size // num_devices
  candidates = [n for n in range(1, per_device + 1) if per_device % n == 0]
  devices = num_devices // jax.process_count()
  copies = jax.tree.map(lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype), state)
  needs: dict[int, float] = {}

  def need(accumulation: int) -> float:
    shard = functools.partial(shard_batch, accumulation=accumulation, num_devices=devices)
    arguments = copies, jax.eval_shape(shard, batch)
    try:
      plan = planned_bytes(step.program(*arguments))
      if plan is None or limit == math.inf:
        jax.block_until_ready(step(*jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), arguments)))
        plan = 0
      needs[accumulation] = plan
    except jax.errors.JaxRuntimeError as error:
      if not is_out_of_memory(error):
        raise
      needs[accumulation] = math.inf
    return needs[accumulation]

  images = len(jax.tree.leaves(batch)[0]) // devices
  chosen = first_fitting(
    candidates, need, limit=limit, fixed=tree_bytes(state) + tree_bytes(batch) / devices
  )
  plans = ', '.join(f'{n} × {images // n} images {format_bytes(needs[n])}' for n in sorted(needs))
  plans = plans or 'its state and images alone take more'
  plans += f'; {format_bytes(limit)} may be used' if limit < math.inf else ''
  if chosen is None:
    raise OutOfMemoryError(
      f'no training.accumulation makes a training step fit a device ({plans}); lower '
      'training.batch_size, images.crop or model.width'
    )
  console.say(f'  training.accumulation={chosen}: the fewest micro-batches that fit ({plans})')
  return chosen


def first_fitting(
  candidates: Sequence[int], need: Callable[[int], float], *, limit: float, fixed: float
) -> int | None:
  """The first candidate whose need is within the limit, None if there is none.

  Args:
    candidates: rising.
    need: never rises from one candidate to the next; infinite: not known, but too much.
    limit: in the unit of `need`.
    fixed: the part of the need that is the same for all; the rest is guessed to fall as
      1 / candidate. A wrong guess costs further calls of `need`, not the answer.
  """
  if fixed > limit:
    return None
  # The first `low` do not fit; from `high` on all do.
  low, high, guess = 0, len(candidates), 0
  while low < high:
    needed = need(candidates[guess])
    if needed <= limit:
      high, guess = guess, guess - 1
      continue
    low = guess = guess + 1
    if math.isfinite(needed):
      rest = candidates[low - 1] * (needed - fixed)
      fitting = (i for i in range(low, high) if candidates[i] * (limit - fixed) >= rest)
      guess = next(fitting, high - 1)
  return candidates[low] if low < len(candidates) else None


def training_hint(
  *, accumulation: int, batch_size: int, num_devices: int, name: str, remat: bool, dtype: str
) -> str:
  """Which options lower what a training step needs, with values to try.

  Args:
    accumulation, batch_size: those of `training`.
    num_devices: of all processes.
    name, remat, dtype: those of `model`.
  """
  per_device = batch_size // num_devices
  more = [n for n in range(accumulation + 1, per_device + 1) if per_device % n == 0]
  ways = [f'raise training.accumulation from {accumulation} to {more[0]}'] if more else []
  # XLA's CPU compiler drops rematerialisation and widens bfloat16: they save nothing there.
  if jax.default_backend() != 'cpu':
    if not (remat or name.startswith('alexnet')):
      ways.append('set model.remat=True')
    if dtype == 'float32':
      ways.append('set model.dtype=bfloat16')
  return ', or '.join(ways or ['lower training.batch_size or images.crop'])
