"""What a step needs of a device's memory: chosen by before the first, explained where it runs out.

XLA plans a program's memory when it compiles it; nothing is allocated to find out.
"""

import contextlib
import errno
import functools
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np

from sjft_jax.compilation import Compiled
from sjft_jax.report import terminal
from sjft_jax.training.step import PyTree, TrainState, shard_batch

# How much of the free memory a step may plan with.  An accelerator also holds the next batch,
# buffers of its libraries, and gaps; a host what convolutions take besides XLA's plan (120 to 250
# MiB at steps of 300 to 1,200), the loader's images, the copy of the state that a checkpoint is
# written from, and whatever else runs there.
_SHARE = {'cpu': 0.75}
_SHARE_ELSEWHERE = 0.9

# XLA's clients of CPUs, GPUs and TPUs, CUDA's libraries, C++.  RESOURCE_EXHAUSTED alone is also
# said of messages that are too long.
_RAN_OUT = re.compile(
  r'out of memory|RESOURCE_EXHAUSTED.*(memory|alloc|reserve)|OUT_OF_MEMORY|ALLOC_FAILED|bad_alloc',
  re.DOTALL | re.IGNORECASE,
)


class OutOfMemoryError(ValueError):
  """Memory ran out, or would; the message is one line that says what to change."""


