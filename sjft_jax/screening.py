"""Before a run: which images cannot be read, and which source images are copies of test images.

Both need every image decoded once, small. What was found is kept in the user's cache, so that the
next run with the same data sets starts at once; a run that is stopped goes on from there. Stages
that follow get data sets without these images.
"""

import contextlib
import csv
import functools
import io
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int64, UInt32

from sjft_jax import artifacts
from sjft_jax.config import DUPLICATES_OF
from sjft_jax.data import perceptual, transforms
from sjft_jax.data.dataset import Dataset, Labels, Part, Union
from sjft_jax.data.decode import UnreadableError
from sjft_jax.data.pairs import views
from sjft_jax.descriptors import bank as banks
from sjft_jax.descriptors import describe
from sjft_jax.report import terminal

# Whatever changes what is found makes this a new procedure, lest old findings be used.
_PROCEDURE = 1
# Enough for hashes; JPEGs are decoded at a reduced size, which misses no truncation.
_SIDE = 64
_CHUNK = 1024  # images
_PARTIAL_EVERY = 180.0  # seconds

# Proposed pairs are confirmed by the divergence of their histograms of Gabor responses, at a fixed
# small size: larger ones tell a picture from its own halved copy.  A pair is one of copies inside
# an ellipse with these half-axes: the more bits differ, the more alike the responses must be.  All
# re-encoded (JPEG quality 30 and more), halved and doubled copies of the demo's test images lie
# inside, and no pair of unlike photographs.  Neither test alone, nor the two one after the other,
# tells them apart as well.
_MOST_BITS, _MOST_NATS = 44, 0.3
_VIEW = 32  # pixels
_NUM_BINS = 16
_SMOOTHING = 1.0
_BATCH = 64
_FITTED = 512  # target images that the bins are fitted to


class Screened(NamedTuple):
  """What a look at every image of a data set has found.

  Attributes:
    hashes: perceptual hashes, 0 where there is none.
    bad: index and reason of each image that cannot be read, in order.
  """

  hashes: UInt32[np.ndarray, 'image word']
  bad: dict[int, str]


class Copies(NamedTuple):
  """Source images that duplicate target images: indices of each pair, bits and nats between."""

  source: Int64[np.ndarray, 'pair']
  target: Int64[np.ndarray, 'pair']
  hamming: Int64[np.ndarray, 'pair']
  divergence: Float[np.ndarray, 'pair']


def screen(
  workdir: epath.Path,
  target: Dataset,
  test: Dataset,
  source: Dataset,
  *,
  max_bad_share: float,
  exclude_duplicates_of: str,
) -> tuple[Dataset, Dataset, Dataset]:
  """The data sets without unreadable images, and the source without copies of target images.

  Writes bad_images.csv (data_set, image, reason) and duplicates.csv (source, target, target_set,
  hamming in bits of 144, divergence in nats); both without rows if there are none.

  Args:
    workdir: where these go.
    target, test, source: the target's training and test images, and the source.
    max_bad_share: as for `readable`.
    exclude_duplicates_of: whose copies leave the source: 'test', 'test_and_train' or 'none'. Copies
      of test images are counted and listed in any case.

  Raises:
    ValueError: as for `readable`; an unknown option; nothing of the source is left.
  """
  if exclude_duplicates_of not in DUPLICATES_OF:
    raise ValueError(
      f'exclude_duplicates_of={exclude_duplicates_of!r} is unknown; use one of '
      f'{", ".join(DUPLICATES_OF)}'
    )
  target, test, source = readable(
    (target, test, source), workdir / 'bad_images.csv', max_bad_share=max_bad_share
  )
  listing = workdir / 'duplicates.csv'
  guarded = {'test': test}
  if exclude_duplicates_of == 'test_and_train':
    guarded['train'] = target
  found = {name: duplicates(source, images) for name, images in guarded.items()}
  _write(
    listing,
    ('source', 'target', 'target_set', 'hamming', 'divergence'),
    (
      (source.key(i), guarded[name].key(j), name, bits, f'{nats:.4f}')
      for name, copies in found.items()
      for i, j, bits, nats in zip(*(column.tolist() for column in copies), strict=True)
    ),
  )
  for name, copies in found.items():
    images = f'{len(np.unique(copies.source)):,} of {len(source):,} source images'
    fate = 'stay in' if exclude_duplicates_of == 'none' else 'are left out'
    also = f' and {fate}: see {listing}' if len(copies.source) else ''
    terminal.say(f'  {images} duplicate {name} images{also}')
  if exclude_duplicates_of == 'none':
    return target, test, source
  source = _without(source, np.concatenate([copies.source for copies in found.values()]))
  if not len(source):
    raise ValueError(
      f'every image of {source.name} duplicates an image of the target, see {listing}; use another '
      'source'
    )
  return target, test, source


