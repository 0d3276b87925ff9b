"""ImageNet, and what all builders of large data sets have in common."""

import pathlib
import tracemalloc

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data.builders import archives
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder
from tensorflow_datasets.datasets.places365_small import places365_small_dataset_builder

from sjft_jax.data.builders import base, imagenet2012
from sjft_jax.data.prepare import prepare
from sjft_jax.data.records import Records

TRAIN, VALIDATION = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'
CLASSES = pathlib.Path(tfds.core.tfds_path('datasets/imagenet2012/labels.txt')).read_text().split()
# The real archive has 22 JPEGs in CMYK, this PNG, and greyscale.
IMAGES = {
  'n01440764_18.JPEG': archives.encode_image(1, mode='CMYK'),
  'n01440764_36.JPEG': archives.encode_image(2),
  'n02105855_2933.JPEG': archives.encode_image(3, 'PNG'),
  'n15075141_9.JPEG': archives.encode_image(4, mode='L'),
}


def write_nested_tar(path, images, classes=CLASSES):
  """Write a tar archive of one tar archive of each class."""
  inner = path.parent / 'inner.tar'
  archives.tar(inner, {})
  content = dict.fromkeys([f'{name}.tar' for name in classes], inner.read_bytes())
  for name in {file[:9] for file in images} & set(classes):
    archives.tar(inner, {file: data for file, data in images.items() if file.startswith(name)})
    content[f'{name}.tar'] = inner.read_bytes()
  archives.tar(path, content)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  folder = tmp_path / 'archives'
  folder.mkdir()
  write_nested_tar(folder / TRAIN, IMAGES)
  # In the real archive they do not lie in the order of their numbers either.
  names = [f'ILSVRC2012_val_{i:08d}.JPEG' for i in (3, 1, 2)]
  archives.tar(
    folder / VALIDATION, {name: archives.encode_image(i) for i, name in enumerate(names)}
  )
  first = dict(list(imagenet2012.validation_labels().items())[:3])
  monkeypatch.setattr(imagenet2012, 'validation_labels', lambda: first)
  archives.declare_official(monkeypatch, imagenet2012.Builder, folder)
  return folder


def test_both_splits_hold_the_images_of_the_archives(tmp_path, folder):
  prepare('imagenet2012', str(tmp_path / 'data'), str(folder))
  info = tfds.builder('imagenet2012', data_dir=tmp_path / 'data').info
  assert str(info.version) == '5.1.0'
  assert info.splits['train'].num_examples == 4
  assert info.splits['validation'].num_examples == 3
  data = Records('imagenet2012', str(tmp_path / 'data'), 'train')
  assert data.classes == tuple(CLASSES)
  assert [data.key(i) for i in range(4)] == list(IMAGES)
  assert [data.classes[label] for label in data.labels] == [name[:9] for name in IMAGES]
  assert [data.read_encoded(i) for i in range(4)] == list(IMAGES.values())
  assert all(data[i].shape == (9, 12, 3) for i in range(4))
  validation = archives.read_records('imagenet2012', tmp_path / 'data', 'validation')
  # As in the file of TFDS, by number: n01751748, n09193705, n02105855.
  assert [(image['file_name'][-6:-5], CLASSES[image['label']]) for image in validation] == [
    (b'3', 'n02105855'),
    (b'1', 'n01751748'),
    (b'2', 'n09193705'),
  ]
  assert [image['image'] for image in validation] == [archives.encode_image(i) for i in range(3)]


def test_features_and_classes_are_those_of_tfds(tmp_path):
  for name, tfds_module in (
    ('imagenet2012', imagenet2012_dataset_builder),
    ('places365_small', places365_small_dataset_builder),
  ):
    expected, info = (
      tfds_module.Builder(data_dir=tmp_path).info,
      tfds.builder(name, data_dir=tmp_path).info,
    )
    assert info.features.to_json() == expected.features.to_json()
    assert info.features['label'].names == expected.features['label'].names
    assert info.version == expected.version


def test_every_validation_image_has_a_label():
  labels = imagenet2012.validation_labels()
  assert list(labels)[-1] == 'ILSVRC2012_val_00050000.JPEG'
  _, counts = np.unique(list(labels.values()), return_counts=True)
  assert counts.tolist() == [50] * 1000


