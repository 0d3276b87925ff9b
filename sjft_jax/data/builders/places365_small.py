"""Places 365 at 256×256 pixels (Zhou et al. 2017): 365 scenes, 1,803,460 images to train on and
36,500 for validation.
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds

from sjft_jax.data.builders.archive import Archive, labelled_members, members
from sjft_jax.data.builders.base import ArchiveBuilder

_URL = 'http://data.csail.mit.edu/places/places365/'
# Places 205 has a list of 2.4 million.
_MAX_IMAGES = 10_000_000


class Builder(ArchiveBuilder):
  """Features, splits and class names are those of TFDS; the unlabelled test images are left out."""

  VERSION = tfds.core.Version('2.1.0')
  ARCHIVES = (
    Archive(
      'train_256_places365standard.tar',
      _URL + 'train_256_places365standard.tar',
      26_103_685_120,
      'sha256:0ade5d7d38c682aa0203014a2b99ad3bf608bf1de0f151dc0d80efba54660a0a',
    ),
    Archive(
      'val_256.tar',
      _URL + 'val_256.tar',
      525_158_400,
      'sha256:24b4e639ef12a0012af525bc4cb443e4ab4aaea8369a1fb009b70e4a4aad5d48',
    ),
    Archive(
      'filelist_places365-standard.tar',
      _URL + 'filelist_places365-standard.tar',
      67_498_496,
      'sha256:520699e00d69b63ddc29fac54645aa00ce1c10ca42e288960aa1cf791d6e9aa9',
    ),
  )

  def _info(self) -> tfds.core.DatasetInfo:
    names = tfds.core.tfds_path('image_classification/categories_places365.txt')
    return self.make_info(
      {
        'image': tfds.features.Image(shape=(256, 256, 3)),
        'label': tfds.features.ClassLabel(names_file=names),
        'filename': tfds.features.Text(),
      },
      'http://places2.csail.mit.edu/download.html',
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    train, validation, lists = self.find_archives(dl_manager).values()
    return {
      'train': self._generate_examples(
        train, read_labels(lists, 'places365_train_standard.txt', 'data_256')
      ),
      'validation': self._generate_examples(
        validation, read_labels(lists, 'places365_val.txt', 'val_256')
      ),
    }

  def _generate_examples(
    self, path: Path, labels: Mapping[str, int]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, image, label in labelled_members(path, labels):
      yield name, {'image': image, 'label': label, 'filename': name}


def read_labels(archive: Path, list_: str, folder: str) -> dict[str, int]:
  """Read the label of every image of a list, which has an image and its label in every line.

  Args:
    archive: the tar archive that holds the list, in whatever folder.
    list_: the name of the list.
    folder: the folder of its images; the list may begin their names with a slash or not.

  Raises:
    ValueError: the archive is truncated or has no such list, or the list is damaged.
  """
  lists = (content for name, content in members(archive) if PurePosixPath(name).name == list_)
  try:
    content = next(lists)
    if content.count(b'\n') > _MAX_IMAGES:
      raise ValueError(f'it has more than {_MAX_IMAGES:,} lines')
    # Read from one buffer, without a second copy of millions of lines.
    lines = io.TextIOWrapper(io.BytesIO(content), 'utf-8')
    pairs = (line.rsplit(maxsplit=1) for line in lines if line.strip())
    return {f'{folder}/{name.lstrip("/")}': int(label) for name, label in pairs}
  except StopIteration:
    raise ValueError(f'{archive} does not hold {list_}; get it again') from None
  except ValueError as error:
    raise ValueError(f'{archive}: {list_} is no list of images and labels ({error})') from error
