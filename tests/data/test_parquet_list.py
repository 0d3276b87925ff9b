"""Hostile lists in Parquet take little memory and time."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from measured_process import needs_linux, read_all

from sjft_jax.data import image_list, parquet_list

pytestmark = needs_linux

READ = """
from sjft_jax.data import image_list

def prepare(path):
  return path.rename(path.with_suffix('.parquet'))

def read(path):
  image_list.read_paths(str(path))
"""


def encode(columns, **options):
  """Return a Parquet file of columns."""
  file = io.BytesIO()
  pa.parquet.write_table(pa.table(columns), file, **options)
  return file.getvalue()


def repeated(text, count):
  return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([text]))


def rows():
  """Repeat a short text 10 million times."""
  return encode({'path': repeated('a.jpg', 10_000_000)})


def long_text():
  """Repeat a text of a megabyte 100 times."""
  return encode({'path': repeated('a' * 10**6, 100)}, compression='zstd')


def page():
  """Pack a text of 100 MB into 100 kB."""
  return encode(
    {'path': ['a' * 10**8]}, compression='gzip', use_dictionary=False, write_statistics=False
  )


def prefixes():
  """Begin each of 20 texts with a megabyte of the one before."""
  texts = [f'{"a" * 10**6}{i}' for i in range(20)]
  encodings = {'path': 'DELTA_BYTE_ARRAY'}
  return encode(
    {'path': texts}, use_dictionary=False, column_encoding=encodings, write_statistics=False
  )


def columns():
  """Have 2,200 columns with long names."""
  return encode({f'{number}' * 500: [''] for number in range(1000, 3200)})


def empty_pages():
  """Have 19 million pages of one byte."""
  content = encode({'path': ['a' * 19_000_000]}, compression='none', use_dictionary=False)
  start = content.index(b'PAR1') + 4
  return content[:start] + bytes(19_000_000) + content[start + 19_000_000 :]


ATTACKS = {
  rows: 'unpacks to over 67,108,864 bytes',
  long_text: 'unpacks to over 67,108,864 bytes',
  page: 'unpacks to over 67,108,864 bytes',
  prefixes: 'saved as DELTA_BYTE_ARRAY',
  columns: 'its description has ',
  empty_pages: 'has too many parts',
}


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  return read_all(READ, tmp_path_factory.mktemp('lists'), ATTACKS)


@pytest.mark.parametrize('attack', ATTACKS)
def test_hostile_list_is_refused_before_it_is_unpacked(results, attack):
  result = results[attack.__name__]
  assert f'{attack.__name__}.parquet cannot be read as a list of path: ' in result['message']
  assert ATTACKS[attack] in result['message']
  assert result['megabytes'] < 150
  assert result['seconds'] < 5


def test_other_columns_are_not_unpacked(tmp_path):
  file = tmp_path / 'list.parquet'
  content = {'path': ['a.jpg'], 'other': [['x' * 10**7]], 'Label ': [3]}
  file.write_bytes(encode(content, compression='zstd'))
  assert image_list.read_paths(str(file)) == ['a.jpg']
  names, table = parquet_list.read_columns(str(file), ('path', 'label', 'split'))
  assert names == ['path', 'other', 'Label ']
  assert table.to_pydict() == {'Label ': [3], 'path': ['a.jpg']}


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'compression': 'none', 'use_dictionary': False},
    {'compression': 'zstd', 'data_page_version': '2.0', 'row_group_size': 100},
    {'use_dictionary': False, 'column_encoding': {'path': 'DELTA_LENGTH_BYTE_ARRAY'}},
    {'dictionary_pagesize_limit': 500, 'data_page_size': 300},
  ],
)
def test_lists_of_all_encodings_are_read(tmp_path, options):
  paths = [f'{number:05}.jpg' for number in range(1000)]
  (tmp_path / 'list.parquet').write_bytes(encode({'path': paths}, **options))
  _, table = parquet_list.read_columns(str(tmp_path / 'list.parquet'), ['path'])
  assert table['path'].cast(pa.string()).to_pylist() == paths


def test_text_that_is_not_utf8_is_refused(tmp_path):
  file = tmp_path / 'list.parquet'
  file.write_bytes(
    encode({'path': ['aäa']}, compression='none', write_statistics=False).replace(
      'ä'.encode(), b'\xff\xff'
    )
  )
  with pytest.raises(ValueError, match=r'list\.parquet cannot be read .* save it as UTF-8'):
    image_list.read_paths(str(file))
