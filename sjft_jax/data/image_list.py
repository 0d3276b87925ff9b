"""Image files in a list: a table of paths, labels and splits."""

import codecs
import csv
import functools
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from sjft_jax.data import digests, parquet_list
from sjft_jax.data.file_dataset import FileDataset, normalize_class_name, sort_classes
from sjft_jax.runtime import console
from sjft_jax.runtime.choice import choose

LIST_SUFFIXES = ('.csv', '.tsv', '.parquet')
# Bytes of a list of 10 million images and more.
_MAX_LIST = 2**31
_UNICODE_REMEDY = 'its name is there in another Unicode form; write it as the file has it'
_COLUMNS = ('path', 'label', 'split', 'group')


class ListedImages(FileDataset):
  """The images of a list, a .csv, .tsv or .parquet file, in its order.

  Its columns, in any case, are 'path', absolute or from the list's own folder, 'label', and, where
  there are splits, 'split'; a line names the others, which are not read. Images with the same
  value in a column 'group', such as the photographs of one object, are never divided between
  training and held-out images.
  Labels become classes in sorted order, by value if all are numbers. Blanks around labels and their
  Unicode form do not matter.

  Args:
    path: the list; '~' is the user's home, here and in the list.
    split: the value of column 'split' of the rows to take; '': all rows.

  Raises:
    ValueError: there is no such list, column, split or image file, a label is empty, or a file
      occurs twice.
  """

  def __init__(self, path: str, split: str):
    path = os.path.expanduser(path)
    root = os.path.dirname(path)
    rows = _read_columns(path, report=True)
    _check_rows(rows, path)
    _check_distinct(rows['path'].to_pylist(), path)
    if 'group' in rows.column_names:
      # Before the split is taken, so that numbers are the same in all splits of the list.
      rows = rows.set_column(rows.column_names.index('group'), 'group', _number_groups(rows))
    if split:
      rows = _select_split(rows, path, split)
    names = [_clean_path(name) for name in rows['path'].to_pylist()]
    _check_files(names, path)
    labels = rows['label'].combine_chunks().dictionary_encode()
    label_names = [normalize_class_name(name, path) for name in labels.dictionary.to_pylist()]
    classes = sort_classes(set(label_names))
    numbers = {name: number for number, name in enumerate(classes)}
    positions = np.array([numbers[name] for name in label_names], np.int32)
    name = Path(path).stem + (f'/{split}' if split else '')
    kind = f'list {os.path.basename(path)} {split}'
    super().__init__(name, root, names, classes, positions[labels.indices.to_numpy()], kind)
    if 'group' in rows.column_names:
      self.groups = rows['group'].to_numpy()

  @staticmethod
  def splits(path: str) -> list[str]:
    """Return the values of the list's column 'split'; none if it has no such column."""
    rows = _read_columns(os.path.expanduser(path))
    if 'split' not in rows.column_names:
      return []
    return sorted(rows['split'].unique().drop_null().to_pylist())


def is_list(path: str) -> bool:
  """Return whether a path names a list of images, not a folder."""
  return path.lower().endswith(LIST_SUFFIXES) and not os.path.isdir(os.path.expanduser(path))


def read_paths(path: str) -> list[str]:
  """Return the paths of the images of a list, absolute or from its folder; it needs no labels.

  Raises:
    ValueError: there is no such list, or it has no rows, no column 'path' or an empty path.
  """
  rows = _read_columns(path, required=('path',))
  _check_rows(rows, path, ('path',))
  return [_clean_path(name) for name in rows['path'].to_pylist()]


def _number_groups(rows: pa.Table) -> pa.Array:
  """Return the number of each image's group; an image without a group is one by itself."""
  names = pc.utf8_normalize(pc.utf8_trim_whitespace(rows['group']), 'NFC').combine_chunks()
  encoded = names.dictionary_encode()
  numbers = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
  is_alone = pc.equal(pc.fill_null(names, ''), '').to_numpy(zero_copy_only=False)
  numbers[is_alone] = len(encoded.dictionary) + np.flatnonzero(is_alone)
  return pa.array(numbers)


