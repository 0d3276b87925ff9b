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

_SUFFIXES = frozenset({'.bmp', '.gif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'})
_KINDS = ', '.join(sorted(_SUFFIXES))

# Fewer files are listed anew every time, which takes a fraction of a second and is always right.
_CACHED_FROM = 20_000
# Seconds. A folder that has just changed may change again without another time stamp.
_SETTLED = 2.5


class _Listing:
  """Paths below a root with the sizes of the files, in a few bytes more than they are long.

  Attributes:
    names: the paths one after another, as UTF-8.
    ends: where each of them ends.
    sizes: of the files, in bytes.
    labels: the class of each file.
    folders: every folder that was looked into.
    stamps: when each of them had changed last, before that.
  """

  def __init__(self, root: str):
    self.root = root
    self.names, self.ends, self.sizes, self.labels = bytearray(), *(array('q') for _ in range(3))
    self.folders: list[str] = []
    self.stamps: list[tuple[int, int]] = []

  def note(self, folder: str) -> None:
    """To be called before a folder is looked into: what changes later is noticed."""
    self.folders.append(folder)
    self.stamps.append(_stamp(self.root, folder))

  def look_into(self, folder: str) -> list[os.DirEntry]:
    """The visible entries of a folder below the root, in sorted order."""
    self.note(folder)
    with os.scandir(os.path.join(self.root, folder)) as entries:
      return sorted((e for e in entries if not e.name.startswith('.')), key=lambda e: e.name)

  def add(self, path: str, size: int, label: int = 0) -> None:
    try:
      self.names += path.encode()
    except UnicodeEncodeError as error:
      file = os.path.join(self.root, path)
      raise ValueError(f'{file!r} has a name that is not UTF-8; rename it') from error
    self.ends.append(len(self.names))
    self.sizes.append(size)
    self.labels.append(label)

  def arrays(self) -> dict[str, np.ndarray]:
    return {
      'names': np.frombuffer(bytes(self.names), np.uint8),
      'ends': np.array(self.ends, np.int64),
      'sizes': np.array(self.sizes, np.int64),
      'labels': np.array(self.labels, np.int32),
      'folders': np.array(self.folders, np.str_),
      'stamps': np.array(self.stamps, np.int64),
    }


def _stamp(root: str, folder: str) -> tuple[int, int]:
  status = os.stat(os.path.join(root, folder))
  return status.st_mtime_ns, status.st_ctime_ns


def _cached(what: str, root: str, make: Callable[[_Listing], None]) -> dict[str, np.ndarray]:
  """A listing, from the user's cache as long as no folder in it has changed.

  A folder changes when files in it are added, removed or renamed. It does not when one is written
  to in place: in large data sets that goes unnoticed.
  """
  name = artifacts.fingerprint(what, os.path.realpath(root), _KINDS)
  path = artifacts.cache_dir() / 'folders' / f'{name}.npz'
  with contextlib.suppress(ValueError, OSError):
    found = artifacts.load(path, name)
    if found is not None:
      now = [_stamp(root, folder) for folder in found['folders'].tolist()]
      if np.array_equal(now, found['stamps']):
        return found
  begun = time.time()
  listing = _Listing(root)
  make(listing)
  arrays = listing.arrays()
  is_settled = arrays['stamps'].max() < (begun - _SETTLED) * 1e9
  if len(listing.ends) >= _CACHED_FROM and is_settled:
    with contextlib.suppress(OSError):
      artifacts.save(path, name, **arrays)
  return arrays


class _Files(EncodedDataset):
  """Files below a root, read when they are asked for."""

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
    for part in (self._names, self._ends, files['sizes'], labels):
      content.update(part.tobytes())
    super().__init__(name, classes, labels, content.hexdigest())

  def key(self, index: int) -> str:
    """The path below the root."""
    index = range(len(self))[index]
    return self._names[self._ends[index] : self._ends[index + 1]].tobytes().decode()

  def where(self, index: int) -> str:
    return os.path.join(self._root, self.key(index))

  def encoded(self, index: int) -> bytes:
    try:
      with open(self.where(index), 'rb') as file:
        return file.read()
    except OSError as error:
      raise UnreadableError(f'cannot be opened: {error.strerror}') from error


def _is_image(entry: os.DirEntry) -> bool:
  return os.path.splitext(entry.name)[1].lower() in _SUFFIXES and entry.is_file()


def _in_order(names: Iterable[str]) -> list[str]:
  """Classes by name; by value, if all are numbers."""
  names = sorted(names)
  return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


class ClassFolder(_Files):
  """The images `path/split/<class>/<file>`, or, without a split, `path/<class>/<file>`.

  Classes come in sorted order, in that of their values if all are numbers, and the files of each
  in sorted order. Hidden entries and files without an image suffix are passed over. Large folders
  are listed once and then only if files were added, removed or renamed; the fingerprint is made of
  names and sizes.

  Raises:
    ValueError: a folder is missing or holds no class, or a class holds no image.
  """

  def __init__(self, path: str, split: str):
    root = os.path.join(path, split)
    layout = 'images are expected as <path>/<split>/<class>/<file>, the split may be empty'
    if not path or not os.path.isdir(root):
      raise ValueError(f'path={path!r}, split={split!r}: {root} is not a folder; {layout}')

    def make(listing: _Listing) -> None:
      folders = _in_order(entry.name for entry in listing.look_into('') if entry.is_dir())
      if not folders:
        raise ValueError(f'{root} has no class folders; {layout}')
      for label, folder in enumerate(folders):
        images = [entry for entry in listing.look_into(folder) if _is_image(entry)]
        if not images:
          raise ValueError(
            f'class folder {os.path.join(root, folder)} has no image ({_KINDS}); add one or '
            'remove the folder'
          )
        for entry in images:
          listing.add(f'{folder}/{entry.name}', entry.stat().st_size, label)

    files = _cached('classes', root, make)
    name = Path(root).resolve().name if split in ('', '.') else f'{Path(path).name}/{split}'
    super().__init__(name, root, files, files['folders'][1:].tolist(), files['labels'])


