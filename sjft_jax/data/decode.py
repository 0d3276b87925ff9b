"""Decode images to RGB: fast, and never to a picture of which a part is missing."""

import functools
import io
import math
import re
import warnings

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from sjft_jax.data import bit_depth, jpeg2000, tiff
from sjft_jax.data.image_formats import FORMATS, HEIC_REMEDY, JPEG, find_reader, is_heic, is_tiff
from sjft_jax.runtime import host_memory

# Pillow takes a larger image for a decompression bomb.
MAX_PIXELS = 178_956_970
# The largest image with four channels of 16 bits, as it is.
MAX_BYTES = 8 * MAX_PIXELS

RGB = UInt8[np.ndarray, '_height _width 3']

_SCAN = b'\xff\xda'
_PROGRESSIVE = (b'\xc2', b'\xc6', b'\xca', b'\xce')  # beginnings of such frames
_PNG_END = b'IEND\xaeB`\x82'
_UNKNOWN_LAYOUT = 'a layout that cannot be read; save it as 8-bit RGB'
# What Pillow says of a TIFF whose layout it does not know. It takes big-endian BigTIFF for TIFF.
_LAYOUT_ERRORS = (
  'string index out of range',
  'unknown pixel mode',
  'unknown raw mode for given image mode',
)

# Headers are read part by part in Python: so many parts take a fraction of a second, and no encoder
# writes nearly as many. Those of the pixels, and what is behind them, take some seconds.
_MAX_HEADER_PARTS, _MAX_PARTS = 20_000, 1_000_000
_MAX_SEGMENTS = 5_000  # of a JPEG; a colour profile and a long description take some hundred.
_MAX_STRIPS = 2**17  # of a TIFF
# Pixels of a progressive JPEG times its passes over them: about seven seconds.
_MAX_SCANNED = 2**34
# Pillow reads BMPs of run lengths run by run, in Python.
_MAX_RUNS_PIXELS, _MAX_RUNS_BYTES = 2**24, 2**22

