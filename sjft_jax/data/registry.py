"""Data sets by name, and how a target comes apart into training and test images."""

import difflib
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32

from sjft_jax.data.builders import BUILDERS
from sjft_jax.data.dataset import ConcatDataset, Dataset, SubsetDataset
from sjft_jax.data.demo import DemoDiverse, DemoTextures
from sjft_jax.data.folder import ClassFolder, ListedImages
from sjft_jax.data.records import Records, directory

DEMOS = {'demo_textures': DemoTextures, 'demo_diverse': DemoDiverse}
LISTS = ('.csv', '.parquet')


def load(*, dataset: str, path: str, split: str) -> Dataset:
  """Opens a data set by name; no image is decoded.

  Args:
    dataset: 'folder', 'demo_textures', 'demo_diverse', or a name of TFDS, such as 'imagenet2012';
      several joined by '+' become one data set, their label spaces side by side.
    path: the folder or list (.csv, .parquet) of a 'folder' data set, the data directory of one of
      TFDS, empty for the demo; one for all, or one for each, separated by commas.
    split: a split of TFDS ('train', 'train+validation', 'train[:80%]'), a sub-folder of `path`, a
      value of a list's column `split`; of the demo, 'train' or 'test'; one for all, or one for
      each, separated by commas. A folder or list that has no splits is taken whole.

  Raises:
    ValueError: the name or the split is unknown, or `path` does not fit the data set.
    ModuleNotFoundError: a package that the demo reads is not installed.
  """
  names = dataset.split('+')
  if len(names) == 1:
    return _load(dataset, path, split)
  each = [_for_each('path', path, names), _for_each('split', split, names)]
  return ConcatDataset([_load(*one) for one in zip(names, *each, strict=True)])


def _for_each(option: str, value: str, names: list[str]) -> list[str]:
  values = value.split(',')
  if len(values) not in (1, len(names)):
    raise ValueError(
      f'{option}={value!r} names {len(values)} for {len(names)} data sets; give one for all, or '
      'one for each'
    )
  return values * len(names) if len(values) == 1 else values


def _load(dataset: str, path: str, split: str) -> Dataset:
  if dataset == 'folder':
    whole = _has_no_split(path, split)
    return (ListedImages if path.endswith(LISTS) else ClassFolder)(path, '' if whole else split)
  if dataset in DEMOS:
    if path:
      raise ValueError(f'path={path!r} is not read by {dataset}; leave it empty')
    return DEMOS[dataset](split)
  name = dataset.partition('/')[0]
  if name in BUILDERS or (name and (directory(path) / name).is_dir()):
    return Records(dataset, path, split)
  known = ['folder', *DEMOS, *BUILDERS]
  close = difflib.get_close_matches(dataset, known, 1)
  hint = f'did you mean {close[0]!r}? ' if close else ''
  raise ValueError(
    f'dataset={dataset!r} is unknown; {hint}known: {", ".join(known)}, and what TFDS has prepared '
    'below path'
  )


def open_target(
  *,
  dataset: str,
  path: str,
  train_split: str,
  test_split: str,
  train_per_class: int,
  test_share: float,
  split_seed: int,
) -> tuple[Dataset, Dataset]:
  """The target's training and test images.

  Where the data set has no such splits (`test_split` is empty, or neither of the two folders is
  there), they are drawn, class by class.

  Args:
    dataset, path: as for `load`.
    train_split: the split to train on, or to draw from.
    test_split: the split to test on; '': the images that are not drawn for training.
    train_per_class: training images of each class, drawn from `train_split`; 0: all, or the rest
      of a `test_share`.
    test_share: share of each class that becomes test images where there is no test split.
    split_seed: of the draw.

  Raises:
    ValueError: a class is in one of them only or has too few images, or the images have several
      classes each.
  """
  is_whole = dataset == 'folder' and _has_no_split(path, train_split, test_split)
  whole = load(dataset=dataset, path=path, split='' if is_whole else train_split)
  if whole.labels.ndim > 1:
    raise ValueError(f'{dataset} has several classes an image and cannot be the target')
  if is_whole or not test_split:
    train, test = stratified(
      whole.labels, whole.classes, per_class=train_per_class, share=test_share, seed=split_seed
    )
    return SubsetDataset(whole, train), SubsetDataset(whole, test)
  tested = load(dataset=dataset, path=path, split=test_split)
  for name in sorted(set(whole.classes) ^ set(tested.classes)):
    raise ValueError(
      f'the target has class {name!r} in only one of {train_split!r} and {test_split!r}; '
      'training and test set need the same classes'
    )
  if train_per_class:
    train, _ = stratified(
      whole.labels, whole.classes, per_class=train_per_class, seed=split_seed, leave=0
    )
    return SubsetDataset(whole, train), tested
  return whole, tested


def _has_no_split(path: str, *splits: str) -> bool:
  """Whether a folder or list is one whole; a misspelt split beside others is a mistake instead."""
  if path.endswith(LISTS):
    return not ListedImages.has_splits(path)
  return bool(path) and not any(
    (Path(path) / split).is_dir() for split in (*splits, 'train', 'val', 'test')
  )


def stratified(
  labels: Int32[np.ndarray, ' image'],
  classes: tuple[str, ...],
  *,
  per_class: int = 0,
  share: float = 0.0,
  seed: int,
  leave: int = 1,
) -> tuple[Int[np.ndarray, ' train'], Int[np.ndarray, ' test']]:
  """Indices of training images, `per_class` of each class, and of all others, both ascending.

  Args:
    per_class: if 0, all but a `share` of every class is for training, at least one image each.
    seed: a class's draw depends on it and on the class's name and number of images alone.
    leave: how many images of every class must be left for testing.

  Raises:
    ValueError: a class has too few images for both.
  """
  train, test = [], []
  for label, name in enumerate(classes):
    members = np.flatnonzero(labels == label)
    # Rounded half up, whatever the share: Python rounds to even.
    held_out = min(max(int(share * len(members) + 0.5), 1), len(members) - 1)
    count = per_class or len(members) - held_out
    if len(members) < max(count, 1) + leave:
      raise ValueError(
        f'class {name!r} has {len(members)} images, too few for {max(count, 1)} to train on and '
        f'{leave} to test on; lower target.train_per_class, add images or remove the class'
      )
    key = np.random.SeedSequence([seed, *name.encode()])
    order = np.random.Generator(np.random.Philox(key)).permutation(members)
    train.append(order[:count])
    test.append(order[count:])
  return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))
