"""Decode images to RGB: fast, and never to a picture of which a part is missing."""

import functools
import io
import struct
import warnings

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

# Pillow takes a larger image for a decompression bomb.
MAX_PIXELS = 178_956_970

RGB = UInt8[np.ndarray, '_height _width 3']

_JPEG = b'\xff\xd8\xff'
# Pillow's readers by the first bytes of a file. `PIL.Image.open` would also try formats that run
# other programs, and warn about images smaller than our own limit.
_READERS = {
  b'\x89PNG': PngImageFile,
  b'GIF8': GifImageFile,
  b'RIFF': WebPImageFile,
  b'II*\0': TiffImageFile,
  b'MM\0*': TiffImageFile,
  b'BM': BmpImageFile,
  **{b'P%d' % number: PpmImageFile for number in range(1, 7)},
}
_PNG_END = b'IEND\xaeB`\x82'

# Reduced sizes that libjpeg decodes faster than the full one; its other factors are slower.
_FACTORS = (8, 4, 2)


class UnreadableError(ValueError):
  """An image cannot be decoded; the message gives the reason: 'is empty', 'is truncated', …"""


def decode_image(data: bytes, *, min_side: int = 0, max_pixels: int = MAX_PIXELS) -> RGB:
  """Decode an image to RGB, upright as its EXIF orientation says.

  The content decides on the format: BMP, GIF, JPEG, PNG, PPM, TIFF or WebP. Of several frames the
  first one is taken. Transparent pixels become white. Of 16 bits per channel the upper 8 stay. CMYK
  becomes RGB by Pillow's formula, without colour profiles.

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
  for first_bytes, reader in _READERS.items():
    if data.startswith(first_bytes):
      return _decode_with_pillow(data, reader, max_pixels)
  if data[:512].lstrip(b'\xef\xbb\xbf \t\r\n')[:1] == b'<':
    raise UnreadableError('is a web page or other markup, not an image')
  raise UnreadableError('is no BMP, GIF, JPEG, PNG, PPM, TIFF or WebP image')


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
      image.load()
      # Pillow accepts a file without its end if all pixels are there.
      if reader is PngImageFile and _PNG_END not in data:
        raise UnreadableError('is truncated')
      exif = image.info.get('exif', b'').removeprefix(b'Exif\0\0')
      return _turn_upright(_convert_to_rgb(image), _read_orientation(exif))
  except UnreadableError:
    raise
  except Exception as error:  # Damaged files make Pillow raise nearly anything.
    raise UnreadableError(_reason(str(error), data)) from error


@functools.cache
def _ignore_pillow_warnings() -> None:
  # Pillow warns of odd metadata; what cannot be decoded raises. Once and for good at the first use:
  # to block warnings for the time of each call would block those of other threads too.
  warnings.filterwarnings('ignore', module=r'PIL\.')


def _convert_to_rgb(image: Image.Image) -> RGB:
  if image.mode.startswith('I'):
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
      raise UnreadableError('has pixels of more than 16 bits')
    return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, 2)
  if image.mode == 'F':
    raise UnreadableError('has floating-point pixels')
  if image.has_transparency_data:
    image = image.convert('RGBA')
    image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
  return np.asarray(image.convert('RGB'))


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
