"""Write tables as .csv, .tsv, .parquet or .json files."""

import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from sjft_jax.runtime import artifacts
from sjft_jax.runtime.choice import choose


class _JsonWriter:
  """Write a list of objects, one for each row, with the columns' names as keys."""

  def __init__(self, file: IO[bytes], schema: pa.Schema):
    del schema  # Each batch has it.
    self._file, self._separator = file, b'[\n'

  def __enter__(self) -> '_JsonWriter':
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self._file.write(b'\n]\n' if self._separator == b',\n' else b'[]\n')

  def write_batch(self, batch: pa.RecordBatch) -> None:
    for row in batch.to_pylist():
      self._file.write(self._separator + json.dumps(row, ensure_ascii=False).encode())
      self._separator = b',\n'


_TABS = pa.csv.WriteOptions(delimiter='\t')
# What a table is written by, by the suffix of its name in lower case.
_WRITERS: dict[str, Callable[..., Any]] = {
  '.csv': pa.csv.CSVWriter,
  '.tsv': functools.partial(pa.csv.CSVWriter, write_options=_TABS),
  '.parquet': pa.parquet.ParquetWriter,
  '.json': _JsonWriter,
}
# 'auto' writes large tables as Parquet: a million rows of a selection are about 100 MB of text.
FORMATS = ('auto', 'csv', 'parquet')
MAX_CSV_ROWS = 1_000_000

# Tables, JSON files and the picture at the top of a work directory or of an export.
_RUN_FILES = (
  *('accumulation.*.json', 'bad_images.csv', 'config*.json', 'contradictions.csv'),
  *('duplicates.csv', 'lock.json', 'neighbors.png', 'network.json', 'results.json', 'split.csv'),
  *('screened.json', 'train_test_copies.csv', 'tuned.json', 'versions*.json'),
)

# Pairs of a target image and one of its neighbours: rank 1 is the nearest. Divergences are in nats,
# or 1 − cosine where features rank.
NEIGHBOR_COLUMNS = {
  'target': pa.string(),
  'source': pa.string(),
  'rank': pa.int32(),
  'divergence': pa.float32(),
}


def check_output(path: str | os.PathLike[str], suffixes: Iterable[str] = tuple(_WRITERS)) -> Path:
  """Return the place of a command's --output, a table by default, where `~` is the home.

  Raises:
    ValueError: another suffix, no such folder, a place that cannot be written to, or a file of a
      work directory or an export.
  """
  place = Path(os.path.expanduser(path))
  if place.suffix.lower() not in suffixes:
    raise ValueError(f'--output={path}: the name must end in one of {", ".join(suffixes)}')
  if not place.parent.is_dir():
    raise ValueError(f'--output={path}: there is no folder {place.parent}; create it')
  if place.is_dir() or not os.access(place.parent, os.W_OK):
    raise ValueError(f'--output={path}: a file cannot be written there')
  real = Path(os.path.realpath(place))
  for folder in real.parents:
    if not (folder / 'config.json').is_file():  # As work directories and exports have it.
      continue
    first, *others = real.relative_to(folder).parts
    is_file = not others and any(fnmatch(first, name) for name in _RUN_FILES)
    if is_file or (others and first in ('arms', 'pretrain')):
      raise ValueError(
        f'--output={path} lies among the files of the run in {folder}; give another path'
      )
  return place


def table_suffix(table_format: str, num_rows: int) -> str:
  """Return the suffix of a table in one of `FORMATS`: '.csv' or '.parquet'.

  Raises:
    ValueError: the format is unknown.
  """
  choose('table_format', table_format, FORMATS)
  if table_format == 'auto':
    table_format = 'csv' if num_rows <= MAX_CSV_ROWS else 'parquet'
  return f'.{table_format}'


def write_table(
  path: os.PathLike[str] | str, columns: Mapping[str, pa.DataType], parts: Iterable[Sequence[Any]]
) -> None:
  """Write a table, which appears under its name once it is complete.

  Args:
    path: on a disk or in an object store; its suffix, .csv, .tsv, .parquet or .json in any case,
      decides the format.
    columns: the type of each column by name.
    parts: for each part of the rows, the values of all columns (arrays or lists). Parts are written
      one after another, so that a large table is never in memory as a whole.

  Raises:
    ValueError: another suffix.
  """
  schema, place = pa.schema(list(columns.items())), artifacts.absolute_path(path)
  write = _WRITERS.get(place.suffix.lower())
  if write is None:
    raise ValueError(f'{place}: the name must end in one of {", ".join(_WRITERS)}')
  with artifacts.atomic_write(place) as file, write(file, schema) as writer:
    for part in parts:
      arrays = [pa.array(values, type=t) for values, t in zip(part, schema.types, strict=True)]
      writer.write_batch(pa.record_batch(arrays, schema=schema))


def write_rows(
  path: os.PathLike[str] | str, columns: Mapping[str, pa.DataType], rows: Iterable[Sequence[Any]]
) -> None:
  """Write a small table from its rows, in which None is an empty cell; see `write_table`."""
  rows = list(rows)
  write_table(path, columns, [list(zip(*rows, strict=True))] if rows else [])
