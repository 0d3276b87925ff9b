"""The exclusive lock of a work directory; a run that loses it stops before its next write."""

import contextlib
import fcntl
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from etils import epath

from sjft_jax.runtime import artifacts, console

LOCK = 'lock.json'
_HEARTBEAT_S = 30.0  # seconds
_STALE_S = 300.0  # seconds
_SETTLE_S = 2.0  # seconds


class LockLostError(ValueError):
  """The work directory is no longer this process's."""


@contextlib.contextmanager
def lock(directory: epath.Path) -> Iterator[None]:
  """Keeps other processes from writing below `directory`, and this one once they may.

  `lock.json` there names the process that holds it; a thread renews the file's time every 30
  seconds. A lock that was left behind is taken over:

  - by the same machine (the same boot, and the same process numbers, so not another container) at
    once if that process is gone or its number is another process's by now;
  - by another machine once the file's time lies 5 minutes back. Both times of this comparison are
    those of the file system or store, so that the machines' clocks do not matter.

  Of processes that come at the same time, exclusive creation decides for one. Those that find a
  lock left behind take turns on one machine; otherwise (several machines, NFS, object stores) the
  last to write has it, and they look a moment later who that is. Should two still take it, the
  first stops at its next write: before whatever goes through `artifacts.atomic_write` or
  `artifacts.check_writable`, the process makes sure that it still holds the lock.

  Raises:
    ValueError: another process holds it.
    LockLostError: another took over, or the directory or the file vanished; also in place of the errors
      that follow from that.
  """
  held = _Lock(directory)
  held.take()
  stop = threading.Event()
  beating = threading.Thread(target=held.renew, args=(stop,), daemon=True)
  beating.start()
  try:
    with artifacts.write_guard(directory, held.check):
      yield
  except Exception as error:
    lost = held.lost()
    if lost and not isinstance(error, LockLostError):
      raise LockLostError(lost) from error
    raise
  finally:
    stop.set()
    beating.join(_SETTLE_S)
    held.release()


