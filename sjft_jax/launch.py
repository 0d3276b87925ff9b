"""How a command's process starts: with large pages, and with which other processes as one."""

import os
import re
import sys
from pathlib import Path

from absl import flags

_DISTRIBUTED = flags.DEFINE_bool(
  'distributed',
  False,
  'One of several processes, told by SLURM, Open MPI, Kubernetes or the next three which one.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, where the environment does not tell.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many processes there are.', lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Which one of them this is, from 0.', lower_bound=0
)


def with_large_pages() -> None:
  """Starts the program again with large pages for large pieces of memory, where that takes asking.

  On CPUs a training step takes its temporaries, often more than 1 GiB, anew each time, and the
  system clears page after page; with small ones that takes a good part of a ResNet's step.
  """
  mode = Path('/sys/kernel/mm/transparent_hugepage/enabled')
  if 'GLIBC_TUNABLES' in os.environ or not mode.exists() or '[madvise]' not in mode.read_text():
    return
  os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
  os.execv(sys.executable, sys.orig_argv)


def is_alone() -> bool:
  """Whether no other process works with this one."""
  return not (_DISTRIBUTED.value or _COORDINATOR.value)


def check() -> None:
  """That the flags fit together.

  Raises:
    ValueError: they do not.
  """
  coordinator, processes, this = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  if coordinator is None and processes is None and this is None:
    return
  if coordinator is None or processes is None or this is None:
    raise ValueError('--coordinator, --num_processes and --process_id go together')
  if not re.fullmatch(r'.+:\d+', coordinator):
    raise ValueError(f'--coordinator={coordinator} must be HOST:PORT')
  if this >= processes:
    raise ValueError(f'--process_id={this} must be below --num_processes={processes}')


def join() -> None:
  """Finds the other processes, if the flags say that there are some; before JAX is used.

  Raises:
    ValueError: impossible flags, an environment that tells nothing, or nobody at the address.
  """
  check()
  if is_alone():
    return
  import jax

  from sjft_jax import interruption, processes
  from sjft_jax.report import terminal

  jax.config.update('jax_enable_preemption_service', False)  # It would take SIGTERM over.
  try:
    # Without arguments it asks the environment.
    processes.waited(
      jax.distributed.initialize, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    if _COORDINATOR.value is None:
      raise ValueError(
        f'--distributed: the environment does not tell about other processes ({reason}); give '
        '--coordinator, --num_processes and --process_id'
      ) from error
    raise ValueError(f'--coordinator={_COORDINATOR.value}: {reason}') from error
  interruption.join(processes.Store(), jax.process_index(), jax.process_count())
  terminal.console.quiet = jax.process_index() != 0
