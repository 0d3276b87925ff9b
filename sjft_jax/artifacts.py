"""What a stage leaves in the work directory: whole or not there, and marked with what made it."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np


@contextlib.contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
  """A file that appears under its name only once it is complete and on the disk."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    with temporary.open('wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def write_json(path: Path, value: Any) -> None:
  with written(path) as file:
    file.write((json.dumps(value, indent=2) + '\n').encode())


def fingerprint(*inputs: Any) -> str:
  """One short name for everything that decides an artifact."""
  return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def save(path: Path, made_from: str, **arrays: Any) -> None:
  """Writes named arrays with the fingerprint of their inputs."""
  with written(path) as file:
    np.savez(file, made_from=made_from, **arrays)


def load(path: Path, made_from: str) -> dict[str, np.ndarray] | None:
  """The arrays at `path`, or None if there are none yet.

  Raises:
    ValueError: they were made from other inputs, or the file is damaged.
  """
  if not path.exists():
    return None
  try:
    with path.open('rb') as stream, np.load(stream) as file:
      arrays = dict(file)
    found = str(arrays.pop('made_from'))
  except Exception as error:  # A damaged zip file raises nearly anything.
    raise ValueError(f'{path} is damaged ({error}); delete it and run again') from error
  if found != made_from:
    raise ValueError(
      f'{path} was made from other data or another version of the program; '
      'use a new --workdir, or delete this one'
    )
  return arrays


def cache() -> Path:
  """The user's folder for what any run can make again."""
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'sjft_jax'


def cached(
  kind: str, made_from: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """What `make` returns, from the user's cache if it is there.

  A cache that is damaged or cannot be written costs time, never the run.
  """
  path = cache() / kind / f'{made_from}.npz'
  with contextlib.suppress(ValueError, OSError):
    found = load(path, made_from)
    if found is not None:
      return found
  arrays = make()
  with contextlib.suppress(OSError):
    save(path, made_from, **arrays)
  return arrays
