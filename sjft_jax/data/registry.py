"""Open data sets by name, and split a target into training and test images."""

import os
from pathlib import Path

import numpy as np
from etils import epy
from jaxtyping import Int, Int32

from sjft_jax.data.dataset import ConcatDataset, Dataset, Groups, SubsetDataset, image_groups
from sjft_jax.data.demo import DemoDiverse, DemoTextures
from sjft_jax.data.folder import SPLITS, ClassFolder
from sjft_jax.data.image_list import ListedImages, is_list
from sjft_jax.data.walk import has_folders, is_folder, scan_visible
from sjft_jax.runtime import artifacts, console
from sjft_jax.runtime.choice import choose

with epy.lazy_imports():  # Only data sets of TFDS need it.
  from sjft_jax.data import builders, records

DEMOS = {'demo_textures': DemoTextures, 'demo_diverse': DemoDiverse}


def load(*, dataset: str, path: str, split: str) -> Dataset:
  """Open a data set by name; no image is decoded.

  Args:
    dataset: 'folder', 'demo_textures', 'demo_diverse', or a name of TFDS, such as 'imagenet2012';
      several joined by '+' become one data set, their label spaces side by side.
    path: the folder or list (.csv, .tsv, .parquet) of a 'folder' data set, the data directory of
      one of TFDS, empty for the demo; one for all, or one for each, separated by commas.
    split: a split of TFDS ('train', 'train+validation', 'train[:80%]'), a sub-folder of `path`, a
      value of a list's column `split`; of the demo, 'train' or 'test'; one for all, or one for
      each, separated by commas. A folder or list that has no splits is taken whole.

  Raises:
    ValueError: the name or the split is unknown, or `path` does not fit the data set.
    ModuleNotFoundError: a package that the demo reads is not installed.
  """
  names = dataset.split('+')
  if len(names) == 1:
    return _load_single(dataset, path, split)
  paths = values_per_dataset('path', path, len(names))
  splits = values_per_dataset('split', split, len(names))
  parts = [_load_single(*each) for each in zip(names, paths, splits, strict=True)]
  # The name of a folder or list goes on with its split, which is no part of the names of classes:
  # those of training and test images are the same.
  prefixes = [
    part.name.partition('/')[0] if name == 'folder' else part.name
    for name, part in zip(names, parts, strict=True)
  ]
  return ConcatDataset(parts, prefixes if len(set(prefixes)) == len(parts) else None)


def values_per_dataset(option: str, value: str, count: int) -> list[str]:
  """Return the value of an option for each of `count` data sets, which commas separate.

  Raises:
    ValueError: there are neither as many values nor a single one.
  """
  values = value.split(',') if count > 1 else [value]
  if len(values) not in (1, count):
    raise ValueError(
      f'{option}={value!r} names {len(values)} for {count} data sets; give one for all, or one for '
      'each'
    )
  return values * count if len(values) == 1 else values


def _load_single(dataset: str, path: str, split: str) -> Dataset:
  if dataset == 'folder':
    if _is_unsplit(path, split):
      split = ''
    else:
      split = match_split(path, split)
      _report_siblings(path, split)
    return (ListedImages if is_list(path) else ClassFolder)(path, split)
  if dataset in DEMOS:
    if path:
      raise ValueError(
        f'path={path!r} is not read by {dataset}; leave it empty, or where data sets are joined '
        "its place among the paths, as in 'SOURCE,'"
      )
    return DEMOS[dataset](split)
  name = dataset.partition('/')[0]
  if name not in builders.BUILDERS and not (
    name and (records.resolve_data_dir(path) / name).is_dir()
  ):
    try:
      choose('dataset', dataset, ['folder', *DEMOS, *builders.BUILDERS])
    except ValueError as error:
      raise ValueError(f'{error}, or a data set that TFDS has prepared below path') from None
  return records.Records(dataset, path, split)