def readable(
  datasets: Sequence[Dataset], listing: os.PathLike[str], *, max_bad_share: float
) -> tuple[Dataset, ...]:
  """The data sets without the images that cannot be read, which are listed in a table.

  Args:
    datasets: those without such images come back as they are.
    listing: the table to write: data_set, image, reason.
    max_bad_share: the share of a data set, 0–1, that may be unreadable.

  Raises:
    ValueError: more of a data set is, or all images of a class.
  """
  found = [screened(dataset).bad for dataset in datasets]
  _write(
    listing,
    ('data_set', 'image', 'reason'),
    (
      (dataset.name, dataset.key(index), reason)
      for dataset, bad in zip(datasets, found, strict=True)
      for index, reason in bad.items()
    ),
  )
  for dataset, bad in zip(datasets, found, strict=True):
    if bad:
      _tell(dataset, bad, listing, max_bad_share)
  rest = [_without(dataset, list(bad)) for dataset, bad in zip(datasets, found, strict=True)]
  for dataset, part in zip(datasets, rest, strict=True):
    for label in np.flatnonzero(_shown(dataset) & ~_shown(part)):
      raise ValueError(
        f'no image of class {dataset.classes[label]!r} of {dataset.name} can be read, see '
        f'{listing}; replace them or remove the class'
      )
  return tuple(rest)


def screened(dataset: Dataset) -> Screened:
  """A look at every image, or what is known from an earlier one.

  A part is known once the whole is, several data sets joined once each of them is. A file that was
  replaced is looked at again if the data set's fingerprint shows it.
  """
  if isinstance(dataset, Part):
    whole = screened(dataset.whole)
    reasons = ((i, whole.bad.get(old)) for i, old in enumerate(dataset.indices.tolist()))
    bad = {i: reason for i, reason in reasons if reason is not None}
    return Screened(whole.hashes[dataset.indices], bad)
  if isinstance(dataset, Union):
    parts, bad, start = [screened(part) for part in dataset.parts], {}, 0
    for part in parts:
      bad |= {start + i: reason for i, reason in part.bad.items()}
      start += len(part.hashes)
    return Screened(np.concatenate([part.hashes for part in parts]), bad)
  made_from = artifacts.fingerprint(_PROCEDURE, dataset.fingerprint)
  partial = artifacts.cache() / 'screened' / f'{made_from}.partial.npz'
  look = functools.partial(_look_through, dataset, partial, made_from)
  found = artifacts.cached('screened', made_from, look)
  with contextlib.suppress(OSError):
    partial.unlink()
  bad = dict(zip(found['bad'].tolist(), found['reasons'].tolist(), strict=True))
  return Screened(found['hashes'], bad)


def duplicates(source: Dataset, target: Dataset) -> Copies:
  """Source images that are copies of target images: re-encoded, resized or slightly cropped.

  Perceptual hashes propose pairs, the divergence of filter responses (Ge & Yu 2017, Eq. 1) confirms
  them. Mirror images are not found. Letters and digits are too much alike for both tests: of the
  demo's handwritten characters, one in six would pass for a copy of another.

  Args:
    source, target: data sets without unreadable images.
  """
  made_from = artifacts.fingerprint(_PROCEDURE, source.fingerprint, target.fingerprint)
  found = artifacts.cached('duplicates', made_from, lambda: _confirmed(source, target)._asdict())
  return Copies(**found)


