"""ImageNet ILSVRC 2012 (Russakovsky et al. 2015): 1,000 classes, 1,281,167 images to train on and
50,000 for validation.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from sjft_jax.data.builders.archive import Archive, labelled_members, members, read_lines
from sjft_jax.data.builders.base import ArchiveBuilder

# TFDS has the classes (WordNet ids), and those of the validation images by their numbers.
_LISTS = 'datasets/imagenet2012'


class Builder(ArchiveBuilder):
  """Features, splits and class names are those of TFDS; the unlabelled test images are left out.

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
      'ILSVRC2012_img_val.tar', size=6_744_924_160, checksum='md5:29b22e2961454d5413ddabcf34fc5622'
    ),
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.make_info(
      {
        'image': tfds.features.Image(encoding_format='jpeg'),
        'label': tfds.features.ClassLabel(names_file=tfds.core.tfds_path(f'{_LISTS}/labels.txt')),
        'file_name': tfds.features.Text(),
      },
      'https://image-net.org/download-images',
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    train, validation = self.find_archives(dl_manager).values()
    return {
      'train': self._train(train),
      'validation': self._generate_examples(labelled_members(validation, validation_labels())),
    }

  def _train(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the training images; the archive holds one archive of each class."""
    classes = {f'{name}.tar': name for name in self.info.features['label'].names}
    for name, content, label in labelled_members(path, classes):
      images = members(io.BytesIO(content), f'{path}: {name}')
      yield from self._generate_examples((file, image, label) for file, image in images)

  def _generate_examples(
    self, images: Iterator[tuple[str, bytes, str]]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, image, label in images:
      yield name, {'image': image, 'label': label, 'file_name': name}


def validation_labels() -> dict[str, str]:
  """Return the class of every validation image by its name."""
  labels = read_lines(Path(tfds.core.tfds_path(f'{_LISTS}/validation_labels.txt')))
  return {f'ILSVRC2012_val_{i:08d}.JPEG': label for i, label in enumerate(labels, 1)}
