import os
import pickle
import shutil
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sjft_jax.data import folder
from sjft_jax.data.dataset import Dataset
from sjft_jax.data.decode import UnreadableError
from sjft_jax.data.folder import ClassFolder, ImageFiles, ListedImages, UnlabelledFolder
from sjft_jax.report import tables


def write(file, image):
  file.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(image).save(file)


@pytest.fixture
def image():
  return np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def test_classes_files_and_labels_are_sorted(tmp_path, image):
  for name in ('train/b/2.PNG', 'train/b/10.png', 'train/a/x.png', 'test/a/x.png'):
    write(tmp_path / name, image)
  (tmp_path / 'train/a/notes.txt').write_text('not an image')
  (tmp_path / 'train/.hidden').mkdir()
  data = ClassFolder(str(tmp_path), 'train')
  assert data.classes == ('a', 'b')
  assert [data.key(i) for i in range(len(data))] == ['a/x.png', 'b/10.png', 'b/2.PNG']
  assert data.labels.tolist() == [0, 1, 1]
  assert data.labels.dtype == np.int32
  np.testing.assert_array_equal(data[1], image)


def test_pixels_become_upright_rgb(tmp_path, image):
  write(tmp_path / 'c/grey.png', image[..., 0])
  write(tmp_path / 'c/alpha.png', np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]))
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # the camera was turned: show it rotated by 90° clockwise
  smooth = cv2.resize(image, (90, 60), interpolation=cv2.INTER_CUBIC)
  PIL.Image.fromarray(smooth).save(tmp_path / 'c/turned.jpg', exif=exif, quality=100, subsampling=0)
  data = ClassFolder(str(tmp_path), '')
  np.testing.assert_array_equal(data[0], image)
  np.testing.assert_array_equal(data[1], np.repeat(image[..., :1], 3, 2))
  turned = np.rot90(smooth, -1)
  assert data[2].shape == turned.shape
  assert np.abs(data[2].astype(int) - turned).mean() < 3


def test_unreadable_files_are_named_with_their_reason(tmp_path, image):
  write(tmp_path / 'c/whole.png', image)
  for name, content in (('empty.jpg', b''), ('page.jpg', b'<html>'), ('text.jpg', b'no image')):
    (tmp_path / 'c' / name).write_bytes(content)
  data = ClassFolder(str(tmp_path), '')
  (tmp_path / 'c/whole.png').unlink()
  reasons = ('is empty', 'is a web page', 'is no AVIF,', 'cannot be opened: No such file')
  for index, reason in enumerate(reasons):
    with pytest.raises(UnreadableError, match=f'^{data.location(index)} {reason}'):
      data[index]
    assert data.location(index) == str(tmp_path / data.key(index))


def test_images_can_be_read_in_reduced_size(tmp_path, image):
  (tmp_path / 'c').mkdir()
  PIL.Image.fromarray(cv2.resize(image, (90, 60))).save(tmp_path / 'c/1.jpg')
  assert ClassFolder(str(tmp_path), '').read_image(0, min_side=15).shape == (15, 23, 3)


def test_an_index_out_of_range_raises(tmp_path, image):
  write(tmp_path / 'c/1.png', image)
  write(tmp_path / 'c/2.png', image)
  data = ClassFolder(str(tmp_path), '')
  assert data.key(-1) == 'c/2.png'
  with pytest.raises(IndexError):
    data[2]


def test_a_data_set_can_be_pickled_for_other_processes(tmp_path, image):
  for name in ('a/1.png', 'b/2.png'):
    write(tmp_path / name, image)
  data = pickle.loads(pickle.dumps(ClassFolder(str(tmp_path), '')))
  assert [data.key(i) for i in range(2)] == ['a/1.png', 'b/2.png']
  np.testing.assert_array_equal(data[1], image)


def test_classes_that_are_numbers_are_sorted_by_value(tmp_path, image):
  for name in ('10', '9', '2', '02'):
    write(tmp_path / f'all/{name}/x.png', image)
    write(tmp_path / f'some/{name}/x.png', image)
  write(tmp_path / 'some/a/x.png', image)
  assert ClassFolder(str(tmp_path), 'all').classes == ('02', '2', '9', '10')
  assert ClassFolder(str(tmp_path), 'some').classes == ('02', '10', '2', '9', 'a')


