import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from data.builders import archives
from tensorflow_datasets.datasets.oxford_flowers102 import (
  oxford_flowers102_dataset_builder as tfds_module,
)

from sjft_jax.data.builders import oxford_flowers102
from sjft_jax.data.prepare import prepare

SPLITS = {'train': 'trnid', 'validation': 'valid', 'test': 'tstid'}


@pytest.fixture
def flowers():
  """One image of each class for training, one for validation, two to test on."""
  rng = np.random.default_rng(0)
  labels = rng.permutation(np.repeat(np.arange(1, 103), 4))
  by_class = np.argsort(labels, kind='stable').reshape(102, 4) + 1
  ids = {'train': by_class[:, 0], 'validation': by_class[:, 1], 'test': by_class[:, 2:].ravel()}
  odd = archives.odd_images()
  images = [*odd, *(archives.encode_image(i) for i in range(len(odd), len(labels)))]
  return labels, {split: rng.permutation(chosen) for split, chosen in ids.items()}, images


@pytest.fixture
def folder(tmp_path, flowers, monkeypatch):
  labels, ids, images = flowers
  folder = tmp_path / 'archives'
  folder.mkdir()
  names = [f'jpg/image_{i:05d}.jpg' for i in range(1, len(images) + 1)]
  # Backwards: an archive's order is not that of the names.
  reverse = dict(reversed(list(zip(names, images, strict=True))))
  archives.tar(folder / '102flowers.tgz', reverse, 'w:gz')
  scipy.io.savemat(folder / 'imagelabels.mat', {'labels': labels[None].astype(np.uint8)})
  splits = {SPLITS[split]: chosen[None].astype(np.uint16) for split, chosen in ids.items()}
  scipy.io.savemat(folder / 'setid.mat', splits)
  archives.declare_official(monkeypatch, oxford_flowers102.Builder, folder)
  return folder


def test_records_hold_images_labels_and_names(tmp_path, folder, flowers):
  labels, ids, images = flowers
  prepare('oxford_flowers102', str(tmp_path), str(folder))
  for split, size in (('train', 102), ('validation', 102), ('test', 204)):
    records = archives.read_records('oxford_flowers102', tmp_path, split)
    expected = sorted(ids[split], reverse=True)
    assert len(records) == size
    assert [r['file_name'].decode() for r in records] == [f'image_{i:05d}.jpg' for i in expected]
    assert [r['label'] for r in records] == [labels[i - 1] - 1 for i in expected]
    assert [r['image'] for r in records] == [images[i - 1] for i in expected]
  both = archives.read_records('oxford_flowers102', tmp_path, 'train+validation')
  assert len(both) == 204


def test_features_and_classes_are_those_of_tfds(tmp_path, monkeypatch):
  # It would ask TFDS's server.
  monkeypatch.setattr(tfds.core.DatasetInfo, 'initialize_from_bucket', lambda _: None)
  ours = tfds.builder('oxford_flowers102', data_dir=tmp_path)
  theirs = tfds_module.Builder(data_dir=tmp_path, file_format='array_record')
  assert type(ours) is not type(theirs)
  assert ours.version == theirs.version
  assert repr(ours.info.features) == repr(theirs.info.features)
  assert ours.info.features['label'].names == theirs.info.features['label'].names
  assert ours.info.features['label'].names[-1] == 'blackberry lily'


def test_a_damaged_list_is_named(tmp_path, folder, monkeypatch):
  (folder / 'setid.mat').write_bytes((folder / 'setid.mat').read_bytes()[:200])
  with pytest.raises(ValueError, match=r'setid\.mat has 200 bytes, the official setid\.mat'):
    prepare('oxford_flowers102', str(tmp_path), str(folder))
  archives.declare_official(monkeypatch, oxford_flowers102.Builder, folder)
  with pytest.raises(ValueError, match=r"setid\.mat is no MATLAB file with 'trnid'"):
    prepare('oxford_flowers102', str(tmp_path), str(folder))


def test_sizes_and_checksums_of_the_archives_are_the_published_ones():
  archives.check_published_archives(oxford_flowers102.Builder)
