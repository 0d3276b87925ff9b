"""Stanford Dogs (Khosla et al. 2011): 120 breeds, 12,000 images to train on, 8,580 to test on."""

import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds

from sjft_jax.data.builders.archive import Archive, labelled_members, members, read_matlab
from sjft_jax.data.builders.base import ArchiveBuilder

_URL = 'http://vision.stanford.edu/aditya86/ImageNetDogs/'


class Builder(ArchiveBuilder):
  """Features, splits and class names are those of TFDS."""

  VERSION = tfds.core.Version('0.2.0')
  ARCHIVES = (
    Archive(
      'images.tar',
      _URL + 'images.tar',
      793_579_520,
      'sha256:a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58',
    ),
    Archive(
      'annotation.tar',
      _URL + 'annotation.tar',
      21_852_160,
      'sha256:662ed36f707be6b195c2fda392d8e153e83af28cedc8e2134a649f198def30fd',
    ),
    Archive(
      'lists.tar',
      _URL + 'lists.tar',
      481_280,
      'sha256:34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c',
    ),
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.make_info(
      {
        'image': tfds.features.Image(),
        'image/filename': tfds.features.Text(),
        'label': tfds.features.ClassLabel(num_classes=120),
        'objects': tfds.features.Sequence({'bbox': tfds.features.BBoxFeature()}),
      },
      _URL + 'main.html',
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    paths = self.find_archives(dl_manager)
    lists = dict(members(paths['lists.tar']))
    files = {}
    for split in ('train', 'test'):
      name = f'{split}_list.mat'
      content = io.BytesIO(lists.get(name, b''))
      split_files = read_matlab(content, 'file_list', name=f'lists.tar: {name}')
      files[split] = {f'Images/{file}': _breed(file) for file in split_files}
    self.info.features['label'].names = sorted(set(files['train'].values()))
    boxes = {
      PurePosixPath(name).name: _read_boxes(name, content)
      for name, content in members(paths['annotation.tar'])
    }
    return {
      split: self._generate_examples(paths['images.tar'], breeds, boxes)
      for split, breeds in files.items()
    }

  def _generate_examples(
    self, images: Path, breeds: Mapping[str, str], boxes: Mapping[str, list[Any]]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, image, breed in labelled_members(images, breeds):
      key = PurePosixPath(name).stem
      if key not in boxes:
        raise ValueError(f'annotation.tar has no annotation of {name}')
      yield (
        name,
        {
          'image': image,
          'image/filename': name,
          'label': breed,
          'objects': [{'bbox': box} for box in boxes[key]],
        },
      )


def _breed(file: str) -> str:
  return PurePosixPath(file).parent.name.lower()


def _read_boxes(name: str, annotation: bytes) -> list[tfds.features.BBox]:
  """Return the boxes of the dogs in an image, as shares of its height and width.

  Raises:
    ValueError: the annotation is damaged.
  """
  try:
    root = ElementTree.fromstring(annotation)
    width, height = (float(root.findtext(f'size/{side}', '')) for side in ('width', 'height'))
    sides = dict(ymin=height, xmin=width, ymax=height, xmax=width)
    return [
      tfds.features.BBox(
        **{side: min(float(box.findtext(side, '')) / size, 1.0) for side, size in sides.items()}
      )
      for box in root.iterfind('object/bndbox')
    ]
  except (ElementTree.ParseError, ValueError) as error:
    raise ValueError(f'annotation.tar: {name} is no annotation ({error})') from error
