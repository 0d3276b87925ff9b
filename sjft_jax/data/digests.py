"""Digests of the content of files, remembered as long as their sizes and time stamps stay."""

import contextlib
import errno
import functools
import hashlib
import io
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64, UInt8

from sjft_jax.runtime import artifacts, console

DIGEST_BYTES = 16
# A file that has changed less than this many seconds ago may change again without another time
# stamp.
_MIN_FILE_AGE_S = 2.5
# Network file systems answer many requests at once; on local disks more threads do no harm.
_THREADS = 16
_CHUNK = 1024  # files
_SAVE_EVERY_S = 180.0
# Less takes about a second, for which a progress bar and its line are too much.
_MIN_SHOWN_FILES, _MIN_SHOWN_BYTES = 20_000, 2**30

_Result = TypeVar('_Result')


def digest(content: bytes) -> UInt8[np.ndarray, ' byte']:
  """Return the digest of an image's bytes as they are stored."""
  return np.frombuffer(hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest(), np.uint8)


def stat_files(root: str, paths: pa.LargeStringArray) -> Int64[np.ndarray, 'file 3']:
  """Return size, time of modification and of change (ns) of each file below `root`.

  What is not there, or is no file, has a size of −1.
  """
  rows = _map_in_threads(functools.partial(_stat_file, root), paths)
  return np.array(list(rows), np.int64).reshape(-1, 3)


def digest_files(
  root: str, paths: pa.LargeStringArray, kind: str, name: str, *, max_bytes: int = sys.maxsize
) -> UInt8[np.ndarray, 'file byte']:
  """Return a digest of the whole content of each file.

  Digests are kept in the user's cache. A file is read again when its size or one of its time stamps
  has changed. A file that cannot be read has a digest of zeros, which is not kept.

  Args:
    root: the folder that the paths start at.
    paths: the files below it.
    kind: tells data sets of the same root apart in the cache; '': their digests are not kept.
    name: what the progress bar calls the data set.
    max_bytes: a larger file counts as one that cannot be read.
  """
  cache_key = artifacts.fingerprint('digests', os.path.realpath(root), kind)
  cache_path = artifacts.cache_dir() / 'digests' / f'{cache_key}.npz'
  start_time = time.time()
  stamps = stat_files(root, paths)
  digests = np.zeros((len(paths), DIGEST_BYTES), np.uint8)
  is_known = np.zeros(len(paths), bool)
  if kind:
    with contextlib.suppress(ValueError, OSError, KeyError, MemoryError):
      cached = artifacts.load(cache_path, cache_key)
      if cached is not None:
        is_known = _take_cached(cached, paths, stamps, digests)
  unknown = np.flatnonzero(~is_known & (stamps[:, 0] <= max_bytes))
  if not len(unknown):
    return digests
  is_settled = stamps[:, 1:].max(axis=1) < (start_time - _MIN_FILE_AGE_S) * 1e9

  def save() -> None:
    is_kept = is_settled & digests.any(axis=1)
    arrays = _to_arrays(paths.filter(pa.array(is_kept)), stamps[is_kept], digests[is_kept])
    with contextlib.suppress(OSError):
      artifacts.save(cache_path, cache_key, **arrays)

  sizes = stamps[unknown, 0]
  is_shown = len(unknown) >= _MIN_SHOWN_FILES or sizes.sum() >= _MIN_SHOWN_BYTES
  progress = (
    console.progress(f'reading {name}', len(unknown))
    if is_shown
    else contextlib.nullcontext(lambda count: None)
  )
  save_time = time.monotonic()
  with progress as advance:
    results = _map_in_threads(functools.partial(_digest_file, root), paths.take(pa.array(unknown)))
    for count, (index, result) in enumerate(zip(unknown, results, strict=True), 1):
      digests[index] = result
      if count % _CHUNK == 0 or count == len(unknown):
        advance((count - 1) % _CHUNK + 1)
        if kind and time.monotonic() - save_time >= _SAVE_EVERY_S:
          save()
          save_time = time.monotonic()
  if kind:
    save()
  return digests


def _stat_file(root: str, path: str) -> tuple[int, int, int]:
  try:
    # Cheaper than `os.path.isfile`, and it says which time stamps the file has.
    status = os.stat(os.path.join(root, path))
  except (OSError, ValueError):  # ValueError: the path holds a zero byte.
    return -1, 0, 0
  return (
    (status.st_size if stat.S_ISREG(status.st_mode) else -1),
    status.st_mtime_ns,
    status.st_ctime_ns,
  )


def open_regular(path: str) -> io.FileIO:
  """Open a file to read it without a buffer, but no pipe or device, which may never end.

  Raises:
    OSError: it is one, or cannot be opened.
  """
  return io.FileIO(path, opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
  # Without waiting for somebody who writes into a pipe; a file is read as ever.
  descriptor = os.open(path, flags | os.O_NONBLOCK)
  if stat.S_ISREG(os.fstat(descriptor).st_mode):
    return descriptor
  os.close(descriptor)
  raise OSError(errno.EINVAL, 'it is no regular file', path)


def _digest_file(root: str, path: str) -> UInt8[np.ndarray, ' byte']:
  try:
    with open_regular(os.path.join(root, path)) as file:
      content = hashlib.blake2b(digest_size=DIGEST_BYTES)
      # Large files come piece by piece: one for each thread may be too much for the memory.
      while piece := file.read(2**24):
        content.update(piece)
  except OSError:
    return np.zeros(DIGEST_BYTES, np.uint8)
  return np.frombuffer(content.digest(), np.uint8)


def _map_in_threads(
  function: Callable[[str], _Result], paths: pa.LargeStringArray
) -> Iterator[_Result]:
  """Map a function over paths in threads, and in chunks: to submit each path alone costs more."""

  def map_chunk(start: int) -> Sequence[_Result]:
    return [function(path) for path in paths[start : start + _CHUNK].to_pylist()]

  with ThreadPoolExecutor(_THREADS) as pool:
    for results in pool.map(map_chunk, range(0, len(paths), _CHUNK)):
      yield from results


def _to_arrays(
  paths: pa.LargeStringArray, stamps: np.ndarray, digests: np.ndarray
) -> dict[str, np.ndarray]:
  """Return the arrays of a cache: paths as UTF-8 one after another, and where each starts."""
  encoded = [path.encode() for path in paths.to_pylist()]
  return {
    'paths': np.frombuffer(b''.join(encoded), np.uint8),
    'starts': np.cumsum([0, *map(len, encoded)], dtype=np.int64),
    'stamps': stamps,
    'digests': digests,
  }


def _take_cached(
  cached: dict[str, np.ndarray], paths: pa.LargeStringArray, stamps: np.ndarray, digests: np.ndarray
) -> Bool[np.ndarray, ' file']:
  """Fill in the digests of files whose stamps are as in the cache; return which these are."""
  cached_paths = pa.LargeStringArray.from_buffers(
    len(cached['digests']), pa.py_buffer(cached['starts']), pa.py_buffer(cached['paths'])
  )
  rows = pc.fill_null(pc.index_in(paths, value_set=cached_paths), -1).to_numpy()
  is_known = rows >= 0
  is_known[is_known] = (cached['stamps'][rows[is_known]] == stamps[is_known]).all(axis=1)
  digests[is_known] = cached['digests'][rows[is_known]]
  return is_known
