"""Decode every image of a data set once, small, for its perceptual hash, and note unreadable ones.

The result is saved in the user's cache, so that the next run with the same data set starts at once;
a scan that was stopped resumes.
"""

import contextlib
import functools
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt32

from sjft_jax.data.dataset import ConcatDataset, Dataset, SubsetDataset
from sjft_jax.data.decode import UnreadableError
from sjft_jax.runtime import artifacts, console
from sjft_jax.screening import perceptual_hash

# Increase it with every change of the scan's results: older caches are then ignored.
CACHE_VERSION = 3
# Enough for hashes; JPEGs are decoded at a reduced size, which misses no truncation.
MIN_SIDE = 64  # pixels
_CHUNK = 1024  # images
_SAVE_EVERY_S = 180.0


class ScanResult(NamedTuple):
  """The hashes of all images of a data set, and the images that cannot be read.

  Attributes:
    hashes: perceptual hashes, 0 where there is none.
    bad: index and reason of each image that cannot be read, in order.
  """

  hashes: UInt32[np.ndarray, 'image word']
  bad: dict[int, str]


def scan(dataset: Dataset) -> ScanResult:
  """Scan every image, or load an earlier scan of the data set.

  The result for a subset is taken from the whole, that for a concatenation from its parts. An
  earlier scan is used as long as the data set's fingerprint is the same; images that it could not
  read are scanned again each time, since it may have been the disk's fault or access to the file.
  """
  if isinstance(dataset, SubsetDataset):
    return _scan_subset(dataset)
  if isinstance(dataset, ConcatDataset):
    return _scan_parts(dataset)
  fingerprint = _cache_name(dataset)
  folder = artifacts.cache_dir() / 'screened'
  partial = folder / f'{fingerprint}.partial.npz'
  is_earlier = any(map(_is_there, (partial, folder / f'{fingerprint}.npz')))
  scan_all = functools.partial(scan_images, dataset, partial, fingerprint)
  arrays = artifacts.load_or_make('screened', fingerprint, scan_all)
  with contextlib.suppress(OSError):
    partial.unlink()
  result = _from_arrays(arrays)
  return _scan_again(dataset, result) if is_earlier and result.bad else result


def find_unscanned(datasets: Iterable[Dataset]) -> list[Dataset]:
  """Return the data sets that `scan` would have to decode: wholes and parts, each once."""
  folder = artifacts.cache_dir() / 'screened'
  found: dict[str, Dataset] = {}
  for dataset in datasets:
    if isinstance(dataset, SubsetDataset):
      parts = find_unscanned([dataset.whole])
    elif isinstance(dataset, ConcatDataset):
      parts = find_unscanned(dataset.parts)
    else:
      is_scanned = _is_there(folder / f'{_cache_name(dataset)}.npz')
      parts = [] if is_scanned else [dataset]
    found |= {part.fingerprint: part for part in parts}
  return list(found.values())


def _is_there(path: Path) -> bool:
  """Return whether a file of the cache is there; not if the cache is another user's."""
  try:
    return path.exists()
  except OSError:
    return False


def _cache_name(dataset: Dataset) -> str:
  return artifacts.fingerprint(CACHE_VERSION, dataset.fingerprint)


def _scan_again(dataset: Dataset, earlier: ScanResult) -> ScanResult:
  """Scan the images once more that could not be read; nothing of it is cached."""
  hashes, bad = earlier.hashes.copy(), {}
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    results = pool.map(functools.partial(_hash_or_reason, dataset), earlier.bad)
    for index, result in zip(earlier.bad, results, strict=True):
      if isinstance(result, str):
        bad[index] = result
      else:
        hashes[index] = result
  return ScanResult(hashes, bad)


def _scan_subset(dataset: SubsetDataset) -> ScanResult:
  whole = scan(dataset.whole)
  reasons = {i: whole.bad.get(index) for i, index in enumerate(dataset.indices.tolist())}
  bad = {i: reason for i, reason in reasons.items() if reason is not None}
  return ScanResult(whole.hashes[dataset.indices], bad)


def _scan_parts(dataset: ConcatDataset) -> ScanResult:
  parts = [scan(part) for part in dataset.parts]
  bad: dict[int, str] = {}
  start = 0
  for part in parts:
    bad |= {start + i: reason for i, reason in part.bad.items()}
    start += len(part.hashes)
  return ScanResult(np.concatenate([part.hashes for part in parts]), bad)


def scan_images(dataset: Dataset, partial: Path, fingerprint: str) -> dict[str, np.ndarray]:
  """Scan the images after those in `partial`, which a stopped scan has left.

  Args:
    dataset: of the images.
    partial: where the scan is saved now and then; it need not exist.
    fingerprint: of the file.

  Returns:
    The arrays of the result, as they are cached.
  """
  (hashes, bad), position = _load_partial(partial, fingerprint, len(dataset))
  if position:
    console.say(f'  resumes at image {position:,} of {dataset.name}')
  save_time = time.monotonic()
  with (
    console.progress(f'screening {dataset.name}', len(dataset), position) as advance,
    ThreadPoolExecutor(os.cpu_count()) as pool,
  ):
    while position < len(dataset):
      chunk = range(position, min(position + _CHUNK, len(dataset)))
      results = pool.map(functools.partial(_hash_or_reason, dataset), chunk)
      for index, result in zip(chunk, results, strict=True):
        if isinstance(result, str):
          bad[index] = result
        else:
          hashes[index] = result
      position = chunk.stop
      advance(len(chunk), f'{len(bad):,} cannot be read' if bad else '')
      if time.monotonic() - save_time >= _SAVE_EVERY_S:
        with contextlib.suppress(OSError):
          artifacts.save(partial, fingerprint, position=position, **_to_arrays(hashes, bad))
        save_time = time.monotonic()
  return _to_arrays(hashes, bad)


def _hash_or_reason(dataset: Dataset, index: int) -> np.ndarray | str:
  """Return the hash of an image, or the reason why it cannot be read."""
  try:
    return perceptual_hash.phash(dataset.read_image(index, min_side=MIN_SIDE))
  except UnreadableError as error:
    # The data set put the image's name before the decoder's reason.
    cause = error.__cause__
    return str(cause if isinstance(cause, UnreadableError) else error)


def _load_partial(path: Path, fingerprint: str, num_images: int) -> tuple[ScanResult, int]:
  """Load what a stopped scan has saved, and the number of images that it had scanned."""
  with contextlib.suppress(ValueError, OSError, MemoryError):
    arrays = artifacts.load(path, fingerprint)
    if arrays is not None:
      return _from_arrays(arrays), int(arrays['position'])
  return ScanResult(np.zeros((num_images, perceptual_hash.WORDS), np.uint32), {}), 0


def _to_arrays(hashes: np.ndarray, bad: dict[int, str]) -> dict[str, np.ndarray]:
  indices, reasons = np.array(list(bad), np.int64), np.array(list(bad.values()), str)
  return {'hashes': hashes, 'bad': indices, 'reasons': reasons}


def _from_arrays(arrays: dict[str, np.ndarray]) -> ScanResult:
  bad = zip(arrays['bad'].tolist(), arrays['reasons'].tolist(), strict=True)
  return ScanResult(arrays['hashes'], dict(bad))