class UnlabelledFolder(_Files):
  """All images below `path`, at any depth, in the sorted order of their paths; of one class.

  Hidden entries and files without an image suffix are passed over. Links to folders are followed.

  Raises:
    ValueError: `path` is no folder, or there is no image below it.
  """

  def __init__(self, path: str):
    if not path or not os.path.isdir(path):
      raise ValueError(f'{path!r} is not a folder')

    def add_below(listing: _Listing, folder: str = '', above: tuple[str, ...] = ()) -> None:
      # A link to a folder that it lies in is not followed.
      above = (*above, os.path.realpath(os.path.join(path, folder)))
      for entry in listing.look_into(folder):
        below = f'{folder}/{entry.name}' if folder else entry.name
        if _is_image(entry):
          listing.add(below, entry.stat().st_size)
        elif entry.is_dir() and os.path.realpath(entry.path) not in above:
          add_below(listing, below, above)

    files = _cached('any depth', path, add_below)
    if not len(files['ends']):
      raise ValueError(f'there is no image ({_KINDS}) below {path}')
    super().__init__(Path(path).resolve().name, path, files, ['image'], files['labels'])


class ImageFiles(_Files):
  """Single image files, in the given order; of one class.

  Raises:
    ValueError: no paths are given, or there is no such file.
  """

  def __init__(self, paths: Sequence[Path]):
    if not paths:
      raise ValueError('no images are given')
    listing = _Listing('')
    for path in paths:
      if not path.is_file():
        raise ValueError(f'{path} is not a file')
      listing.add(os.fspath(path), path.stat().st_size)
    files = listing.arrays()
    super().__init__('images', '', files, ['image'], files['labels'])


class ListedImages(_Files):
  """The images of a list, a .csv or .parquet file, in its order.

  Its columns are 'path', absolute or from the list's own folder, 'label', and if need be 'split';
  others are passed over. Labels become classes in sorted order, in that of their values if all are
  numbers.

  Args:
    path: the list.
    split: the value of column 'split' of the rows to take; '': all rows.

  Raises:
    ValueError: there is no such list, column, split or image file, a label is empty, or a path
      stands there twice.
  """

  def __init__(self, path: str, split: str):
    rows = _rows(path)
    for column in ('path', 'label'):
      is_empty = pc.equal(pc.fill_null(rows[column], ''), '')
      if pc.any(is_empty).as_py():
        row = is_empty.index(True).as_py() + 1
        raise ValueError(f'{path}, row {row}: {column} is empty; fill it in or remove the row')
    counts = rows['path'].value_counts()
    twice = counts.filter(pc.greater(counts.field('counts'), 1))
    if len(twice):
      raise ValueError(f'{path} has {twice[0]["values"].as_py()!r} more than once; keep one row')
    if split:
      if 'split' not in rows.column_names:
        raise ValueError(f'{path} has no column split; add one, or leave split={split!r} empty')
      known = ', '.join(map(repr, rows['split'].unique().to_pylist()))
      rows = rows.filter(pc.equal(rows['split'], split))
      if not rows.num_rows:
        raise ValueError(f'{path} has no row of split={split!r}; choose one of {known}')
    if not rows.num_rows:
      raise ValueError(f'{path} has no rows')
    root = os.path.dirname(path)
    names = rows['path'].to_pylist()

    def make(listing: _Listing) -> None:
      try:
        for folder in sorted({os.path.dirname(name) for name in names}):
          listing.note(folder)
        for name in names:
          listing.add(name, os.stat(os.path.join(root, name)).st_size)
      except OSError as error:
        raise ValueError(
          f'{path}: {error.filename} is not there ({error.strerror}); paths are absolute or start '
          "at the list's folder"
        ) from error

    which = hashlib.sha256('\0'.join(names).encode()).hexdigest()
    files = _cached(which, root, make)
    classes = _in_order(rows['label'].unique().to_pylist())
    labels = pc.index_in(rows['label'], pa.array(classes)).to_numpy()
    name = Path(path).stem + (f'/{split}' if split else '')
    super().__init__(name, root, files, classes, labels)

  @staticmethod
  def has_splits(path: str) -> bool:
    """Whether the list has a column 'split'."""
    return 'split' in _rows(path).column_names


def _rows(path: str) -> pa.Table:
  """The columns of a list as strings."""
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
    chosen = [column for column in columns if column in table.column_names]
    return pa.table({column: table[column].cast(pa.string()) for column in chosen})
  except (ValueError, OSError, pa.ArrowException) as error:
    message = str(error).splitlines()[0]
    raise ValueError(f'{path} cannot be read as a list of path and label: {message}') from error
