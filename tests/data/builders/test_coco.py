import json
import pathlib
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data.builders import archives

from sjft_jax.data import builders
from sjft_jax.data.builders import coco
from sjft_jax.data.prepare import prepare
from sjft_jax.data.records import Records

# 80 of the ids from 1 to 90, as in the real annotations.
IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
CATEGORIES = [{'id': i, 'name': f'thing {i}', 'supercategory': 'things'} for i in IDS]
IMAGES = {
  9: archives.encode_image(0),
  391895: archives.encode_image(1, mode='L'),
  25: archives.encode_image(2),
}
OBJECTS = [
  # id, image, category, box in pixels of a 12×9 image, area, crowd
  (900100, 9, 90, [0.0, 0.0, 12.0, 9.0], 108.0, 1),
  (86, 9, 13, [3.0, 4.5, 6.01, 4.5004], 20.75, 0),
  (87, 9, 13, [6.0, 0.0, 3.0, 2.25], 6.75, 0),
  (5, 391895, 1, [0.0, 0.0, 6.0, 9.0], 54.0, 0),
]


def write_zip(path, files):
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in files.items():
      archive.writestr(name, content)


def format_annotations(year, images, objects):
  return json.dumps(
    {
      'info': {'year': int(year)},
      'licenses': [],
      'images': [
        {'id': i, 'file_name': name, 'height': 9, 'width': 12, 'license': 3}
        for i, name in images.items()
      ],
      'annotations': [
        {
          'segmentation': {'counts': [3, 5], 'size': [9, 12]} if crowd else [[1.5, 2.5] * 3],
          'area': area,
          'iscrowd': crowd,
          'image_id': image,
          'bbox': box,
          'category_id': category,
          'id': i,
        }
        for i, image, category, box, area, crowd in objects
      ],
      'categories': CATEGORIES,
    }
  )


def file_names(year, part):
  prefix = f'COCO_{part}2014_' if year == '2014' else ''
  return {i: f'{prefix}{i:012d}.jpg' for i in IMAGES}


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """All three images are for training, the last also for validation."""
  folder = tmp_path / 'archives'
  folder.mkdir()
  for year in ('2014', '2017'):
    lists = {}
    for part, ids in (('train', list(IMAGES)), ('val', [25])):
      names = {i: file_names(year, part)[i] for i in ids}
      write_zip(
        folder / f'{part}{year}.zip',
        {f'{part}{year}/': b''} | {f'{part}{year}/{names[i]}': IMAGES[i] for i in ids},
      )
      objects = OBJECTS if part == 'train' else []
      lists[f'annotations/instances_{part}{year}.json'] = format_annotations(year, names, objects)
    lists['annotations/captions_train.json'] = '{}'
    write_zip(folder / f'annotations_trainval{year}.zip', lists)
  archives.declare_official(monkeypatch, coco.Builder, folder)
  return folder


@pytest.mark.parametrize('year', ['2014', '2017'])
def test_records_hold_images_and_the_classes_of_their_objects(tmp_path, folder, year):
  prepare(f'coco/{year}', str(tmp_path / 'data'), str(folder))
  data = Records(f'coco/{year}', str(tmp_path / 'data'), 'train')
  assert data.classes == tuple(f'thing {i}' for i in IDS)
  assert [data.key(i) for i in range(3)] == [file_names(year, 'train')[i] for i in (9, 25, 391895)]
  assert [data.read_encoded(i) for i in range(3)] == [IMAGES[i] for i in (9, 25, 391895)]
  expected = np.zeros((3, 80), bool)
  expected[0, [IDS.index(90), IDS.index(13)]] = True
  expected[2, 0] = True
  np.testing.assert_array_equal(data.labels, expected)
  (validation,) = archives.read_records(f'coco/{year}', tmp_path / 'data', 'validation')
  assert validation['image/id'] == 25
  assert len(validation['objects']['label']) == 0


def test_objects_have_the_features_of_tfds(tmp_path, folder):
  prepare('coco/2017', str(tmp_path / 'data'), str(folder))
  image = archives.read_records('coco/2017', tmp_path / 'data', 'train')[0]
  assert image['image/filename'] == b'000000000009.jpg'
  objects = image['objects']
  assert list(objects['id']) == [86, 87, 900100]
  assert list(objects['area']) == [20, 6, 108]
  assert list(objects['is_crowd']) == [False, False, True]
  # ymin, xmin, ymax, xmax; a box that leaves the image by a rounding error ends at its border.
  boxes = [[0.5, 0.25, 1.0, 9.01 / 12], [0.0, 0.5, 0.25, 0.75], [0.0, 0.0, 1.0, 1.0]]
  np.testing.assert_allclose(np.array(objects['bbox']), boxes, rtol=1e-6)


def test_only_the_archives_of_the_year_are_needed(tmp_path, folder):
  for path in folder.glob('*2014.zip'):
    path.unlink()
  prepare('coco/2017', str(tmp_path / 'data'), str(folder))
  assert (
    tfds.builder('coco/2017', data_dir=tmp_path / 'data').info.splits['train'].num_examples == 3
  )


def rewrite_zip(path, change):
  with zipfile.ZipFile(path) as archive:
    files = {name: archive.read(name) for name in archive.namelist()}
  write_zip(path, change(files))


@pytest.mark.parametrize('damage', ['images', 'image', 'bits', 'annotations', 'list', 'json'])
def test_damaged_archives_are_named(tmp_path, folder, damage, monkeypatch):
  images, lists = folder / 'train2017.zip', folder / 'annotations_trainval2017.zip'
  name, json_name = 'train2017/000000000025.jpg', 'annotations/instances_train2017.json'
  if damage in ('images', 'annotations'):
    path = images if damage == 'images' else lists
    path.write_bytes(path.read_bytes()[:-100])
    message = rf'{path.name} is truncated or no zip archive'
  elif damage == 'image':
    rewrite_zip(images, lambda files: {n: c for n, c in files.items() if n != name})
    message = rf'{images.name} does not hold {name}; get it again'
  elif damage == 'bits':
    images.write_bytes(images.read_bytes().replace(IMAGES[25][-99:], b'\0' * 99))
    message = rf'{images.name}: {name} is damaged'
  elif damage == 'list':
    rewrite_zip(lists, lambda files: {n: c for n, c in files.items() if n != json_name})
    message = rf'{lists.name} does not hold {json_name}'
  else:
    rewrite_zip(lists, lambda files: files | {json_name: files[json_name][:-40]})
    message = rf'{lists.name}: {json_name} is damaged'
  with pytest.raises(ValueError, match=f'the official {images.name}|the official {lists.name}'):
    prepare('coco/2017', str(tmp_path / 'data'), str(folder))
  # Now with the checksums of the damaged archives.
  archives.declare_official(monkeypatch, coco.Builder, folder)
  with pytest.raises(ValueError, match=message):
    prepare('coco/2017', str(tmp_path / 'data'), str(folder))
  assert not list((tmp_path / 'data').glob('coco/2017/*'))


def test_archives_and_configurations_are_the_published_ones():
  table = pathlib.Path(tfds.core.tfds_path('url_checksums/coco.txt')).read_text()
  published = {line.split()[0]: line.split()[1:3] for line in table.splitlines()}
  for archive in coco.Builder.ARCHIVES:
    assert published[archive.url] == [str(archive.size), archive.checksum.removeprefix('sha256:')]
  assert list(builders.load('coco').builder_configs) == ['2014', '2017']
