"""Image files in folders: in class folders, one a class, or all below a path."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sjft_jax.data.file_dataset import FileDataset, normalize_class_name, sort_classes
from sjft_jax.data.image_formats import FORMATS
from sjft_jax.data.image_list import LIST_SUFFIXES
from sjft_jax.data.walk import FolderWalk, has_folders, is_folder, is_image_file, scan_visible

# Folders with these names, in any case, are splits unless they hold images themselves.
SPLITS = ('train', 'val', 'valid', 'validation', 'test')

_LAYOUT = 'images are expected as <path>/<split>/<class>/<file>, the split may be empty'


class ClassFolder(FileDataset):
  """The images `path/split/<class>/…/<file>`, or, without a split, `path/<class>/…/<file>`.

  Classes come in sorted order, by value if all are numbers, and the files of each class, at any
  depth, in sorted order. Blanks around the names of classes and their Unicode form do not matter.
  Hidden entries are passed over. So are files of formats that are not read and links that lead
  nowhere, and a line is printed about them.

  Args:
    path: the folder; '~' is the user's home.
    split: a folder in it; '': there are no splits.

  Raises:
    ValueError: a folder is missing or holds no class, a class holds no image, or the folders look
      like splits or like the wrapping of an archive instead of classes.
  """

  def __init__(self, path: str, split: str):
    path = os.path.expanduser(path)
    if os.path.isfile(path):
      raise ValueError(
        f'path={path!r} is a file; give a folder, or a list whose name ends in one of '
        f'{", ".join(LIST_SUFFIXES)}'
      )
    root = os.path.join(path, split) if split else path
    if not path or not os.path.isdir(root):
      given = f'path={path!r}, split={split!r}: {root} is not a folder'
      inner = [e.name for e in scan_visible(path) if is_folder(e)] if os.path.isdir(path) else []
      present = f'{path} holds {_shorten(inner)}; ' if inner else ''
      raise ValueError(f'{given}; {present}{_LAYOUT}')
    walk = FolderWalk(root)
    folders: dict[str, str] = {}
    for entry in scan_visible(root):
      if not is_folder(entry):
        walk.passed_over['files beside the class folders'].append(entry.name)
        continue
      name = normalize_class_name(entry.name, root)
      if name in folders:
        raise ValueError(
          f'{root} has the folders {folders[name]!r} and {entry.name!r}, which name one class; '
          'move the images of one into the other'
        )
      folders[name] = entry.name
    if not folders:
      raise ValueError(f'{root} has no class folders; {_LAYOUT}')
    _check_no_wrapper(root, split, list(folders.values()))
    if not split:
      _check_no_splits(root, list(folders.values()))
    classes = sort_classes(folders)
    for label, name in enumerate(classes):
      num_files = len(walk.paths)
      walk.add_below(folders[name], label)
      if len(walk.paths) == num_files:
        _raise_no_image(root, folders[name])
    walk.report()
    name = (
      Path(root).resolve().name
      if split in ('', '.')
      else f'{Path(os.path.abspath(path)).name}/{split}'
    )
    labels = np.array(walk.labels, np.int32)
    super().__init__(name, root, walk.paths, classes, labels, 'folder')


def _shorten(names: Sequence[str], count: int = 5) -> str:
  return ', '.join(names[:count]) + (', …' if len(names) > count else '')


def _raise_no_image(root: str, folder: str) -> None:
  """Raise an error about a class folder without images that lists what is in it."""
  walk = FolderWalk(os.path.join(root, folder))
  walk.add_below('', 0)
  content = f'but {walk.describe_passed_over()}' if walk.passed_over else 'it is empty'
  raise ValueError(
    f'class folder {walk.root} has no image that can be read ({FORMATS}), {content}; add '
    f'images, or move the folder out of {root}'
  )


def _check_no_wrapper(root: str, split: str, folders: Sequence[str]) -> None:
  """Check that a folder does not hold one folder alone in which the class folders are.

  Raises:
    ValueError: it does; all images would be of one class.
  """
  path, inner, parents = root, list(folders), set()
  while len(inner) == 1 and os.path.realpath(path) not in parents:  # A link may lead back.
    parents.add(os.path.realpath(path))
    path = os.path.join(path, inner[0])
    entries = scan_visible(path)
    if any(is_image_file(entry) for entry in entries):
      return
    inner = [entry.name for entry in entries if is_folder(entry)]
  if path == root or len(inner) < 2:
    return
  remedy = f'path={path}'
  if split:
    inside = os.path.join(split, os.path.relpath(path, root))
    remedy = f'{inside} as the split: train_split={inside}, or split={inside} for a source'
  raise ValueError(
    f'{root} holds one folder, {folders[0]}, and {path} holds {_shorten(inner)}: if these are the '
    f'classes, give {remedy}; otherwise put the images of all into one folder'
  )


def _check_no_splits(root: str, folders: Sequence[str]) -> None:
  """Check that what lies in a folder without splits are classes.

  Raises:
    ValueError: the folders are splits.
  """
  if all(folder.casefold() in SPLITS for folder in folders):
    inside = os.path.join(root, folders[0])
    if all(has_folders(os.path.join(root, folder)) for folder in folders):
      problem = f'splits; give {inside}, or {folders[0]} as the split'
    else:
      problem = f'splits, but not all of them hold class folders; {_LAYOUT}'
    raise ValueError(
      f'{root} holds {", ".join(folders)} and no other folder: these are {problem}; classes of '
      f'these names need a split above them, {os.path.join(root, "train", folders[0])}'
    )
  inner = {}
  for folder in folders:
    entries = scan_visible(os.path.join(root, folder))
    if not any(is_image_file(entry) for entry in entries):
      inner[folder] = {entry.name for entry in entries if is_folder(entry)}
  for folder in inner:
    for other in inner:
      shared = sorted(inner[folder] & inner[other])
      if folder < other and len(shared) > 1 and _names_split(folder, other):
        train, test = sorted([folder, other], key=lambda name: 'train' not in name.casefold())
        raise ValueError(
          f'{os.path.join(root, folder)} and {os.path.join(root, other)} hold the same folders '
          f'({_shorten(shared)}), so they are splits and not classes; name them: for a target '
          f'train_split={train} and test_split={test}, for a source split={train}'
        )


def _names_split(*folders: str) -> bool:
  return any(word in folder.casefold() for folder in folders for word in ('train', 'test', 'val'))


class UnlabelledFolder(FileDataset):
  """All images below `path`, at any depth, in the sorted order of their paths; of one class.

  Hidden entries are passed over. So are files of formats that are not read and links that lead
  nowhere, and a line is printed about them. Links to folders are followed.

  Args:
    path: the folder; '~' is the user's home.

  Raises:
    ValueError: `path` is no folder, or there is no image below it.
  """

  def __init__(self, path: str):
    path = os.path.expanduser(path)
    if not path or not os.path.isdir(path):
      raise ValueError(f'{path!r} is not a folder')
    walk = FolderWalk(path)
    walk.add_below('', 0)
    if not walk.paths:
      content = f', but {walk.describe_passed_over()}' if walk.passed_over else ''
      raise ValueError(f'there is no image ({FORMATS}) below {path}{content}')
    walk.report()
    labels = np.array(walk.labels, np.int32)
    super().__init__(Path(path).resolve().name, path, walk.paths, ['image'], labels, 'folder')
