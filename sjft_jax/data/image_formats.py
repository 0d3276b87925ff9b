"""Which format an image file has, by its first bytes: Pillow's reader for it."""

import functools
import re

from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

# The formats that are read, for messages.
FORMATS = 'AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM (PBM, PGM), TIFF or WebP'
# What reads HEIC, for messages.
HEIC_REMEDY = "the package pillow-heif reads: pip install 'sjft_jax[heic]'"

# The first bytes of a JPEG.
JPEG = b'\xff\xd8\xff'
# Pillow's readers by the first bytes of a file. `PIL.Image.open` would also try formats that run
# other programs, and warn about images smaller than our own limit.
_READERS = {
  b'\x89PNG': PngImageFile,
  b'GIF8': GifImageFile,
  b'RIFF': WebPImageFile,
  b'II*\0': TiffImageFile,
  b'MM\0*': TiffImageFile,
  b'II+\0': TiffImageFile,
  b'MM\0+': TiffImageFile,
  b'BM': BmpImageFile,
  b'\0\0\0\x0cjP  ': Jpeg2KImageFile,
  b'\xff\x4f\xff\x51': Jpeg2KImageFile,
  **{b'P%d' % number: PpmImageFile for number in range(1, 7)},
}
# What else the beginning of a file of these formats is like: text can begin with P1 or BM, and a
# sound with RIFF.
_PATTERNS = {
  BmpImageFile: re.compile(rb'.{14}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0', re.DOTALL),
  PpmImageFile: re.compile(rb'P[1-6][\s#]'),
  WebPImageFile: re.compile(rb'RIFF.{4}WEBP', re.DOTALL),
}
# Of the many formats in this container, HEIC among them, the one that names AVIF as its brand.
_AVIF = re.compile(rb'.{4}ftyp(avif|avis|.{8}(.{4})*?avi[fs])', re.DOTALL)
_HEIC = re.compile(rb'.{4}ftyp(he[iv][cmsx]|mif1|msf1)', re.DOTALL)
# So many bytes of a file decide on its format.
HEADER_BYTES = 64


def is_image(header: bytes) -> bool:
  """Return whether the first `HEADER_BYTES` of a file are those of a format that is read."""
  return header.startswith(JPEG) or find_reader(header) is not None


def is_tiff(header: bytes) -> bool:
  """Return whether the first bytes of a file are those of a TIFF."""
  return find_reader(header) is TiffImageFile


def is_heic(header: bytes) -> bool:
  """Return whether the first bytes of a file are those of a HEIC image."""
  return bool(_HEIC.match(header)) and not _AVIF.match(header)


@functools.cache
def load_heic_reader() -> type | None:
  """Return Pillow's reader for HEIC, or None if the package pillow-heif is not installed."""
  try:
    from pillow_heif import HeifImageFile
  except ImportError:
    return None
  reader: type = HeifImageFile
  return reader


def find_reader(data: bytes) -> type | None:
  """Return Pillow's reader for the format of a file, or None."""
  header = data[:HEADER_BYTES]
  if _AVIF.match(header):
    return AvifImageFile
  if is_heic(header):
    return load_heic_reader()
  for first_bytes, reader in _READERS.items():
    if header.startswith(first_bytes):
      pattern = _PATTERNS.get(reader)
      return reader if pattern is None or pattern.match(header) else None
  return None
