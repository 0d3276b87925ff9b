"""Find target images whose files are stored twice: in both splits, or in two classes."""

import os

import numpy as np
import pyarrow as pa

from sjft_jax.data.dataset import Dataset, SubsetDataset, image_digests
from sjft_jax.output import tables
from sjft_jax.runtime import console


def exclude_test_files(
  train: Dataset, test: Dataset, listing: os.PathLike[str], *, keep: bool
) -> Dataset:
  """Leave out training images whose stored bytes are those of a test image, and list them.

  They would make the test score too good. Test images stay, so that the score is that of the whole
  test set. Data sets whose stored bytes are not known are returned as they are.

  Args:
    train: the target's training images.
    test: the target's test images.
    listing: the table to write, with the columns train and test; without rows if there are none.
    keep: whether such images are counted and listed only.

  Raises:
    ValueError: a class has no other training images.
  """
  train_digests, test_digests = image_digests(train), image_digests(test)
  if train_digests is None or test_digests is None:
    return train
  test_indices = {row.tobytes(): i for i, row in enumerate(test_digests) if row.any()}
  pairs = [
    (i, test_indices[row.tobytes()])
    for i, row in enumerate(train_digests)
    if row.tobytes() in test_indices
  ]
  tables.write_rows(
    listing,
    {'train': pa.string(), 'test': pa.string()},
    ((train.key(i), test.key(j)) for i, j in pairs),
  )
  if not pairs:
    return train
  examples = ', '.join(f'{train.key(i)} = {test.key(j)}' for i, j in pairs[:3])
  action = 'stay in' if keep else 'are left out of the training'
  console.say(
    f'  {len(pairs):,} of {len(train):,} training images are test images as well and {action}: '
    f'{examples}{" …" if len(pairs) > 3 else ""}; see {listing}'
  )
  if keep:
    return train
  rest = SubsetDataset(train, np.setdiff1d(np.arange(len(train)), [i for i, _ in pairs]))
  for label in np.setdiff1d(train.labels, rest.labels):
    raise ValueError(
      f'all training images of class {train.classes[label]!r} are test images as well, see '
      f'{listing}; remove them from one of the splits, or add images'
    )
  return rest


def list_contradictions(train: Dataset, listing: os.PathLike[str]) -> None:
  """List training images whose stored bytes are those of an image of another class.

  They stay in the training: which of the classes is right is not known here. Data sets whose stored
  bytes are not known are passed over.

  Args:
    train: the target's training images.
    listing: the table to write, with the columns image, class, other_image and other_class; without
      rows if there are none.
  """
  digests = image_digests(train)
  if digests is None:
    return
  others: dict[bytes, dict[int, int]] = {}  # Of each file, its first image in each class.
  for i, row in enumerate(digests):
    if row.any():
      others.setdefault(row.tobytes(), {}).setdefault(int(train.labels[i]), i)
  pairs = [
    (i, next(j for label, j in others[row.tobytes()].items() if label != train.labels[i]))
    for i, row in enumerate(digests)
    if row.any() and len(others[row.tobytes()]) > 1
  ]
  columns = ('image', 'class', 'other_image', 'other_class')
  tables.write_rows(
    listing,
    dict.fromkeys(columns, pa.string()),
    (
      [text for k in pair for text in (train.key(k), train.classes[train.labels[k]])]
      for pair in pairs
    ),
  )
  if not pairs:
    return
  examples = ', '.join(f'{train.key(i)} = {train.key(j)}' for i, j in pairs[:3])
  console.say(
    f'  {len(pairs):,} of {len(train):,} training images are in another class as well and stay in: '
    f'{examples}{" …" if len(pairs) > 3 else ""}; see {listing}'
  )
