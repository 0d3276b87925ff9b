"""The exclusive lock of a work directory; a run that loses it stops before its next write."""

import contextlib
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
_HEARTBEAT_S = 30.0  # seconds between renewals
_STALE_S = 300.0  # seconds without a renewal, after which another machine may take over
_SETTLE_S = 2.0  # seconds for a file that is just being written, on disks without hard links
_RETRY_S = 0.05  # seconds
_MAX_BYTES = 2**16  # What is longer is no lock file.

# What a lock file holds, see `_Lock`.
_RECORD_TYPES = {'host': str, 'pid': int, 'machine': str, 'began': str, 'since': str}


class LockLostError(ValueError):
  """The work directory is no longer this process's."""


@contextlib.contextmanager
def lock(directory: epath.Path) -> Iterator[None]:
  """Keep other processes from writing below `directory`, and this one once it has lost the lock.

  `lock.json` in the directory names the process that holds the lock; a thread renews the file's
  time every 30 seconds. The lock of a process that is gone is taken over:

  - on the same machine (the same boot and the same process numbers, so not in another container) at
    once, if that process has ended or its number is another process's by now;
  - on another machine once the file has not been renewed for 5 minutes. Both times of this
    comparison are those of the file system or store, so that the machines' clocks do not matter.

  Of several processes that try at the same time one gets the lock, see `_Lock._acquire`. A process
  that was suspended for 5 minutes stops at its next write: before whatever goes through
  `artifacts.atomic_write` or `artifacts.check_writable` it checks that it still holds the lock.

  Why not `flock`, which the kernel releases: NFS and Lustre may apply it within one machine only
  without saying so, so that file and heartbeat would be needed all the same; and a worker that was
  forked keeps it when its parent is killed.

  Raises:
    ValueError: another process holds the lock.
    LockLostError: another process took over, or the directory or the file vanished; also instead of
      the errors that follow from that.
  """
  held = _Lock(directory)
  held.acquire()
  stop = threading.Event()
  heartbeat = threading.Thread(target=held.renew, args=(stop,), daemon=True)
  heartbeat.start()
  try:
    with artifacts.write_guard(directory, held.check):
      yield
  except Exception as error:
    loss = held.loss()
    if loss and not isinstance(error, LockLostError):
      raise LockLostError(loss) from error
    raise
  finally:
    stop.set()
    heartbeat.join(_SETTLE_S)
    held.release()