def _clean_path(name: str) -> str:
  """Return a path of a list without '~', '.', and doubled slashes."""
  name = os.path.expanduser(name)
  # With '..' behind a link to a folder, the shortest spelling would be another file.
  return name if '..' in name.split('/') else os.path.normpath(name)


def _check_distinct(names: Sequence[str], path: str) -> None:
  """Check that no two rows of a list name the same file, whatever the spelling.

  Raises:
    ValueError: two rows do.
  """
  root = os.path.dirname(path)
  real_folder = functools.cache(os.path.realpath)
  first_names: dict[str, str] = {}
  for name in names:
    folder, base = os.path.split(os.path.join(root, os.path.expanduser(name)))
    place = os.path.join(real_folder(folder), base)
    if place in first_names:
      first = first_names[place]
      if first == name:
        raise ValueError(f'{path} has {name!r} more than once; keep one row')
      raise ValueError(f'{path} has {first!r} and {name!r}, the same file; keep one row')
    first_names[place] = name


def _check_files(names: Sequence[str], path: str) -> None:
  """Check that all files of a list are there.

  Raises:
    ValueError: one is not.
  """
  root = os.path.dirname(path)
  sizes = digests.stat_files(root, pa.array(names, pa.large_string()))[:, 0]
  missing = np.flatnonzero(sizes < 0)
  if not len(missing):
    return
  name = names[missing[0]]
  place = os.path.join(root, name)
  if os.path.exists(place):
    raise ValueError(f'{path}: {place} is not a file')
  count = f' (the first of {len(missing):,})' if len(missing) > 1 else ''
  remedy = "paths are absolute or start at the list's folder"
  for other, change in (
    (name.replace('\\', '/'), 'write / instead of \\ in its paths'),
    (name.strip(), 'remove the blanks around its paths'),
    *((unicodedata.normalize(form, name), _UNICODE_REMEDY) for form in ('NFC', 'NFD')),
  ):
    if os.path.exists(os.path.join(root, other)):
      remedy = change
  raise ValueError(f'{path}: {place} is not there{count}; {remedy}')


def _read_columns(
  path: str, required: Sequence[str] = ('path', 'label'), *, report: bool = False
) -> pa.Table:
  """Read the columns of a list as strings.

  Args:
    path: the list.
    required: the columns that must be there.
    report: print a line about columns that are not read.

  Raises:
    ValueError: the file cannot be read, or a column is missing or occurs twice.
  """
  try:
    _check_list(path)
    if path.lower().endswith('.parquet'):
      names, table = parquet_list.read_columns(path, _COLUMNS)
    else:
      delimiter = '\t' if path.lower().endswith('.tsv') else ','
      # Names of files may hold line breaks.
      parse_options = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
      with pa.csv.open_csv(path, parse_options=parse_options) as reader:
        names = reader.schema.names
      table = pa.csv.read_csv(
        path,
        parse_options=parse_options,
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
      )
      _check_quotes(table, path, delimiter)
    names = [_plain_name(name) for name in names]
    table = table.rename_columns([_plain_name(name) for name in table.column_names])
    for column in required:
      if column not in names:
        hint = '; rename the column that holds it'
        if len(names) == 1:
          hint = '; columns are separated by commas, in a .tsv by tabs'
        raise ValueError(f'it has no column {column}, but {", ".join(names)}{hint}')
    present = [column for column in _COLUMNS if column in names]
    for column in present:
      if names.count(column) > 1:
        raise ValueError(f'it has {names.count(column)} columns {column}; keep one')
    # Those without a name, and Arrow's, are row numbers that pandas has written.
    others = [name for name in names if name and not name.startswith('__') and name not in present]
    if report and others:
      named = ', '.join(others[:5]) + (', …' if len(others) > 5 else '')
      console.say(
        f'  Not read in {path}: the columns {named}; what counts is {", ".join(_COLUMNS)}'
      )
    rows = {column: _to_text(table[column]) for column in present}
    for name, column in rows.items():
      column.validate(full=True)
      is_odd = pc.match_substring_regex(pc.fill_null(column, ''), r'^\s+"')
      if not path.lower().endswith('.parquet') and pc.any(is_odd).as_py():
        row = is_odd.index(True).as_py() + 1
        raise ValueError(
          f'row {row}: {name} has a blank before its quotation mark; remove the blank'
        )
    if 'split' in rows:
      rows['split'] = pc.utf8_trim_whitespace(rows['split'])
    return pa.table(rows)
  except (ValueError, OSError, pa.ArrowException) as error:
    message = (getattr(error, 'strerror', None) or str(error)).splitlines()[0]
    if 'Expected 1 columns' in message:  # Of a line with semicolons and decimal commas.
      message += '; columns are separated by commas, in a .tsv by tabs'
    if 'invalid utf8' in message.lower():
      message = 'its text is not UTF-8; save it as UTF-8'
    raise ValueError(
      f'{path} cannot be read as a list of {" and ".join(required)}: {message}'
    ) from error


