"""Open the images that paths name: folders, lists, or single files."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sjft_jax.data.file_dataset import FileDataset
from sjft_jax.data.folder import ClassFolder, UnlabelledFolder
from sjft_jax.data.image_list import ListedImages, is_list, read_paths
from sjft_jax.data.registry import match_split


class ImageFiles(FileDataset):
  """Single image files, in the given order; of one class.

  Args:
    paths: the files.
    root: the folder that relative paths start at; '': the current one.

  Raises:
    ValueError: no paths are given, or one is no file.
  """

  def __init__(self, paths: Sequence[str | Path], root: str = ''):
    if not paths:
      raise ValueError('no images are given')
    files = [os.path.expanduser(path) for path in paths]
    for file in files:
      place = os.path.join(root, file)
      if not os.path.isfile(place):  # Path.is_file raises an error where a name is too long.
        raise ValueError(f'{place} is not a file')
    labels = np.zeros(len(files), np.int32)
    super().__init__('images', root, files, ['image'], labels, '')


def open_images(*paths: str) -> UnlabelledFolder | ImageFiles:
  """Open the images of folders, of lists (their column 'path'), or single files; without labels.

  The keys of a folder that is given alone are paths below it, those of a list are its own paths; of
  several, they begin with the path that is given.

  Raises:
    ValueError: there is no such folder or file, or a list that cannot be read.
  """
  parts = [_open_images(path) for path in paths]
  if len(parts) == 1:
    return parts[0]
  return ImageFiles([Path(part.location(i)) for part in parts for i in range(len(part))])


def open_labelled(path: str, split: str = '') -> ClassFolder | ListedImages:
  """Open the images of a folder `path/split/<class>/…/<file>`, or of a list.

  Args:
    path: the folder or the list.
    split: a sub-folder of the folder, or a split of the list, in any case; '': the
      classes are folders in `path` itself, and the list has one split at most.

  Raises:
    ValueError: as for `ClassFolder` and `ListedImages`; a list has several splits, and none is
      given.
  """
  split = match_split(path, split) if split else ''
  if not is_list(path):
    return ClassFolder(path, split)
  splits = [] if split else ListedImages.splits(path)
  if len(splits) > 1:
    # Scores of training images among the others would look too good.
    raise ValueError(
      f'{path} has the splits {", ".join(splits)}; choose one, such as '
      f'--split={"test" if "test" in splits else splits[0]}'
    )
  return ListedImages(path, split)


def _open_images(path: str) -> UnlabelledFolder | ImageFiles:
  path = os.path.expanduser(path)
  if os.path.isdir(path):
    return UnlabelledFolder(path)
  if is_list(path):
    return ImageFiles(read_paths(path), os.path.dirname(path))
  if not os.path.exists(path):
    raise ValueError(f'{path} is neither a folder nor a file')
  return ImageFiles([Path(path)])
