"""Start a command's process within the system's limits, and connect it to other processes."""

import os
import re
import resource
import sys
import threading
from pathlib import Path

from absl import flags

_MIN_FILES = 256
_MIN_THREADS = 64 + 8 * (os.cpu_count() or 1)


def define_flags() -> None:
  """Define the flags of commands that several processes can share."""
  flags.DEFINE_bool(
    'distributed',
    False,
    'Run as one process of several; SLURM, Open MPI, Kubernetes or the next flags say which one.',
  )
  flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of process 0, where the environment does not say.'
  )
  flags.DEFINE_integer('num_processes', None, 'How many processes there are.', lower_bound=1)
  flags.DEFINE_integer('process_id', None, 'Which one of them this is, from 0.', lower_bound=0)


def reexec_with_huge_pages() -> None:
  """Start the program again with huge pages for large allocations, where they are on request.

  On CPUs a training step allocates its temporaries, often more than 1 GiB, anew each time, and the
  system clears page after page; with huge pages the steps are 1.2 to 1.3 times as fast, which is
  why this stays. glibc reads the setting when a process starts: it cannot be turned on later.
  """
  mode = Path('/sys/kernel/mm/transparent_hugepage/enabled')
  if 'GLIBC_TUNABLES' in os.environ or not mode.exists() or '[madvise]' not in mode.read_text():
    return
  os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
  os.execv(sys.executable, sys.orig_argv)


def check_limits() -> None:
  """Check that this process may open enough files and start enough threads, and sees /proc.

  Where it may not, libraries abort the program, or leave threads out without a word.

  Raises:
    ValueError: it may not open enough files, or sees no processors.
    RuntimeError: it cannot start enough threads; see `errors.system_error`.
  """
  if sys.platform == 'linux' and not os.access('/proc/cpuinfo', os.R_OK):
    raise ValueError('/proc is hidden, where XLA looks for the processors; mount it')
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft < _MIN_FILES:
    if hard < _MIN_FILES:
      raise ValueError(
        f'this process may open {hard} files, and a run opens up to {_MIN_FILES}; raise the limit: '
        f'ulimit -n {_MIN_FILES}'
      )
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MIN_FILES, hard))
  enough = threading.Event()
  threads = [threading.Thread(target=enough.wait) for _ in range(_MIN_THREADS)]
  started = 0
  try:
    for thread in threads:
      thread.start()
      started += 1
  finally:
    enough.set()
    for thread in threads[:started]:
      thread.join()


def is_single_process() -> bool:
  """Return whether no other process works with this one."""
  return not (flags.FLAGS.distributed or flags.FLAGS.coordinator)


def check_flags() -> None:
  """Check that the flags fit together.

  Raises:
    ValueError: they do not.
  """
  options = flags.FLAGS
  coordinator, num_processes = options.coordinator, options.num_processes
  process = options.process_id
  missing = [value is None for value in (coordinator, num_processes, process)]
  if all(missing):
    return
  if any(missing):
    raise ValueError('--coordinator, --num_processes and --process_id go together')
  if not re.fullmatch(r'.+:\d+', coordinator):
    raise ValueError(f'--coordinator={coordinator} must be HOST:PORT')
  if process >= num_processes:
    raise ValueError(f'--process_id={process} must be below --num_processes={num_processes}')


def initialize_distributed() -> None:
  """Connect to the other processes, if the flags name some; to be called before JAX is used.

  Raises:
    ValueError: the flags are impossible, the environment does not name the processes, or they do
      not answer.
  """
  check_flags()
  if is_single_process():
    return
  import jax

  from sjft_jax.runtime import console, distributed, preemption

  options = flags.FLAGS
  jax.config.update('jax_enable_preemption_service', False)  # It would take over SIGTERM.
  try:
    # Without arguments JAX reads the environment of SLURM and the like.
    distributed.call_in_thread(
      jax.distributed.initialize, options.coordinator, options.num_processes, options.process_id
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    if options.coordinator is None:
      raise ValueError(
        f'--distributed: the environment says nothing of other processes ({reason}); give '
        '--coordinator, --num_processes and --process_id'
      ) from error
    raise ValueError(f'--coordinator={options.coordinator}: {reason}') from error
  distributed.check_devices()
  preemption.join_processes(distributed.KeyValueStore(), jax.process_index(), jax.process_count())
  console.set_quiet(jax.process_index() != 0)
