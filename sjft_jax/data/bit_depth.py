"""The depth of images of more than 8 bits a channel, and their upper 8 bits."""

import functools

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile

from sjft_jax.data import tiff

# Depths of the images that scanners, cameras and microscopes save with 16 bits a channel.
_DEPTHS = (8, 10, 12, 14, 16)


def stated_depth(image: Image.Image, data: bytes) -> int:
  """Return the bits per channel that a file says its values have; 16: it may be fewer.

  Must be called before Pillow loads the image, which forgets what it has read of the header.
  """
  if isinstance(image, PngImageFile) and data[24] == 16:
    chunk = data.find(b'sBIT', 0, data.find(b'IDAT'))
    depth = max(data[chunk + 4 : chunk + 4 + data[chunk - 1]], default=16) if chunk > 0 else 16
  elif isinstance(image, TiffImageFile):
    depth = max(image.tag_v2.get(tiff.BITS_PER_SAMPLE, (1,)))
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


def real_depth(values: Shaped[np.ndarray, '...'], depth: int) -> int:
  """Return the depth of values, which a file states, or the least one that they fit into."""
  rest = 16 - depth
  top = values >> rest
  # Scaled to 16 bits, as PNG wants it, by zeros or by repetition: of a dark image only this shows.
  for low in (0 * top, top >> max(depth - rest, 0)):
    if rest and np.array_equal(values, (top << rest) | low):
      return 16
  largest = int(values.max())
  # A depth that is stated and exceeded: the values were scaled to 16 bits, as PNG wants it.
  depths = _DEPTHS if depth == 16 else (depth, 16)
  return next(d for d in depths if largest < 1 << d)


def to_8_bits(values: Shaped[np.ndarray, '...'], depth: int) -> UInt8[np.ndarray, '...']:
  """Return the upper 8 bits of values of a depth."""
  return (values >> (depth - 8)).astype(np.uint8)


def restore_depth(image: Image.Image, data: bytes, depth: int) -> Image.Image | None:
  """Return an image of 16 bits a channel, of which Pillow keeps the upper 8, by its real depth.

  Args:
    image: as Pillow has loaded it.
    data: the bytes of its file.
    depth: see `stated_depth`.

  Returns:
    The image, or None if OpenCV cannot read all bits.
  """
  # Pillow compares the one transparent colour, of 16 bits, with its own of 8; OpenCV knows better.
  if np.max(image.getextrema()[:3]) > 64 and 'transparency' not in image.info:
    return image  # More than 14 bits, however Pillow rounds.
  values = None
  if not any(tag == tiff.PLANAR and first == 2 for tag, _, first in tiff.read_directory(data)):
    _silence_opencv()  # It reads planes as if the channels of a pixel stood side by side.
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if values is None or values.dtype != np.uint16 or values.shape[1::-1] != image.size:
    return None
  colours = values[..., 2::-1]  # OpenCV's order is blue, green, red.
  # The fourth channel of a TIFF may be anything.
  alpha = values[..., 3:] if image.has_transparency_data else values[..., :0]
  depth = real_depth(colours, depth)
  alpha_depth = depth if alpha.size and alpha.max() < 1 << depth else 16
  return Image.fromarray(
    np.concatenate([to_8_bits(colours, depth), to_8_bits(alpha, alpha_depth)], axis=2)
  )


@functools.cache
def _silence_opencv() -> None:
  # OpenCV warns of odd metadata, too; what it cannot decode is no array.
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
