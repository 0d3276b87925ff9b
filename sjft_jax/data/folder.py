"""Image files: in folders, one a class; in a list of paths and labels; or all below a path."""

import contextlib
import hashlib
import os
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from sjft_jax.data.dataset import EncodedDataset
from sjft_jax.data.decode import UnreadableError
from sjft_jax.runtime import artifacts
from sjft_jax.runtime.options import choose

_SUFFIXES = frozenset({'.bmp', '.gif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'})
_SUFFIX_LIST = ', '.join(sorted(_SUFFIXES))

# Fewer files are listed anew every time, which takes a fraction of a second and is always right.
_MIN_CACHED_FILES = 20_000
# A folder that has changed less than this many seconds ago may change again without another time
# stamp.
_MIN_FOLDER_AGE_S = 2.5


class _Listing:
  """Paths below a root with the sizes of the files; memory hardly exceeds the paths' own length.

  Attributes:
    root: the folder that all paths start at.
    names: the paths one after another, as UTF-8.
    ends: where each of them ends.
    sizes: of the files, in bytes.
    labels: the class of each file.
    folders: every folder whose content decided the listing.
    stamps: when each of them had last changed before it was read.
  """

  def __init__(self, root: str):
    self.root = root
    self.names, self.ends, self.sizes, self.labels = bytearray(), *(array('q') for _ in range(3))
    self.folders: list[str] = []
    self.stamps: list[tuple[int, int]] = []

  def add_folder(self, folder: str) -> None:
    """Record a folder before its content is read, so that later changes are noticed."""
    self.folders.append(folder)
    self.stamps.append(_time_stamp(self.root, folder))

  def scan_folder(self, folder: str) -> list[os.DirEntry]:
    """Record a folder below the root and return its visible entries in sorted order."""
    self.add_folder(folder)
    with os.scandir(os.path.join(self.root, folder)) as entries:
      return sorted((e for e in entries if not e.name.startswith('.')), key=lambda e: e.name)

  def add_file(self, path: str, size: int, label: int = 0) -> None:
    """Add a file below the root.

    Raises:
      ValueError: its name is not UTF-8.
    """
    try:
      self.names += path.encode()
    except UnicodeEncodeError as error:
      file = os.path.join(self.root, path)
      raise ValueError(f'{file!r} has a name that is not UTF-8; rename it') from error
    self.ends.append(len(self.names))
    self.sizes.append(size)
    self.labels.append(label)

  def arrays(self) -> dict[str, np.ndarray]:
    """Return all attributes but the root as arrays."""
    return {
      'names': np.frombuffer(bytes(self.names), np.uint8),
      'ends': np.array(self.ends, np.int64),
      'sizes': np.array(self.sizes, np.int64),
      'labels': np.array(self.labels, np.int32),
      'folders': np.array(self.folders, np.str_),
      'stamps': np.array(self.stamps, np.int64),
    }


def _time_stamp(root: str, folder: str) -> tuple[int, int]:
  status = os.stat(os.path.join(root, folder))
  return status.st_mtime_ns, status.st_ctime_ns


def _load_or_list(
  kind: str, root: str, list_files: Callable[[_Listing], None]
) -> dict[str, np.ndarray]:
  """Return the arrays of a listing, from the user's cache as long as no folder in it has changed.

  A folder changes when files in it are added, removed or renamed. It does not change when a file is
  overwritten in place: in large data sets that goes unnoticed.

  Args:
    kind: what decides the listing besides the root.
    root: the folder that all paths start at.
    list_files: fills an empty listing.
  """
  name = artifacts.fingerprint(kind, os.path.realpath(root), _SUFFIX_LIST)
  path = artifacts.cache_dir() / 'folders' / f'{name}.npz'
  with contextlib.suppress(ValueError, OSError):
    cached = artifacts.load(path, name)
    if cached is not None:
      stamps = [_time_stamp(root, folder) for folder in cached['folders'].tolist()]
      if np.array_equal(stamps, cached['stamps']):
        return cached
  start_time = time.time()
  listing = _Listing(root)
  list_files(listing)
  arrays = listing.arrays()
  is_settled = arrays['stamps'].max() < (start_time - _MIN_FOLDER_AGE_S) * 1e9
  if len(listing.ends) >= _MIN_CACHED_FILES and is_settled:
    with contextlib.suppress(OSError):
      artifacts.save(path, name, **arrays)
  return arrays


