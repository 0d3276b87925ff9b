"""How a command's process starts: with huge pages, and together with which other processes."""

import os
import re
import sys
from pathlib import Path

from absl import flags


def define_flags() -> None:
  """Define the flags of commands that several processes can share."""
  flags.DEFINE_bool(
    'distributed',
    False,
    'One of several processes; SLURM, Open MPI, Kubernetes or the next three flags say which one.',
  )
  flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of process 0, where the environment does not say.'
  )
  flags.DEFINE_integer('num_processes', None, 'How many processes there are.', lower_bound=1)
  flags.DEFINE_integer('process_id', None, 'Which one of them this is, from 0.', lower_bound=0)


def reexec_with_huge_pages() -> None:
  """Start the program again with huge pages for large allocations, where they are on request.

  On CPUs a training step allocates its temporaries, often more than 1 GiB, anew each time, and the
  system clears page after page; with small pages that takes a good part of a ResNet's step. glibc
  reads the setting when a process starts, so there is no way to turn it on later.
  """
  mode = Path('/sys/kernel/mm/transparent_hugepage/enabled')
  if 'GLIBC_TUNABLES' in os.environ or not mode.exists() or '[madvise]' not in mode.read_text():
    return
  os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
  os.execv(sys.executable, sys.orig_argv)


def is_single_process() -> bool:
  """Return whether no other process works with this one."""
  return not (flags.FLAGS.distributed or flags.FLAGS.coordinator)


def check_flags() -> None:
  """Check that the flags fit together.

  Raises:
    ValueError: they do not.
  """
  options = flags.FLAGS
  coordinator, processes, this = options.coordinator, options.num_processes, options.process_id
  if coordinator is None and processes is None and this is None:
    return
  if coordinator is None or processes is None or this is None:
    raise ValueError('--coordinator, --num_processes and --process_id go together')
  if not re.fullmatch(r'.+:\d+', coordinator):
    raise ValueError(f'--coordinator={coordinator} must be HOST:PORT')
  if this >= processes:
    raise ValueError(f'--process_id={this} must be below --num_processes={processes}')


def initialize_distributed() -> None:
  """Connect to the other processes, if the flags say that there are some; before JAX is used.

  Raises:
    ValueError: impossible flags, an environment without the information, or no answer.
  """
  check_flags()
  if is_single_process():
    return
  import jax

  from sjft_jax.runtime import console, distributed, preemption

  options = flags.FLAGS
  jax.config.update('jax_enable_preemption_service', False)  # It would take SIGTERM over.
  try:
    # Without arguments it asks the environment.
    distributed.call_in_thread(
      jax.distributed.initialize,
      options.coordinator,
      options.num_processes,
      options.process_id,
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    if options.coordinator is None:
      raise ValueError(
        f'--distributed: the environment says nothing of other processes ({reason}); give '
        '--coordinator, --num_processes and --process_id'
      ) from error
    raise ValueError(f'--coordinator={options.coordinator}: {reason}') from error
  preemption.join_processes(distributed.KeyValueStore(), jax.process_index(), jax.process_count())
  console.console.quiet = jax.process_index() != 0
