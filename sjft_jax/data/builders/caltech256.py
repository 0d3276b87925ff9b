"""Caltech 256 (Griffin et al. 2007): 256 classes and clutter, 30,607 images in one split."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from sjft_jax.data.builders.archive import Archive, members
from sjft_jax.data.builders.base import ArchiveBuilder

_URL = 'https://data.caltech.edu/records/nyy15-4j048'
# Images lie one level deep; among them are a script, a README, and a folder with copies.
_IMAGE = re.compile(r'256_ObjectCategories/((\d{3}\.[^/]+)/\d{3}_\d{4}\.jpg)')


class Builder(ArchiveBuilder):
  """The class names are the folders', '001.ak47' to '257.clutter'."""

  VERSION = tfds.core.Version('1.0.0')
  ARCHIVES = (
    Archive(
      '256_ObjectCategories.tar',
      f'{_URL}/files/256_ObjectCategories.tar',
      1_183_006_720,
      'md5:67b4f42ca05d46448c6bb8ecd2220f6d',
    ),
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.make_info(
      {
        'image': tfds.features.Image(),
        'label': tfds.features.ClassLabel(num_classes=257),
        'file_name': tfds.features.Text(),
      },
      _URL,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    path = self.find_archives(dl_manager)['256_ObjectCategories.tar']
    images = (_IMAGE.fullmatch(name) for name, _ in members(path))
    self.info.features['label'].names = sorted({image[2] for image in images if image})
    return {'train': self._generate_examples(path)}

  def _generate_examples(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, content in members(path):
      if image := _IMAGE.fullmatch(name):
        yield image[1], {'image': content, 'label': image[2], 'file_name': image[1]}
