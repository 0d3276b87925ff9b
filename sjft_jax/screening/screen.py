"""Before a run: leave out images that cannot be read and source images that copy test images.

The stages that follow get data sets without these images.
"""

import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from etils import epath
from jaxtyping import Bool

from sjft_jax.data.dataset import Dataset, Labels, SubsetDataset
from sjft_jax.report import tables
from sjft_jax.runtime import console
from sjft_jax.runtime.options import choose
from sjft_jax.screening.duplicates import find_duplicates
from sjft_jax.screening.scan import scan
from sjft_jax.screening.split_leak import exclude_test_files

# Whose copies can be kept out of the source.
DUPLICATES_OF = ('test', 'test_and_train', 'none')


def screen(
  workdir: epath.Path,
  target: Dataset,
  test: Dataset,
  source: Dataset,
  *,
  max_bad_share: float,
  exclude_duplicates_of: str,
) -> tuple[Dataset, Dataset, Dataset]:
  """Leave out unreadable images and source images that are copies of target images.

  Training images whose files are test images as well are left out and listed in
  train_test_copies.csv, too; with `exclude_duplicates_of='none'` they are listed only.

  Writes bad_images.csv (data_set, image, reason) and duplicates.csv (source, target, target_set,
  hamming in bits of 144, divergence in nats); both without rows if there are none.

  Args:
    workdir: where these go.
    target, test, source: the target's training and test images, and the source.
    max_bad_share: as for `exclude_unreadable`.
    exclude_duplicates_of: whose copies leave the source: 'test', 'test_and_train' or 'none'. DuplicatePairs
      of test images are counted and listed in any case.

  Raises:
    ValueError: as for `exclude_unreadable`; an unknown option; nothing of the source is left.
  """
  choose('exclude_duplicates_of', exclude_duplicates_of, DUPLICATES_OF)
  target, test, source = exclude_unreadable(
    (target, test, source), workdir / 'bad_images.csv', max_bad_share=max_bad_share
  )
  target = exclude_test_files(
    target, test, workdir / 'train_test_copies.csv', keep=exclude_duplicates_of == 'none'
  )
  listing = workdir / 'duplicates.csv'
  guarded = {'test': test}
  if exclude_duplicates_of == 'test_and_train':
    guarded['train'] = target
  duplicates = {name: find_duplicates(source, images) for name, images in guarded.items()}
  tables.write_rows(
    listing,
    {
      'source': pa.string(),
      'target': pa.string(),
      'target_set': pa.string(),
      'hamming': pa.int32(),
      'divergence': pa.float32(),
    },
    (
      (source.key(i), guarded[name].key(j), name, bits, nats)
      for name, pairs in duplicates.items()
      for i, j, bits, nats in zip(*(column.tolist() for column in pairs), strict=True)
    ),
  )
  for name, pairs in duplicates.items():
    images = f'{len(np.unique(pairs.source)):,} of {len(source):,} source images'
    fate = 'stay in' if exclude_duplicates_of == 'none' else 'are left out'
    also = f' and {fate}: see {listing}' if len(pairs.source) else ''
    console.say(f'  {images} duplicate {name} images{also}')
  if exclude_duplicates_of == 'none':
    return target, test, source
  source = _drop(source, np.concatenate([pairs.source for pairs in duplicates.values()]))
  if not len(source):
    raise ValueError(
      f'every image of {source.name} duplicates an image of the target, see {listing}; use another '
      'source'
    )
  return target, test, source


def exclude_unreadable(
  datasets: Sequence[Dataset], listing: os.PathLike[str], *, max_bad_share: float
) -> tuple[Dataset, ...]:
  """Leave out the images that cannot be read and list them in a table.

  Args:
    datasets: those without such images come back as they are.
    listing: the table to write: data_set, image, reason.
    max_bad_share: the share of a data set, 0–1, that may be unreadable.

  Raises:
    ValueError: more of a data set is, or all images of a class.
  """
  bad_images = [scan(dataset).bad for dataset in datasets]
  tables.write_rows(
    listing,
    dict.fromkeys(('data_set', 'image', 'reason'), pa.string()),
    (
      (dataset.name, dataset.key(index), reason)
      for dataset, bad in zip(datasets, bad_images, strict=True)
      for index, reason in bad.items()
    ),
  )
  readable = []
  for dataset, bad in zip(datasets, bad_images, strict=True):
    if bad:
      _check_share(dataset, bad, listing, max_bad_share)
    rest = _drop(dataset, list(bad))
    for label in np.flatnonzero(_has_images(dataset) & ~_has_images(rest)):
      raise ValueError(
        f'no image of class {dataset.classes[label]!r} of {dataset.name} can be read, see '
        f'{listing}; replace them or remove the class'
      )
    readable.append(rest)
  return tuple(readable)


def _drop(dataset: Dataset, indices: Sequence[int] | np.ndarray) -> Dataset:
  if not len(indices):
    return dataset
  return SubsetDataset(dataset, np.setdiff1d(np.arange(len(dataset)), indices))


def _has_images(dataset: Dataset) -> Bool[np.ndarray, ' category']:
  """Which classes have an image."""
  labels: Labels = dataset.labels
  if labels.ndim > 1:
    return np.any(labels, axis=0)
  return np.bincount(labels, minlength=len(dataset.classes)) > 0


def _check_share(
  dataset: Dataset, bad: dict[int, str], listing: os.PathLike[str], max_bad_share: float
) -> None:
  names = ', '.join(dataset.key(index) for index in list(bad)[:3]) + (' …' if len(bad) > 3 else '')
  what = f'{len(bad):,} of {len(dataset):,} images of {dataset.name} cannot be read'
  if len(bad) > max_bad_share * len(dataset):
    raise ValueError(
      f'{what}, a share of {len(bad) / len(dataset):.2g} above max_bad_share={max_bad_share}: '
      f'{names}; see {listing}; replace them, or raise max_bad_share'
    )
  console.say(f'  {what} and are left out: {names}; see {listing}')