class _FileDataset(EncodedDataset):
  """A data set of files below a root, each of them read when its image is.

  Args:
    name: what reports call the data set.
    root: the folder that all paths start at.
    files: the arrays of a listing.
    classes: class names.
    labels: [image], the class of each file.
  """

  def __init__(
    self,
    name: str,
    root: str,
    files: dict[str, np.ndarray],
    classes: Iterable[str],
    labels: np.ndarray,
  ):
    self._root, self._names = root, files['names']
    self._ends = np.concatenate([[0], files['ends']])
    # Sizes stand in for content: reading every byte of a large set would cost minutes.
    content = hashlib.sha256('\0'.join(classes := tuple(classes)).encode())
    for array_ in (self._names, self._ends, files['sizes'], labels):
      content.update(array_.tobytes())
    super().__init__(name, classes, labels, content.hexdigest())

  def key(self, index: int) -> str:
    """Return the path below the root."""
    index = range(len(self))[index]
    return self._names[self._ends[index] : self._ends[index + 1]].tobytes().decode()

  def location(self, index: int) -> str:
    """Return the file's path."""
    return os.path.join(self._root, self.key(index))

  def read_encoded(self, index: int) -> bytes:
    try:
      with open(self.location(index), 'rb') as file:
        return file.read()
    except OSError as error:
      raise UnreadableError(f'cannot be opened: {error.strerror}') from error


def _is_image(entry: os.DirEntry) -> bool:
  return os.path.splitext(entry.name)[1].lower() in _SUFFIXES and entry.is_file()


def _sort_classes(names: Iterable[str]) -> list[str]:
  """Sort classes by name; by value, if all are numbers."""
  names = sorted(names)
  return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


class ClassFolder(_FileDataset):
  """The images `path/split/<class>/<file>`, or, without a split, `path/<class>/<file>`.

  Classes come in sorted order, by value if all are numbers, and the files of each class in sorted
  order. Hidden entries and files without an image suffix are passed over. Large folders are listed
  once, and again only after files were added, removed or renamed; the fingerprint is made of names
  and sizes.

  Args:
    path: the folder.
    split: a folder in it; '': there are no splits.

  Raises:
    ValueError: a folder is missing or holds no class, or a class holds no image.
  """

  def __init__(self, path: str, split: str):
    root = os.path.join(path, split)
    layout = 'images are expected as <path>/<split>/<class>/<file>, the split may be empty'
    if not path or not os.path.isdir(root):
      raise ValueError(f'path={path!r}, split={split!r}: {root} is not a folder; {layout}')

    def list_files(listing: _Listing) -> None:
      folders = _sort_classes(entry.name for entry in listing.scan_folder('') if entry.is_dir())
      if not folders:
        raise ValueError(f'{root} has no class folders; {layout}')
      for label, folder in enumerate(folders):
        images = [entry for entry in listing.scan_folder(folder) if _is_image(entry)]
        if not images:
          raise ValueError(
            f'class folder {os.path.join(root, folder)} has no image ({_SUFFIX_LIST}); add one or '
            'remove the folder'
          )
        for entry in images:
          listing.add_file(f'{folder}/{entry.name}', entry.stat().st_size, label)

    files = _load_or_list('classes', root, list_files)
    name = Path(root).resolve().name if split in ('', '.') else f'{Path(path).name}/{split}'
    super().__init__(name, root, files, files['folders'][1:].tolist(), files['labels'])


class UnlabelledFolder(_FileDataset):
  """All images below `path`, at any depth, in the sorted order of their paths; of one class.

  Hidden entries and files without an image suffix are passed over. Links to folders are followed.

  Args:
    path: the folder.

  Raises:
    ValueError: `path` is no folder, or there is no image below it.
  """

  def __init__(self, path: str):
    if not path or not os.path.isdir(path):
      raise ValueError(f'{path!r} is not a folder')

    def list_below(listing: _Listing, folder: str = '', parents: tuple[str, ...] = ()) -> None:
      # A link to a folder that the link itself lies in is not followed.
      parents = (*parents, os.path.realpath(os.path.join(path, folder)))
      for entry in listing.scan_folder(folder):
        name = f'{folder}/{entry.name}' if folder else entry.name
        if _is_image(entry):
          listing.add_file(name, entry.stat().st_size)
        elif entry.is_dir() and os.path.realpath(entry.path) not in parents:
          list_below(listing, name, parents)

    files = _load_or_list('any depth', path, list_below)
    if not len(files['ends']):
      raise ValueError(f'there is no image ({_SUFFIX_LIST}) below {path}')
    super().__init__(Path(path).resolve().name, path, files, ['image'], files['labels'])