def _look_through(dataset: Dataset, partial: Path, made_from: str) -> dict[str, np.ndarray]:
  """Every image's hash, and reasons of those that have none; goes on where `partial` ends."""

  def look(index):
    try:
      return perceptual.phash(dataset.at_least(index, _SIDE))
    except UnreadableError as error:
      # The data set put the image's name before the decoder's reason.
      cause = error.__cause__
      return str(cause if isinstance(cause, UnreadableError) else error)

  hashes = np.zeros((len(dataset), perceptual.WORDS), np.uint32)
  bad: dict[int, str] = {}
  position = 0
  with contextlib.suppress(ValueError, OSError):
    left = artifacts.load(partial, made_from)
    if left is not None:
      hashes, position = left['hashes'], int(left['position'])
      bad = dict(zip(left['bad'].tolist(), left['reasons'].tolist(), strict=True))
      terminal.say(f'  goes on from image {position:,} of {dataset.name}')

  def findings():
    indices, reasons = np.array(list(bad), np.int64), np.array(list(bad.values()), str)
    return {'hashes': hashes, 'bad': indices, 'reasons': reasons}

  saved = time.monotonic()
  with (
    terminal.progress(f'screening {dataset.name}', len(dataset), position) as advance,
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


def _confirmed(source: Dataset, target: Dataset) -> Copies:
  pairs = perceptual.near(screened(source).hashes, screened(target).hashes)
  divergence = _divergences(source, target, pairs) if len(pairs) else np.zeros(0)
  is_copy = (pairs[:, 2] / _MOST_BITS) ** 2 + (divergence / _MOST_NATS) ** 2 < 1
  (i, j, bits), nats = pairs[is_copy].T, divergence[is_copy]
  return Copies(i, j, bits, nats)


def _divergences(
  source: Dataset, target: Dataset, pairs: Int64[np.ndarray, 'pair 3']
) -> Float[np.ndarray, 'pair']:
  """Symmetric Kullback–Leibler divergence in nats of each pair's descriptors."""
  bank = banks.load(name='gabor', layers=(), tap='', pretrained='')
  fitted = np.unique(np.linspace(0, len(target) - 1, _FITTED).astype(int))
  edges = describe.fit_edges(bank, _views(target, fitted), num_bins=_NUM_BINS)

  def described(dataset: Dataset, indices: np.ndarray) -> Iterator[np.ndarray]:
    batches = _views(dataset, indices)
    return map(
      np.asarray,
      describe.describe(bank, edges, batches, smoothing=_SMOOTHING, batch_size=_BATCH),
    )

  sources, of_source = np.unique(pairs[:, 0], return_inverse=True)
  targets, of_target = np.unique(pairs[:, 1], return_inverse=True)
  q = np.concatenate(list(described(target, targets)))
  divergence, done = np.zeros(len(pairs)), 0
  with terminal.progress('comparing likely duplicates', len(sources)) as advance:
    for p in described(source, sources):
      here = np.flatnonzero((of_source >= done) & (of_source < done + len(p)))
      a, b = p[of_source[here] - done], q[of_target[here]]
      divergence[here] = ((a - b) * (np.log(a) - np.log(b))).sum(axis=2) @ bank.weights
      done += len(p)
      advance(len(p))
  return divergence


def _views(dataset: Dataset, indices: np.ndarray) -> Iterator[np.ndarray]:
  view = functools.partial(transforms.describe_view, resize=_VIEW, crop=_VIEW)
  return views(Part(dataset, indices), view, _BATCH, side=_SIDE)


def _without(dataset: Dataset, indices: Sequence[int] | np.ndarray) -> Dataset:
  if not len(indices):
    return dataset
  return Part(dataset, np.setdiff1d(np.arange(len(dataset)), indices))


def _shown(dataset: Dataset) -> Bool[np.ndarray, 'category']:
  """Which classes have an image."""
  labels: Labels = dataset.labels
  if labels.ndim > 1:
    return np.any(labels, axis=0)
  return np.bincount(labels, minlength=len(dataset.classes)) > 0


def _tell(
  dataset: Dataset, bad: dict[int, str], listing: os.PathLike[str], max_bad_share: float
) -> None:
  names = ', '.join(dataset.key(index) for index in list(bad)[:3]) + (' …' if len(bad) > 3 else '')
  what = f'{len(bad):,} of {len(dataset):,} images of {dataset.name} cannot be read'
  if len(bad) > max_bad_share * len(dataset):
    raise ValueError(
      f'{what}, a share of {len(bad) / len(dataset):.2g} above max_bad_share={max_bad_share}: '
      f'{names}; see {listing}; replace them, or raise max_bad_share'
    )
  terminal.say(f'  {what} and are left out: {names}; see {listing}')


def _write(path: os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(header)
  writer.writerows(rows)
  with artifacts.written(path) as file:
    file.write(text.getvalue().encode())
