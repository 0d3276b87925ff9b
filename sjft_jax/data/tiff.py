"""Read the first directory of a TIFF, which EXIF data is, too, and correct Pillow's plan of it."""

import struct
from collections.abc import Iterator

from PIL.TiffImagePlugin import TiffImageFile

# Tags of TIFF.
BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION, STRIPS, TILES = 258, 262, 274, 273, 324
PLANAR = 284  # 2: each channel is stored as a plane of its own.


def read_orientation(exif: bytes) -> int:
  """Return the EXIF orientation, 1–8; without one it is 1, upright."""
  return next((value for tag, _, value in read_directory(exif) if tag == ORIENTATION), 1)


def read_directory(tiff: bytes) -> Iterator[tuple[int, int, int]]:
  """Yield tag, number of values, and the first of them as 16 bits, of a TIFF's first directory."""
  byte_order = {b'II': '<', b'MM': '>'}.get(tiff[:2])
  if byte_order is None:
    return
  # BigTIFF has wider numbers, and says so.
  is_big = tiff[2:4] in (b'+\0', b'\0+')
  number, count, size = ('Q', 'Q', 20) if is_big else ('I', 'H', 12)
  try:
    (directory,) = struct.unpack_from(byte_order + number, tiff, 8 if is_big else 4)
    (length,) = struct.unpack_from(byte_order + count, tiff, directory)
    start = directory + struct.calcsize(byte_order + count)
    for index in range(min(length, 65_535)):
      tag, _, values, first = struct.unpack_from(
        f'{byte_order}HH{number}H', tiff, start + size * index
      )
      yield tag, values, first
  except (struct.error, OverflowError):
    pass


def has_planes(image: TiffImageFile) -> bool:
  """Return whether each channel of a TIFF is stored as a plane of 16 bits."""
  return image.tag_v2.get(PLANAR) == 2 and max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) == 16


def name_planes(image: TiffImageFile) -> None:
  """Tell Pillow that planes have 16 bits, which it reads as 8 where they are not compressed."""
  order = 'B' if image.tag_v2.prefix == b'MM' else 'L'
  for index, tile in enumerate(image.tile):
    assert isinstance(tile.args, tuple)
    plane, *rest = tile.args
    layout = image.mode if plane == 'I' else f'{plane};16{order}'
    image.tile[index] = tile._replace(args=(layout, *rest))