def _to_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
  """Return a column as texts; what is not a number (NaN) is no value."""
  if pa.types.is_floating(column.type):
    column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
  return column.cast(pa.string())


def _check_quotes(table: pa.Table, path: str, delimiter: str) -> None:
  """Check that no value holds rows behind a quotation mark that is not closed.

  Raises:
    ValueError: a mark is not closed, or not doubled within a value.
  """
  for column in table.columns:
    if pc.any(pc.match_substring_regex(column, r'[\r\n]')).as_py():
      break
  else:
    return
  with open(path, encoding='utf-8-sig', newline='') as file:
    # Arrow takes what follows a closed mark for a part of the value.
    reader, line = csv.reader(file, delimiter=delimiter, strict=True), 1
    try:
      for _ in reader:
        line = reader.line_num + 1
    except csv.Error as error:
      raise ValueError(f'a quotation mark in line {line} is not closed') from error


def _plain_name(name: str) -> str:
  """Return the name of a column without blanks; of those that are read, in lower case."""
  name = name.strip()
  return name.lower() if name.lower() in _COLUMNS else name


def _check_list(path: str) -> None:
  """Check that a list is a file that can be read as a whole, and no text in UTF-16.

  Raises:
    ValueError: it is not.
    OSError: it cannot be opened, or is a pipe or a device.
  """
  with digests.open_regular(path) as file:
    size = os.fstat(file.fileno()).st_size
    if size > _MAX_LIST:
      raise ValueError(f'it has {size:,} bytes, more than the limit of {_MAX_LIST:,}')
    if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
      raise ValueError('its text is UTF-16; save it as UTF-8')


def _check_rows(rows: pa.Table, path: str, columns: Sequence[str] = ('path', 'label')) -> None:
  """Check that there are rows, and that each has a value in some columns.

  Raises:
    ValueError: there are no rows, or the first row that is wrong.
  """
  if not rows.num_rows:
    raise ValueError(f'{path} has no rows')
  for column in columns:
    is_empty = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(rows[column], '')), '')
    if pc.any(is_empty).as_py():
      row = is_empty.index(True).as_py() + 1
      raise ValueError(f'{path}, row {row}: {column} is empty; fill it in or remove the row')


def _select_split(rows: pa.Table, path: str, split: str) -> pa.Table:
  """Return the rows of a split.

  Raises:
    ValueError: there is no column 'split', no such value in it, or a row without a value.
  """
  if 'split' not in rows.column_names:
    raise ValueError(f'{path} has no column split; add one, or leave split={split!r} empty')
  _check_rows(rows, path, ('split',))
  choose(f'{path}: split', split, rows['split'].unique().drop_null().to_pylist())
  return rows.filter(pc.equal(rows['split'], split))
