"""Images in class folders."""

import hashlib
import operator
import pathlib

import cv2
import numpy as np
from jaxtyping import UInt8

_SUFFIXES = frozenset({'.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'})


class Folder:
  """The images `path/split/<class>/<file>`, classes and files in sorted order.

  Hidden entries and files without an image suffix are passed over.

  Raises:
    ValueError: a folder is missing or holds no class, or a class holds no image.
  """

  def __init__(self, path: str, split: str):
    self._root = root = pathlib.Path(path) / split
    layout = 'images are expected as <path>/<split>/<class>/<file>'
    if not path or not root.is_dir():
      raise ValueError(f'path={path!r}, split={split!r}: {root} is not a folder; {layout}')
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith('.'))
    if not folders:
      raise ValueError(f'{root} has no class folders; {layout}')
    self._files: list[pathlib.Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
      files = sorted(
        f
        for f in folder.iterdir()
        if f.suffix.lower() in _SUFFIXES and not f.name.startswith('.') and f.is_file()
      )
      if not files:
        raise ValueError(
          f'class folder {folder} has no image ({", ".join(sorted(_SUFFIXES))}); '
          'add one or remove the folder'
        )
      self._files += files
      labels += [label] * len(files)
    self.name = root.resolve().name if split in ('', '.') else f'{pathlib.Path(path).name}/{split}'
    self.classes = tuple(folder.name for folder in folders)
    self.labels = np.array(labels, np.int32)
    # Sizes stand in for content: reading every byte of a large set would cost minutes.
    listing = ''.join(f'{self.key(i)}\0{f.stat().st_size}\n' for i, f in enumerate(self._files))
    self.fingerprint = hashlib.sha256(listing.encode()).hexdigest()

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> UInt8[np.ndarray, 'height width 3']:
    """Decodes an image to RGB, upright as its EXIF orientation says.

    Raises:
      ValueError: the file cannot be decoded.
    """
    file = self._files[operator.index(index)]
    data = np.fromfile(file, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
    if image is None:
      raise ValueError(f'{file} cannot be read as an image; replace or remove it')
    return image

  def key(self, index: int) -> str:
    """The path below `path/split`."""
    return self._files[index].relative_to(self._root).as_posix()