class _Lock:
  """One process's claim to a directory."""

  def __init__(self, directory: epath.Path):
    self._directory = directory
    self._is_remote = artifacts.is_remote(directory)
    # Not through epath: it has neither exclusive creation nor, for stores, times.
    path = os.fspath(directory / LOCK)
    self._store, self._path = fsspec.core.url_to_fs(path, use_listings_cache=False)
    self._record = {
      'host': platform.node(),
      'pid': os.getpid(),
      'machine': _machine(),
      'began': _process_start_time(os.getpid()),
      'since': time.strftime('%Y-%m-%d %H:%M:%S %z'),
      'token': secrets.token_hex(8),
    }
    self._content = json.dumps(self._record, indent=2).encode() + b'\n'
    self._seen = 0.0  # When it last held the lock for certain.

  def take(self) -> None:
    if not self._is_remote:
      self._directory.mkdir(parents=True, exist_ok=True)
    with self._turn() as alone:
      try:
        holder = self._holder()
      except FileNotFoundError:
        with contextlib.suppress(FileExistsError):  # Another was faster; see below.
          self._store.pipe_file(self._path, self._content, mode='create')
      else:
        alone = alone and holder.get('machine', self._record['machine']) == self._record['machine']
        console.say(f'{self._abandoned(holder, alone)}; this run takes over')
        self._store.pipe_file(self._path, self._content)
        if not alone:
          time.sleep(_SETTLE_S)
    lost = self.lost()
    if lost:
      raise ValueError(lost)

  def lost(self) -> str | None:
    """Why the directory is not this process's any more, if so."""
    try:
      holder = self._holder()
    except FileNotFoundError:
      return f'{self._directory / LOCK} vanished, perhaps with all beside it; run the same command'
    except Exception as error:  # Every store has its own.
      return f'{self._directory} is out of reach ({error}); run the same command once it is back'
    if holder.get('token') != self._record['token']:
      return f'{self._directory} is being written to by {_named(holder)} now; this run has stopped'
    self._seen = time.time()
    return None

  def check(self) -> None:
    """Raises LockLostError unless it still holds the lock."""
    # A request to a store takes long, and nobody takes over what was renewed a moment ago.
    if self._is_remote and 0 <= time.time() - self._seen < _HEARTBEAT_S:
      return
    lost = self.lost()
    if lost:
      raise LockLostError(lost)

  def renew(self, stop: threading.Event) -> None:
    """Renews the file's time until it is told to stop or the lock is lost."""
    while not stop.wait(_HEARTBEAT_S):
      try:
        if self._holder().get('token') == self._record['token']:
          if self._is_remote:
            self._store.pipe_file(self._path, self._content)
          else:
            os.utime(self._path)
          self._seen = time.time()
          continue
      except FileNotFoundError:
        pass
      except Exception:  # A disk or a store may be out of reach for a while.
        continue
      lost = self.lost()
      if lost and not stop.is_set():
        console.say(lost)
        return

  def release(self) -> None:
    with contextlib.suppress(Exception):  # Whoever comes next sees that this process is gone.
      if not self.lost():
        self._store.rm_file(self._path)

  def _holder(self) -> dict[str, Any]:
    content = self._store.cat_file(self._path)
    with contextlib.suppress(ValueError):
      record = json.loads(content)
      if isinstance(record, dict) and 'token' in record:
        return record
    return {}  # Not written to its end.

  def _abandoned(self, holder: dict[str, Any], alone: bool) -> str:
    """Why the lock that is there holds no longer; `alone`: nobody is writing to it just now.

    Raises:
      ValueError: it does hold.
    """
    name = _named(holder)
    if holder.get('machine') == self._record['machine']:
      if not _is_alive(holder['pid'], holder['began']):
        return f'{self._directory} was left by {name}, which is gone'
      raise ValueError(
        f'{self._directory} is being written to by {name}; wait until it ends, end it, or use '
        'another --workdir'
      )
    if not holder and alone:
      return f'{self._directory / LOCK} was not written to its end'
    age = self._age()
    if age < _STALE_S:
      raise ValueError(
        f'{self._directory} is being written to by {name} (last seen {age:.0f} s ago); use another '
        f'--workdir, or, if that one is gone, the same command in {_STALE_S - age:.0f} s'
      )
    return f'{self._directory} was left by {name}, not seen for {age:.0f} s'

  def _age(self) -> float:
    """Seconds since the file was renewed, by the clock that dates it."""
    probe = f'{self._path}.{self._record["token"]}'
    self._store.pipe_file(probe, b'')
    try:
      age = self._store.modified(probe) - self._store.modified(self._path)
      return float(age.total_seconds())
    finally:
      self._store.rm_file(probe)

  @contextlib.contextmanager
  def _turn(self) -> Iterator[bool]:
    """One process of this machine after the other; yields whether there can be no others."""
    if self._is_remote:
      yield False
      return
    opened = os.open(self._directory, os.O_RDONLY)
    try:
      try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        alone = True
      except OSError:  # NFS locks no directories, other file systems nothing.
        alone = False
      yield alone
    finally:
      os.close(opened)


def _named(holder: dict[str, Any]) -> str:
  if not holder:
    return 'a process that does not say which'
  return f'process {holder["pid"]} on {holder["host"]} (since {holder["since"]})'


def _machine() -> str:
  """This boot of this machine, and whose process numbers are meant: a container has its own."""
  try:
    boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:  # macOS
    return platform.node()


def _process_start_time(pid: int) -> str | None:
  """When a process began, in ticks since boot; '': cannot be known; None: it has ended."""
  try:
    # The name before, in brackets, can hold anything.
    state, *fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  except OSError:
    return ''
  return None if state in 'ZX' else fields[18]


def _is_alive(pid: int, began: str) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:  # Another user's.
    pass
  return _process_start_time(pid) in (began, '')