def test_folders_without_classes_or_images_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r'train is not a folder; images are expected as <path>/'):
    ClassFolder(str(tmp_path), 'train')
  with pytest.raises(ValueError, match='is not a folder'):
    ClassFolder('', '')
  (tmp_path / 'train').mkdir()
  with pytest.raises(ValueError, match='has no class folders'):
    ClassFolder(str(tmp_path), 'train')
  (tmp_path / 'train/empty').mkdir()
  with pytest.raises(ValueError, match='empty has no image'):
    ClassFolder(str(tmp_path), 'train')


def test_fingerprint_follows_names_and_content(tmp_path, image):
  write(tmp_path / 'c/1.bmp', image)
  first = ClassFolder(str(tmp_path), '').fingerprint
  assert ClassFolder(str(tmp_path), '').fingerprint == first
  write(tmp_path / 'c/2.bmp', image)
  second = ClassFolder(str(tmp_path), '').fingerprint
  (tmp_path / 'c/2.bmp').rename(tmp_path / 'c/3.bmp')
  third = ClassFolder(str(tmp_path), '').fingerprint
  write(tmp_path / 'c/3.bmp', 255 - image)  # of the same size
  assert len({first, second, third, ClassFolder(str(tmp_path), '').fingerprint}) == 4


def test_fingerprint_stays_when_files_are_copied_or_touched(tmp_path, image):
  write(tmp_path / 'one/c/1.bmp', image)
  shutil.copytree(tmp_path / 'one', tmp_path / 'two')
  os.utime(tmp_path / 'two/c/1.bmp', (0, 0))
  one, two = (ClassFolder(str(tmp_path / name), '').fingerprint for name in ('one', 'two'))
  assert one == two


def test_unlabelled_images_come_from_any_depth_in_sorted_order(tmp_path, image):
  for name in ('b.png', 'a/z/2.png', 'a/10.PNG', 'a/2.png', 'a.png', '.hidden/x.png', 'a/.x.png'):
    write(tmp_path / name, image)
  (tmp_path / 'a/notes.txt').write_text('not an image')
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'folder.png').mkdir()
  data = UnlabelledFolder(str(tmp_path))
  assert isinstance(data, Dataset)
  assert [data.key(i) for i in range(len(data))] == [
    *('a/10.PNG', 'a/2.png', 'a/z/2.png', 'a.png', 'b.png')
  ]
  assert (data.name, len(data.classes)) == (tmp_path.name, 1)
  assert data.labels.tolist() == [0] * 5
  assert data.labels.dtype == np.int32
  np.testing.assert_array_equal(data[3], image)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path, image):
  write(tmp_path / 'elsewhere/1.png', image)
  (tmp_path / 'data/a').mkdir(parents=True)
  (tmp_path / 'data/a/link').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'data/a/up').symlink_to(tmp_path / 'data')
  (tmp_path / 'elsewhere/self').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'data/broken.png').symlink_to(tmp_path / 'nowhere.png')
  data = UnlabelledFolder(str(tmp_path / 'data'))
  assert [data.key(i) for i in range(len(data))] == ['a/link/1.png']


def test_an_unlabelled_folder_needs_images(tmp_path):
  for path in ('', str(tmp_path / 'nowhere')):
    with pytest.raises(ValueError, match=f"'{path}' is not a folder"):
      UnlabelledFolder(path)
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a/notes.txt').write_text('not an image')
  with pytest.raises(
    ValueError, match=r'no image \(AVIF, .*\) below .*, but 1 .txt files \(a/notes.txt\)'
  ):
    UnlabelledFolder(str(tmp_path))


def test_a_name_that_is_not_utf8_is_refused(tmp_path, image):
  for name in (b'a.png', b'caf\xe9.png'):
    write(tmp_path / 'c' / os.fsdecode(name), image)
  for open_folder in (UnlabelledFolder, lambda path: ClassFolder(path, '')):
    with pytest.raises(ValueError, match=r'caf\\udce9\.png. has a name that is not UTF-8'):
      open_folder(str(tmp_path))


def keys(data):
  return [data.key(index) for index in range(len(data))]


def write_list(file, **columns):
  table = pa.table(columns)
  (pa.csv.write_csv if file.suffix == '.csv' else pa.parquet.write_table)(table, file)
  return str(file)


