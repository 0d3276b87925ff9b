"""Files that a stage leaves in the work directory: written as a whole, with a fingerprint.

A path may be on a disk or, as `gs://bucket/name`, in an object store.
"""

import contextlib
import errno
import functools
import glob as glob_patterns
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from etils import epath

from sjft_jax.runtime import console

# What to do about a damaged file of a work directory: where one is missing, the run that it belongs
# to is not finished, and its command writes the file anew.
REMEDY = 'delete it and run the command of its work directory again, which writes it anew'

_CHECKSUM = 'checksum'
_MAX_JSON_BYTES = 64 * 2**20

_suppressed: set[str] = set()
_guards: dict[str, Callable[[], None]] = {}


@contextlib.contextmanager
def write_guard(directory: epath.Path, check: Callable[[], None]) -> Iterator[None]:
  """Call `check` before anything is written below `directory`; it may raise to prevent that."""
  name = os.fspath(absolute_path(directory))
  _guards[name] = check
  try:
    yield
  finally:
    del _guards[name]


@contextlib.contextmanager
def suppress_writes(directory: epath.Path) -> Iterator[None]:
  """Write nothing below `directory`, because another process writes the same files there.

  Files that are named for this process (see `per_process_path`) are written all the same.
  """
  name = os.fspath(absolute_path(directory))
  _suppressed.add(name)
  try:
    yield
  finally:
    _suppressed.remove(name)


def per_process_path(path: epath.Path, process: int, processes: int) -> epath.Path:
  """Return the name of a file of which each of several processes has one of its own."""
  return path.with_name(f'{path.name}.{process}-of-{processes}') if processes > 1 else path