class ImageFiles(_FileDataset):
  """Single image files, in the given order; of one class.

  Args:
    paths: the files.

  Raises:
    ValueError: no paths are given, or one is no file.
  """

  def __init__(self, paths: Sequence[Path]):
    if not paths:
      raise ValueError('no images are given')
    listing = _Listing('')
    for path in paths:
      if not path.is_file():
        raise ValueError(f'{path} is not a file')
      listing.add_file(os.fspath(path), path.stat().st_size)
    files = listing.arrays()
    super().__init__('images', '', files, ['image'], files['labels'])


class ListedImages(_FileDataset):
  """The images of a list, a .csv or .parquet file, in its order.

  Its columns are 'path', absolute or from the list's own folder, 'label', and, where there are
  splits, 'split'; others are passed over. Labels become classes in sorted order, by value if all
  are numbers.

  Args:
    path: the list.
    split: the value of column 'split' of the rows to take; '': all rows.

  Raises:
    ValueError: there is no such list, column, split or image file, a label is empty, or a path
      occurs twice.
  """

  def __init__(self, path: str, split: str):
    rows = _read_columns(path)
    _check_rows(rows, path)
    if split:
      rows = _select_split(rows, path, split)
    root = os.path.dirname(path)
    names = rows['path'].to_pylist()

    def list_files(listing: _Listing) -> None:
      try:
        for folder in sorted({os.path.dirname(name) for name in names}):
          listing.add_folder(folder)
        for name in names:
          listing.add_file(name, os.stat(os.path.join(root, name)).st_size)
      except OSError as error:
        raise ValueError(
          f'{path}: {error.filename} is not there ({error.strerror}); paths are absolute or start '
          "at the list's folder"
        ) from error

    kind = hashlib.sha256('\0'.join(names).encode()).hexdigest()
    files = _load_or_list(kind, root, list_files)
    classes = _sort_classes(rows['label'].unique().to_pylist())
    labels = pc.index_in(rows['label'], pa.array(classes)).to_numpy()
    name = Path(path).stem + (f'/{split}' if split else '')
    super().__init__(name, root, files, classes, labels)

  @staticmethod
  def has_splits(path: str) -> bool:
    """Return whether the list has a column 'split'."""
    return 'split' in _read_columns(path).column_names


def _read_columns(path: str) -> pa.Table:
  """Read the columns of a list as strings.

  Raises:
    ValueError: the file cannot be read, or a column is missing.
  """
  columns = ('path', 'label', 'split')
  try:
    if path.endswith('.csv'):
      strings = pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
      table = pa.csv.read_csv(path, convert_options=strings)
    else:
      table = pa.parquet.read_table(path)
    for column in columns[:2]:
      if column not in table.column_names:
        raise ValueError(f'it has no column {column}, but {", ".join(table.column_names)}')
    present = [column for column in columns if column in table.column_names]
    return pa.table({column: table[column].cast(pa.string()) for column in present})
  except (ValueError, OSError, pa.ArrowException) as error:
    message = str(error).splitlines()[0]
    raise ValueError(f'{path} cannot be read as a list of path and label: {message}') from error


def _check_rows(rows: pa.Table, path: str) -> None:
  """Check that there are rows, and that each has a path of its own and a label.

  Raises:
    ValueError: there are no rows, or the first row or path that is wrong.
  """
  if not rows.num_rows:
    raise ValueError(f'{path} has no rows')
  for column in ('path', 'label'):
    is_empty = pc.equal(pc.fill_null(rows[column], ''), '')
    if pc.any(is_empty).as_py():
      row = is_empty.index(True).as_py() + 1
      raise ValueError(f'{path}, row {row}: {column} is empty; fill it in or remove the row')
  counts = rows['path'].value_counts()
  repeated = counts.filter(pc.greater(counts.field('counts'), 1))
  if len(repeated):
    raise ValueError(f'{path} has {repeated[0]["values"].as_py()!r} more than once; keep one row')


def _select_split(rows: pa.Table, path: str, split: str) -> pa.Table:
  """Return the rows of a split.

  Raises:
    ValueError: there is no column 'split', or no such value in it.
  """
  if 'split' not in rows.column_names:
    raise ValueError(f'{path} has no column split; add one, or leave split={split!r} empty')
  choose(f'{path}: split', split, rows['split'].unique().drop_null().to_pylist())
  return rows.filter(pc.equal(rows['split'], split))
