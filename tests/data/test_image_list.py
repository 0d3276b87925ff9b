import unicodedata

import cv2
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from data.image_files import keys, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sjft_jax.data import image_list
from sjft_jax.data.dataset import Dataset
from sjft_jax.data.folder import ClassFolder, UnlabelledFolder
from sjft_jax.data.image_list import ListedImages
from sjft_jax.data.walk import _HIDDEN
from sjft_jax.output import tables


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
    (b'path,label\na.png,x\nb.png, "y"\n', r'row 2: label has a blank before its quotation mark;'),
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


@pytest.mark.parametrize(
  ('content', 'line'),
  [
    ('path,label,split\n1.png,a,train\n2.png,b,"train\n3.png,a,train\n', 3),
    ('path,label,note\n1.png,a,"nice\n2.png,b,"good"\n', 2),
    ('path,note,label\n1.png,"sea,a\n2.png,sky,a\n3.png,"dogs,b\n4.png,x,b\n', 2),
    ('path,note,label\n1.png,"two\nlines",a\n2.png,"sea,a\n3.png,"dogs,b\n', 4),
  ],
)
def test_a_quotation_mark_that_is_not_closed_swallows_no_rows(tmp_path, content, line):
  (tmp_path / 'list.csv').write_text(content)
  with pytest.raises(ValueError, match=f'a quotation mark in line {line} is not closed'):
    ListedImages(str(tmp_path / 'list.csv'), '')


@pytest.mark.parametrize(
  ('name', 'written', 'remedy'),
  [
    ('1.png', ' 1.png', 'remove the blanks around its paths'),
    ('\xe4.png', 'a\u0308.png', 'its name is there in another Unicode form'),
  ],
)
def test_a_path_that_is_nearly_that_of_a_file_is_explained(tmp_path, image, name, written, remedy):
  write(tmp_path / name, image)
  path = write_list(tmp_path / 'list.csv', path=[written], label=['a'])
  with pytest.raises(ValueError, match=remedy):
    ListedImages(path, '')


def test_groups_are_part_of_the_fingerprint(tmp_path, image):
  for name in '12':
    write(tmp_path / f'{name}.png', image)
  columns = {'path': ['1.png', '2.png'], 'label': ['a', 'a']}
  lists = [
    ListedImages(write_list(tmp_path / f'{number}.csv', **columns, **group), '').fingerprint
    for number, group in enumerate([{}, {'group': ['x', 'x']}, {'group': ['x', 'y']}])
  ]
  assert len(set(lists)) == 3


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


CHARACTERS = st.characters(exclude_characters='/\0.', exclude_categories=['C', 'Z'])
# A path of a list that begins with ~ starts at the home, and folders that systems make are hidden.
NAMES = st.text(CHARACTERS, min_size=1, max_size=9).filter(
  lambda name: unicodedata.is_normalized('NFC', name) and name[0] != '~' and name not in _HIDDEN
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
  assert image_list._read_columns(str(path))['path'].to_pylist() == many


def test_one_group_has_one_number_in_every_unicode_form(tmp_path, image):
  write(tmp_path / '1.png', image)
  write(tmp_path / '2.png', image)
  names = [unicodedata.normalize(form, 'José') for form in ('NFC', 'NFD')]
  rows = ''.join(f'{i}.png,a,{name}\n' for i, name in enumerate(names, 1))
  (tmp_path / 'list.csv').write_text(f'path,label,group\n{rows}', encoding='utf-8')
  first, second = ListedImages(str(tmp_path / 'list.csv'), '').groups
  assert first == second


@pytest.mark.parametrize('other', ['../link/1.png', '{0}/images/1.png', '/{0}/images/1.png'])
def test_one_file_by_two_ways_is_an_error(tmp_path, image, other):
  write(tmp_path / 'images' / '1.png', image)
  (tmp_path / 'link').symlink_to(tmp_path / 'images')
  path = tmp_path / 'link' / 'list.csv'
  path.write_text(f'path,label\n1.png,a\n{other.format(tmp_path)},a\n')
  with pytest.raises(ValueError, match='the same file; keep one row'):
    ListedImages(str(path), '')


def test_columns_that_are_not_read_are_named(tmp_path, image, capsys):
  write(tmp_path / '1.png', image)
  (tmp_path / 'list.csv').write_text(',Path,label,groups,set\n0,1.png,x,A,test\n')
  ListedImages(str(tmp_path / 'list.csv'), '')
  printed = ' '.join(capsys.readouterr().out.split())
  assert 'the columns groups, set; what counts is path, label, split, group' in printed
  (tmp_path / 'list.csv').write_text('path,label,group\n1.png,x,A\n')
  ListedImages(str(tmp_path / 'list.csv'), '')
  assert not capsys.readouterr().out


def test_a_label_or_group_that_is_not_a_number_is_no_value(tmp_path, image):
  paths = [f'{number}.png' for number in range(3)]
  for path in paths:
    write(tmp_path / path, image)
  numbers = np.array([0.0, 1.0, np.nan])
  path = write_list(tmp_path / 'list.parquet', path=paths, label=numbers)
  with pytest.raises(ValueError, match='row 3: label is empty; fill it in or remove the row'):
    ListedImages(path, '')
  groups = numbers[[0, 2, 2]]
  path = write_list(tmp_path / 'list.parquet', path=paths, label=[0, 0, 1], group=groups)
  assert len(set(ListedImages(path, '').groups)) == 3


def test_semicolons_with_decimal_commas_have_a_remedy(tmp_path):
  (tmp_path / 'list.csv').write_text('path;label;weight\n1.png;x;0,5\n')
  with pytest.raises(ValueError, match='columns are separated by commas, in a .tsv by tabs'):
    ListedImages(str(tmp_path / 'list.csv'), '')


def test_classes_that_differ_in_capitals_alone_are_named(tmp_path, image, capsys):
  for number in range(3):
    write(tmp_path / f'{number}.png', image)
  (tmp_path / 'list.csv').write_text('path,label\n0.png,OK\n1.png,ok\n2.png,defect\n')
  assert len(ListedImages(str(tmp_path / 'list.csv'), '').classes) == 3
  assert 'capitals alone count as several: OK and ok' in ' '.join(capsys.readouterr().out.split())
