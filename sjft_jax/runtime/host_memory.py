"""Memory of the host: what is free, and turns for work that takes much of it. No JAX is needed."""

import contextlib
import fcntl
import math
import os
import re
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sjft_jax.runtime import artifacts

# Less is never waited for: to find out what is free takes a tenth of a millisecond.
_SMALL = 2**26  # bytes
# After so many seconds work no longer waits for its turn, as a suspended process may have it, but
# for memory alone; and after as many again it gives up.
_PATIENCE_S = 60.0
_POLL_S = 0.02

_num_workers = os.cpu_count() or 1
_held = threading.local()


class OutOfMemoryError(ValueError):
  """Memory ran out, or would run out; the message is one line with what to change."""


def free_host_bytes(root: Path = Path('/')) -> int:
  """Return the bytes of host memory that this process can still take, within its control groups.

  Args:
    root: where the system's files are; tests have their own.
  """
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
    # In a container the name may be the one on the host: then only the mount itself exists.
    for folder in (group, *group.parents):
      with contextlib.suppress(OSError, ValueError):  # ValueError: the limit is 'max', so none.
        free.append(_group_free(root / mount / folder.relative_to('/'), *files))
  return max(min(free), 0)


def peak_bytes() -> int:
  """Return the most memory that this process has had resident so far."""
  # Not ru_maxrss, which a process inherits from the one that started it.
  try:
    (peak,) = re.findall(r'VmHWM:\s*(\d+) kB', Path('/proc/self/status').read_text())
  except (OSError, ValueError):  # Other systems than Linux have no such file.
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return 1024 * int(peak)


def _group_free(folder: Path, limit: str, usage: str, cache: str) -> int:
  used = int((folder / usage).read_text())
  stat = dict(line.split() for line in (folder / 'memory.stat').read_text().splitlines())
  return int((folder / limit).read_text()) - used + int(stat.get(cache, 0))


def share_with(num_workers: int) -> None:
  """Count on so many threads and processes that do the same work as this one, if not on more."""
  global _num_workers
  _num_workers = max(_num_workers, num_workers)


@contextlib.contextmanager
def turn(num_bytes: int) -> Iterator[None]:
  """Hold back work that takes much memory until there is memory for it.

  Work that every core could do at once within half of the free memory starts at once. Larger work
  is done one after another, in all threads and processes of this user on the host, each when what
  it takes is free. Within a turn, more memory is waited for without another one.

  Args:
    num_bytes: what the work takes at most.

  Raises:
    OutOfMemoryError: the memory does not become free.
  """
  if num_bytes <= _SMALL or 2 * num_bytes * _num_workers <= free_host_bytes():
    yield
    return
  deadline = time.monotonic() + _PATIENCE_S
  with _exclusive(deadline):
    while num_bytes > (free := free_host_bytes()):
      if time.monotonic() > deadline + _PATIENCE_S:
        raise OutOfMemoryError(
          f'takes {format_bytes(num_bytes)} of memory, where {format_bytes(free)} are free'
        )
      time.sleep(_POLL_S)
    yield


@contextlib.contextmanager
def _exclusive(deadline: float) -> Iterator[None]:
  """Hold a lock that all threads and processes of the user share, or none after the deadline."""
  if getattr(_held, 'is_held', False):
    yield
    return
  with contextlib.ExitStack() as stack:
    # A file system that has no locks, or is full, is no reason not to do the work.
    with contextlib.suppress(OSError):
      path = artifacts.private_temporary_dir() / 'memory.lock'
      # A lock belongs to the opened file, and ends with the process, however that ends.
      file = stack.enter_context(open(path, 'ab'))
      while time.monotonic() < deadline:
        try:
          fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
          break
        except BlockingIOError:
          time.sleep(_POLL_S)
    _held.is_held = True
    try:
      yield
    finally:
      _held.is_held = False


def format_bytes(count: float) -> str:
  """Return '3.25 GiB' and the like, in the largest unit that leaves a digit before the point."""
  if not 0 < count < math.inf:  # Without a plan the program was run: 0 if it ran, else infinite.
    return 'too much' if count else 'enough'
  exponent = min(max(int(math.log2(count)) // 10, 0), 4)
  number, unit = count / 1024**exponent, ('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[exponent]
  # From 1000 on, three digits would be written with an exponent.
  return f'{number:.3g} {unit}' if number < 999.5 else f'{number:.0f} {unit}'
