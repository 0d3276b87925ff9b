"""Small copies of images as data URIs, within a budget of bytes."""

import base64
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# Pixels: the long side of a thumbnail.
SIDE = 96
# At this quality a photograph of this size takes 1 to 3 kB; method 2 encodes twice as fast as the
# default for a few per cent more bytes.
_QUALITY, _METHOD = 55, 2

# A data set and the index of an image in it.
Name = tuple[str, int]


def thumbnail(image: UInt8[np.ndarray, 'height width 3']) -> str:
  """Return the data URI of an RGB image that is scaled down to `SIDE`; small ones stay as they are.

  Args:
    image: of any size.
  """
  picture = Image.fromarray(image)
  picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
  content = io.BytesIO()
  picture.save(content, 'WEBP', quality=_QUALITY, method=_METHOD)
  return f'data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}'


class Thumbnails:
  """Thumbnails of images by name, each made once.

  Args:
    read: returns the RGB image [height, width, 3] of a name; called from several threads.
  """

  def __init__(self, read: Callable[[Name], np.ndarray]):
    self._read = read
    self._uris: dict[Name, str] = {}

  def __getitem__(self, name: Name) -> str:
    """Return the data URI of an image."""
    self.prepare([name])
    return self._uris[name]

  def prepare(self, names: Iterable[Name]) -> None:
    """Make the thumbnails that are not made yet, on all cores."""
    missing = [name for name in dict.fromkeys(names) if name not in self._uris]
    if missing:
      with ThreadPoolExecutor(os.cpu_count()) as pool:
        self._uris |= zip(missing, pool.map(self._make, missing), strict=True)

  def _make(self, name: Name) -> str:
    return thumbnail(self._read(name))
