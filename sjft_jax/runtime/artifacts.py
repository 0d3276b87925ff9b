"""What a stage leaves in the work directory: whole or not there, and marked with what made it.

A path may be on a disk or, as `gs://bucket/name`, in an object store.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from etils import epath

_suppressed: set[str] = set()
_guards: dict[str, Callable[[], None]] = {}


@contextlib.contextmanager
def write_guard(directory: epath.Path, check: Callable[[], None]) -> Iterator[None]:
  """Meanwhile `check_writable` is called before anything is written below `directory`, and may raise."""
  name = os.fspath(absolute_path(directory))
  _guards[name] = check
  try:
    yield
  finally:
    del _guards[name]


@contextlib.contextmanager
def suppress_writes(directory: epath.Path) -> Iterator[None]:
  """Meanwhile nothing appears below `directory`: another process writes the same there.

  Except files that are named for this process, see `per_process_path`.
  """
  name = os.fspath(absolute_path(directory))
  _suppressed.add(name)
  try:
    yield
  finally:
    _suppressed.remove(name)


def per_process_path(path: epath.Path, process: int, processes: int) -> epath.Path:
  """The name of a file of which each of several processes has one of its own."""
  return path.with_name(f'{path.name}.{process}-of-{processes}') if processes > 1 else path


def check_writable(path: os.PathLike[str]) -> None:
  """Raises what the guards of the directories above `path` have against writing there."""
  name = os.fspath(absolute_path(path))
  for directory, guard in list(_guards.items()):
    if name.startswith(directory + '/'):
      guard()


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether it names an object in a store, not a file."""
  return '://' in os.fspath(path)


def absolute_path(path: str | os.PathLike[str]) -> epath.Path:
  """The path from the root; an object's as it is, which epath's own method would spoil."""
  return epath.Path(path) if is_remote(path) else epath.Path(path).absolute()


@contextlib.contextmanager
def atomic_write(path: os.PathLike[str]) -> Iterator[IO[bytes]]:
  """A file that appears under its name only once it is complete and on the disk."""
  check_writable(path)
  name = os.fspath(absolute_path(path))
  if not re.search(r'\.\d+-of-\d+$', name) and any(
    name.startswith(above + '/') for above in _suppressed
  ):
    yield io.BytesIO()
    return
  place = epath.Path(path)
  if is_remote(path):
    content = io.BytesIO()
    yield content
    place.write_bytes(content.getvalue())  # An object appears once it is complete.
    return
  # Processes of different machines and containers can have the same number.
  temporary = place.with_name(f'.{place.name}.{platform.node()}.{os.getpid()}')
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException as error:
    if isinstance(error, OSError) and error.errno and error.filename is None:
      error.filename = os.fspath(path)  # A failed write does not know where.
    with contextlib.suppress(OSError):
      os.unlink(temporary)
    raise


def write_json(path: os.PathLike[str], value: Any) -> None:
  with atomic_write(path) as file:
    file.write((json.dumps(value, indent=2) + '\n').encode())


def fingerprint(*inputs: Any) -> str:
  """One short name for everything that decides an artifact."""
  return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def save(path: os.PathLike[str], made_from: str, **arrays: Any) -> None:
  """Writes named arrays with the fingerprint of their inputs."""
  with atomic_write(path) as file:
    np.savez(file, made_from=made_from, **arrays)


def load(path: os.PathLike[str], made_from: str) -> dict[str, np.ndarray] | None:
  """The arrays at `path`, or None if there are none yet.

  Raises:
    ValueError: they were made from other inputs, or the file is damaged.
    OSError: it cannot be read.
  """
  place = epath.Path(path)
  if not place.exists():
    return None
  try:
    with place.open('rb') as stream, np.load(stream) as file:
      arrays = dict(file)
    found = str(arrays.pop('made_from'))
  except Exception as error:  # A damaged zip file raises nearly anything.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
      raise  # Not for what is in it; a wrong offset in it is EINVAL.
    raise ValueError(f'{path} is damaged ({error}); delete it and run again') from error
  if found != made_from:
    raise ValueError(
      f'{path} was made from other data or another version of the program; '
      'use a new --workdir, or delete this one'
    )
  return arrays


def cache_dir() -> Path:
  """The user's folder for what any run can make again."""
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'sjft_jax'


def load_or_make(
  kind: str, made_from: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """What `make` returns, from the user's cache if it is there.

  A cache that is damaged or cannot be written costs time, never the run.
  """
  path = cache_dir() / kind / f'{made_from}.npz'
  with contextlib.suppress(ValueError, OSError):
    found = load(path, made_from)
    if found is not None:
      return found
  arrays = make()
  with contextlib.suppress(OSError):
    save(path, made_from, **arrays)
  return arrays
