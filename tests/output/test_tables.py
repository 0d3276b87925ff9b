import contextlib
import csv
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from sjft_jax.output import tables

COLUMNS = {'name': pa.string(), 'count': pa.int32(), 'share': pa.float32()}


def read(path):
  if path.suffix.lower() == '.json':
    rows = json.loads(path.read_text())
    return {name: [row[name] for row in rows] for name in COLUMNS}
  if path.suffix.lower() == '.parquet':
    return pa.parquet.read_table(path).to_pydict()
  delimiter = '\t' if path.suffix.lower() == '.tsv' else ','
  options = pa.csv.ParseOptions(delimiter=delimiter)
  return pa.csv.read_csv(path, parse_options=options).to_pydict()


@pytest.mark.parametrize('suffix', ['.csv', '.parquet', '.tsv', '.CSV', '.json'])
def test_parts_are_written_one_after_another(tmp_path, suffix):
  path = tmp_path / f'table{suffix}'
  path.write_text('old')
  parts = [
    (['a', 'b'], np.array([1, 2], np.int32), np.array([0.5, 0.1], np.float32)),
    (pa.array(['c']), [3], [1e-30]),
  ]
  tables.write_table(path, COLUMNS, iter(parts))
  table = read(path)
  assert list(table) == list(COLUMNS)
  assert table['name'] == ['a', 'b', 'c']
  assert table['count'] == [1, 2, 3]
  np.testing.assert_array_equal(np.float32(table['share']), np.float32([0.5, 0.1, 1e-30]))
  assert list(tmp_path.iterdir()) == [path]


def test_csv_quotes_strings_and_writes_the_shortest_exact_numbers(tmp_path):
  path = tmp_path / 'table.csv'
  tables.write_rows(path, COLUMNS, [('a,b', 1, np.float32(0.1)), ('ü "2"', 2, np.float32(1e-9))])
  assert path.read_text(encoding='utf-8').splitlines() == [
    '"name","count","share"',
    '"a,b",1,0.1',
    '"ü ""2""",2,1e-9',
  ]


@pytest.mark.parametrize('suffix', ['.csv', '.parquet', '.tsv', '.CSV', '.json'])
def test_none_is_an_empty_cell(tmp_path, suffix):
  path = tmp_path / f'table{suffix}'
  tables.write_rows(path, COLUMNS, [('a', None, None), ('b', 2, 0.5)])
  table = read(path)
  assert table['count'] == [None, 2]
  assert table['share'] == [None, 0.5]


@pytest.mark.parametrize('suffix', ['.csv', '.parquet', '.tsv', '.CSV', '.json'])
def test_table_without_rows_has_its_columns(tmp_path, suffix):
  path = tmp_path / f'table{suffix}'
  tables.write_rows(path, COLUMNS, iter([]))
  assert read(path) == {name: [] for name in COLUMNS}


def test_lines_and_quotes_in_names_are_read_back(tmp_path):
  path = tmp_path / 'table.csv'
  names = ['a,b.png', 'ü "2".png', '3\n.png', ' 4.png', '']
  tables.write_rows(path, {'name': pa.string()}, [(name,) for name in names])
  with path.open(newline='', encoding='utf-8') as file:
    assert list(csv.reader(file))[1:] == [[name] for name in names]


def test_error_on_the_way_keeps_the_old_table(tmp_path):
  path = tmp_path / 'table.csv'
  path.write_text('old')

  def parts():
    yield ['a'], [1], [0.5]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    tables.write_table(path, COLUMNS, parts())
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]


def test_output_that_can_be_written_is_accepted(tmp_path):
  tables.check_output(tmp_path / 'table.csv')
  (tmp_path / 'table.parquet').touch()
  assert tables.check_output(tmp_path / 'table.parquet') == tmp_path / 'table.parquet'
  assert [path.name for path in tmp_path.iterdir()] == ['table.parquet']


def test_output_in_the_home_is_found(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert tables.check_output('~/table.csv') == tmp_path / 'table.csv'


def test_output_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
  with pytest.raises(
    ValueError, match=r'table\.txt: the name must end in one of \.csv, \.tsv, \.parquet'
  ):
    tables.check_output(tmp_path / 'table.txt')
  with pytest.raises(ValueError, match=r'--output=.*there is no folder .*nowhere; create it'):
    tables.check_output(tmp_path / 'nowhere' / 'table.csv')
  (tmp_path / 'folder.csv').mkdir()
  with pytest.raises(ValueError, match=r'folder\.csv: a file cannot be written there'):
    tables.check_output(tmp_path / 'folder.csv')
  monkeypatch.setattr(os, 'access', lambda path, mode: False)  # Root may write everywhere.
  with pytest.raises(ValueError, match=r'table\.csv: a file cannot be written there'):
    tables.check_output(tmp_path / 'table.csv')


@pytest.mark.parametrize('name', ['table.xlsx', 'table'])
def test_another_suffix_is_refused_and_nothing_is_lost(tmp_path, name):
  path = tmp_path / name
  path.write_text('mine')
  with pytest.raises(
    ValueError, match=r'table.* must end in one of \.csv, \.tsv, \.parquet, \.json'
  ):
    tables.write_rows(path, COLUMNS, [('a', 1, 0.5)])
  assert path.read_text() == 'mine'
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
  ('name', 'is_refused'),
  [
    ('run/bad_images.csv', True),
    ('link/results.json', True),
    ('run/arms/rounds/rounds/1/selection.csv', True),
    ('run/predictions.csv', False),
    ('run/arms.csv', False),
    ('results.json', False),
  ],
)
def test_output_replaces_no_file_of_a_run(tmp_path, name, is_refused):
  (tmp_path / 'run/arms/rounds/rounds/1').mkdir(parents=True)
  (tmp_path / 'run/config.json').touch()
  (tmp_path / 'link').symlink_to(tmp_path / 'run')
  message = 'lies among the files of the run in .*run; give another path'
  with pytest.raises(ValueError, match=message) if is_refused else contextlib.nullcontext():
    tables.check_output(tmp_path / name)
