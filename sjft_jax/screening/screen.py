"""Leave out images that cannot be read and, as a guard against leaks, copies of test images.

Copies are near duplicates in the source and equal files among the target's training images. The
stages that follow get data sets without these images.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from etils import epath
from jaxtyping import Bool

from sjft_jax.data.dataset import Dataset, Domains, SubsetDataset, image_digests
from sjft_jax.output import tables
from sjft_jax.runtime import console
from sjft_jax.runtime.choice import choose
from sjft_jax.screening.exact_duplicates import exclude_test_files, list_contradictions
from sjft_jax.screening.near_duplicates import DuplicatePairs, find_duplicates
from sjft_jax.screening.scan import scan

# The target images whose duplicates can be kept out of the source.
DUPLICATES_OF = ('test', 'test_and_train', 'none')
# If more of a source's images are left out as copies, they may be none.
_SUSPICIOUS_SHARE = 0.05

_BAD_IMAGE_COLUMNS = dict.fromkeys(('data_set', 'image', 'reason'), pa.string())
_DUPLICATE_COLUMNS = {
  'source': pa.string(),
  'target': pa.string(),
  'target_set': pa.string(),
  'hamming': pa.int32(),
  'divergence': pa.float32(),
}


class ScreeningResult(NamedTuple):
  """The data sets of a run without the images that were left out.

  Attributes:
    domains: the data sets.
    left_out: the number of images that were left out: {'unreadable': {'target', 'test', 'source'},
      'duplicates'}, where duplicates are source images.
  """

  domains: Domains
  left_out: dict[str, Any]


def screen(
  workdir: epath.Path,
  target: Dataset,
  test: Dataset,
  source: Dataset,
  *,
  max_bad_share: float,
  exclude_duplicates_of: str,
) -> ScreeningResult:
  """Leave out unreadable images, and source images that duplicate target images.

  Training images whose files are test images as well are left out and listed in
  train_test_copies.csv, too; with `exclude_duplicates_of='none'` they are listed only. Training
  images whose files are in another class as well stay in and are listed in contradictions.csv.

  Writes bad_images.csv (data_set, image, reason) and duplicates.csv (source, target, target_set,
  hamming in bits of 144, divergence in nats). All tables are without rows if there are none.
  Warns if so many images duplicate others that they may only look alike, as `find_duplicates` says.

  Args:
    workdir: the directory of these tables.
    target: the target's training images.
    test: the target's test images.
    source: the source's images.
    max_bad_share: as for `exclude_unreadable`.
    exclude_duplicates_of: the images whose duplicates leave the source: 'test', 'test_and_train' or
      'none'. Duplicates of test images are counted and listed in any case.

  Raises:
    ValueError: as for `exclude_unreadable`; an unknown option; nothing of the source remains.
  """
  choose('exclude_duplicates_of', exclude_duplicates_of, DUPLICATES_OF)
  given = Domains(target, test, source)
  target, test, source = exclude_unreadable(
    given, workdir / 'bad_images.csv', max_bad_share=max_bad_share
  )
  unreadable = {
    name: len(before) - len(after)
    for name, before, after in zip(Domains._fields, given, (target, test, source), strict=True)
  }
  target = exclude_test_files(
    target, test, workdir / 'train_test_copies.csv', keep=exclude_duplicates_of == 'none'
  )
  list_contradictions(target, workdir / 'contradictions.csv')
  protected = {'test': test}
  if exclude_duplicates_of == 'test_and_train':
    protected['train'] = target
  duplicates = {name: find_duplicates(source, images) for name, images in protected.items()}
  listing = workdir / 'duplicates.csv'
  _write_duplicates(listing, source, protected, duplicates)
  action = 'stay in' if exclude_duplicates_of == 'none' else 'are left out'
  for name, pairs in duplicates.items():
    count = len(np.unique(pairs.source))
    consequence = f' and {action}: see {listing}' if count else ''
    console.say(
      f'  {count:,} of {len(source):,} source images duplicate {name} images{consequence}'
    )
  if exclude_duplicates_of == 'none':
    return ScreeningResult(
      Domains(target, test, source), {'unreadable': unreadable, 'duplicates': 0}
    )
  remaining = _drop(source, np.concatenate([pairs.source for pairs in duplicates.values()]))
  if not len(remaining):
    raise ValueError(
      f'every image of {source.name} duplicates an image of the target, see {listing}; use another '
      'source, or screening.exclude_duplicates_of=none if these are no copies'
    )
  num_copies = len(source) - len(remaining)
  if num_copies > _SUSPICIOUS_SHARE * len(source):
    console.say(
      f'  warning: {num_copies:,} of {len(source):,} source images are left out as near-'
      'duplicates; of domains with one outline on a plain ground (coins, plates, wafers), unlike '
      f'images can look alike to this guard: if the pairs in {listing} are no copies, start anew '
      'with screening.exclude_duplicates_of=none'
    )
  left_out = {'unreadable': unreadable, 'duplicates': num_copies}
  return ScreeningResult(Domains(target, test, remaining), left_out)


def exclude_unreadable(
  datasets: Sequence[Dataset],
  listing: os.PathLike[str] | None,
  *,
  max_bad_share: float,
  roles: Sequence[str] = Domains._fields,
) -> tuple[Dataset, ...]:
  """Leave out the images that cannot be read, and list them in a table.

  Args:
    datasets: those without unreadable images are returned as they are.
    listing: the table to write, with the columns data_set, image and reason; None: no table.
    max_bad_share: the share of a data set, 0–1, that may be unreadable.
    roles: of the data sets, which stand before the name where two have the same.

  Raises:
    ValueError: a larger share of a data set is unreadable, or all images of a class; or an image
      can be read now, and could not when its digest was computed.
  """
  bad_images = [scan(dataset).bad for dataset in datasets]
  names = [dataset.name for dataset in datasets]
  names = [
    f'{role} {name}' if names.count(name) > 1 else name
    for role, name in zip(roles, names, strict=False)
  ]
  if listing is not None:
    rows = (
      (name, dataset.key(index), reason)
      for name, dataset, bad in zip(names, datasets, bad_images, strict=True)
      for index, reason in bad.items()
    )
    tables.write_rows(listing, _BAD_IMAGE_COLUMNS, rows)
  for name, dataset, bad in zip(names, datasets, bad_images, strict=True):
    _check_digests(dataset, name, bad)
  details = f'; see {listing}' if listing is not None else ''
  return tuple(
    _exclude(dataset, name, bad, details, max_bad_share)
    for dataset, name, bad in zip(datasets, names, bad_images, strict=True)
  )


def _check_digests(dataset: Dataset, name: str, bad: dict[int, str]) -> None:
  """Check that every image that can be read has a digest.

  After a fault of the disk that has passed, the data set's fingerprint is none that it ever has
  again: no later call could go on with what is made now.

  Raises:
    ValueError: one has none.
  """
  digests = image_digests(dataset)
  if digests is None:
    return
  lost = np.setdiff1d(np.flatnonzero(~digests.any(axis=1)), np.array(list(bad), np.int64))
  if len(lost):
    raise ValueError(
      f'{dataset.key(int(lost[0]))} of {name} could not be read at first, and can be now; run the '
      'same command again'
    )


def _exclude(
  dataset: Dataset, name: str, bad: dict[int, str], details: str, max_bad_share: float
) -> Dataset:
  """Leave the bad images out if they are few; report them with `details` about their table."""
  if not bad:
    return dataset
  names = ', '.join(dataset.key(index) for index in list(bad)[:3]) + (' …' if len(bad) > 3 else '')
  what = f'{len(bad):,} of {len(dataset):,} images of {name} cannot be read'
  if len(bad) > max_bad_share * len(dataset):
    raise ValueError(
      f'{what}, a share of {len(bad) / len(dataset):.2g} above max_bad_share={max_bad_share}: '
      f'{names}{details}; replace them, or raise max_bad_share'
    )
  if len(bad) == len(dataset):
    raise ValueError(
      f'none of the {len(dataset):,} images of {name} can be read: {names}{details}; replace them'
    )
  console.say(f'  {what} and are left out: {names}{details}')
  for index in () if details else list(bad)[3:]:  # No table names them.
    console.say(f'    … {dataset.key(index)}')
  readable = _drop(dataset, list(bad))
  is_empty = _has_images(dataset) & ~_has_images(readable)
  if is_empty.any():
    raise ValueError(
      f'no image of class {dataset.classes[np.argmax(is_empty)]!r} of {name} can be read'
      f'{details}; replace them or remove the class'
    )
  return readable


def _write_duplicates(
  path: epath.Path,
  source: Dataset,
  targets: Mapping[str, Dataset],
  duplicates: Mapping[str, DuplicatePairs],
) -> None:
  rows = (
    (source.key(i), targets[name].key(j), name, bits, nats)
    for name, pairs in duplicates.items()
    for i, j, bits, nats in zip(*(column.tolist() for column in pairs), strict=True)
  )
  tables.write_rows(path, _DUPLICATE_COLUMNS, rows)


def _drop(dataset: Dataset, indices: Sequence[int] | np.ndarray) -> Dataset:
  if not len(indices):
    return dataset
  return SubsetDataset(dataset, np.setdiff1d(np.arange(len(dataset)), indices))


def _has_images(dataset: Dataset) -> Bool[np.ndarray, ' category']:
  """Return whether each class has an image."""
  labels = dataset.labels
  if labels.ndim > 1:
    return np.any(labels, axis=0)
  return np.bincount(labels, minlength=len(dataset.classes)) > 0
