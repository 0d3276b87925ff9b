"""ImageNet ILSVRC 2012 (Russakovsky et al. 2015): 1,000 classes, 1,281,167 images to train on and
50,000 for validation.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from sjft_jax.data.builders.archive import Archive, lines, listed, members
from sjft_jax.data.builders.base import FromArchives

# TFDS knows the classes (WordNet ids), and those of the validation images by their numbers.
_LISTS = 'datasets/imagenet2012'


class Builder(FromArchives):
  """Features, splits and class names as in TFDS, without the test images, which have no labels.

  The archives' checksums are verified before anything is written, which takes some minutes. Some
  images are in CMYK and one is a PNG; unlike TFDS this keeps them as they are.
  """

  VERSION = tfds.core.Version('5.1.0')
  ARCHIVES = (
    Archive(
      'ILSVRC2012_img_train.tar',
      size=147_897_477_120,
      checksum='md5:1d675b47d978889d74fa0da5fadfb00e',
    ),
    Archive(
      'ILSVRC2012_img_val.tar',
      size=6_744_924_160,
      checksum='md5:29b22e2961454d5413ddabcf34fc5622',
    ),
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.described(
      {
        'image': tfds.features.Image(encoding_format='jpeg'),
        'label': tfds.features.ClassLabel(names_file=tfds.core.tfds_path(f'{_LISTS}/labels.txt')),
        'file_name': tfds.features.Text(),
      },
      'https://image-net.org/download-images',
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    train, validation = self.archives(dl_manager).values()
    return {
      'train': self._train(train),
      'validation': self._generate_examples(listed(validation, validation_labels())),
    }

  def _train(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The archive holds one archive of each class."""
    classes = {f'{name}.tar': name for name in self.info.features['label'].names}
    for name, content, label in listed(path, classes):
      images = members(io.BytesIO(content), f'{path}: {name}')
      yield from self._generate_examples((file, image, label) for file, image in images)

  def _generate_examples(
    self, images: Iterator[tuple[str, bytes, str]]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, image, label in images:
      yield name, {'image': image, 'label': label, 'file_name': name}


def validation_labels() -> dict[str, str]:
  """The class of every validation image by its name."""
  labels = lines(Path(tfds.core.tfds_path(f'{_LISTS}/validation_labels.txt')))
  return {f'ILSVRC2012_val_{i:08d}.JPEG': label for i, label in enumerate(labels, 1)}
