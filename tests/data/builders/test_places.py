"""Places 205 and Places 365."""

import pathlib

import pytest
import tensorflow_datasets as tfds
from data.builders import archives

from sjft_jax.data.builders import places205, places365_small
from sjft_jax.data.prepare import prepare
from sjft_jax.data.records import Records

IMAGES = 'imagesPlaces205_resize.tar.gz'
LISTS = 'trainvalsplit_places205.tar.gz'
ROOT = 'data/vision/torralba/deeplearning/images256/'
# Folders in the order of the labels, which is not that of the names everywhere.
SCENES = ['a/abbey', 'a/apartment_building/outdoor', 'a/airport_terminal'] + [
  f'{chr(98 + i // 10)}/{chr(98 + i // 10)}scene{i}' for i in range(202)
]


def image_name(scene, i):
  return f'{scene}/gsun_{i:032x}.jpg'


def format_list(labels, slash=''):
  return ''.join(f'{slash}{name} {label}\n' for name, label in labels.items()).encode()


@pytest.fixture
def places205_folder(tmp_path):
  """Two images of each scene for training and one for validation, among them, and one unlisted."""
  content, train, validation = {}, {}, {}
  for label, scene in enumerate(SCENES):
    for i in range(4):
      name = image_name(scene, 4 * label + i)
      content[ROOT + name] = archives.encode_image(i, mode='L' if i == 2 else 'RGB')
      if i != 3:
        (validation if i == 1 else train)[name] = label
  content[ROOT + image_name('a/abbey', 0)] = archives.encode_image(7)[:150]
  folder = tmp_path / 'archives'
  folder.mkdir()
  # The archive's order is its own.
  archives.tar(folder / IMAGES, dict(sorted(content.items(), reverse=True)), 'w:gz')
  lists = {
    'trainvalsplit_places205/train_places205.csv': format_list(train),
    'trainvalsplit_places205/val_places205.csv': format_list(validation),
  }
  archives.tar(folder / LISTS, lists, 'w:gz')
  return folder, content, train, validation


def test_places205_holds_the_images_of_the_lists(tmp_path, places205_folder):
  folder, content, train, validation = places205_folder
  prepare('places205', str(tmp_path / 'data'), str(folder))
  for split, labels in (('train', train), ('validation', validation)):
    data = Records('places205', str(tmp_path / 'data'), split)
    assert [data.key(i) for i in range(len(data))] == sorted(labels, reverse=True)
    assert data.classes[:4] == (
      'abbey',
      'apartment_building/outdoor',
      'airport_terminal',
      'bscene0',
    )
    for i in range(len(data)):
      assert data.labels[i] == labels[data.key(i)]
      assert data.read_encoded(i) == content[ROOT + data.key(i)]
  folders = {path.parent.name for path in (tmp_path / 'data').rglob('*') if path.is_file()}
  assert folders == {'1.0.0'}  # The file of validation images is gone.


@pytest.mark.parametrize('damage', ['truncated', 'missing', 'lists', 'labels'])
def test_places205_names_incomplete_archives(tmp_path, places205_folder, damage):
  folder, content, train, validation = places205_folder
  if damage == 'truncated':
    (folder / IMAGES).write_bytes((folder / IMAGES).read_bytes()[:-3000])
    message = f'{IMAGES} is truncated'
  elif damage == 'missing':
    lost = sorted(validation)[:3]
    rest = {name: data for name, data in content.items() if name.removeprefix(ROOT) not in lost}
    archives.tar(folder / IMAGES, rest, 'w:gz')
    message = f'{IMAGES} does not hold {ROOT}{lost[0]} and 2 more, which the list'
  elif damage == 'lists':
    archives.tar(folder / LISTS, {'trainvalsplit/train_places205.csv': format_list(train)}, 'w:gz')
    message = rf'{LISTS} does not hold val_places205\.csv; get it again'
  else:
    lists = {'train_places205.csv': b'a/abbey/x.jpg 0\n\nb/bar/y.jpg\n', 'val_places205.csv': b''}
    archives.tar(folder / LISTS, lists, 'w:gz')
    message = rf'{LISTS}: train_places205\.csv is no list of images and labels'
  with pytest.raises(ValueError, match=message):
    prepare('places205', str(tmp_path / 'data'), str(folder))
  assert not list((tmp_path / 'data').glob('places205/*'))


