"""Decode images to RGB: fast, and never to a picture of which a part is missing."""

import functools
import io
import re
import struct
import warnings

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Shaped, UInt8
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

# Pillow takes a larger image for a decompression bomb.
MAX_PIXELS = 178_956_970

RGB = UInt8[np.ndarray, '_height _width 3']

# The formats that are read, for messages.
FORMATS = 'AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM (PBM, PGM), TIFF or WebP'
# What reads HEIC, for messages.
HEIC_REMEDY = "the package pillow-heif reads: pip install 'sjft_jax[heic]'"

_JPEG = b'\xff\xd8\xff'
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
_PNG_END = b'IEND\xaeB`\x82'
# Depths of the images that scanners, cameras and microscopes save with 16 bits a channel.
_DEPTHS = (8, 10, 12, 14, 16)
_BITS_PER_SAMPLE = 258  # a tag of TIFF

# Reduced sizes that libjpeg decodes faster than the full one; its other factors are slower.
_FACTORS = (8, 4, 2)


class UnreadableError(ValueError):
  """An image cannot be decoded; the message gives the reason: 'is empty', 'is truncated', …"""


def decode_image(data: bytes, *, min_side: int = 0, max_pixels: int = MAX_PIXELS) -> RGB:
  """Decode an image to RGB, upright as its EXIF orientation says.

  The content decides on the format: AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM (PBM, PGM), TIFF,
  WebP, or HEIC if the package pillow-heif is installed. Of several frames the first one is taken.
  Transparent pixels become white. CMYK becomes RGB by Pillow's formula, without colour profiles.

  Of more than 8 bits per channel the upper 8 stay. What counts is the depth that the file states
  (PNG's sBIT, the bits of a TIFF's samples, the maximum of a PGM or PPM); where it only says 16,
  the least of 8, 10, 12, 14 and 16 bits that the image's largest value fits into.

  Args:
    data: the bytes of a file.
    min_side: a reduced size is good enough if both sides keep this many pixels; 0: the full size.
      JPEGs are then decoded at 1/2, 1/4 or 1/8, which takes less time.
    max_pixels: an image whose header declares more pixels is refused before it is decoded.

  Raises:
    UnreadableError: the data is empty, truncated, damaged, too large, or no image.
  """
  if not data:
    raise UnreadableError('is empty')
  if data.startswith(_JPEG):
    return _decode_jpeg(data, min_side, max_pixels)
  reader = _find_reader(data)
  if reader is not None:
    return _decode_with_pillow(data, reader, max_pixels)
  if data[:512].lstrip(b'\xef\xbb\xbf \t\r\n')[:1] == b'<':
    raise UnreadableError('is a web page or other markup, not an image')
  if is_heic(data):
    raise UnreadableError(f'is a HEIC image, which {HEIC_REMEDY}')
  raise UnreadableError(f'is no {FORMATS} image')


def is_image(header: bytes) -> bool:
  """Return whether the first `HEADER_BYTES` of a file are those of a format that is read."""
  return header.startswith(_JPEG) or _find_reader(header) is not None


def is_tiff(header: bytes) -> bool:
  """Return whether the first bytes of a file are those of a TIFF."""
  return _find_reader(header) is TiffImageFile


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


def _find_reader(data: bytes) -> type | None:
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


def _check_size(height: int, width: int, max_pixels: int) -> None:
  if height * width > max_pixels:
    raise UnreadableError(f'has {width}×{height} pixels, more than the limit of {max_pixels:,}')