# Bytes that a decoder takes for each pixel at most, with the result and its reduction to a hash, as
# measured. JPEGs are counted apart; those of 16 bits are read by OpenCV once more.
_BYTES_PER_PIXEL = 12
_MORE_BYTES_PER_PIXEL: dict[object, int] = {
  AvifImageFile: 20,
  Jpeg2KImageFile: 32,
  JpegImageFile: 24,
  WebPImageFile: 20,
  '16 bits': 32,
  'HEIC': 20,
  'I': 24,
  'ppm_plain': 48,
}
# What is converted at once, so that copies of an image in other modes are of a part of it.
_STRIP_PIXELS = 2**22

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
    host_memory.OutOfMemoryError: there is no memory for its pixels.
  """
  if not data:
    raise UnreadableError('is empty')
  if data.startswith(JPEG):
    return _decode_jpeg(data, min_side, max_pixels)
  reader = find_reader(data)
  if reader is not None:
    return _decode_with_pillow(data, reader, max_pixels)
  if data[:512].lstrip(b'\xef\xbb\xbf \t\r\n')[:1] == b'<':
    raise UnreadableError('is a web page or other markup, not an image')
  if is_heic(data):
    raise UnreadableError(f'is a HEIC image, which {HEIC_REMEDY}')
  raise UnreadableError(f'is no {FORMATS} image')


def _check_size(height: int, width: int, max_pixels: int) -> None:
  if height * width > max_pixels:
    raise UnreadableError(f'has {width}×{height} pixels, more than the limit of {max_pixels:,}')


def _decode_jpeg(data: bytes, min_side: int, max_pixels: int) -> RGB:
  exif, is_progressive = _read_segments(data)
  try:
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
  except (ValueError, KeyError):
    # Either damage, or an unusual subsampling, which Pillow can decode.
    return _decode_with_pillow(data, JpegImageFile, max_pixels)
  _check_size(height, width, max_pixels)
  if is_progressive and height * width * data.count(_SCAN) > _MAX_SCANNED:
    raise UnreadableError(f'has {data.count(_SCAN):,} scans of {width}×{height} pixels, too many')
  factor = next((f for f in _FACTORS if -(-min(height, width) // f) >= min_side > 0), 1)
  size = {
    'min_height': -(-height // factor),
    'min_width': -(-width // factor),
    'min_factor': factor,
  }
  is_cmyk = colorspace in ('CMYK', 'YCCK')
  # The result, a copy that is upright, and what becomes of it; all coefficients, of 2 bytes each.
  num_bytes = 12 * height * width // factor**2 + is_progressive * height * width * (6 + 2 * is_cmyk)
  with host_memory.turn(num_bytes):
    if not is_cmyk:
      image = _run_libjpeg(data, 'RGB', size)
    else:
      inks = _run_libjpeg(data, 'CMYK', size)
      # Inks are stored inverted, as Adobe does; Pillow assumes so too.
      strips = (
        Image.frombuffer('CMYK', strip.shape[1::-1], strip, 'raw', 'CMYK;I', 0, 1)
        for strip in np.array_split(inks, -(-inks.size // (4 * _STRIP_PIXELS)))
      )
      image = np.concatenate([np.asarray(strip.convert('RGB')) for strip in strips])
    return _turn_upright(image, tiff.read_orientation(exif))


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


class _CountedFile(io.BytesIO):
  """The bytes of a file, which can be read in a number of parts that is limited.

  Attributes:
    parts_left: how often it can still be read.
  """

  parts_left = _MAX_HEADER_PARTS

  def read(self, size: int | None = -1, /) -> bytes:
    self.parts_left -= 1
    if self.parts_left < 0:
      raise UnreadableError('has too many parts, in its header or around its pixels')
    return super().read(size)


def _decode_with_pillow(data: bytes, reader: type, max_pixels: int) -> RGB:
  _ignore_pillow_warnings()
  try:
    if reader is TiffImageFile:
      _check_strips(data)
    elif reader is Jpeg2KImageFile:
      jpeg2000.check_parts(data)
    file = _CountedFile(data)
    with reader(file) as image:
      _check_size(image.height, image.width, max_pixels)
      file.parts_left = _MAX_PARTS
      depth = bit_depth.stated_depth(image, data)
      kinds = (
        reader,
        image.mode[0],
        *(tile[0] for tile in image.tile[:1]),
        '16 bits' * (depth > 8),
      )
      bytes_per_pixel = max(_MORE_BYTES_PER_PIXEL.get(kind, _BYTES_PER_PIXEL) for kind in kinds)
      with host_memory.turn(image.width * image.height * bytes_per_pixel):
        return _load_with_pillow(image, reader, data, depth)
  except (UnreadableError, host_memory.OutOfMemoryError, MemoryError):
    raise
  except Exception as error:  # Damaged files make Pillow raise nearly anything.
    raise UnreadableError(_reason(str(error), data)) from error


def _load_with_pillow(image: ImageFile, reader: type, data: bytes, depth: int) -> RGB:
  decoder, _, offset, arguments = image.tile[0] if image.tile else ('', None, 0, None)
  num_pixels = image.width * image.height
  if decoder == 'bmp_rle' and (num_pixels > _MAX_RUNS_PIXELS or len(data) > _MAX_RUNS_BYTES):
    raise UnreadableError('is a BMP of run lengths over 16 million pixels or 4 MB; save it anew')
  pixels: Image.Image = image
  if decoder in ('ppm', 'ppm_plain'):
    maximum = int(arguments[-1]) if isinstance(arguments, tuple) else 1
    pixels = _read_ppm(image, data[offset:], is_text=decoder == 'ppm_plain', maximum=maximum)
  if isinstance(image, TiffImageFile) and tiff.has_planes(image) and decoder == 'raw':
    tiff.name_planes(image)
  pixels.load()
  # Pillow accepts a file without its end if all pixels are there.
  if reader is PngImageFile and _PNG_END not in data:
    raise UnreadableError('is truncated')
  if reader is PngImageFile and image.mode == 'L' and 'transparency' in image.info:
    # Pillow has scaled pixels of 2 and 4 bits to 8, but not the one grey that is transparent.
    image.info['transparency'] *= 255 // ((1 << data[24]) - 1)
  exif = (image.info.get('exif') or b'').removeprefix(b'Exif\0\0')
  return _turn_upright(_convert_to_rgb(pixels, data, depth), tiff.read_orientation(exif))


@functools.cache
def _ignore_pillow_warnings() -> None:
  # Pillow warns of odd metadata; what cannot be decoded raises. Once and for good at the first use:
  # to block warnings for the time of each call would block those of other threads too.
  warnings.filterwarnings('ignore', module=r'PIL\.')


def _check_strips(data: bytes) -> None:
  for tag, number, _ in tiff.read_directory(data):
    if tag in (tiff.STRIPS, tiff.TILES) and number > _MAX_STRIPS:
      raise UnreadableError(f'has {number:,} strips, more than the limit of {_MAX_STRIPS:,}')


def _read_ppm(image: ImageFile, body: bytes, *, is_text: bool, maximum: int) -> Image.Image:
  """Read the pixels that Pillow reads one by one in Python, with the same result.

  Args:
    image: its header.
    body: what follows the header.
    is_text: whether the values are written as text.
    maximum: of the values; they are scaled to one of 255, or of 65,535 where a mode has 32 bits.
  """
  shape = (image.height, image.width, 3) if image.mode == 'RGB' else (image.height, image.width)
  count = math.prod(shape)
  if not is_text:
    kind = np.dtype('u1' if maximum < 256 else '>u2')
    values = np.frombuffer(body[: kind.itemsize * count], kind)
  else:
    text = re.sub(rb'#[^\r\n]*[\r\n]?', b'', body) if b'#' in body else body
    other = re.search(rb'[^0-9\s]', text)
    text = text[: other.start()] if other else text
    if image.mode == '1':  # Blanks between the digits may be missing, and 1 is black.
      values = np.frombuffer(text.translate(None, b' \t\n\r\v\f')[:count], np.uint8) ^ ord('1')
    else:
      values = np.fromstring(text, np.int64, sep=' ')[:count]
    if np.any((values < 0) | (values > maximum)):
      raise UnreadableError(f'is damaged (a value is over {maximum})')
  if len(values) < count:
    raise UnreadableError('is truncated')
  highest = 65_535 if image.mode == 'I' else 255
  levels = np.rint(np.arange(256 if maximum < 256 else 65_536) / maximum * highest)
  levels = np.minimum(levels, highest).astype(np.int32 if image.mode == 'I' else np.uint8)
  return Image.fromarray(levels[values].reshape(shape))


def _convert_to_rgb(image: Image.Image, data: bytes, depth: int) -> RGB:
  if image.mode.startswith('I'):
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
      raise UnreadableError('has pixels of more than 16 bits')
    is_clear = grey == image.info.get('transparency', -1)
    # Pillow has scaled what states less.
    grey = bit_depth.to_8_bits(grey, bit_depth.real_depth(grey, depth) if depth > 8 else 16)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(tiff.PHOTOMETRIC) == 0:
      grey = ~grey  # 0 is white, which Pillow inverts up to 8 bits only.
    grey[is_clear] = 255
    return np.repeat(grey[..., None], 3, 2)
  if image.mode == 'F':
    raise UnreadableError('has floating-point pixels')
  if depth > 8 and image.mode in ('RGB', 'RGBA'):
    restored = bit_depth.restore_depth(image, data, depth)
    if restored is None:
      raise UnreadableError(f'has {depth} bits per channel in {_UNKNOWN_LAYOUT}')
    image = restored
  width, height = image.size
  if width * height <= _STRIP_PIXELS:
    return _drop_alpha(image)
  rgb = np.empty((height, width, 3), np.uint8)
  rows, columns = max(_STRIP_PIXELS // width, 1), min(width, _STRIP_PIXELS)
  for top in range(0, height, rows):
    for left in range(0, width, columns):
      box = (left, top, min(left + columns, width), min(top + rows, height))
      rgb[top : box[3], left : box[2]] = _drop_alpha(image.crop(box))
  return rgb


def _drop_alpha(image: Image.Image) -> RGB:
  """Return the colours of an image upon white."""
  if image.has_transparency_data:
    image = image.convert('RGBA')
    image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
  return np.asarray(image.convert('RGB'))


def _reason(message: str, data: bytes) -> str:
  """Return why an image is unreadable, from a decoder's message."""
  is_cut = any(word in message for word in ('truncated', 'Truncated', 'Premature end', 'EOF'))
  if is_cut or (data.startswith(JPEG) and b'\xff\xd9' not in data):
    return 'is truncated'
  if data.startswith(b'MM\0+') or (is_tiff(data) and message in _LAYOUT_ERRORS):
    return f'has {_UNKNOWN_LAYOUT}'
  return f'is damaged ({(message or "no details").splitlines()[0]})'


def _read_segments(jpeg: bytes) -> tuple[bytes, bool]:
  """Read the segments of a JPEG up to its first scan.

  Returns:
    The EXIF data and everything behind it, nothing if there is none; whether it is progressive.

  Raises:
    UnreadableError: there are too many.
  """
  # Segment by segment: a search would also find the EXIF of a thumbnail.
  exif, is_progressive = b'', False
  position = 2
  for _ in range(_MAX_SEGMENTS):
    if not jpeg.startswith(b'\xff', position) or jpeg.startswith(_SCAN, position):
      return exif, is_progressive
    if not exif and jpeg.startswith(b'Exif\0\0', position + 4):
      exif = jpeg[position + 10 :]
    is_progressive |= jpeg[position + 1 : position + 2] in _PROGRESSIVE
    is_fill = jpeg.startswith(b'\xff\xff', position)
    position += 1 if is_fill else 2 + int.from_bytes(jpeg[position + 2 : position + 4])
  raise UnreadableError(f'has a header of more than {_MAX_SEGMENTS:,} segments')


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
