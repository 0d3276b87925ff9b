"""Measure what memory a program needs and may take; explain the errors when it runs out."""

import contextlib
import errno
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax

from sjft_jax.runtime import console
from sjft_jax.runtime.compilation import CompiledFunction
from sjft_jax.runtime.host_memory import OutOfMemoryError, format_bytes, free_host_bytes

# The share of the free memory that a step may plan with. An accelerator also holds the next batch,
# buffers of its libraries, and gaps. A host also holds what convolutions take besides XLA's plan
# (120 to 250 MiB for steps of 300 to 1,200 MiB), the loader's images, the copy of the state that a
# checkpoint is written from, and whatever else runs there.
_CPU_SHARE = 0.75
_ACCELERATOR_SHARE = 0.9

# The messages of XLA's clients for CPUs, GPUs and TPUs, of CUDA's libraries and of C++.
# RESOURCE_EXHAUSTED alone also stands for a message that is too long.
_OUT_OF_MEMORY = re.compile(
  r'out of memory|RESOURCE_EXHAUSTED.*(memory|alloc|reserve)|OUT_OF_MEMORY|ALLOC_FAILED|bad_alloc',
  re.DOTALL | re.IGNORECASE,
)


def planned_bytes(program: Any) -> int | None:
  """Return the bytes that each device needs to run a compiled program.

  None: the backend does not plan memory.
  """
  plan = program.memory_analysis()
  if plan is None:
    return None
  arrays = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
  return arrays + plan.temp_size_in_bytes + plan.generated_code_size_in_bytes


def available_bytes() -> float:
  """Return the bytes that a step may plan with on each of this process's devices.

  That is most of the free memory, or infinite if a device does not report its memory. Each of
  several processes on the CPUs of one host counts all of the host's memory.
  """
  devices = jax.local_devices()
  if devices[0].platform == 'cpu':
    return _CPU_SHARE * free_host_bytes() / len(devices)
  stats = [device.memory_stats() or {} for device in devices]
  return min(
    _ACCELERATOR_SHARE * s.get('bytes_limit', math.inf) - s.get('bytes_in_use', 0) for s in stats
  )


def warn_if_too_large(step: CompiledFunction, *, what: str, hint: str) -> Callable[..., Any]:
  """Return the step, with a warning before its first run if more memory is planned than is free.

  Where a host's memory runs out, the system kills the process, which then cannot say why.

  Args:
    step: its arguments that are on the devices already are not counted as needed.
    what: the work, for the message: 'training …'.
    hint: what to change, for the message.
  """
  is_first = True

  def run(*arguments: Any) -> Any:
    nonlocal is_first
    if is_first:
      is_first = False
      free = available_bytes()
      leaves = jax.tree.leaves(arguments)
      on_device = sum(x.nbytes / len(x.devices()) for x in leaves if isinstance(x, jax.Array))
      needed = (planned_bytes(step.program(*arguments)) or 0) - on_device
      if needed > free:
        console.say(
          f'  warning: {what} is planned to take another {format_bytes(needed)} on each device, '
          f'where {format_bytes(free)} may be used; if the run is killed (exit status 137), {hint}'
        )
    return step(*arguments)

  return run


@contextlib.contextmanager
def explain_oom(what: str, hint: str) -> Iterator[None]:
  """Replace the error of memory that runs out inside by one line with what to change.

  JAX computes asynchronously: wait for the results inside too.

  Args:
    what: the work, for the message.
    hint: what to change, for the message.

  Raises:
    OutOfMemoryError: instead of XLA's, numpy's or the system's error. All other errors pass.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, MemoryError, OSError) as error:
    if not is_out_of_memory(error):
      raise
    first_line = (str(error).strip() or 'MemoryError').splitlines()[0]
    raise OutOfMemoryError(f'{what} ran out of memory ({first_line}); {hint}') from error


def is_out_of_memory(error: BaseException) -> bool:
  """Return whether an error says that memory ran out, of a device or of the host."""
  if isinstance(error, OSError):
    return error.errno == errno.ENOMEM  # For example, a loader's process cannot be started.
  if isinstance(error, jax.errors.JaxRuntimeError):
    return _OUT_OF_MEMORY.search(str(error)) is not None
  return isinstance(error, MemoryError)


def batch_size_hint(option: str, value: int, otherwise: str) -> str:
  """Return 'lower {option} …' to half of its value, or `otherwise` if the value is 1."""
  return f'lower {option} from {value} to {value // 2}' if value > 1 else otherwise


def tree_bytes(tree: Any) -> int:
  """Return the bytes of all arrays, or shapes of arrays, in a tree."""
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