def test_archives_that_are_not_the_official_ones_are_named(tmp_path, folder, monkeypatch):
  official = (folder / TRAIN).read_bytes()
  (folder / TRAIN).write_bytes(official[:-10240])
  with pytest.raises(ValueError, match=rf'{TRAIN} has [\d,]+ bytes, the official {TRAIN} [\d,]+'):
    prepare('imagenet2012', str(tmp_path / 'data'), str(folder))
  (folder / TRAIN).write_bytes(official[:-1] + b'x')
  with pytest.raises(ValueError, match=f'is not the official {TRAIN}: its sha256 is'):
    prepare('imagenet2012', str(tmp_path / 'data'), str(folder))
  (folder / TRAIN).unlink()
  with pytest.raises(ValueError, match=rf'{TRAIN} is missing; get it from https://image-net\.org'):
    prepare('imagenet2012', str(tmp_path / 'data'), str(folder))
  assert not list((tmp_path / 'data').glob('**/dataset_info.json'))


@pytest.mark.parametrize('damage', ['outer', 'inner', 'class', 'validation'])
def test_incomplete_archives_are_named(tmp_path, folder, damage, monkeypatch):
  """The checksums are those of the damaged archives."""
  if damage == 'outer':
    content, message = (folder / TRAIN).read_bytes(), f'{TRAIN} is truncated'
    (folder / TRAIN).write_bytes(content[: len(content) // 2])
  elif damage == 'inner':
    content, message = (folder / TRAIN).read_bytes(), rf'{TRAIN}: n01440764\.tar is truncated'
    (folder / TRAIN).write_bytes(content.replace(b'n01440764_36', b'\0' * 6 + b'4_36xx', 1))
  elif damage == 'class':
    message = rf'{TRAIN} does not hold n15075141\.tar'
    write_nested_tar(folder / TRAIN, IMAGES, CLASSES[:-1])
  else:
    message = rf'{VALIDATION} does not hold ILSVRC2012_val_00000002\.JPEG and 1 more'
    archives.tar(folder / VALIDATION, {'ILSVRC2012_val_00000001.JPEG': b''})
  archives.declare_official(monkeypatch, imagenet2012.Builder, folder)
  with pytest.raises(ValueError, match=message):
    prepare('imagenet2012', str(tmp_path / 'data'), str(folder))
  assert not list((tmp_path / 'data').glob('**/dataset_info.json'))


def test_sizes_of_the_archives_are_the_published_ones():
  train, validation = imagenet2012.Builder.ARCHIVES
  known = (
    line.split()
    for line in pathlib.Path(tfds.core.tfds_path('datasets/imagenet2012/checksums.tsv'))
    .read_text()
    .splitlines()
  )
  sizes = {url.rpartition('/')[2]: int(size) for url, size, _ in known}
  assert sizes == {archive.name: archive.size for archive in (train, validation)}


class Large(base.ArchiveBuilder):
  """60 MB in 60 records."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return self.make_info({'image': tfds.features.Image(), 'file_name': tfds.features.Text()}, '')

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(60):
      name = str(i)
      yield name, {'image': np.random.default_rng(i).bytes(10**6), 'file_name': name}


def test_memory_stays_flat_and_order_is_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 0)  # TFDS's own would need TensorFlow now.
  monkeypatch.setattr(base, 'SHARD_SIZE', 10**7)
  builder = Large(data_dir=tmp_path)
  tracemalloc.start()
  try:
    builder.download_and_prepare()
    assert tracemalloc.get_traced_memory()[1] < 2e7
  finally:
    tracemalloc.stop()
  files = sorted(file.name for file in pathlib.Path(builder.data_dir).glob('*.array_record*'))
  assert files == [f'test_imagenet2012-train.array_record-0000{i}-of-00006' for i in range(6)]
  records = builder.as_data_source('train', decoders={'image': tfds.decode.SkipDecoding()})
  assert [int(records[i]['file_name']) for i in range(60)] == list(range(60))
  assert records[41]['image'] == np.random.default_rng(41).bytes(10**6)


def test_a_split_without_images_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(Large, '_generate_examples', lambda self: iter(()))
  with pytest.raises(ValueError, match="hold no image of the split 'train'"):
    Large(data_dir=tmp_path).download_and_prepare()
