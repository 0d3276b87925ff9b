"""EncodedDataset images to RGB: fast, and never a picture that is only partly there."""

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

# Pillow takes what has more for a decompression bomb.
MAX_PIXELS = 178_956_970

RGB = UInt8[np.ndarray, '_height _width 3']

_JPEG = b'\xff\xd8\xff'
# Pillow's readers by how a file begins.  `PIL.Image.open` would also try formats that run other
# programs, and warn of images smaller than our own limit.
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

# Reduced sizes that libjpeg decodes faster than the full one; others of its factors are slower.
_FACTORS = (8, 4, 2)

# Of odd metadata; what cannot be decoded raises.  Blocking warnings for the time of a call would
# block those of other threads.
warnings.filterwarnings('ignore', module=r'PIL\.')


class UnreadableError(ValueError):
  """An image that cannot be decoded; the message says why: 'is empty', 'is truncated', …"""


def rgb(data: bytes, *, at_least: int = 0, max_pixels: int = MAX_PIXELS) -> RGB:
  """An encoded image as RGB, upright as its EXIF orientation says.

  The content decides on the format: BMP, GIF, JPEG, PNG, PPM, TIFF or WebP; of several frames the
  first. What is transparent becomes white. Of 16 bits a channel the upper 8 stay. CMYK becomes RGB
  by Pillow's formula, without colour profiles.

  Args:
    data: a file's bytes.
    at_least: a reduced size is good enough if both sides keep so many pixels; 0: the full size.
      JPEGs are then decoded at 1/2, 1/4 or 1/8, which takes less time.
    max_pixels: an image that says it has more is refused before it is decoded.

  Raises:
    UnreadableError: empty, truncated, damaged, too large, or no image.
  """
  if not data:
    raise UnreadableError('is empty')
  if data.startswith(_JPEG):
    return _jpeg(data, at_least, max_pixels)
  for start, reader in _READERS.items():
    if data.startswith(start):
      return _other(data, reader, max_pixels)
  if data[:512].lstrip(b'\xef\xbb\xbf \t\r\n')[:1] == b'<':
    raise UnreadableError('is a web page or other markup, not an image')
  raise UnreadableError('is no BMP, GIF, JPEG, PNG, PPM, TIFF or WebP image')


def _check_size(height: int, width: int, max_pixels: int) -> None:
  if height * width > max_pixels:
    raise UnreadableError(f'has {width}×{height} pixels, more than the limit of {max_pixels:,}')


def _jpeg(data: bytes, at_least: int, max_pixels: int) -> RGB:
  try:
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
  except (ValueError, KeyError):
    # Besides damage, unusual subsampling, which Pillow can decode.
    return _other(data, JpegImageFile, max_pixels)
  _check_size(height, width, max_pixels)
  factor = next((f for f in _FACTORS if -(-min(height, width) // f) >= at_least > 0), 1)
  size = {
    'min_height': -(-height // factor),
    'min_width': -(-width // factor),
    'min_factor': factor,
  }
  if colorspace not in ('CMYK', 'YCCK'):
    image = _decode_jpeg(data, 'RGB', size)
  else:
    inks = _decode_jpeg(data, 'CMYK', size)
    # Stored inverted, as Adobe does; Pillow assumes so too.
    cmyk = Image.frombuffer('CMYK', inks.shape[1::-1], inks, 'raw', 'CMYK;I', 0, 1)
    image = np.asarray(cmyk.convert('RGB'))
  return _upright(image, _orientation(_exif(data)))


def _decode_jpeg(
  data: bytes, colorspace: str, size: dict[str, int], *, strict: bool = True
) -> np.ndarray:
  try:
    return simplejpeg.decode_jpeg(data, colorspace, **size, strict=strict)
  except ValueError as error:
    message = str(error)
  # The first complaint of libjpeg ends a strict decoding.  Two of them do not concern the picture:
  # left-over bytes once it is complete, and the version of the file format.
  if 'extraneous bytes before marker 0xd9' in message and strict:
    return _decode_jpeg(data, colorspace, size, strict=False)
  version = data.find(b'JFIF\0') + 5
  if 'unknown JFIF revision' in message and data[version : version + 1] != b'\1':
    return _decode_jpeg(data[:version] + b'\1' + data[version + 1 :], colorspace, size)
  raise UnreadableError(_reason(message, data))


def _exif(jpeg: bytes) -> bytes:
  # Segment by segment up to the first scan: a search would also find the EXIF of a thumbnail.
  place = 2
  while jpeg.startswith(b'\xff', place) and not jpeg.startswith(b'\xff\xda', place):
    if jpeg.startswith(b'Exif\0\0', place + 4):
      return jpeg[place + 10 :]
    is_fill = jpeg.startswith(b'\xff\xff', place)
    place += 1 if is_fill else 2 + int.from_bytes(jpeg[place + 2 : place + 4])
  return b''


def _other(data: bytes, reader: type, max_pixels: int) -> RGB:
  try:
    with reader(io.BytesIO(data)) as image:
      _check_size(image.height, image.width, max_pixels)
      image.load()
      # Pillow does without the end of a file if all pixels are there.
      if reader is PngImageFile and _PNG_END not in data:
        raise UnreadableError('is truncated')
      exif = image.info.get('exif', b'').removeprefix(b'Exif\0\0')
      return _upright(_flattened(image), _orientation(exif))
  except UnreadableError:
    raise
  except Exception as error:  # Damaged files make Pillow raise nearly anything.
    raise UnreadableError(_reason(str(error), data)) from error


def _flattened(image: Image.Image) -> RGB:
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
  is_cut = any(word in message for word in ('truncated', 'Truncated', 'Premature end', 'EOF'))
  if is_cut or (data.startswith(_JPEG) and b'\xff\xd9' not in data):
    return 'is truncated'
  return f'is damaged ({(message or "no details").splitlines()[0]})'


def _orientation(exif: bytes) -> int:
  """The EXIF orientation, 1–8; 1, upright, if there is none."""
  order = {b'II': '<', b'MM': '>'}.get(exif[:2], '')
  try:
    (directory,) = struct.unpack_from(f'{order}I', exif, 4)
    (count,) = struct.unpack_from(f'{order}H', exif, directory)
    for entry in range(count):
      tag, _, _, value = struct.unpack_from(f'{order}HHIH', exif, directory + 2 + 12 * entry)
      if tag == 0x0112:
        return value if order else 1
  except struct.error:
    pass
  return 1


def _upright(image: RGB, orientation: int) -> RGB:
  if not 2 <= orientation <= 8:
    return image
  if orientation >= 5:
    image = image.transpose(1, 0, 2)
  if orientation in (3, 4, 7, 8):
    image = image[::-1]
  if orientation in (2, 3, 6, 7):
    image = image[:, ::-1]
  return np.ascontiguousarray(image)
