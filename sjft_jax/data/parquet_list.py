"""Read columns of a Parquet file, once it is known how far they unpack.

Its description and the headers of its pages are Thrift structures (parquet.thrift in
github.com/apache/parquet-format). They are read here, since Arrow allocates what they declare, and
its Python interface ends the process at some that are damaged.
"""

import mmap
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

# How many times its own bytes a file may hold, as an archive may, and what it always may.
_MAX_PACKING, _MIN_BYTES = 32, 2**26
# Each value takes a length and the number of a text.
_VALUE_BYTES = 8
# The description of a file takes Arrow fifty times its bytes.
_MAX_METADATA = 2**22
# Parts of the description and of the headers of pages, which are read in two seconds. A list of ten
# million images has some thousand pages of twenty parts.
_MAX_PARTS, _MAX_DEPTH = 2**20, 16
# With this encoding a value is the beginning of the one before and a suffix: a page does not tell
# how long its values are.
_DELTA_BYTE_ARRAY = 7
# With these, values are the numbers of those in a dictionary.
_DICTIONARIES = {2, 8}
_DAMAGED = 'its description is damaged'

_Item = TypeVar('_Item')


def read_columns(path: str, names: Collection[str]) -> tuple[list[str], pa.Table]:
  """Read columns of texts or numbers.

  Args:
    path: of the file.
    names: of the columns, without blanks around them and in lower case.

  Returns:
    The names of all columns of the file; those columns of these names that are there.

  Raises:
    ValueError, pa.ArrowException: they take too much memory, or the file is damaged.
    OSError: it cannot be read.
  """
  with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
    limit = max(_MAX_PACKING * len(content), _MIN_BYTES)
    _unpacked_bytes(content, ())
    schema = pa.parquet.read_schema(path)
    wanted = {name for name in schema.names if name.strip().lower() in names}
    if any(pa.types.is_nested(field.type) for field in schema if field.name in wanted):
      raise ValueError('a column holds lists; save texts')
    num_bytes, encodings = _unpacked_bytes(content, wanted)
  _check_bytes(num_bytes, limit)
  if any(_DELTA_BYTE_ARRAY in found for found in encodings.values()):
    raise ValueError('its texts are saved as DELTA_BYTE_ARRAY; save them another way')
  # These stay numbers until it is known how long the texts are.
  numbers = sorted(name for name, found in encodings.items() if found & _DICTIONARIES)
  with pa.parquet.ParquetFile(path, read_dictionary=numbers) as reader:
    table = reader.read(columns=sorted(wanted))
  _check_bytes(sum(map(_text_bytes, table.columns)), limit)
  return list(schema.names), table


class _Struct(dict[int, Any]):
  """A Thrift structure: its fields by number, of which each may be missing or of any type."""

  def number(self, field: int) -> int:
    """Return a number, which is not negative; 0 if there is none."""
    value = self.get(field)
    if isinstance(value, int) and value < 0:
      raise ValueError(_DAMAGED)
    return value if isinstance(value, int) else 0

  def struct(self, field: int) -> '_Struct':
    """Return a structure, an empty one if there is none."""
    value = self.get(field)
    return value if isinstance(value, _Struct) else _Struct()

  def list_of(self, field: int, kind: type[_Item]) -> list[_Item]:
    """Return the items of a list that are of a type."""
    value = self.get(field)
    return [item for item in value if isinstance(item, kind)] if isinstance(value, list) else []


