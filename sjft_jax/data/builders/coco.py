"""MS COCO (Lin et al. 2014), its 80 categories of objects: 82,783 + 40,504 images in the splits of
2014, 118,287 + 5,000 in those of 2017.
"""

import collections
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sjft_jax.data.builders.archive import Archive
from sjft_jax.data.builders.base import ArchiveBuilder
from sjft_jax.runtime import console

_URL = 'http://images.cocodataset.org/'


class Builder(ArchiveBuilder):
  """Features, splits and class names are those of TFDS; the unlabelled test images are left out.

  Images without objects, about one in a hundred, are kept. Reading the annotations takes 1.5 GB of
  memory.
  """

  BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS's declaration)
    tfds.core.BuilderConfig(
      name=year,
      version=tfds.core.Version('1.1.0'),
      description=f'Images, bounding boxes and labels of the {year} version.',
    )
    for year in ('2014', '2017')
  ]
  ARCHIVES = (
    Archive(
      'train2014.zip',
      _URL + 'zips/train2014.zip',
      13_510_573_713,
      'sha256:ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775',
    ),
    Archive(
      'val2014.zip',
      _URL + 'zips/val2014.zip',
      6_645_013_297,
      'sha256:fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0',
    ),
    Archive(
      'annotations_trainval2014.zip',
      _URL + 'annotations/annotations_trainval2014.zip',
      252_872_794,
      'sha256:031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009',
    ),
    Archive(
      'train2017.zip',
      _URL + 'zips/train2017.zip',
      19_336_861_798,
      'sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929',
    ),
    Archive(
      'val2017.zip',
      _URL + 'zips/val2017.zip',
      815_585_330,
      'sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05',
    ),
    Archive(
      'annotations_trainval2017.zip',
      _URL + 'annotations/annotations_trainval2017.zip',
      252_907_541,
      'sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268',
    ),
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.make_info(
      {
        'image': tfds.features.Image(encoding_format='jpeg'),
        'image/filename': tfds.features.Text(),
        'image/id': np.int64,
        'objects': tfds.features.Sequence(
          {
            'id': np.int64,
            'area': np.int64,
            'bbox': tfds.features.BBoxFeature(),
            'label': tfds.features.ClassLabel(num_classes=80),
            'is_crowd': np.bool_,
          }
        ),
      },
      'https://cocodataset.org/#download',
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    year = self.builder_config.name
    parts = {'train': f'train{year}', 'validation': f'val{year}'}
    annotations = f'annotations_trainval{year}.zip'
    paths = self.find_archives(dl_manager, annotations, *(f'{part}.zip' for part in parts.values()))
    return {
      split: self._generate_examples(paths[f'{part}.zip'], part, paths[annotations])
      for split, part in parts.items()
    }

  def _generate_examples(
    self, images: Path, part: str, annotations: Path
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    names, entries, objects = _read_annotations(annotations, f'annotations/instances_{part}.json')
    self.info.features['objects']['label'].names = list(names.values())
    with (
      _open_zip(images) as archive,
      console.progress(f'{images.name}, images', len(entries)) as advance,
    ):
      for image in entries:
        yield (
          image['id'],
          {
            'image': _read_member(archive, f'{part}/{image["file_name"]}'),
            'image/filename': image['file_name'],
            'image/id': image['id'],
            'objects': [
              {
                'id': thing['id'],
                'area': int(thing['area']),
                'bbox': _bounding_box(image, *thing['bbox']),
                'label': names[thing['category_id']],
                'is_crowd': bool(thing['iscrowd']),
              }
              for thing in objects[image['id']]
            ],
          },
        )
        advance(1)


def _read_annotations(
  path: Path, name: str
) -> tuple[dict[int, str], list[dict[str, Any]], Mapping[int, list[dict[str, Any]]]]:
  """Read category names by id, the images in the order of their ids, and the objects in each.

  Args:
    path: the archive of annotations.
    name: that of the file in it.

  Raises:
    ValueError: the archive or the file is damaged.
  """
  with _open_zip(path) as archive:
    content = _read_member(archive, name)
  try:
    tables = json.loads(content, object_hook=_drop_outline)
    images, annotations, categories = (
      sorted(tables[key], key=lambda entry: entry['id'])
      for key in ('images', 'annotations', 'categories')
    )
  except (ValueError, LookupError, TypeError) as error:
    raise ValueError(f'{path}: {name} is damaged ({error!r}); get it again') from error
  objects = collections.defaultdict(list)
  for annotation in annotations:
    objects[annotation['image_id']].append(annotation)
  return {category['id']: category['name'] for category in categories}, images, objects


def _drop_outline(entry: dict[str, Any]) -> dict[str, Any]:
  # Outlines, which are not needed, are nearly all of the file.
  entry.pop('segmentation', None)
  return entry


def _bounding_box(
  image: dict[str, Any], x: float, y: float, width: float, height: float
) -> tfds.features.BBox:
  """Convert a box from pixels to shares of the image's height and width.

  Rounding lets some boxes reach beyond the image; these end at its border.
  """
  x1, x2 = (min(max(value / image['width'], 0.0), 1.0) for value in (x, x + width))
  y1, y2 = (min(max(value / image['height'], 0.0), 1.0) for value in (y, y + height))
  return tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2)


def _open_zip(path: Path) -> zipfile.ZipFile:
  try:
    return zipfile.ZipFile(path)
  except zipfile.BadZipFile as error:
    raise ValueError(f'{path} is truncated or no zip archive; get it again') from error


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
  try:
    return archive.read(name)
  except KeyError as error:
    raise ValueError(f'{archive.filename} does not hold {name}; get it again') from error
  except (zipfile.BadZipFile, zlib.error, EOFError) as error:
    raise ValueError(f'{archive.filename}: {name} is damaged ({error}); get it again') from error
