"""Tables as files, .csv or .parquet."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

_WRITERS = {'.csv': pa.csv.CSVWriter, '.parquet': pa.parquet.ParquetWriter}


def check(path: Path) -> None:
  """That a table can be written there.

  Raises:
    ValueError: it cannot.
  """
  if path.suffix not in _WRITERS:
    raise ValueError(f'--output={path}: the name must end in {" or ".join(_WRITERS)}')
  if not path.parent.is_dir():
    raise ValueError(f'--output={path}: there is no folder {path.parent}; create it')
  if path.is_dir() or not os.access(path.parent, os.W_OK):
    raise ValueError(f'--output={path}: a file cannot be written there')


def write(
  file: IO[bytes], suffix: str, schema: pa.Schema, parts: Iterable[Iterable[pa.Array]]
) -> None:
  """Writes the columns of each part below those of the one before."""
  with _WRITERS[suffix](file, schema) as table:
    for columns in parts:
      table.write_batch(pa.record_batch(list(columns), schema=schema))