def choose_accumulation(
  step: Compiled,
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
    limit: bytes that a device may use. Processes must agree on it. Default: `budget()`.

  Raises:
    OutOfMemoryError: the smallest micro-batch does not fit.
  """
  limit = budget() if limit is None else limit
  per_device = batch_size // num_devices
  candidates = [n for n in range(1, per_device + 1) if per_device % n == 0]
  devices = num_devices // jax.process_count()
  copies = jax.tree.map(lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype), state)
  needs: dict[int, float] = {}

  def need(accumulation: int) -> float:
    shard = functools.partial(shard_batch, accumulation=accumulation, num_devices=devices)
    arguments = copies, jax.eval_shape(shard, batch)
    try:
      plan = planned(step.program(*arguments))
      if plan is None or limit == math.inf:
        jax.block_until_ready(step(*jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), arguments)))
        plan = 0
      needs[accumulation] = plan
    except jax.errors.JaxRuntimeError as error:
      if not ran_out(error):
        raise
      needs[accumulation] = math.inf
    return needs[accumulation]

  images = len(jax.tree.leaves(batch)[0]) // devices
  chosen = fewest(candidates, need, limit=limit, fixed=_bytes(state) + _bytes(batch) / devices)
  plans = ', '.join(f'{n} × {images // n} images {_size(needs[n])}' for n in sorted(needs))
  plans = plans or 'its state and images alone take more'
  plans += f'; {_size(limit)} may be used' if limit < math.inf else ''
  if chosen is None:
    raise OutOfMemoryError(
      f'no training.accumulation makes a training step fit a device ({plans}); lower '
      'training.batch_size, images.crop or model.width'
    )
  terminal.say(f'  training.accumulation={chosen}: the fewest micro-batches that fit ({plans})')
  return chosen


def fewest(
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


def planned(program: Any) -> int | None:
  """Bytes that each device needs to run a compiled program, None if its backend does not plan."""
  m = program.memory_analysis()
  if m is None:
    return None
  kept = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
  return kept + m.temp_size_in_bytes + m.generated_code_size_in_bytes


def budget() -> float:
  """Bytes that a step may plan with on each of this process's devices: most of what is free.

  Infinite if the device does not tell. Processes on the CPUs of one host each count all of it.
  """
  devices = jax.local_devices()
  platform = devices[0].platform
  share = _SHARE.get(platform, _SHARE_ELSEWHERE)
  if platform == 'cpu':
    return share * host_free() / len(devices)
  stats = [device.memory_stats() or {} for device in devices]
  return min(share * s.get('bytes_limit', math.inf) - s.get('bytes_in_use', 0) for s in stats)


def host_free(root: Path = Path('/')) -> int:
  """Bytes of the host's memory that this process can still take, within its control groups."""
  free = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
  with contextlib.suppress(OSError):  # Other systems than Linux have no such file.
    meminfo = (root / 'proc/meminfo').read_text()
    free = [1024 * int(kib) for kib in re.findall(r'MemAvailable: *(\d+) kB', meminfo)] or free
  groups = []
  with contextlib.suppress(OSError):
    groups = [
      line.split(':', 2) for line in (root / 'proc/self/cgroup').read_text().splitlines() if line
    ]
  for _, controllers, name in groups:
    if controllers == '':
      mount, files = 'sys/fs/cgroup', ('memory.max', 'memory.current', 'inactive_file')
    elif 'memory' in controllers.split(','):
      mount = 'sys/fs/cgroup/memory'
      files = ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file')
    else:
      continue
    group = PurePosixPath(name)
    # In a container the name may be the host's: then only the mount itself is there.
    for folder in (group, *group.parents):
      with contextlib.suppress(OSError, ValueError):  # ValueError: 'max', no limit.
        free.append(_group_free(root / mount / folder.relative_to('/'), *files))
  return max(min(free), 0)


def _group_free(folder: Path, limit: str, usage: str, cache: str) -> int:
  used = int((folder / usage).read_text())
  stat = dict(line.split() for line in (folder / 'memory.stat').read_text().splitlines())
  return int((folder / limit).read_text()) - used + int(stat.get(cache, 0))


def watched(
  step: Compiled, *, what: str, remedy: str, limit: float | None = None
) -> Callable[..., Any]:
  """The step; before its first run it warns if more is planned than is free.

  Where a host's memory runs out the system kills the process, which then cannot say why.

  Args:
    step: of which arrays that are on the devices already do not count as needed.
    what: 'training …', for the message.
    remedy: what to change, for the message.
    limit: bytes that a device may use besides those. Default: `budget()` at the first run.
  """
  is_first = True

  def run(*arguments: Any) -> Any:
    nonlocal is_first
    if is_first:
      is_first = False
      free = budget() if limit is None else limit
      leaves = jax.tree.leaves(arguments)
      there = sum(x.nbytes / len(x.devices()) for x in leaves if isinstance(x, jax.Array))
      needed = (planned(step.program(*arguments)) or 0) - there
      if needed > free:
        terminal.say(
          f'  warning: {what} is planned to take another {_size(needed)} of a device, of which '
          f'{_size(free)} may be used; if the run is killed (exit status 137), {remedy}'
        )
    return step(*arguments)

  return run


@contextlib.contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
  """Where memory runs out inside, the error is one line: what did, and what to change.

  JAX computes asynchronously: results should be waited for inside too.

  Raises:
    OutOfMemoryError: instead of XLA's, numpy's or the system's error. All other errors pass.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, MemoryError, OSError) as error:
    if not ran_out(error):
      raise
    first = (str(error).strip() or 'MemoryError').splitlines()[0]
    raise OutOfMemoryError(f'{what} ran out of memory ({first}); {remedy}') from error


def ran_out(error: BaseException) -> bool:
  """Whether an error says that memory ran out, of a device or of the host."""
  if isinstance(error, OSError):
    return error.errno == errno.ENOMEM  # Such as a loader's process that cannot be started.
  if isinstance(error, jax.errors.JaxRuntimeError):
    return _RAN_OUT.search(str(error)) is not None
  return isinstance(error, MemoryError)


def training_remedy(
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


def batch_remedy(option: str, value: int, otherwise: str) -> str:
  """'lower {option} …' to half of its value, or what to do if that is 1."""
  return f'lower {option} from {value} to {value // 2}' if value > 1 else otherwise


def _bytes(tree: PyTree) -> int:
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _size(count: float) -> str:
  """'3.25 GiB', in the largest unit that leaves a digit before the point."""
  if not 0 < count < math.inf:  # Of a program that was run: it ran, or it did not.
    return 'too much' if count else 'enough'
  exponent = min(max(int(math.log2(count)) // 10, 0), 4)
  return f'{count / 1024**exponent:.3g} {("bytes", "KiB", "MiB", "GiB", "TiB")[exponent]}'