def _decode_jpeg(data: bytes, min_side: int, max_pixels: int) -> RGB:
  try:
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
  except (ValueError, KeyError):
    # Either damage, or an unusual subsampling, which Pillow can decode.
    return _decode_with_pillow(data, JpegImageFile, max_pixels)
  _check_size(height, width, max_pixels)
  factor = next((f for f in _FACTORS if -(-min(height, width) // f) >= min_side > 0), 1)
  size = {
    'min_height': -(-height // factor),
    'min_width': -(-width // factor),
    'min_factor': factor,
  }
  if colorspace not in ('CMYK', 'YCCK'):
    image = _run_libjpeg(data, 'RGB', size)
  else:
    inks = _run_libjpeg(data, 'CMYK', size)
    # Inks are stored inverted, as Adobe does; Pillow assumes so too.
    cmyk = Image.frombuffer('CMYK', inks.shape[1::-1], inks, 'raw', 'CMYK;I', 0, 1)
    image = np.asarray(cmyk.convert('RGB'))
  return _turn_upright(image, _read_orientation(_find_exif(data)))


def _run_libjpeg(
  data: bytes, colorspace: str, size: dict[str, int], *, strict: bool = True
) -> np.ndarray:
  try:
    return simplejpeg.decode_jpeg(data, colorspace, **size, strict=strict)
  except ValueError as error:
    message = str(error)
  # The first complaint of libjpeg ends a strict decoding. Two of them do not concern the picture:
  # left-over bytes once it is complete, and the version of the file format.
  if 'extraneous bytes before marker 0xd9' in message and strict:
    return _run_libjpeg(data, colorspace, size, strict=False)
  version = data.find(b'JFIF\0') + 5
  if 'unknown JFIF revision' in message and data[version : version + 1] != b'\1':
    return _run_libjpeg(data[:version] + b'\1' + data[version + 1 :], colorspace, size)
  raise UnreadableError(_reason(message, data))


def _decode_with_pillow(data: bytes, reader: type, max_pixels: int) -> RGB:
  _ignore_pillow_warnings()
  try:
    with reader(io.BytesIO(data)) as image:
      _check_size(image.height, image.width, max_pixels)
      depth = _stated_depth(image, data)
      image.load()
      # Pillow accepts a file without its end if all pixels are there.
      if reader is PngImageFile and _PNG_END not in data:
        raise UnreadableError('is truncated')
      exif = (image.info.get('exif') or b'').removeprefix(b'Exif\0\0')
      return _turn_upright(_convert_to_rgb(image, data, depth), _read_orientation(exif))
  except UnreadableError:
    raise
  except Exception as error:  # Damaged files make Pillow raise nearly anything.
    raise UnreadableError(_reason(str(error), data)) from error


@functools.cache
def _ignore_pillow_warnings() -> None:
  # Pillow warns of odd metadata; what cannot be decoded raises. Once and for good at the first use:
  # to block warnings for the time of each call would block those of other threads too.
  warnings.filterwarnings('ignore', module=r'PIL\.')


def _stated_depth(image: Image.Image, data: bytes) -> int:
  """Return the bits per channel that a file says its values have; 16: it may be fewer.

  Must be called before Pillow loads the image, which forgets what it has read of the header.
  """
  if isinstance(image, PngImageFile) and data[24] == 16:
    chunk = data.find(b'sBIT', 0, data.find(b'IDAT'))
    depth = max(data[chunk + 4 : chunk + 4 + data[chunk - 1]], default=16) if chunk > 0 else 16
  elif isinstance(image, TiffImageFile):
    depth = max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
  elif isinstance(image, PpmImageFile) and image.tile:
    arguments = str(image.tile[0].args)
    # Pillow has scaled other maxima to 255 or 65535.
    depth = 16 if '65535' in arguments or ';16' in arguments else 8
  elif isinstance(image, Jpeg2KImageFile):
    # Other depths are scaled to 8 or 16 bits.
    precision = data.find(b'\xff\x4f\xff\x51') + 42
    depth = 16 if data[precision : precision + 1] == b'\x0f' else 8
  else:
    depth = 8
  return min(max(depth, 8), 16)


def _to_8_bits(values: Shaped[np.ndarray, '...'], depth: int) -> UInt8[np.ndarray, '...']:
  """Return the upper 8 bits of values of a depth, or of the least one that they fit into."""
  largest = int(values.max())
  # A depth that is stated and exceeded: the values were scaled to 16 bits, as PNG wants it.
  depths = _DEPTHS if depth == 16 else (depth, 16)
  return (values >> (next(d for d in depths if largest < 1 << d) - 8)).astype(np.uint8)


def _convert_to_rgb(image: Image.Image, data: bytes, depth: int) -> RGB:
  if image.mode.startswith('I'):
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
      raise UnreadableError('has pixels of more than 16 bits')
    # Pillow has scaled what states less.
    grey = _to_8_bits(grey, depth) if depth > 8 else (grey >> 8).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2)
  if image.mode == 'F':
    raise UnreadableError('has floating-point pixels')
  if depth > 8 and image.mode in ('RGB', 'RGBA'):
    image = _restore_depth(image, data, depth)
  if image.has_transparency_data:
    image = image.convert('RGBA')
    image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
  return np.asarray(image.convert('RGB'))


def _restore_depth(image: Image.Image, data: bytes, depth: int) -> Image.Image:
  """Return an image of 16 bits a channel, of which Pillow keeps the upper 8, by its real depth."""
  pixels = np.asarray(image)
  if pixels[..., :3].max() > 64:  # More than 14 bits, however Pillow rounds.
    return image
  _silence_opencv()
  values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if values is None or values.dtype != np.uint16 or values.shape[:2] != pixels.shape[:2]:
    raise UnreadableError(f'has {depth} bits per channel in a layout that cannot be read')
  colours = _to_8_bits(values[..., 2::-1], depth)  # OpenCV's order is blue, green, red.
  return Image.fromarray(np.concatenate([colours, pixels[..., 3:]], axis=2))


@functools.cache
def _silence_opencv() -> None:
  # OpenCV warns of odd metadata, too; what it cannot decode is no array.
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _reason(message: str, data: bytes) -> str:
  """Return why an image is unreadable, from a decoder's message."""
  is_cut = any(word in message for word in ('truncated', 'Truncated', 'Premature end', 'EOF'))
  if is_cut or (data.startswith(_JPEG) and b'\xff\xd9' not in data):
    return 'is truncated'
  return f'is damaged ({(message or "no details").splitlines()[0]})'


def _find_exif(jpeg: bytes) -> bytes:
  """Return the EXIF data of a JPEG and everything behind it; nothing if there is none."""
  # Segment by segment up to the first scan: a search would also find the EXIF of a thumbnail.
  position = 2
  while jpeg.startswith(b'\xff', position) and not jpeg.startswith(b'\xff\xda', position):
    if jpeg.startswith(b'Exif\0\0', position + 4):
      return jpeg[position + 10 :]
    is_fill = jpeg.startswith(b'\xff\xff', position)
    position += 1 if is_fill else 2 + int.from_bytes(jpeg[position + 2 : position + 4])
  return b''


def _read_orientation(exif: bytes) -> int:
  """Return the EXIF orientation, 1–8; without one it is 1, upright."""
  byte_order = {b'II': '<', b'MM': '>'}.get(exif[:2], '')
  try:
    (directory,) = struct.unpack_from(f'{byte_order}I', exif, 4)
    (count,) = struct.unpack_from(f'{byte_order}H', exif, directory)
    for entry in range(count):
      tag, _, _, value = struct.unpack_from(f'{byte_order}HHIH', exif, directory + 2 + 12 * entry)
      if tag == 0x0112:
        return value if byte_order else 1
  except struct.error:
    pass
  return 1


def _turn_upright(image: RGB, orientation: int) -> RGB:
  if not 2 <= orientation <= 8:
    return image
  if orientation >= 5:
    image = image.transpose(1, 0, 2)
  if orientation in (3, 4, 7, 8):
    image = image[::-1]
  if orientation in (2, 3, 6, 7):
    image = image[:, ::-1]
  return np.ascontiguousarray(image)
