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

from sjft_jax.data.builders.archive import Archive, listed
from sjft_jax.data.builders.base import FromArchives
from sjft_jax.data.builders.places365_small import labels_in

_IMAGES = 'data/vision/torralba/deeplearning/images256'


class Builder(FromArchives):
  """Features and splits as those of TFDS's places365_small; a class is named as its folder is.

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
    return self.described(
      {
        'image': tfds.features.Image(shape=(256, 256, 3)),
        'label': tfds.features.ClassLabel(num_classes=205),
        'filename': tfds.features.Text(),
      },
      'http://places.csail.mit.edu/downloadData.html',
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    images, lists = self.archives(dl_manager).values()
    labels = labels_in(lists, 'train_places205.csv', _IMAGES)
    # '…/a/apartment_building/outdoor/gsun_….jpg': the first folder is the initial.
    start = len(_IMAGES) + len('/a/')
    scenes = {label: name[start : name.rfind('/')] for name, label in labels.items()}
    if sorted(scenes) != list(range(205)):
      raise ValueError(f'{lists}: train_places205.csv has not the labels 0 to 204; get it again')
    self.info.features['label'].names = [scenes[label] for label in range(205)]
    validation = labels_in(lists, 'val_places205.csv', _IMAGES)
    aside = self.data_path / 'validation.pickle'
    return {
      'train': self._generate_examples(images, labels | validation, validation.keys(), aside),
      'validation': self._validation(aside),
    }

  def _generate_examples(
    self, path: Path, labels: Mapping[str, int], validation: Collection[str], aside: epath.Path
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    """Training images; those for validation, which lie among them, are put aside.

    To go through the archive once for each split would take far longer.
    """
    with aside.open('wb') as file:
      for name, image, label in listed(path, labels):
        example = {'image': image, 'label': label, 'filename': name.removeprefix(f'{_IMAGES}/')}
        if name in validation:
          pickle.dump(example, file)
        else:
          yield name, example

  def _validation(self, aside: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with aside.open('rb') as file, contextlib.suppress(EOFError):
      while True:
        example = pickle.load(file)
        yield example['filename'], example
    aside.unlink()