def check_outside_classes(directory: str, *, dataset: str, path: str, split: str) -> None:
  """Check that a directory, which will be written, does not lie among class folders.

  Args:
    directory: a path, there or not.
    dataset, path, split: as for `load`.

  Raises:
    ValueError: it does, and would be taken for a class.
  """
  if artifacts.is_remote(directory):  # For the system, a path below the current folder.
    return
  for folder in class_roots(dataset=dataset, path=path, split=split):
    if Path(os.path.realpath(directory)).is_relative_to(os.path.realpath(folder)):
      raise ValueError(
        f'the work directory {directory} lies in {folder}, where it would be taken for a class; '
        'give another one'
      )


def class_roots(*, dataset: str, path: str, split: str) -> list[str]:
  """Return the folders whose folders are the classes of a data set; of lists there are none.

  Args:
    dataset, path, split: as for `load`.
  """
  names = dataset.split('+')
  paths = values_per_dataset('path', path, len(names))
  splits = values_per_dataset('split', split, len(names))
  roots = []
  for each_name, each_path, each_split in zip(names, paths, splits, strict=True):
    if each_name != 'folder' or is_list(each_path):
      continue
    folder = os.path.expanduser(each_path)
    if not _is_unsplit(each_path, each_split):
      folder = os.path.join(folder, match_split(each_path, each_split))
    roots.append(folder)
  return roots


def draws_test(*, dataset: str, path: str, train_split: str, test_split: str, **_: object) -> bool:
  """Return whether `open_target` draws the test images, which then differ from seed to seed.

  It does where `test_split` is empty, or a folder or list has no splits.

  Args:
    dataset, path, train_split, test_split: as for `open_target`, whose other options decide nothing
      here.
  """
  return not test_split or (dataset == 'folder' and _is_unsplit(path, train_split, test_split))


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
  """Open the target's training and test images.

  Where the data set has no such splits (`test_split` is empty, or neither of the two folders is
  there), they are drawn, class by class; groups of images stay together.

  Args:
    dataset, path: as for `load`.
    train_split: the split to train on, or to draw from.
    test_split: the split to test on; '': the images that are not drawn for training.
    train_per_class: training images of each class, drawn from `train_split`; 0: all, or what a
      `test_share` leaves.
    test_share: share of each class that becomes test images where there is no test split.
    split_seed: seed of the draw.

  Raises:
    ValueError: a class is in one of the splits only or has too few images, a group is in both, or
      the images have several classes each.
  """
  is_drawn = draws_test(dataset=dataset, path=path, train_split=train_split, test_split=test_split)
  if not is_drawn:
    _check_joined_splits(dataset, path, train_split, test_split)
  train = load(dataset=dataset, path=path, split=train_split)
  if train.labels.ndim > 1:
    raise ValueError(f'{dataset} has several classes per image and cannot be the target')
  groups = image_groups(train)
  if is_drawn and groups is not None:
    if train_per_class:
      raise ValueError(
        f'train_per_class={train_per_class} cannot be drawn from images with groups, as in {path}; '
        'write the splits into its column split'
      )
    test_indices = _draw_groups(train, groups, test_share, split_seed)
    train_indices = np.setdiff1d(np.arange(len(train)), test_indices)
    return SubsetDataset(train, train_indices), SubsetDataset(train, test_indices)
  if is_drawn:
    train_indices, test_indices = stratified_split(
      train.labels,
      train.classes,
      train_per_class=train_per_class,
      test_share=test_share,
      seed=split_seed,
    )
    return SubsetDataset(train, train_indices), SubsetDataset(train, test_indices)
  if dataset == 'folder':
    _check_test_split(path, test_split)
  test = load(dataset=dataset, path=path, split=test_split)
  _check_same_classes(train.classes, test.classes, train_split, test_split)
  _check_trained_classes(train, test, train_split, test_split)
  _check_groups(train, test)
  if train_per_class:
    train_indices, _ = stratified_split(
      train.labels, train.classes, train_per_class=train_per_class, seed=split_seed, min_test=0
    )
    return SubsetDataset(train, train_indices), test
  return train, test


