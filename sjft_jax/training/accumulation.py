"""Gradient accumulation: find the fewest micro-batches whose training step fits in memory.

The paper's step (200 images of a ResNet-152) fits few devices at once, and how far it has to be
divided depends on the device. XLA plans the memory of a program when it compiles it, so nothing is
allocated to find out.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from sjft_jax.runtime import artifacts, console, distributed
from sjft_jax.runtime.compilation import CompiledFunction
from sjft_jax.runtime.memory import (
  OutOfMemoryError,
  available_bytes,
  format_bytes,
  is_out_of_memory,
  planned_bytes,
  tree_bytes,
)
from sjft_jax.training.sharding import shard_batch
from sjft_jax.training.step import TrainState

# A training step, as `make_train_step` makes it, and the state that it starts from: not replicated,
# arrays or their shapes.
Training = tuple[CompiledFunction, TrainState]


def load_or_choose_accumulation(
  path: epath.Path, trainings: Sequence[Training], batch: dict[str, Any], *, batch_size: int
) -> int:
  """Load the number of micro-batches from a file, or choose it and write the file.

  It decides batch statistics, so a run that is resumed must not choose again, on whichever devices.

  Args:
    path: of the JSON file.
    trainings: see `choose_accumulation`.
    batch: see there.
    batch_size: see there.

  Raises:
    OutOfMemoryError: the smallest micro-batch does not fit.
    ValueError: the file is damaged, or the devices cannot share its micro-batches.
  """
  if path.exists():
    # Nothing else says what the trainings there were made with.
    # The features are those of the trunk that was pretrained.
    names = 'arms', 'pretrain', 'features.npz', 'feature_ranking.npz'
    trained = ', '.join(str(path.parent / name) for name in names)
    remedy = f'delete it, {trained}, where they are there, and run the same command: it trains anew'
    accumulation: int = artifacts.load_json(path, {'accumulation': int}, remedy)['accumulation']
    devices, micro_batch = jax.device_count(), batch_size // accumulation
    if micro_batch % devices:
      raise ValueError(
        f'{path} has accumulation={accumulation}, which training.accumulation=0 chose on other '
        f'devices: {devices} cannot share its micro-batches of {micro_batch} target images evenly; '
        f'use a number of devices that divides {micro_batch}, or a new --workdir'
      )
    return accumulation
  # All processes must choose alike, so each takes the least memory of all.
  limits = distributed.all_gather(np.array(available_bytes(), np.float32))
  chosen = choose_accumulation(
    trainings,
    batch,
    batch_size=batch_size,
    num_devices=jax.device_count(),
    limit=float(limits.min()),
  )
  artifacts.write_json(path, {'accumulation': chosen})
  distributed.barrier()  # The next time, all processes find the file or none does.
  return chosen


def copy_accumulation(earlier_runs: Iterable[epath.Path], workdir: epath.Path) -> None:
  """Take up the numbers of micro-batches that earlier runs have chosen.

  Runs that are compared must not differ in them, and what fits depends on the memory that is free
  at the moment.
  """
  for run in earlier_runs:
    for file in run.glob('accumulation.*.json'):
      if not (workdir / file.name).exists():
        artifacts.write_json(workdir / file.name, artifacts.load_json(file, {'accumulation': int}))
  distributed.barrier()  # As in `load_or_choose_accumulation`.


def choose_accumulation(
  trainings: Sequence[Training],
  batch: dict[str, Any],
  *,
  batch_size: int,
  num_devices: int,
  limit: float,
) -> int:
  """Choose the fewest micro-batches whose training step fits the devices' memory; print one line.

  The step is compiled for two or three candidates, the largest micro-batch first (see
  `first_fitting`), and the program of the chosen one stays in it. Where the backend plans no
  memory, or the limit is not known, candidates are run instead, one by one.

  Args:
    trainings: those that share the number; the one that needs most memory decides.
    batch: of this process, leaves [image, ...]; arrays or their shapes.
    batch_size: pairs in a step, of all processes; the micro-batches have to divide it.
    num_devices: of all processes.
    limit: bytes that a device may use, the same in all processes; infinite: not known.

  Raises:
    OutOfMemoryError: the smallest micro-batch does not fit.
  """
  per_device = batch_size // num_devices
  candidates = [n for n in range(1, per_device + 1) if per_device % n == 0]
  devices = num_devices // jax.process_count()
  needs: dict[int, float] = {}

  def need_of(training: Training, accumulation: int) -> float:
    train_step, state = training
    replicas = jax.tree.map(lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype), state)
    shard = functools.partial(shard_batch, accumulation=accumulation, num_devices=devices)
    shapes = replicas, jax.eval_shape(shard, batch)
    try:
      planned = planned_bytes(train_step.program(*shapes))
      if planned is None or limit == math.inf:
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        jax.block_until_ready(train_step(*zeros))
        planned = 0
      return planned
    except jax.errors.JaxRuntimeError as error:
      if not is_out_of_memory(error):
        raise
      return math.inf

  def need(accumulation: int) -> float:
    needs[accumulation] = max(need_of(training, accumulation) for training in trainings)
    return needs[accumulation]

  images = len(jax.tree.leaves(batch)[0]) // devices
  largest_state = max(tree_bytes(state) for _, state in trainings)
  fixed = largest_state + tree_bytes(batch) / devices
  chosen = first_fitting(candidates, need, limit=limit, fixed=fixed)
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
  """Return the first candidate whose need is within the limit, or None.

  It extrapolates instead of bisecting, because each call of `need` compiles a training step (23 s
  for ResNet-152, experiments/bench_train_step.py): one call where the first candidate fits, and
  about three elsewhere. A candidate is the answer only if the one before it is known not to fit.

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
    if needed <= limit and math.isfinite(needed):
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
  """Return which options lower the memory of a training step, with values to try.

  All of them decide results: training cannot go on with other values.

  Args:
    accumulation: option of `training`.
    batch_size: option of `training`.
    num_devices: of all processes.
    name: option of `model`.
    remat: option of `model`.
    dtype: option of `model`.
  """
  per_device = batch_size // num_devices
  larger = [n for n in range(accumulation + 1, per_device + 1) if per_device % n == 0]
  hints = [f'raise training.accumulation from {accumulation} to {larger[0]}'] if larger else []
  # XLA's CPU compiler drops rematerialisation and widens bfloat16: they save nothing there.
  if jax.default_backend() != 'cpu':
    if not (remat or name.startswith('alexnet')):
      hints.append('set model.remat=True')
    if dtype == 'float32':
      hints.append('set model.dtype=bfloat16')
  options = ', or '.join(hints or ['lower training.batch_size or images.crop'])
  return f'{options}; as this changes results, it needs a new --workdir'
