"""Decode every image of a data set once, small: is it readable, and what is its perceptual hash?

The result is kept in the user's cache, so that the next run with the same data set starts at once;
a scan that was stopped resumes.
"""

import contextlib
import functools
import os
import time
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
CACHE_VERSION = 2
# Enough for hashes; JPEGs are decoded at a reduced size, which misses no truncation.
SIDE = 64  # pixels
_CHUNK = 1024  # images
_PARTIAL_EVERY = 180.0  # seconds


class ScanResult(NamedTuple):
  """What a look at every image of a data set has found.

  Attributes:
    hashes: perceptual hashes, 0 where there is none.
    bad: index and reason of each image that cannot be read, in order.
  """

  hashes: UInt32[np.ndarray, 'image word']
  bad: dict[int, str]


def scan(dataset: Dataset) -> ScanResult:
  """A look at every image, or what is known from an earlier one.

  A part is known once the whole is, several data sets joined once each of them is. An image that
  could not be read is looked at again each time: it may have been the disk's fault, or access to
  the file, and a later version of a decoder may read it.
  """
  if isinstance(dataset, SubsetDataset):
    whole = scan(dataset.whole)
    reasons = ((i, whole.bad.get(old)) for i, old in enumerate(dataset.indices.tolist()))
    bad = {i: reason for i, reason in reasons if reason is not None}
    return ScanResult(whole.hashes[dataset.indices], bad)
  if isinstance(dataset, ConcatDataset):
    parts, bad, start = [scan(part) for part in dataset.parts], {}, 0
    for part in parts:
      bad |= {start + i: reason for i, reason in part.bad.items()}
      start += len(part.hashes)
    return ScanResult(np.concatenate([part.hashes for part in parts]), bad)
  made_from = artifacts.fingerprint(CACHE_VERSION, dataset.fingerprint)
  folder = artifacts.cache_dir() / 'screened'
  partial = folder / f'{made_from}.partial.npz'
  was_known = any(file.exists() for file in (partial, folder / f'{made_from}.npz'))
  look = functools.partial(_scan, dataset, partial, made_from)
  found = artifacts.load_or_make('screened', made_from, look)
  with contextlib.suppress(OSError):
    partial.unlink()
  bad = dict(zip(found['bad'].tolist(), found['reasons'].tolist(), strict=True))
  if bad and was_known:
    found['hashes'], bad = _look_again(dataset, found['hashes'], bad)
  return ScanResult(found['hashes'], bad)


def _look_again(dataset: Dataset, hashes: np.ndarray, bad: dict[int, str]) -> ScanResult:
  """Look once more at the images that could not be read; no result of it is kept."""
  hashes, still_bad = hashes.copy(), {}
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for index, seen in zip(bad, pool.map(functools.partial(_look, dataset), bad), strict=True):
      if isinstance(seen, str):
        still_bad[index] = seen
      else:
        hashes[index] = seen
  return ScanResult(hashes, still_bad)


def _look(dataset: Dataset, index: int) -> np.ndarray | str:
  """Return the hash of an image, or the reason why it cannot be read."""
  try:
    return perceptual_hash.phash(dataset.read_image(index, min_side=SIDE))
  except UnreadableError as error:
    # The data set put the image's name before the decoder's reason.
    cause = error.__cause__
    return str(cause if isinstance(cause, UnreadableError) else error)


def _scan(dataset: Dataset, partial: Path, made_from: str) -> dict[str, np.ndarray]:
  """Every image's hash, and reasons of those that have none; goes on where `partial` ends."""
  look = functools.partial(_look, dataset)
  hashes = np.zeros((len(dataset), perceptual_hash.WORDS), np.uint32)
  bad: dict[int, str] = {}
  position = 0
  with contextlib.suppress(ValueError, OSError):
    left = artifacts.load(partial, made_from)
    if left is not None:
      hashes, position = left['hashes'], int(left['position'])
      bad = dict(zip(left['bad'].tolist(), left['reasons'].tolist(), strict=True))
      console.say(f'  goes on from image {position:,} of {dataset.name}')

  def findings():
    indices, reasons = np.array(list(bad), np.int64), np.array(list(bad.values()), str)
    return {'hashes': hashes, 'bad': indices, 'reasons': reasons}

  saved = time.monotonic()
  with (
    console.progress(f'screening {dataset.name}', len(dataset), position) as advance,
    ThreadPoolExecutor(os.cpu_count()) as pool,
  ):
    while position < len(dataset):
      chunk = range(position, min(position + _CHUNK, len(dataset)))
      for index, seen in zip(chunk, pool.map(look, chunk), strict=True):
        if isinstance(seen, str):
          bad[index] = seen
        else:
          hashes[index] = seen
      position = chunk.stop
      advance(len(chunk), f'{len(bad):,} cannot be read' if bad else '')
      if time.monotonic() - saved >= _PARTIAL_EVERY:
        with contextlib.suppress(OSError):
          artifacts.save(partial, made_from, position=position, **findings())
        saved = time.monotonic()
  return findings()
