"""Places 205 at 256×256 pixels (Zhou et al. 2014): 205 scenes, 2,448,873 images to train on and
20,500 for validation.
"""

import contextlib
import pickle
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from sjft_jax.data.builders.archive import Archive, labelled_members
from sjft_jax.data.builders.base import ArchiveBuilder
from sjft_jax.data.builders.places365_small import read_labels

_IMAGES = 'data/vision/torralba/deeplearning/images256'


class Builder(ArchiveBuilder):
  """Features and splits are those of TFDS's places365_small; a class is named as its folder is.

  Neither size nor checksum of the archives is published; every image of the lists has to be there.
  """

  VERSION = tfds.core.Version('1.0.0')
  ARCHIVES = (
    Archive('imagesPlaces205_resize.tar.gz'),
    Archive(
      'trainvalsplit_places205.tar.gz',
      'http://data.csail.mit.edu/places/places205/trainvalsplit_places205.tar.gz',
    ),
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.make_info(
      {
        'image': tfds.features.Image(shape=(256, 256, 3)),
        'label': tfds.features.ClassLabel(num_classes=205),
        'filename': tfds.features.Text(),
      },
      'http://places.csail.mit.edu/downloadData.html',
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    images, lists = self.find_archives(dl_manager).values()
    labels = read_labels(lists, 'train_places205.csv', _IMAGES)
    # '…/a/apartment_building/outdoor/gsun_….jpg': the first folder is the initial.
    start = len(_IMAGES) + len('/a/')
    scenes = {label: name[start : name.rfind('/')] for name, label in labels.items()}
    if sorted(scenes) != list(range(205)):
      raise ValueError(
        f'{lists}: train_places205.csv does not have the labels 0 to 204; get it again'
      )
    self.info.features['label'].names = [scenes[label] for label in range(205)]
    validation = read_labels(lists, 'val_places205.csv', _IMAGES)
    validation_path = self.data_path / 'validation.pickle'
    return {
      'train': self._generate_examples(
        images, labels | validation, validation.keys(), validation_path
      ),
      'validation': self._generate_validation(validation_path),
    }

  def _generate_examples(
    self,
    path: Path,
    labels: Mapping[str, int],
    validation: Collection[str],
    validation_path: epath.Path,
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield training images; put those for validation, which lie among them, into a file.

    To go through the archive once for each split would take far longer.
    """
    with validation_path.open('wb') as file:
      for name, image, label in labelled_members(path, labels):
        example = {'image': image, 'label': label, 'filename': name.removeprefix(f'{_IMAGES}/')}
        if name in validation:
          pickle.dump(example, file)
        else:
          yield name, example

  def _generate_validation(self, path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the images for validation and remove their file."""
    with path.open('rb') as file, contextlib.suppress(EOFError):
      while True:
        example = pickle.load(file)
        yield example['filename'], example
    path.unlink()
