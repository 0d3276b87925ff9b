"""Check how far an ArrayRecord file unpacks, before its records are read.

It is a Riegeli file: chunks of records, packed or not, that headers of blocks interrupt
(github.com/google/riegeli, doc/riegeli_records_file_format.md).
"""

import os
import struct
from pathlib import Path

_BLOCK, _BLOCK_HEADER = 2**16, 24
# Hash of the header; bytes, and their hash; one byte of type, seven with the number of records;
# bytes once they are unpacked.
_HEADER = struct.Struct('<QQQQQ')
# How many times its own bytes a chunk may hold, as an archive may, and what it always may. To read
# a record takes four times its bytes.
_MAX_PACKING, _MIN_BYTES = 32, 2**24


def check_packing(path: Path) -> None:
  """Check that no chunk of a file, nor all together, unpacks to much more than its bytes.

  Raises:
    ValueError: one does, or the file is no Riegeli file.
    OSError: it cannot be read.
  """
  unpacked = position = 0
  with path.open('rb') as file:
    size = os.fstat(file.fileno()).st_size
    while position < size:
      file.seek(position)
      header = file.read(_HEADER.size + _BLOCK_HEADER)
      before = -position % _BLOCK  # Bytes of it before the header of a block.
      if before < _HEADER.size:
        header = header[:before] + header[before + _BLOCK_HEADER :]
      if len(header) < _HEADER.size:
        raise ValueError(f'{path} is truncated or no ArrayRecord file')
      _, packed, _, records, decoded = _HEADER.unpack_from(header)
      unpacked += decoded
      if decoded > max(_MAX_PACKING * packed, _MIN_BYTES) or records >> 8 > packed + decoded:
        raise ValueError(f'{path} has {packed:,} bytes that unpack to {decoded:,}, too many')
      position = _next_chunk(position, packed, records >> 8)
  if unpacked > _MAX_PACKING * size + _MIN_BYTES:
    raise ValueError(f'{path} has {size:,} bytes that unpack to {unpacked:,}, too many')


def _next_chunk(position: int, packed: int, records: int) -> int:
  """Return where the chunk behind the one at a position begins."""
  num_bytes = _HEADER.size + packed
  usable = _BLOCK - _BLOCK_HEADER
  blocks = (num_bytes + (position + usable - 1) % _BLOCK) // usable
  # Each record has a place of its own in the file, even an empty one.
  end = max(position + num_bytes + _BLOCK_HEADER * blocks, position + records)
  return end + max(_BLOCK_HEADER + 1 - end % _BLOCK, 0) if end % _BLOCK else end
