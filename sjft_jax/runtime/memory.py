"""Memory of devices and host: how much is free, what a program needs, and clear errors without it."""

import contextlib
import errno
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import jax

from sjft_jax.runtime import console
from sjft_jax.runtime.compilation import CompiledFunction

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


def planned_bytes(program: Any) -> int | None:
  """Bytes that each device needs to run a compiled program, None if its backend does not plan."""
  m = program.memory_analysis()
  if m is None:
    return None
  kept = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
  return kept + m.temp_size_in_bytes + m.generated_code_size_in_bytes


def available_bytes() -> float:
  """Bytes that a step may plan with on each of this process's devices: most of what is free.

  Infinite if the device does not tell. Processes on the CPUs of one host each count all of it.
  """
  devices = jax.local_devices()
  platform = devices[0].platform
  share = _SHARE.get(platform, _SHARE_ELSEWHERE)
  if platform == 'cpu':
    return share * free_host_bytes() / len(devices)
  stats = [device.memory_stats() or {} for device in devices]
  return min(share * s.get('bytes_limit', math.inf) - s.get('bytes_in_use', 0) for s in stats)


def free_host_bytes(root: Path = Path('/')) -> int:
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


def warn_if_too_large(
  step: CompiledFunction, *, what: str, hint: str, limit: float | None = None
) -> Callable[..., Any]:
  """The step; before its first run it warns if more is planned than is free.

  Where a host's memory runs out the system kills the process, which then cannot say why.

  Args:
    step: of which arrays that are on the devices already do not count as needed.
    what: 'training …', for the message.
    hint: what to change, for the message.
    limit: bytes that a device may use besides those. Default: `available_bytes()` at the first run.
  """
  is_first = True

  def run(*arguments: Any) -> Any:
    nonlocal is_first
    if is_first:
      is_first = False
      free = available_bytes() if limit is None else limit
      leaves = jax.tree.leaves(arguments)
      there = sum(x.nbytes / len(x.devices()) for x in leaves if isinstance(x, jax.Array))
      needed = (planned_bytes(step.program(*arguments)) or 0) - there
      if needed > free:
        console.say(
          f'  warning: {what} is planned to take another {format_bytes(needed)} of a device, of which '
          f'{format_bytes(free)} may be used; if the run is killed (exit status 137), {hint}'
        )
    return step(*arguments)

  return run


@contextlib.contextmanager
def explain_oom(what: str, hint: str) -> Iterator[None]:
  """Where memory runs out inside, the error is one line: what did, and what to change.

  JAX computes asynchronously: results should be waited for inside too.

  Raises:
    OutOfMemoryError: instead of XLA's, numpy's or the system's error. All other errors pass.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, MemoryError, OSError) as error:
    if not is_out_of_memory(error):
      raise
    first = (str(error).strip() or 'MemoryError').splitlines()[0]
    raise OutOfMemoryError(f'{what} ran out of memory ({first}); {hint}') from error


def is_out_of_memory(error: BaseException) -> bool:
  """Whether an error says that memory ran out, of a device or of the host."""
  if isinstance(error, OSError):
    return error.errno == errno.ENOMEM  # Such as a loader's process that cannot be started.
  if isinstance(error, jax.errors.JaxRuntimeError):
    return _RAN_OUT.search(str(error)) is not None
  return isinstance(error, MemoryError)


def batch_size_hint(option: str, value: int, otherwise: str) -> str:
  """'lower {option} …' to half of its value, or what to do if that is 1."""
  return f'lower {option} from {value} to {value // 2}' if value > 1 else otherwise


def tree_bytes(tree: Any) -> int:
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def format_bytes(count: float) -> str:
  """'3.25 GiB', in the largest unit that leaves a digit before the point."""
  if not 0 < count < math.inf:  # Of a program that was run: it ran, or it did not.
    return 'too much' if count else 'enough'
  exponent = min(max(int(math.log2(count)) // 10, 0), 4)
  return f'{count / 1024**exponent:.3g} {("bytes", "KiB", "MiB", "GiB", "TiB")[exponent]}'
