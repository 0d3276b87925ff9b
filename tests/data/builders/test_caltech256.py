import pytest
import tensorflow_datasets as tfds
from data.builders import archives

from sjft_jax.data.builders import caltech256
from sjft_jax.data.prepare import prepare

CLASSES = [f'{i:03d}.{"clutter" if i == 257 else f"class-{-i % 99}"}' for i in range(1, 258)]


@pytest.fixture
def images():
  odd = archives.odd_images()
  images = {f'001.class-98/001_{i:04d}.jpg': data for i, data in enumerate(odd, 1)}
  return images | {
    f'{name}/{name[:3]}_0001.jpg': archives.encode_image(ord(name[-1])) for name in CLASSES[1:]
  }


@pytest.fixture
def folder(tmp_path, images, monkeypatch):
  folder = tmp_path / 'archives'
  folder.mkdir()
  more = {
    'README': b'about the images',
    '.DS_Store': b'\0',
    '056.class-43/greg/vision307/056_0001.jpg': archives.encode_image(0),
    '198.class-0/RENAME2': b'#!/bin/bash',
    '198.class-0/._198_0001.jpg': b'\0\5\x16\7',
  }
  content = {f'256_ObjectCategories/{name}': data for name, data in (more | images).items()}
  archives.tar(folder / '256_ObjectCategories.tar', content)
  archives.declare_official(monkeypatch, caltech256.Builder, folder)
  return folder


def test_records_hold_the_images_of_the_classes(tmp_path, folder, images):
  prepare('caltech256', str(tmp_path), str(folder))
  builder = tfds.builder('caltech256', data_dir=tmp_path)
  assert set(builder.info.splits) == {'train'}
  label = builder.info.features['label']
  assert label.names == CLASSES
  records = archives.read_records('caltech256', tmp_path, 'train')
  assert [r['file_name'].decode() for r in records] == list(images)
  assert [r['image'] for r in records] == list(images.values())
  assert [label.int2str(r['label']) for r in records] == [name.split('/')[0] for name in images]


def test_a_truncated_archive_is_named(tmp_path, folder, monkeypatch):
  path = folder / '256_ObjectCategories.tar'
  whole = path.read_bytes()
  path.write_bytes(whole[:-20_000])
  with pytest.raises(ValueError, match=r'256_ObjectCategories\.tar has .* bytes, the official'):
    prepare('caltech256', str(tmp_path), str(folder))
  archives.declare_official(monkeypatch, caltech256.Builder, folder)
  with pytest.raises(ValueError, match=r'256_ObjectCategories\.tar is truncated'):
    prepare('caltech256', str(tmp_path), str(folder))
  assert not list((tmp_path / 'caltech256').iterdir())
