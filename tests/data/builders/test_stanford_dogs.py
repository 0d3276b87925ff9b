import io

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from data.builders import archives
from tensorflow_datasets.datasets.stanford_dogs import stanford_dogs_dataset_builder as tfds_module

from sjft_jax.data.builders import stanford_dogs
from sjft_jax.data.prepare import prepare

BREEDS = [f'n{2085620 + 7 * i:08d}-Breed_{"zyx"[i % 3]}{i}' for i in range(120)]


def encode_list(files):
  cells = np.empty((len(files), 1), object)
  cells[:, 0] = files
  content = io.BytesIO()
  scipy.io.savemat(content, {'file_list': cells, 'labels': np.ones((len(files), 1))})
  return content.getvalue()


def format_annotation(boxes, width=200, height=100):
  objects = ''.join(
    f'<object><name>dog</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>'
    f'<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>'
    for a, b, c, d in boxes
  )
  size = f'<size><width>{width}</width><height>{height}</height><depth>3</depth></size>'
  return f'<annotation>{size}<segment>0</segment>{objects}</annotation>'.encode()


@pytest.fixture
def images():
  """Two images a breed in an order of their own: the first one to train, the second to test on."""
  odd = archives.odd_images()
  order = np.random.default_rng(0).permutation(240)
  return {
    f'{BREEDS[i // 2]}/{BREEDS[i // 2].partition("-")[0]}_{i}.jpg': odd[i]
    if i < len(odd)
    else archives.encode_image(i)
    for i in order
  }


@pytest.fixture
def folder(tmp_path, images, monkeypatch):
  folder = tmp_path / 'archives'
  folder.mkdir()
  archives.tar(folder / 'images.tar', {f'Images/{name}': data for name, data in images.items()})
  boxes = {
    f'Annotation/{name.removesuffix(".jpg")}': format_annotation(
      [(20, 10, 100, 101), (1, 2, 3, 4)][: 1 + i]
    )
    for i, name in enumerate(sorted(images)[:2])
  }
  boxes |= {
    f'Annotation/{name.removesuffix(".jpg")}': format_annotation([(0, 0, 9, 9)])
    for name in sorted(images)[2:]
  }
  archives.tar(folder / 'annotation.tar', boxes)
  lists = {
    f'{split}_list.mat': encode_list(
      [name for name in sorted(images) if int(name[-5]) % 2 == remainder]
    )
    for remainder, split in enumerate(('train', 'test'))
  }
  archives.tar(folder / 'lists.tar', lists | {'file_list.mat': encode_list(sorted(images))})
  archives.declare_official(monkeypatch, stanford_dogs.Builder, folder)
  return folder


def test_records_hold_images_breeds_and_boxes(tmp_path, folder, images):
  prepare('stanford_dogs', str(tmp_path), str(folder))
  info = tfds.builder('stanford_dogs', data_dir=tmp_path).info
  assert info.features['label'].names == sorted(breed.lower() for breed in BREEDS)
  for remainder, split in enumerate(('train', 'test')):
    records = archives.read_records('stanford_dogs', tmp_path, split)
    expected = [(name, data) for name, data in images.items() if int(name[-5]) % 2 == remainder]
    assert [r['image/filename'].decode() for r in records] == [f'Images/{n}' for n, _ in expected]
    assert [r['image'] for r in records] == [data for _, data in expected]
    names = [info.features['label'].int2str(r['label']) for r in records]
    assert names == [name.partition('/')[0].lower() for name, _ in expected]
  first, second = sorted(images)[:2]
  every = {
    r['image/filename'].decode(): r['objects']['bbox']
    for split in ('train', 'test')
    for r in archives.read_records('stanford_dogs', tmp_path, split)
  }
  # ymin, xmin, ymax, xmax as shares of the image; a box never reaches beyond it.
  np.testing.assert_allclose(every[f'Images/{first}'], [[0.1, 0.1, 1, 0.5]], rtol=1e-6)
  np.testing.assert_allclose(
    every[f'Images/{second}'], [[0.1, 0.1, 1, 0.5], [0.02, 0.005, 0.04, 0.015]], rtol=1e-6
  )


def test_tfds_reads_the_records_by_its_own_builder(tmp_path, folder, monkeypatch):
  # It would ask TFDS's server.
  monkeypatch.setattr(tfds.core.DatasetInfo, 'initialize_from_bucket', lambda _: None)
  prepare('stanford_dogs', str(tmp_path), str(folder))
  theirs = tfds_module.Builder(data_dir=tmp_path, file_format='array_record')
  assert theirs.info.initialized
  assert len(theirs.as_data_source('test')) == 120
  fresh = tfds_module.Builder(data_dir=tmp_path / 'none', file_format='array_record')
  ours = tfds.builder('stanford_dogs', data_dir=tmp_path / 'none')
  assert type(ours) is not type(fresh)
  assert repr(ours.info.features) == repr(fresh.info.features)
  assert ours.version == fresh.version
  assert set(theirs.info.splits) == {'train', 'test'}


def test_missing_and_damaged_files_are_named(tmp_path, folder, images, monkeypatch):
  def check_refusal(message):
    archives.declare_official(monkeypatch, stanford_dogs.Builder, folder)
    with pytest.raises(ValueError, match=message):
      prepare('stanford_dogs', str(tmp_path), str(folder))
    assert not list((tmp_path / 'stanford_dogs').iterdir())

  first, second, *others = sorted(images)
  archives.tar(folder / 'images.tar', {f'Images/{n}': images[n] for n in (second, *others)})
  check_refusal(f'images.tar does not hold Images/{first}, which the list')
  archives.tar(folder / 'images.tar', {f'Images/{n}': images[n] for n in images})
  whole = (folder / 'annotation.tar').read_bytes()
  archives.tar(folder / 'annotation.tar', {f'Annotation/{first[:-4]}': format_annotation([])})
  check_refusal('annotation.tar has no annotation of Images/')
  archives.tar(folder / 'annotation.tar', {f'Annotation/{first[:-4]}': b'<annotation><size>'})
  check_refusal(f'annotation.tar: Annotation/{first[:-4]} is no annotation')
  (folder / 'annotation.tar').write_bytes(whole)
  archives.tar(folder / 'lists.tar', {'train_list.mat': encode_list([first])})
  check_refusal("lists.tar: test_list.mat is no MATLAB file with 'file_list'")


def test_sizes_and_checksums_of_the_archives_are_the_published_ones():
  archives.check_published_archives(stanford_dogs.Builder)