def check_writable(path: os.PathLike[str]) -> None:
  """Call the write guards of all directories above `path`; one that objects raises its error."""
  name = os.fspath(absolute_path(path))
  for directory, check in list(_guards.items()):
    if name.startswith(directory + '/'):
      check()


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Return whether `path` names an object in a store, not a file."""
  return '://' in os.fspath(path)


def is_regular_file(path: str | os.PathLike[str]) -> bool:
  """Return whether `path` is a file or an object, and no pipe or device, which would never end."""
  # epath calls everything a file that is no folder.
  return epath.Path(path).is_file() if is_remote(path) else os.path.isfile(path)


def file_size(path: str | os.PathLike[str]) -> int:
  """Return the bytes of a file or an object."""
  # epath looks for the owner of a file, too, and fails if the system does not list that user.
  return epath.Path(path).stat().length if is_remote(path) else os.path.getsize(path)


def absolute_path(path: str | os.PathLike[str]) -> epath.Path:
  """Return the path from the root, where '~' is the user's home.

  An object's path is returned as it is (epath would spoil it).
  """
  return epath.Path(path) if is_remote(path) else epath.Path(os.path.expanduser(path)).absolute()


def glob(directory: epath.Path, pattern: str) -> Iterator[epath.Path]:
  """Yield the paths below a directory that match a pattern.

  In the directory's own name *, ? and [ stand for themselves, which they do not for `epath`.
  """
  return epath.Path(glob_patterns.escape(os.fspath(directory))).glob(pattern)


def temporary_path(path: str | os.PathLike[str]) -> str:
  """Return a random, hidden name next to `path`, to be opened with mode 'x'.

  Mode 'x' (O_EXCL) neither opens what is there already nor follows a link, so that nobody who may
  write to the folder can redirect the output; and no two processes, machines or containers write
  to one temporary file.
  """
  folder, name = os.path.split(os.fspath(path))
  return os.path.join(folder, f'.{name}.{secrets.token_hex(8)}')


@contextlib.contextmanager
def atomic_write(path: os.PathLike[str]) -> Iterator[IO[bytes]]:
  """Open a file that appears under its name only once it is complete and on the disk."""
  check_writable(path)
  if _is_suppressed(path):
    yield io.BytesIO()
    return
  destination = epath.Path(path)
  if is_remote(path):
    content = io.BytesIO()
    yield content
    destination.write_bytes(content.getvalue())  # An object appears once it is complete.
    return
  temporary = temporary_path(path)
  try:
    destination.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, 'xb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException as error:
    if isinstance(error, OSError) and error.errno and error.filename is None:
      error.filename = os.fspath(path)  # The error of a failed write does not say where.
    with contextlib.suppress(OSError):
      os.unlink(temporary)
    raise


def remove(path: os.PathLike[str]) -> None:
  """Remove a file if it is there, as far as `path` may be written."""
  check_writable(path)
  if not _is_suppressed(path):
    epath.Path(path).unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
  """Make a folder that appears under its name only once it is complete.

  Args:
    path: on a disk; a folder that is there is replaced.

  Yields:
    The folder under another name, to be filled.
  """
  temporary, earlier = Path(temporary_path(path)), Path(temporary_path(path))
  try:
    temporary.mkdir()
    yield temporary
    if path.exists():
      path.rename(earlier)
    try:
      temporary.rename(path)
    except BaseException:
      if earlier.exists():
        earlier.rename(path)
      raise
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise
  shutil.rmtree(earlier, ignore_errors=True)


def write_json(path: os.PathLike[str], value: Mapping[str, Any]) -> None:
  """Write an object as indented JSON, with its checksum; the file appears once it is complete."""
  with atomic_write(path) as file:
    file.write((json.dumps(seal(value), indent=2) + '\n').encode())


def load_json(
  path: epath.Path, types: Mapping[str, type | tuple[type, ...]], remedy: str = REMEDY
) -> dict[str, Any]:
  """Load what `write_json` has written.

  Args:
    path: of the file.
    types: the keys that must be there, and the types of their values.
    remedy: what to do about a damaged file.

  Raises:
    ValueError: the file is damaged, no file, or without a checksum.
    OSError: it cannot be read.
  """
  try:
    if not is_regular_file(path):
      raise ValueError('it is no file')
    if file_size(path) > _MAX_JSON_BYTES:
      raise ValueError(f'it has over {_MAX_JSON_BYTES:,} bytes')
    value = unseal(parse_json(path.read_bytes()))
    for key, expected in types.items():
      if not isinstance(value.get(key), expected):
        raise ValueError(f'it has no {key} of the right type')
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is damaged: {error}; {remedy}') from error
  return value


def parse_json(content: bytes) -> Any:
  """Parse JSON of any origin.

  Raises:
    ValueError: it is none, or nested too deep.
  """
  try:
    return json.loads(content)
  except RecursionError as error:
    raise ValueError('it is nested too deep') from error


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
  """Return an object with its checksum, which `unseal` compares."""
  # As it will be read: tuples become lists there, and keys texts.
  plain = json.loads(json.dumps(_without_checksum(value)))
  return {**plain, _CHECKSUM: fingerprint(plain)}


def unseal(value: Any) -> dict[str, Any]:
  """Return an object that was sealed, without its checksum.

  Raises:
    ValueError: it has been changed, or was never sealed.
  """
  if not isinstance(value, dict) or _CHECKSUM not in value:
    raise ValueError(
      'it has no checksum (if another version of sjft_jax made it, use a new --workdir)'
    )
  plain = _without_checksum(value)
  if value[_CHECKSUM] != fingerprint(plain):
    raise ValueError('its content has another checksum')
  return plain


def _without_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
  return {key: part for key, part in value.items() if key != _CHECKSUM}


def fingerprint(*inputs: Any) -> str:
  """Return a short hash of everything that determines an artifact."""
  return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def save(path: os.PathLike[str], fingerprint: str, /, **arrays: Any) -> None:
  """Write named arrays with the fingerprint of their inputs."""
  with atomic_write(path) as file:
    np.savez(file, fingerprint=fingerprint, **arrays)


def load(path: os.PathLike[str], fingerprint: str) -> dict[str, np.ndarray] | None:
  """Load the arrays at `path`, or return None if there are none yet.

  Raises:
    ValueError: they were made from other inputs, or the file is damaged.
    OSError: it cannot be read.
    MemoryError: the arrays do not fit.
  """
  if not epath.Path(path).exists():
    return None
  try:
    if not is_regular_file(path):
      raise ValueError('it is no file')
    with epath.Path(path).open('rb') as stream, np.load(stream) as file:
      _check_members(file.zip)
      arrays = dict(file)
      _check_arrays(arrays, file_size(path))
    saved_fingerprint = str(arrays.pop('fingerprint'))
  except Exception as error:  # A damaged zip file raises nearly anything.
    if isinstance(error, MemoryError) or type(error).__module__.startswith('gcsfs'):
      raise  # The store's own errors are plain exceptions.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
      raise  # The disk's error; a wrong offset within the file is EINVAL.
    raise ValueError(f'{path} is damaged ({error}); {REMEDY}') from error
  if saved_fingerprint != fingerprint:
    raise ValueError(
      f'{path} was made from other data or by another version of the program; '
      'use a new --workdir, or delete this file'
    )
  return arrays


def _check_members(archive: zipfile.ZipFile) -> None:
  """Check that the members of an archive fill it, as `save` writes them.

  So none is lost, which the checksums of the others do not reveal, and all take no more memory than
  the file.

  Raises:
    ValueError: members are missing, overlap or are compressed.
  """
  num_bytes = 0
  for member in archive.infolist():
    if member.compress_type != zipfile.ZIP_STORED:
      raise ValueError('its arrays are compressed')
    # A member has a head of 30 bytes, whose last four are the lengths of its name and of more.
    archive.fp.seek(member.header_offset + 26)  # type: ignore[union-attr]
    lengths = struct.unpack('<HH', archive.fp.read(4))  # type: ignore[union-attr]
    num_bytes += 30 + sum(lengths) + member.file_size
  if num_bytes != archive.start_dir:
    raise ValueError('its arrays do not fill it')


def _check_arrays(arrays: Mapping[str, Any], num_bytes: int) -> None:
  """Check that an archive holds arrays alone, whose elements take space in it.

  Raises:
    ValueError: it does not.
  """
  for name, array in arrays.items():
    if not isinstance(array, np.ndarray) or array.size > num_bytes:
      raise ValueError(f'{name} is no array, or one of empty elements')


def cache_dir() -> Path:
  """Return the user's folder for files that any run can make again; it is made private."""
  cache = os.environ.get('XDG_CACHE_HOME')
  try:
    folder = (Path(cache) if cache else Path.home() / '.cache') / 'sjft_jax'
  except RuntimeError:  # No HOME, and a user whom the system does not list, as in containers.
    return private_temporary_dir()
  with contextlib.suppress(OSError):  # It is there, or cannot be made: then nothing is cached.
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700)
  return folder


