"""Walk through folders for image files, and report the files that are passed over."""

import os
from array import array
from collections import defaultdict

from sjft_jax.data import digests
from sjft_jax.data.image_formats import (
  HEADER_BYTES,
  HEIC_REMEDY,
  is_heic,
  is_image,
  is_tiff,
  load_heic_reader,
)
from sjft_jax.runtime import console

# Files with these suffixes count as images unopened, so that a damaged one is not overlooked. Of
# others the first bytes decide.
_SUFFIXES = frozenset(
  [
    *('.apng', '.avif', '.bmp', '.dib', '.gif', '.j2c', '.j2k', '.jfif', '.jp2', '.jpc', '.jpe'),
    *('.jpeg', '.jpg', '.jpx', '.pbm', '.pgm', '.png', '.pnm', '.ppm', '.tif', '.tiff', '.webp'),
  ]
)
_HEIC_SUFFIXES = frozenset({'.heic', '.heif', '.hif'})
# What editors, and ExifTool, put behind the name of a file for the copy that they leave beside it.
_COPY_ENDINGS = ('_original', '.bak', '.orig')
# What operating systems and storage devices add to folders.
_HIDDEN = frozenset({'$RECYCLE.BIN', '@eaDir', '__MACOSX', 'lost+found'})


def is_visible(name: str) -> bool:
  """Return whether a walk looks at a file or folder of this name."""
  return not name.startswith('.') and name not in _HIDDEN


def _is_visible(entry: os.DirEntry) -> bool:
  return is_visible(entry.name)


def scan_visible(folder: str) -> list[os.DirEntry]:
  """Return the entries of a folder in sorted order, without hidden ones."""
  with os.scandir(folder) as entries:
    return sorted(filter(_is_visible, entries), key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry) -> bool:
  """Return whether an entry is a folder or a link to one; a link to itself is none."""
  try:
    return entry.is_dir()
  except OSError:
    return False


def has_folders(folder: str) -> bool:
  """Return whether a folder holds visible folders."""
  with os.scandir(folder) as entries:
    return any(is_folder(entry) for entry in filter(_is_visible, entries))


def is_image_file(entry: os.DirEntry) -> bool:
  """Return whether an entry is a file that a walk reads as an image."""
  return not is_folder(entry) and not _non_image_kind(entry)


class FolderWalk:
  """The image files that a walk below a root finds, and the files that it passes over.

  Attributes:
    root: the folder that all paths start at.
    paths: below the root.
    labels: the class of each file.
    passed_over: the paths that are not read, by what they are: plurals, as a message counts them.
  """

  def __init__(self, root: str):
    self.root = root
    self.paths: list[str] = []
    self.labels = array('i')
    self.passed_over: dict[str, list[str]] = defaultdict(list)

  def add_below(self, folder: str, label: int) -> None:
    """Add the images of a folder below the root, at any depth, in the sorted order of paths.

    Links to folders are followed. A folder that several names in `folder` lead to is read under the
    first one alone: links can multiply, and lead in circles.
    """
    known: set[tuple[int, int]] = set()
    pending: list[tuple[str, os.DirEntry | None]] = [(folder, None)]
    while pending:
      path, entry = pending.pop()
      if entry is None or is_folder(entry):
        place = os.path.join(self.root, path)
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in known:
          self.passed_over['folders that are read under another name'].append(path)
          continue
        known.add((status.st_dev, status.st_ino))
        prefix = f'{path}/' if path else ''
        pending += [(f'{prefix}{inner.name}', inner) for inner in reversed(scan_visible(place))]
      elif kind := _non_image_kind(entry):
        self.passed_over[kind].append(path)
      else:
        self.paths.append(path)
        self.labels.append(label)

  def describe_passed_over(self) -> str:
    """Return how many files of each kind are passed over, with the first names; '': none."""
    return ', '.join(
      f'{len(paths):,} {kind} ({", ".join(paths[:3])}{", …" if len(paths) > 3 else ""})'
      for kind, paths in self.passed_over.items()
    )

  def report(self) -> None:
    """Print a line about the files that are passed over, if there are any."""
    if self.passed_over:
      console.say(f'  Passed over in {self.root}: {self.describe_passed_over()}')


def _is_copy(entry: os.DirEntry) -> bool:
  """Return whether a name is that of an image beside it with an ending of copies behind it."""
  for ending in _COPY_ENDINGS:
    if entry.name.lower().endswith(ending):
      original = entry.path[: -len(ending)]
      suffix = os.path.splitext(original)[1].lower()
      return (suffix in _SUFFIXES or suffix in _HEIC_SUFFIXES) and os.path.exists(original)
  return False


def _non_image_kind(entry: os.DirEntry) -> str:
  """Return what a file that is passed over is, in the plural; '' for an image, or its name."""
  try:
    if not entry.is_file():
      return 'links that lead nowhere' if entry.is_symlink() else 'pipes and devices'
    if entry.name.endswith('~') or _is_copy(entry):
      return 'copies that an editor left'
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in _SUFFIXES or (suffix in _HEIC_SUFFIXES and load_heic_reader()):
      return ''
    with digests.open_regular(entry.path) as file:
      header = file.read(HEADER_BYTES)
  except OSError:
    return 'links that lead nowhere' if entry.is_symlink() else 'files that cannot be opened'
  # Cameras' raw files are TIFFs with a thumbnail in front, and so are other formats.
  if is_image(header) and not (suffix and is_tiff(header)):
    return ''
  if is_heic(header):
    return f'HEIC images, which {HEIC_REMEDY}'
  return f'{suffix} files' if suffix else 'files of no known format'