class _Lock:
  """One process's claim to a directory."""

  def __init__(self, directory: epath.Path):
    self._directory = directory
    self._is_remote = artifacts.is_remote(directory)
    # Not through epath: it has neither exclusive creation nor times for objects in a store.
    self._path = os.fspath(artifacts.absolute_path(directory) / LOCK)
    self._filesystem, _ = fsspec.core.url_to_fs(self._path, use_listings_cache=False)
    self._record = {
      'host': platform.node(),
      'pid': os.getpid(),
      'machine': _machine(),
      'began': _process_start_time(os.getpid()),
      'since': time.strftime('%Y-%m-%d %H:%M:%S %z'),
      'token': secrets.token_hex(8),
    }
    self._content = json.dumps(self._record, indent=2).encode() + b'\n'
    self._last_seen = 0.0  # When this process held the lock for certain.

  def acquire(self) -> None:
    """Take the lock.

    Raises:
      ValueError: another process holds it.
    """
    if not self._is_remote:
      self._directory.mkdir(parents=True, exist_ok=True)
    self._acquire(self._path)
    loss = self.loss()
    if loss:
      raise ValueError(loss)

  def _acquire(self, path: str) -> None:
    """Create the file `path` with this process's record, or replace one whose process is gone.

    Creation is exclusive. A file is replaced only by the process that holds the claim to it:
    another file, which is named for the content to be replaced and is acquired in the same way, so
    that a process that ends while it holds a claim hinders nobody. A process that gets the claim
    after another one finds that the content has changed. So one of all that find the same lock left
    behind takes it over, however long the others pause between looking and replacing.
    """
    while not self._create(path):
      content = self._read(path)
      if content is None:  # Its process has just ended.
        time.sleep(_RETRY_S)
        continue
      if content == self._content:  # It was created, and only the answer was lost (NFS, a store).
        return
      record = _parse(content)
      if not record:
        time.sleep(_SETTLE_S)
        if self._read(path) != content:
          continue
      reason = self._why_abandoned(path, record)
      claim = f'{path}.{artifacts.fingerprint(content.hex())}'
      self._acquire(claim)
      if self._read(path) == content:
        self._replace(path, claim)
        console.say(f'{reason}; this run takes over')
        return
      self._filesystem.rm_file(claim)

  def loss(self) -> str | None:
    """Return why the lock is no longer this process's, or None if it holds the lock."""
    try:
      content = self._read(self._path)
    except Exception as error:  # Every store has its own.
      return f'{self._directory} is out of reach ({error}); run the same command once it is back'
    if content is None:
      return f'{self._directory / LOCK} vanished, perhaps with all beside it; run the same command'
    if content != self._content:
      holder = _describe(_parse(content))
      return f'{self._directory} is being written to by {holder} now; this run has stopped'
    self._last_seen = time.time()
    return None

  def check(self) -> None:
    """Raise LockLostError unless this process holds the lock."""
    # A request to a store takes long, and no process takes over what was renewed a moment ago.
    if self._is_remote and 0 <= time.time() - self._last_seen < _HEARTBEAT_S:
      return
    loss = self.loss()
    if loss:
      raise LockLostError(loss)

  def renew(self, stop: threading.Event) -> None:
    """Renew the file's time until `stop` is set or the lock is lost."""
    while not stop.wait(_HEARTBEAT_S):
      try:
        if self._read(self._path) == self._content:
          if self._is_remote:
            self._filesystem.pipe_file(self._path, self._content)
          else:
            os.utime(self._path)
          self._last_seen = time.time()
          continue
      except FileNotFoundError:
        pass
      except Exception:  # A disk or a store may be out of reach for a while.
        continue
      loss = self.loss()
      if loss and not stop.is_set():
        console.say(loss)
        return

  def release(self) -> None:
    """Remove the file if the lock is still this process's."""
    with contextlib.suppress(Exception):  # The next process sees that this one is gone.
      if not self.loss():
        self._filesystem.rm_file(self._path)

  def _why_abandoned(self, path: str, record: dict[str, Any] | None) -> str:
    """Return why the lock, or claim, with this record holds no longer.

    Raises:
      ValueError: it does hold.
    """
    if record is None:
      return f'{self._directory / LOCK} was not written to its end'
    holder = _describe(record)
    if record['machine'] == self._record['machine']:
      if not _is_alive(record['pid'], record['began']):
        return f'{self._directory} was left by {holder}, which is gone'
      raise ValueError(
        f'{self._directory} is being written to by {holder}; wait until it ends, end it, or use '
        'another --workdir'
      )
    age = self._age(path)
    if age < _STALE_S:
      raise ValueError(
        f'{self._directory} is being written to by {holder} (last seen {age:.0f} s ago); use '
        'another --workdir, or, if that one is gone, the same command in '
        f'{_STALE_S - age:.0f} s'
      )
    return f'{self._directory} was left by {holder}, not seen for {age:.0f} s'

  def _create(self, path: str) -> bool:
    """Create the file with this process's record; return False if there is a file."""
    try:
      if self._is_remote:
        # The store itself decides: gcsfs asks for it with ifGenerationMatch=0.
        self._filesystem.pipe_file(path, self._content, mode='create')
      else:
        _create_on_disk(path, self._content)  # fsspec looks first and creates then.
    except FileExistsError:
      return False
    return True

  def _read(self, path: str) -> bytes | None:
    """Return the content of the file, or None if there is none."""
    try:
      if self._is_remote:
        return self._filesystem.cat_file(path)
      with open(path, 'rb', opener=_open_no_link) as file:
        return file.read(_MAX_BYTES)
    except FileNotFoundError:
      return None

  def _replace(self, path: str, claim: str) -> None:
    """Give the file this process's record, and remove the claim not before that."""
    if self._is_remote:
      self._filesystem.pipe_file(path, self._content)
      self._filesystem.rm_file(claim)
    else:
      os.replace(claim, path)

  def _age(self, path: str) -> float:
    """Return the seconds since the file was renewed, by the clock that dates it."""
    probe = f'{path}.{secrets.token_hex(8)}'
    self._filesystem.pipe_file(probe, b'')
    try:
      age = self._filesystem.modified(probe) - self._filesystem.modified(path)
      return float(age.total_seconds())
    finally:
      self._filesystem.rm_file(probe)


def _create_on_disk(path: str, content: bytes) -> None:
  """Create a file exclusively and, where the disk has hard links, with its content at once.

  Raises:
    FileExistsError: there is one.
  """
  temporary = artifacts.temporary_path(path)
  try:
    _write_new(temporary, content)
    try:
      os.link(temporary, path)  # On NFS exclusive too.
      return
    except FileExistsError:
      raise
    except OSError:  # FAT has no hard links, nor has an object store behind FUSE.
      _write_new(path, content)
  finally:
    with contextlib.suppress(OSError):
      os.unlink(temporary)
  # A store behind FUSE may let several machines create it. The last one to write has it then.
  time.sleep(_SETTLE_S)


def _write_new(path: str, content: bytes) -> None:
  with open(path, 'xb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _open_no_link(path: str, flags: int) -> int:
  return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)  # A pipe would never end.


def _parse(content: bytes) -> dict[str, Any] | None:
  """Return the record of a lock file, or None if the file is incomplete."""
  with contextlib.suppress(ValueError):
    record = artifacts.parse_json(content)
    if isinstance(record, dict) and all(
      isinstance(record.get(key), expected) for key, expected in _RECORD_TYPES.items()
    ):
      return record
  return None


def _describe(record: dict[str, Any] | None) -> str:
  if record is None:
    return 'a process that does not say which'
  return f'process {record["pid"]} on {record["host"]} (since {record["since"]})'


def _machine() -> str:
  """Return this boot of this machine, and whose process numbers are meant: a container's or not."""
  try:
    boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:  # macOS
    return platform.node()


def _process_start_time(pid: int) -> str | None:
  """Return when a process began, in ticks since boot; '': unknown; None: it has ended."""
  try:
    # The name before it, in brackets, can hold anything.
    state, *fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  except OSError:
    return ''
  return None if state in 'ZX' else fields[18]


def _is_alive(pid: int, start_time: str) -> bool:
  try:
    os.kill(pid, 0)
  except (ProcessLookupError, OverflowError):
    return False
  except PermissionError:  # The process is another user's.
    pass
  return _process_start_time(pid) in (start_time, '')
