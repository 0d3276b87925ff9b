"""Images in folders: one folder a class, or all that lie below a path."""

import hashlib
import operator
import pathlib
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

_SUFFIXES = frozenset({'.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'})
_KINDS = ', '.join(sorted(_SUFFIXES))


class _Images:
  """Image files below a root, decoded when they are asked for."""

  def __init__(
    self,
    name: str,
    root: pathlib.Path,
    files: Sequence[pathlib.Path],
    classes: Sequence[str],
    labels: Sequence[int],
  ):
    self._root, self._files = root, files
    self.name = name
    self.classes = tuple(classes)
    self.labels = np.array(labels, np.int32)
    # Sizes stand in for content: reading every byte of a large set would cost minutes.
    listing = ''.join(f'{self.key(i)}\0{f.stat().st_size}\n' for i, f in enumerate(files))
    try:
      self.fingerprint = hashlib.sha256(listing.encode()).hexdigest()
    except UnicodeEncodeError as error:
      file = str(files[listing.count('\0', 0, error.start)])
      raise ValueError(f'{file!r} has a name that is not UTF-8; rename it') from error

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
    """The path below the root."""
    return self._files[index].relative_to(self._root).as_posix()


def _is_image(path: pathlib.Path) -> bool:
  return path.suffix.lower() in _SUFFIXES and path.is_file()


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(f for f in folder.iterdir() if not f.name.startswith('.'))


class Folder(_Images):
  """The images `path/split/<class>/<file>`, classes and files in sorted order.

  Hidden entries and files without an image suffix are passed over.

  Raises:
    ValueError: a folder is missing or holds no class, or a class holds no image.
  """

  def __init__(self, path: str, split: str):
    root = pathlib.Path(path) / split
    layout = 'images are expected as <path>/<split>/<class>/<file>'
    if not path or not root.is_dir():
      raise ValueError(f'path={path!r}, split={split!r}: {root} is not a folder; {layout}')
    folders = [f for f in _visible(root) if f.is_dir()]
    if not folders:
      raise ValueError(f'{root} has no class folders; {layout}')
    images: list[pathlib.Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
      files = [f for f in _visible(folder) if _is_image(f)]
      if not files:
        raise ValueError(
          f'class folder {folder} has no image ({_KINDS}); add one or remove the folder'
        )
      images += files
      labels += [label] * len(files)
    name = root.resolve().name if split in ('', '.') else f'{pathlib.Path(path).name}/{split}'
    super().__init__(name, root, images, [folder.name for folder in folders], labels)


class Unlabelled(_Images):
  """All images below `path`, at any depth, in the sorted order of their paths; of one class.

  Hidden entries and files without an image suffix are passed over. Links to folders are followed.

  Raises:
    ValueError: `path` is no folder, or there is no image below it.
  """

  def __init__(self, path: str):
    root = pathlib.Path(path)
    if not path or not root.is_dir():
      raise ValueError(f'{path!r} is not a folder')
    files = list(_below(root))
    if not files:
      raise ValueError(f'there is no image ({_KINDS}) below {root}')
    super().__init__(root.resolve().name, root, files, ['image'], [0] * len(files))


def _below(folder: pathlib.Path, above: tuple[pathlib.Path, ...] = ()) -> Iterator[pathlib.Path]:
  """The images below a folder; a link to a folder that it lies in is not followed."""
  above = (*above, folder.resolve())
  for entry in _visible(folder):
    if _is_image(entry):
      yield entry
    elif entry.is_dir() and entry.resolve() not in above:
      yield from _below(entry, above)