def _draw_groups(
  data: Dataset, groups: Groups, test_share: float, seed: int
) -> Int[np.ndarray, ' test']:
  """Draw test images, as nearly as can be a share of each class, without dividing a group.

  A group counts for the class of its first image.

  Raises:
    ValueError: a class has no test image or no training image then.
  """
  _, first_images, groups = np.unique(groups, return_index=True, return_inverse=True)
  group_labels, sizes = data.labels[first_images], np.bincount(groups)
  is_drawn = np.zeros(len(sizes), bool)
  for label, name in enumerate(data.classes):
    members = np.flatnonzero(group_labels == label)
    key = np.random.SeedSequence([seed, *name.encode()])
    members = np.random.Generator(np.random.Philox(key)).permutation(members)
    missing = test_share * sizes[members].sum()
    for group in members:
      if abs(missing - sizes[group]) < abs(missing):
        is_drawn[group] = True
        missing -= sizes[group]
    # At least one group for each: the smallest one moves.
    if is_drawn[members].all() or not is_drawn[members].any():
      smallest = members[sizes[members].argmin()] if len(members) else []
      is_drawn[smallest] = ~is_drawn[smallest]
  is_test = is_drawn[groups]
  for label, name in enumerate(data.classes):
    if not 0 < is_test[data.labels == label].sum() < (data.labels == label).sum():
      raise ValueError(
        f'class {name!r} has too few groups for training and test images; add images of other '
        'groups, or write the splits into the column split'
      )
  return np.flatnonzero(is_test)


def _check_groups(train: Dataset, test: Dataset) -> None:
  """Check that no group has both training and test images.

  Raises:
    ValueError: one has.
  """
  train_groups, test_groups = image_groups(train), image_groups(test)
  if train_groups is None or test_groups is None:
    return
  both = np.flatnonzero(np.isin(test_groups, train_groups))
  if len(both):
    raise ValueError(
      f'{len(both):,} test images, such as {test.key(int(both[0]))!r}, share a group with training '
      'images; move each group to one split, or rename the column group'
    )


def _check_same_classes(
  train: tuple[str, ...], test: tuple[str, ...], train_split: str, test_split: str
) -> None:
  """Check that training and test images have the same classes.

  Raises:
    ValueError: a class is in one of them only.
  """
  for classes, others, split, other_split in (
    (train, test, train_split, test_split),
    (test, train, test_split, train_split),
  ):
    only_here = sorted(set(classes) - set(others))
    if only_here:
      alike = [name for name in others if name.casefold() == only_here[0].casefold()]
      hint = f', which has {alike[0]!r}' if alike else ''
      raise ValueError(
        f'the target has class {only_here[0]!r} in only one of {train_split!r} and {test_split!r}: '
        f'{len(only_here):,} of {len(classes):,} classes of {split!r} are not in {other_split!r}'
        f'{hint}; training and test set need the same classes'
      )


def _check_trained_classes(
  train: Dataset, test: Dataset, train_split: str, test_split: str
) -> None:
  """Check that every class with test images has training images; a part of a split may lack them.

  Raises:
    ValueError: a class has none, so that its test images could only be wrong.
  """
  untrained = np.setdiff1d(test.labels, train.labels)
  if len(untrained):
    example = train.classes[untrained[0]]
    raise ValueError(
      f'{len(untrained):,} of {len(train.classes):,} classes, such as {example!r}, have images in '
      f'{test_split!r} but none in {train_split!r}; take a larger part of the training split'
    )


def _check_test_split(path: str, test_split: str) -> None:
  """Check that a folder or list has the test split.

  Raises:
    ValueError: it has not; the message names what can be done.
  """
  splits = _find_splits(path, test_split)
  if '/' in test_split or match_split(path, test_split) in splits:
    return
  others = [name for name in splits if name.casefold() in SPLITS[1:]]
  remedy = f'test_split={others[0]} tests on that, ' if others else ''
  everything = 'all rows' if is_list(path) else 'all folders as classes'
  raise ValueError(
    f'{path} has no split test_split={test_split!r}, but {", ".join(splits)}; {remedy}'
    'test_split= draws test images from the training split, and train_split= with it from '
    f'{everything}'
  )