class _Thrift:
  """The structures in a file, in Thrift's compact protocol.

  Attributes:
    position: of what is read next.
  """

  def __init__(self, content: mmap.mmap):
    self._content, self.position = content, 0
    self._parts = 0

  def read_struct(self, depth: int = 0) -> _Struct:
    """Read the fields of a structure.

    Raises:
      IndexError: it does not end.
      ValueError: it is nested too deep, has too many parts, or one of a type that Parquet has not.
    """
    fields = _Struct()
    number = 0
    self._count_part(depth)
    while kind := self._read_byte():
      self._count_part(depth)
      number = number + (kind >> 4) if kind >> 4 else self._read_number()
      if kind & 15 > 2:  # The types 1 and 2 are true and false.
        fields[number] = self._read_value(kind & 15, depth + 1)
    return fields

  def _read_value(self, kind: int, depth: int) -> Any:
    self._count_part(depth)
    match kind:
      case 1 | 2 | 3:
        return self._read_byte()
      case 4 | 5 | 6:
        return self._read_number()
      case 7:
        return self._read_bytes(8)
      case 8:
        return self._read_bytes(self._read_varint())
      case 9:
        head = self._read_byte()
        length = head >> 4 if head >> 4 < 15 else self._read_varint()
        return [self._read_value(head & 15, depth + 1) for _ in range(length)]
      case 12:
        return self.read_struct(depth)
    raise ValueError(_DAMAGED)

  def _count_part(self, depth: int) -> None:
    self._parts += 1
    if self._parts > _MAX_PARTS or depth > _MAX_DEPTH:
      raise ValueError('its description has too many parts; save fewer columns in larger pieces')

  def _read_byte(self) -> int:
    self.position += 1
    return self._content[self.position - 1]

  def _read_bytes(self, length: int) -> bytes:
    start, self.position = self.position, self.position + length
    # A text that is needed is the name of a column.
    return self._content[start : min(self.position, start + 256)]

  def _read_varint(self) -> int:
    value = shift = 0
    while (byte := self._read_byte()) > 127 and shift < 63:
      value |= (byte & 127) << shift
      shift += 7
    return value | byte << shift

  def _read_number(self) -> int:
    value = self._read_varint()
    return value >> 1 ^ -(value & 1)


def _unpacked_bytes(content: mmap.mmap, names: Collection[str]) -> tuple[int, dict[str, set[int]]]:
  """Return the bytes that some columns unpack to, as their pages say, and how each is encoded.

  Raises:
    ValueError: the file is damaged, or has too many parts.
  """
  size = len(content)
  length = int.from_bytes(content[-8:-4], 'little')
  if size < 12 or content[-4:] != b'PAR1' or length > size - 8:
    raise ValueError('it is truncated or no Parquet file')
  if length > _MAX_METADATA:
    raise ValueError(f'its description has over {_MAX_METADATA:,} bytes; save fewer columns')
  thrift = _Thrift(content)
  encodings: dict[str, set[int]] = {name: set() for name in names}
  # The path of a column, which has more than one name within another.
  columns: dict[tuple[bytes, ...], set[int]] = {
    (name.encode('utf-8', 'replace')[:256],): v for name, v in encodings.items()
  }
  try:
    thrift.position = size - 8 - length
    description = thrift.read_struct()
    num_bytes, num_values = 0, description.number(3)
    for group in description.list_of(4, _Struct):
      for chunk in group.list_of(1, _Struct):
        column = chunk.struct(3)
        found = columns.get(tuple(column.list_of(3, bytes)))
        if found is None:
          continue
        num_values += max(column.number(5), group.number(3))
        for header in _read_headers(thrift, column):
          num_bytes += header.number(2)
          for kind, encoding in ((5, 2), (7, 2), (8, 4)):  # Data, dictionary, and newer data.
            page = header.struct(kind)
            num_values += page.number(1)
            found.add(page.number(encoding))
  except IndexError as error:
    raise ValueError(_DAMAGED) from error
  return num_bytes + _VALUE_BYTES * num_values, encodings


def _read_headers(thrift: _Thrift, column: _Struct) -> Iterator[_Struct]:
  """Yield the headers of the pages of a column."""
  start, dictionary = column.number(9), column.number(11)
  thrift.position = dictionary if 0 < dictionary < start else start
  end = thrift.position + column.number(7)
  while thrift.position < end:
    header = thrift.read_struct()
    yield header
    thrift.position += header.number(3)


def _check_bytes(num_bytes: int, limit: int) -> None:
  if num_bytes > limit:
    raise ValueError(f'it unpacks to over {limit:,} bytes; save it without repetitions')


def _text_bytes(column: pa.ChunkedArray) -> int:
  """Return the bytes of the texts of a column."""
  num_bytes = 0
  for chunk in column.chunks:
    is_numbered = pa.types.is_dictionary(chunk.type)
    texts = chunk.dictionary if is_numbered else chunk
    if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type):
      lengths = pc.binary_length(texts).cast(pa.int64())
      num_bytes += pc.sum(lengths.take(chunk.indices) if is_numbered else lengths).as_py() or 0
  return num_bytes