@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
def test_a_list_gives_paths_and_labels_in_its_order(tmp_path, image, suffix):
  elsewhere = tmp_path / 'elsewhere/1.png'
  for file in (tmp_path / 'data/x/b, 1.png', tmp_path / 'data/ä.png', elsewhere):
    write(file, image)
  columns = {
    'note': [1.5, 2.5, 3.5],
    'label': ['zebra', 'ant', 'zebra'],
    'path': ['x/b, 1.png', 'ä.png', str(elsewhere)],
    'split': ['test', 'train', 'train'],
  }
  path = write_list(tmp_path / f'data/list.{suffix}', **columns)
  data = ListedImages(path, '')
  assert isinstance(data, Dataset)
  assert (data.name, data.classes) == ('list', ('ant', 'zebra'))
  assert data.labels.tolist() == [1, 0, 1]
  assert data.labels.dtype == np.int32
  assert keys(data) == columns['path']
  assert [data.location(0), data.location(2)] == [str(tmp_path / 'data/x/b, 1.png'), str(elsewhere)]
  for index in range(3):
    np.testing.assert_array_equal(data[index], image)
  train = ListedImages(path, 'train')
  assert (train.name, keys(train)) == ('list/train', columns['path'][1:])
  assert train.labels.tolist() == [0, 1]
  assert (ListedImages.splits(path), train.fingerprint != data.fingerprint) == (
    ['test', 'train'],
    True,
  )
  assert ListedImages(path, 'test').classes == ('zebra',)


@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
def test_labels_of_a_list_that_are_numbers_are_sorted_by_value(tmp_path, image, suffix):
  for number in range(3):
    write(tmp_path / f'{number}.png', image)
  names = ['0.png', '1.png', '2.png']
  path = write_list(tmp_path / f'list.{suffix}', path=names, label=[10, 9, 10])
  assert (ListedImages(path, '').classes, ListedImages(path, '').labels.tolist()) == (
    ('9', '10'),
    [1, 0, 1],
  )
  assert not ListedImages.splits(path)
  with pytest.raises(ValueError, match="has no column split; add one, or leave split='x' empty"):
    ListedImages(path, 'x')
  first = ListedImages(path, '').fingerprint
  path = write_list(tmp_path / f'list.{suffix}', path=names, label=[9, 9, 10])
  assert ListedImages(path, '').fingerprint != first


def test_values_of_a_list_stay_text(tmp_path, image):
  PIL.Image.fromarray(image).save(tmp_path / '007', 'PNG')
  (tmp_path / 'list.csv').write_bytes(b'\xef\xbb\xbfpath,label\r\n007,01\r\n')
  data = ListedImages(str(tmp_path / 'list.csv'), '')
  assert (keys(data), data.classes) == (['007'], ('01',))


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'path,class\na.png,x\n', 'it has no column label, but path, class'),
    (b'', 'cannot be read as a list of path and label: '),
    (b'path,label\na.png,x,y\n', 'cannot be read as a list of path and label: '),
    (b'path,label\na.png,\xff\n', 'cannot be read as a list of path and label: '),
    (b'path,label\n', 'has no rows'),
    (b'path,label\na.png,x\nb.png,\n', 'row 2: label is empty'),
    (b'path,label\n"",x\n', 'row 1: path is empty'),
    (b'path,label\na.png,x\na.png,y\n', "has 'a.png' more than once"),
    (b'path,label\na.png,x\nno/b.png,y\n', r'/no/b\.png is not there; paths are absolute'),
    (b'path,label\na.png,x\nb.png,y\n', r'/b\.png is not there; paths are'),
    (b'path,label,split\na.png,x,q\n', r"split='train' is unknown; use one of q$"),
  ],
)
def test_a_mistake_in_a_list_is_named_in_one_line(tmp_path, image, content, message):
  write(tmp_path / 'a.png', image)
  path = tmp_path / 'list.csv'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message) as caught:
    ListedImages(str(path), 'train' if b'split' in content else '')
  assert len(str(caught.value).splitlines()) == 1
  assert str(path) in str(caught.value)


@pytest.mark.parametrize('name', ['none.csv', 'none.parquet', 'folder.parquet', 'text.parquet'])
def test_a_file_that_is_no_list_is_refused(tmp_path, name):
  (tmp_path / 'folder.parquet').mkdir()
  (tmp_path / 'text.parquet').write_text('path,label')
  with pytest.raises(ValueError, match=f'{name} cannot be read as a list of path and label'):
    ListedImages(str(tmp_path / name), '')


def test_null_labels_of_a_list_are_refused(tmp_path, image):
  write(tmp_path / 'a.png', image)
  path = write_list(tmp_path / 'list.parquet', path=['a.png'], label=pa.array([None], pa.string()))
  with pytest.raises(ValueError, match='row 1: label is empty'):
    ListedImages(path, '')