def test_places205_refuses_other_labels(tmp_path, places205_folder):
  folder, _, train, _ = places205_folder
  lists = {
    'train_places205.csv': format_list(dict(list(train.items())[2:])),
    'val_places205.csv': b'',
  }
  archives.tar(folder / LISTS, lists, 'w:gz')
  with pytest.raises(ValueError, match='does not have the labels 0 to 204'):
    prepare('places205', str(tmp_path / 'data'), str(folder))


@pytest.fixture
def places365_folder(tmp_path, monkeypatch):
  train = {'a/airfield/00000002.jpg': 0, 'a/airfield/00000001.jpg': 0, 'y/youth_hostel/7.jpg': 364}
  validation = {'Places365_val_00000002.jpg': 1, 'Places365_val_00000001.jpg': 165}
  folder = tmp_path / 'archives'
  folder.mkdir()
  archives.tar(
    folder / 'train_256_places365standard.tar',
    {f'data_256/{name}': archives.encode_image(i) for i, name in enumerate(sorted(train))},
  )
  archives.tar(
    folder / 'val_256.tar',
    {f'val_256/{name}': archives.encode_image(5 + i) for i, name in enumerate(sorted(validation))},
  )
  lists = {
    'categories_places365.txt': b'/a/airfield 0\n',
    'places365_train_standard.txt': format_list(train, slash='/'),
    'places365_val.txt': format_list(validation),
    'places365_test.txt': b'Places365_test_00000001.jpg\n',
  }
  archives.tar(folder / 'filelist_places365-standard.tar', lists)
  archives.declare_official(monkeypatch, places365_small.Builder, folder)
  return folder


def test_places365_holds_the_images_of_the_lists(tmp_path, places365_folder):
  prepare('places365_small', str(tmp_path / 'data'), str(places365_folder))
  train = Records('places365_small', str(tmp_path / 'data'), 'train')
  assert len(train.classes) == 365
  assert train.classes[0] == 'airfield'
  assert train.classes[-1] == 'zen_garden'
  assert train.labels.tolist() == [0, 0, 364]
  assert [train.key(i) for i in range(3)] == [
    'data_256/a/airfield/00000001.jpg',
    'data_256/a/airfield/00000002.jpg',
    'data_256/y/youth_hostel/7.jpg',
  ]
  assert [train.read_encoded(i) for i in range(3)] == [archives.encode_image(i) for i in range(3)]
  validation = Records('places365_small', str(tmp_path / 'data'), 'validation')
  assert validation.labels.tolist() == [165, 1]
  assert [validation.read_encoded(i) for i in range(2)] == [
    archives.encode_image(i) for i in (5, 6)
  ]


def test_places365_names_archives_that_are_not_the_official_ones(
  tmp_path, places365_folder, monkeypatch
):
  archives.tar(places365_folder / 'val_256.tar', {'val_256/Places365_val_00000002.jpg': b''})
  with pytest.raises(ValueError, match=r'val_256\.tar is not the official val_256\.tar'):
    prepare('places365_small', str(tmp_path / 'data'), str(places365_folder))
  archives.declare_official(monkeypatch, places365_small.Builder, places365_folder)
  with pytest.raises(ValueError, match=r'does not hold val_256/Places365_val_00000001\.jpg, which'):
    prepare('places365_small', str(tmp_path / 'data'), str(places365_folder))
  (places365_folder / 'val_256.tar').write_bytes(b'')
  with pytest.raises(ValueError, match=r'val_256\.tar has 0 bytes, the official val_256\.tar'):
    prepare('places365_small', str(tmp_path / 'data'), str(places365_folder))
  assert not list((tmp_path / 'data').glob('places365_small/*'))


def test_sizes_and_checksums_of_the_archives_are_the_published_ones():
  table = pathlib.Path(tfds.core.tfds_path('datasets/places365_small/checksums.tsv')).read_text()
  published = {line.split()[0]: line.split()[1:3] for line in table.splitlines()}
  for archive in places365_small.Builder.ARCHIVES:
    assert published[archive.url] == [str(archive.size), archive.checksum.removeprefix('sha256:')]
  assert not any(archive.size or archive.checksum for archive in places205.Builder.ARCHIVES)