def _check_joined_splits(dataset: str, path: str, train_split: str, test_split: str) -> None:
  """Check that no folder or list among joined data sets would be taken whole twice.

  Raises:
    ValueError: one has no splits; its images would be for training and for testing.
  """
  names = dataset.split('+')
  if len(names) == 1:
    return
  options = {'path': path, 'train_split': train_split, 'test_split': test_split}
  values = (values_per_dataset(option, value, len(names)) for option, value in options.items())
  for name, each, *splits in zip(names, *values, strict=True):
    if name == 'folder' and _is_unsplit(each, *splits):
      raise ValueError(
        f'{each} has no splits: all its images would be for training and for testing; test_split= '
        'draws test images from the joined data sets'
      )


def _find_splits(path: str, *splits: str) -> list[str]:
  """Return the splits of a list, or those of a folder that have usual names or the given ones.

  A folder is a split if it holds folders: one with images alone may be a class called 'train'.
  """
  path = os.path.expanduser(path)
  if is_list(path):
    return ListedImages.splits(path)
  if not os.path.isdir(path):
    return []
  known = {split.casefold() for split in (*SPLITS, *splits)}
  return [
    entry.name
    for entry in scan_visible(path)
    if entry.name.casefold() in known and is_folder(entry) and has_folders(entry.path)
  ]


def match_split(path: str, split: str) -> str:
  """Return a split as it is spelt in a folder or list, or as given if there is none like it.

  Raises:
    ValueError: it is spelt in two ways.
  """
  splits = _find_splits(path, split)
  alike = [name for name in splits if name.casefold() == split.casefold()]
  if len(alike) > 1:
    raise ValueError(f'{path} has the splits {" and ".join(alike)}; spell them in one way')
  return alike[0] if alike else split


def _report_siblings(path: str, split: str) -> None:
  """Print a line about folders beside a split that may be classes, of which one is called so."""
  path = os.path.expanduser(path)
  if is_list(path) or split.casefold() not in SPLITS or not os.path.isdir(path):
    return
  others = [
    entry.name
    for entry in scan_visible(path)
    if is_folder(entry) and entry.name.casefold() not in SPLITS
  ]
  if others:
    named = ', '.join(others[:5]) + (', …' if len(others) > 5 else '')
    console.say(
      f'  {os.path.join(path, split)} is read without {named} beside it; if {split} is a class '
      'like these, leave the split empty'
    )


def _is_unsplit(path: str, *splits: str) -> bool:
  """Return whether a folder or list has no splits; where it has others, a split is misspelt."""
  if is_list(path):
    return not ListedImages.splits(path)
  return (
    bool(path)
    and not any('/' in split or split == '.' for split in splits)
    and not _find_splits(path, *splits)
  )


def stratified_split(
  labels: Int32[np.ndarray, ' image'],
  classes: tuple[str, ...],
  *,
  train_per_class: int = 0,
  test_share: float = 0.0,
  seed: int,
  min_test: int = 1,
) -> tuple[Int[np.ndarray, ' train'], Int[np.ndarray, ' test']]:
  """Draw training images, class by class; all others are test images.

  Args:
    labels: the class of each image.
    classes: class names.
    train_per_class: training images of each class; 0: all but a `test_share` of every class, at
      least one image each.
    test_share: share of each class that becomes test images.
    seed: a class's draw depends on it and on the class's name and number of images alone.
    min_test: how many images of every class must remain for testing.

  Returns:
    The indices of training and of test images, both ascending.

  Raises:
    ValueError: a class has too few images for both.
  """
  train, test = [], []
  for label, name in enumerate(classes):
    members = np.flatnonzero(labels == label)
    # Rounded half up, whatever the share: Python rounds to even.
    num_test = min(max(int(test_share * len(members) + 0.5), 1), len(members) - 1)
    num_train = train_per_class or len(members) - num_test
    if len(members) < num_train + min_test:
      raise ValueError(
        f'class {name!r} has {len(members)} images, too few for {num_train} to train on and '
        f'{min_test} to test on; lower train_per_class, add images or remove the class'
      )
    key = np.random.SeedSequence([seed, *name.encode()])
    order = np.random.Generator(np.random.Philox(key)).permutation(members)
    train.append(order[:num_train])
    test.append(order[num_train:])
  return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))