def test_image_files_come_in_the_given_order(tmp_path, image):
  paths = [tmp_path / name for name in ('b.png', 'a/1.png', 'noise without suffix')]
  for number, path in enumerate(paths[:2]):
    write(path, image + np.uint8(number))
  paths[2].write_bytes(paths[0].read_bytes())
  data = ImageFiles(paths)
  assert isinstance(data, Dataset)
  assert (len(data), data.name, data.classes) == (3, 'images', ('image',))
  assert data.labels.tolist() == [0, 0, 0]
  assert data.labels.dtype == np.int32
  assert keys(data) == [data.location(i) for i in range(3)] == [str(path) for path in paths]
  np.testing.assert_array_equal(data[1], image + np.uint8(1))
  np.testing.assert_array_equal(data[2], data[0])
  assert data.fingerprint == ImageFiles(paths).fingerprint != ImageFiles(paths[::-1]).fingerprint


def test_image_files_may_be_relative_and_given_twice(tmp_path, image, monkeypatch):
  write(tmp_path / 'a/1.png', image)
  monkeypatch.chdir(tmp_path)
  data = ImageFiles([Path('a/1.png')] * 2)
  assert keys(data) == ['a/1.png'] * 2
  np.testing.assert_array_equal(data[1], image)


def test_image_files_that_are_missing_or_unreadable_are_named(tmp_path):
  with pytest.raises(ValueError, match='no images are given'):
    ImageFiles([])
  for path in (tmp_path, tmp_path / 'none.png'):
    with pytest.raises(ValueError, match=f'{path} is not a file'):
      ImageFiles([path])
  (tmp_path / 'text.png').write_text('no image')
  with pytest.raises(UnreadableError, match=rf'^{tmp_path}/text\.png is no AVIF,'):
    ImageFiles([tmp_path / 'text.png'])[0]


CHARACTERS = st.characters(exclude_characters='/\0.', exclude_categories=['C', 'Z'])
NAMES = st.text(CHARACTERS, min_size=1, max_size=9).filter(
  lambda name: unicodedata.is_normalized('NFC', name)
)


@settings(
  max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(NAMES, st.sets(NAMES, min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_folder_and_a_list_of_the_same_files_agree(tmp_path_factory, classes):
  root = tmp_path_factory.mktemp('data')
  for name, files in classes.items():
    (root / name).mkdir()
    for file in files:
      (root / name / f'{file}.png').write_bytes(file.encode())
  data = ClassFolder(str(root), '')
  assert sorted(keys(data)) == sorted(f'{c}/{f}.png' for c, files in classes.items() for f in files)
  assert all(
    data.classes[y] == k.partition('/')[0] for y, k in zip(data.labels, keys(data), strict=True)
  )
  labels = [data.classes[label] for label in data.labels]
  listed = ListedImages(write_list(root / 'list.parquet', path=keys(data), label=labels), '')
  assert (listed.classes, keys(listed)) == (data.classes, keys(data))
  np.testing.assert_array_equal(listed.labels, data.labels)
  assert listed.fingerprint == data.fingerprint


# What spreadsheets take for formulas, numbers or nothing, and what separates cells and lines.
ODD_NAMES = [
  '=1+1.png', '+a.png', '-b.png', '@c.png', ' d.png', 'e .png', 'f,g.png', '"h".png', 'i\nj.png',
  'k\rl.png', 'm\r\nn.png', 'o\tp.png', 'NA', '007', '1e5', 'true', '#q.png', '\x1b[2J.png',
  '\u202er.png', 's;t', "'u'",
]  # fmt: skip


@pytest.mark.parametrize('suffix', ['.csv', '.tsv', '.parquet'])
def test_names_survive_being_written_and_read_again(tmp_path, suffix):
  for name in ODD_NAMES:
    cv2.imwrite(str(tmp_path / 'image.png'), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / 'image.png').rename(tmp_path / name)
  names = [UnlabelledFolder(str(tmp_path)).key(i) for i in range(len(ODD_NAMES))]
  assert sorted(names) == sorted(ODD_NAMES)
  path = tmp_path / f'list{suffix}'
  columns = dict.fromkeys(('path', 'label'), pa.string())
  tables.write_rows(path, columns, [(name, 'a') for name in names])
  images = ListedImages(str(path), '')
  assert [images.key(i) for i in range(len(images))] == names
  assert all(images[i].shape == (4, 4, 3) for i in range(len(images)))
  # Longer than the blocks that a list is read in.
  many = [f'{number}{name}' for number in range(3000) for name in ODD_NAMES]
  tables.write_rows(path, columns, [(name, 'a') for name in many])
  assert folder._read_columns(str(path))['path'].to_pylist() == many