def code_cache_dir(name: str) -> Path:
  """Return a folder for files that hold code, in the user's cache if it is private.

  It is if the user owns it and nobody else may write to it: whoever may can run code as this user.
  """
  folder, private = cache_dir() / name, private_temporary_dir() / name
  with contextlib.suppress(OSError):  # The home can only be read.
    folder.mkdir(mode=0o700, exist_ok=True)
    if all(_is_private(path, 0o022) for path in (folder.parent, folder)):
      return folder
    console.say(
      f'  {folder} is not used, since others may write there, and {private} is instead; delete it '
      f'and let nobody else write to {folder.parent} (chmod go-w)'
    )
  private.mkdir(mode=0o700, exist_ok=True)
  return private


def load_or_make(
  kind: str, fingerprint: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """Return what `make` returns, from the user's cache if it is there.

  A cache that is damaged or cannot be written costs time, never the run.
  """
  path = cache_dir() / kind / f'{fingerprint}.npz'
  with contextlib.suppress(ValueError, OSError, MemoryError):
    cached = load(path, fingerprint)
    if cached is not None:
      return cached
  arrays = make()
  with contextlib.suppress(OSError):
    save(path, fingerprint, **arrays)
  return arrays


def _is_suppressed(path: os.PathLike[str]) -> bool:
  name = os.fspath(absolute_path(path))
  if re.search(r'\.\d+-of-\d+$', name):
    return False
  return any(name.startswith(directory + '/') for directory in _suppressed)


def _is_private(path: Path, others: int) -> bool:
  """Return whether a folder is the user's own, and has none of these permissions of others."""
  status = path.stat()
  is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
  return is_own and not status.st_mode & others


@functools.cache
def private_temporary_dir() -> Path:
  """Return a folder in the temporary directory that no other user can have prepared or can read."""
  path = Path(tempfile.gettempdir()) / f'sjft_jax-{os.getuid()}'
  with contextlib.suppress(FileExistsError):
    path.mkdir(mode=0o700)
  if not path.is_symlink() and _is_private(path, 0o077):
    return path
  # Each process would leave one, which nobody deletes: only if the usual one is another user's.
  return Path(tempfile.mkdtemp(prefix='sjft_jax-'))
