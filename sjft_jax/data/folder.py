"""Image files: in folders, one a class; in a list of paths and labels; or all below a path."""

import codecs
import functools
import hashlib
import os
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from jaxtyping import Int32, UInt8

from sjft_jax.data import digests
from sjft_jax.data.dataset import EncodedDataset
from sjft_jax.data.decode import (
  FORMATS,
  HEADER_BYTES,
  HEIC_REMEDY,
  MAX_BYTES,
  UnreadableError,
  is_heic,
  is_image,
  is_tiff,
  load_heic_reader,
)
from sjft_jax.runtime import console
from sjft_jax.runtime.options import choose

# Files with these suffixes count as images unopened, so that a damaged one is not overlooked. Of
# others the first bytes decide.
_SUFFIXES = frozenset(
  [
    *('.apng', '.avif', '.bmp', '.dib', '.gif', '.j2c', '.j2k', '.jfif', '.jp2', '.jpc', '.jpe'),
    *('.jpeg', '.jpg', '.jpx', '.pbm', '.pgm', '.png', '.pnm', '.ppm', '.tif', '.tiff', '.webp'),
  ]
)
_HEIC_SUFFIXES = frozenset({'.heic', '.heif', '.hif'})
# What operating systems and storage devices add to folders.
_HIDDEN = frozenset({'$RECYCLE.BIN', '@eaDir', '__MACOSX', 'lost+found'})
LIST_SUFFIXES = ('.csv', '.tsv', '.parquet')
# Folders with these names, in any case, are splits unless they hold images themselves.
SPLITS = ('train', 'val', 'valid', 'validation', 'test')

# So many bytes of a file tell a web page from other files that are no images.
_BEGINNING = 512
# Bytes of a list of 10 million images and more.
_MAX_LIST = 2**31

_LAYOUT = 'images are expected as <path>/<split>/<class>/<file>, the split may be empty'


def _is_visible(entry: os.DirEntry) -> bool:
  return not entry.name.startswith('.') and entry.name not in _HIDDEN


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


class _Listing:
  """Image files below a root, and what is there besides.

  Attributes:
    root: the folder that all paths start at.
    paths: below the root.
    labels: the class of each file.
    passed_over: the files that are not read, by the reason.
  """

  def __init__(self, root: str):
    self.root = root
    self.paths: list[str] = []
    self.labels = array('i')
    self.passed_over: dict[str, list[str]] = defaultdict(list)

  def add_below(self, folder: str, label: int) -> None:
    """Add the images of a folder below the root, at any depth, in the sorted order of paths.

    Links to folders are followed. A folder that several names lead to is read under the first one
    alone: links can multiply, and lead in circles.
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
      elif reason := _why_no_image(entry):
        self.passed_over[reason].append(path)
      else:
        self.add_file(path, label)

  def add_file(self, path: str, label: int = 0) -> None:
    """Add a file below the root.

    Raises:
      ValueError: its name is not UTF-8.
    """
    try:
      path.encode()
    except UnicodeEncodeError as error:
      file = os.path.join(self.root, path)
      raise ValueError(f'{file!r} has a name that is not UTF-8; rename it') from error
    self.paths.append(path)
    self.labels.append(label)

  def describe_passed_over(self) -> str:
    """Return how many files are passed over for which reason, with the first names; '': none."""
    return ', '.join(
      f'{len(paths):,} {reason} ({", ".join(paths[:3])}{", …" if len(paths) > 3 else ""})'
      for reason, paths in self.passed_over.items()
    )

  def report(self) -> None:
    """Print a line about the files that are passed over, if there are any."""
    if self.passed_over:
      console.say(f'  Passed over in {self.root}: {self.describe_passed_over()}')


def _why_no_image(entry: os.DirEntry) -> str:
  """Return why a file is passed over; '': it is an image, or has the name of one."""
  try:
    if not entry.is_file():
      return 'links that lead nowhere' if entry.is_symlink() else 'that are no files'
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in _SUFFIXES or (suffix in _HEIC_SUFFIXES and load_heic_reader()):
      return ''
    with digests.open_regular(entry.path) as file:
      header = file.read(HEADER_BYTES)
  except OSError:
    return 'links that lead nowhere' if entry.is_symlink() else 'that cannot be opened'
  # Cameras' raw files are TIFFs with a thumbnail in front, and so are other formats.
  if is_image(header) and not (suffix and is_tiff(header)):
    return ''
  if is_heic(header):
    return f'HEIC images, which {HEIC_REMEDY}'
  return f'{suffix} files' if suffix else 'files of no known format'


class _FileDataset(EncodedDataset):
  """A data set of files below a root, each of them read when its image is.

  The fingerprint is made of names, classes and the content of all files. It is computed when it is
  first asked for, which reads every file whose time stamps are new.

  Args:
    name: what reports call the data set.
    root: the folder that all paths start at.
    paths: the files below it.
    classes: class names.
    labels: [image], the class of each file.
    kind: tells data sets of the same root apart in the cache; '': nothing is cached.
  """

  def __init__(
    self,
    name: str,
    root: str,
    paths: Sequence[str],
    classes: Iterable[str],
    labels: Int32[np.ndarray, ' image'],
    kind: str,
  ):
    self._root, self._kind = root, kind
    # As one array they take hardly more memory than their own length.
    self._paths = pa.array(paths, pa.large_string())
    super().__init__(name, tuple(classes), labels)

  @functools.cached_property
  def digests(self) -> UInt8[np.ndarray, 'image byte']:  # type: ignore[override]
    """The digest of the content of each file; zeros where a file cannot be read."""
    return digests.digest_files(self._root, self._paths, self._kind, self.name, max_bytes=MAX_BYTES)

  @functools.cached_property
  def fingerprint(self) -> str:  # type: ignore[override]
    """The sha256 of classes, labels, names and contents."""
    content = hashlib.sha256('\0'.join(self.classes).encode())
    content.update('\0'.join(self._paths.to_pylist()).encode())
    for array_ in (self.labels, self.digests):
      content.update(array_.tobytes())
    return content.hexdigest()

  def key(self, index: int) -> str:
    """Return the path below the root."""
    return self._paths[range(len(self))[index]].as_py()

  def location(self, index: int) -> str:
    """Return the file's path."""
    return os.path.join(self._root, self.key(index))

  def encoded_bytes(self, index: int) -> int:
    try:
      return os.stat(self.location(index)).st_size
    except OSError as error:
      raise UnreadableError(f'cannot be opened: {error.strerror}') from error

  def read_encoded(self, index: int) -> bytes:
    try:
      with digests.open_regular(self.location(index)) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
          raise UnreadableError(f'has {size:,} bytes, more than the limit of {MAX_BYTES:,}')
        # What is no image by its beginning, such as a file full of holes, is not read any further.
        if size > 2**20:
          beginning = file.read(_BEGINNING)
          if not is_image(beginning):
            return beginning
          file.seek(0)
        return file.readall()
    except OSError as error:
      raise UnreadableError(f'cannot be opened: {error.strerror}') from error


def _sort_classes(names: Iterable[str]) -> list[str]:
  """Sort classes by name; by value, if all are numbers."""
  names = sorted(names)
  return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def _class_name(name: str, place: str) -> str:
  """Return the class that a folder or label names: the same in every Unicode form, without blanks.

  Raises:
    ValueError: the name holds a line break or another control character, or nothing else than
      blanks.
  """
  normalised = unicodedata.normalize('NFC', name).strip()
  if not normalised or any(unicodedata.category(c) in ('Cc', 'Zl', 'Zp') for c in normalised):
    raise ValueError(
      f'{place} has the class name {name!r}; rename it, without line breaks and control characters'
    )
  return normalised


class ClassFolder(_FileDataset):
  """The images `path/split/<class>/…/<file>`, or, without a split, `path/<class>/…/<file>`.

  Classes come in sorted order, by value if all are numbers, and the files of each class, at any
  depth, in sorted order. Blanks around the names of classes and their Unicode form do not matter.
  Hidden entries are passed over. So are files of formats that are not read and links that lead
  nowhere, and a line is printed about them.

  Args:
    path: the folder; '~' is the user's home.
    split: a folder in it; '': there are no splits.

  Raises:
    ValueError: a folder is missing or holds no class, a class holds no image, or the folders look
      like splits or like the wrapping of an archive instead of classes.
  """

  def __init__(self, path: str, split: str):
    path = os.path.expanduser(path)
    if os.path.isfile(path):
      raise ValueError(
        f'path={path!r} is a file; give a folder, or a list whose name ends in one of '
        f'{", ".join(LIST_SUFFIXES)}'
      )
    root = os.path.join(path, split) if split else path
    if not path or not os.path.isdir(root):
      given = f'path={path!r}, split={split!r}: {root} is not a folder'
      inner = [e.name for e in scan_visible(path) if is_folder(e)] if os.path.isdir(path) else []
      present = f'{path} holds {_shorten(inner)}; ' if inner else ''
      raise ValueError(f'{given}; {present}{_LAYOUT}')
    listing = _Listing(root)
    folders: dict[str, str] = {}
    for entry in scan_visible(root):
      if not is_folder(entry):
        listing.passed_over['beside the class folders'].append(entry.name)
        continue
      name = _class_name(entry.name, root)
      if name in folders:
        raise ValueError(
          f'{root} has the folders {folders[name]!r} and {entry.name!r}, which name one class; '
          'move the images of one into the other'
        )
      folders[name] = entry.name
    if not folders:
      raise ValueError(f'{root} has no class folders; {_LAYOUT}')
    _check_no_wrapper(root, split, list(folders.values()))
    if not split:
      _check_no_splits(root, list(folders.values()))
    classes = _sort_classes(folders)
    for label, name in enumerate(classes):
      num_files = len(listing.paths)
      listing.add_below(folders[name], label)
      if len(listing.paths) == num_files:
        _raise_no_image(root, folders[name])
    listing.report()
    name = Path(root).resolve().name if split in ('', '.') else f'{Path(path).name}/{split}'
    labels = np.array(listing.labels, np.int32)
    super().__init__(name, root, listing.paths, classes, labels, 'folder')


def _shorten(names: Sequence[str], count: int = 5) -> str:
  return ', '.join(names[:count]) + (', …' if len(names) > count else '')


def _raise_no_image(root: str, folder: str) -> None:
  """Raise an error about a class folder without images that lists what is in it."""
  listing = _Listing(os.path.join(root, folder))
  listing.add_below('', 0)
  content = f'but {listing.describe_passed_over()}' if listing.passed_over else 'it is empty'
  raise ValueError(
    f'class folder {listing.root} has no image that can be read ({FORMATS}), {content}; add '
    f'images, or move the folder out of {root}'
  )


def _check_no_wrapper(root: str, split: str, folders: Sequence[str]) -> None:
  """Check that a folder does not hold one folder alone in which the class folders are.

  Raises:
    ValueError: it does; all images would be of one class.
  """
  path, inner, parents = root, list(folders), set()
  while len(inner) == 1 and os.path.realpath(path) not in parents:  # A link may lead back.
    parents.add(os.path.realpath(path))
    path = os.path.join(path, inner[0])
    entries = scan_visible(path)
    if not all(is_folder(entry) for entry in entries):
      return
    inner = [entry.name for entry in entries]
  if path == root or len(inner) < 2:
    return
  remedy = f'path={path}'
  if split:
    inside = os.path.join(split, os.path.relpath(path, root))
    remedy = f'{inside} as the split: train_split={inside}, or split={inside} for a source'
  raise ValueError(
    f'{root} holds one folder, {folders[0]}, and {path} holds {_shorten(inner)}: if these are the '
    f'classes, give {remedy}; otherwise put the images of all into one folder'
  )


def _check_no_splits(root: str, folders: Sequence[str]) -> None:
  """Check that what lies in a folder without splits are classes.

  Raises:
    ValueError: the folders are splits.
  """
  if all(folder.casefold() in SPLITS for folder in folders):
    raise ValueError(
      f'{root} holds {", ".join(folders)} and no other folder: these are splits, but not all of '
      f'them hold class folders; {_LAYOUT}; classes of these names need a split above them, '
      f'{os.path.join(root, "train", folders[0])}'
    )
  inner = {}
  for folder in folders:
    entries = scan_visible(os.path.join(root, folder))
    if all(is_folder(entry) for entry in entries):
      inner[folder] = {entry.name for entry in entries}
  for folder in inner:
    for other in inner:
      shared = sorted(inner[folder] & inner[other])
      if folder < other and len(shared) > 1 and _names_split(folder, other):
        train, test = sorted([folder, other], key=lambda name: 'train' not in name.casefold())
        raise ValueError(
          f'{os.path.join(root, folder)} and {os.path.join(root, other)} hold the same folders '
          f'({_shorten(shared)}), so they are splits and not classes; name them: for a target '
          f'train_split={train} and test_split={test}, for a source split={train}'
        )


def _names_split(*folders: str) -> bool:
  return any(word in folder.casefold() for folder in folders for word in ('train', 'test', 'val'))


class UnlabelledFolder(_FileDataset):
  """All images below `path`, at any depth, in the sorted order of their paths; of one class.

  Hidden entries are passed over. So are files of formats that are not read and links that lead
  nowhere, and a line is printed about them. Links to folders are followed.

  Args:
    path: the folder; '~' is the user's home.

  Raises:
    ValueError: `path` is no folder, or there is no image below it.
  """

  def __init__(self, path: str):
    path = os.path.expanduser(path)
    if not path or not os.path.isdir(path):
      raise ValueError(f'{path!r} is not a folder')
    listing = _Listing(path)
    listing.add_below('', 0)
    if not listing.paths:
      content = f', but {listing.describe_passed_over()}' if listing.passed_over else ''
      raise ValueError(f'there is no image ({FORMATS}) below {path}{content}')
    listing.report()
    labels = np.array(listing.labels, np.int32)
    super().__init__(Path(path).resolve().name, path, listing.paths, ['image'], labels, 'folder')


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
      path = Path(os.path.expanduser(path))
      if not os.path.isfile(path):  # Path.is_file raises an error where a name is too long.
        raise ValueError(f'{path} is not a file')
      listing.add_file(os.fspath(path))
    labels = np.array(listing.labels, np.int32)
    super().__init__('images', '', listing.paths, ['image'], labels, '')


class ListedImages(_FileDataset):
  """The images of a list, a .csv, .tsv or .parquet file, in its order.

  Its columns, in any case, are 'path', absolute or from the list's own folder, 'label', and, where
  there are splits, 'split'; others are passed over. Labels become classes in sorted order, by value
  if all are numbers. Blanks around labels and their Unicode form do not matter.

  Args:
    path: the list; '~' is the user's home, here and in the list.
    split: the value of column 'split' of the rows to take; '': all rows.

  Raises:
    ValueError: there is no such list, column, split or image file, a label is empty, or a file
      occurs twice.
  """

  def __init__(self, path: str, split: str):
    path = os.path.expanduser(path)
    root = os.path.dirname(path)
    rows = _read_columns(path)
    _check_rows(rows, path)
    _check_distinct(rows['path'].to_pylist(), path)
    if split:
      rows = _select_split(rows, path, split)
    names = [_clean_path(name) for name in rows['path'].to_pylist()]
    _check_files(names, path)
    labels = rows['label'].combine_chunks().dictionary_encode()
    label_names = [_class_name(name, path) for name in labels.dictionary.to_pylist()]
    classes = _sort_classes(set(label_names))
    numbers = {name: number for number, name in enumerate(classes)}
    positions = np.array([numbers[name] for name in label_names], np.int32)
    name = Path(path).stem + (f'/{split}' if split else '')
    kind = f'list {os.path.basename(path)} {split}'
    super().__init__(name, root, names, classes, positions[labels.indices.to_numpy()], kind)

  @staticmethod
  def splits(path: str) -> list[str]:
    """Return the values of the list's column 'split'; none if it has no such column."""
    rows = _read_columns(os.path.expanduser(path))
    if 'split' not in rows.column_names:
      return []
    return sorted(rows['split'].unique().drop_null().to_pylist())


def open_images(*paths: str) -> UnlabelledFolder | ImageFiles:
  """Open the images of folders, of lists (their column 'path'), or single files; without labels.

  The keys of a folder that is given alone are paths below it; of several, they begin with the path
  that is given.

  Raises:
    ValueError: there is no such folder or file, or a list that cannot be read.
  """
  parts = [_open_images(path) for path in paths]
  if len(parts) == 1:
    return parts[0]
  return ImageFiles([Path(part.location(i)) for part in parts for i in range(len(part))])


def open_labelled(path: str) -> ClassFolder | ListedImages:
  """Open the images of a folder `path/<class>/…/<file>`, or of a list, all its rows.

  Raises:
    ValueError: as for `ClassFolder` and `ListedImages`.
  """
  return (ListedImages if is_list(path) else ClassFolder)(path, '')


def _open_images(path: str) -> UnlabelledFolder | ImageFiles:
  path = os.path.expanduser(path)
  if os.path.isdir(path):
    return UnlabelledFolder(path)
  if is_list(path):
    rows = _read_columns(path, required=('path',))
    _check_rows(rows, path, ('path',))
    names = rows['path'].to_pylist()
    return ImageFiles([Path(os.path.dirname(path), _clean_path(name)) for name in names])
  if not os.path.exists(path):
    raise ValueError(f'{path} is neither a folder nor a file')
  return ImageFiles([Path(path)])


def is_list(path: str) -> bool:
  """Return whether a path names a list of images, not a folder."""
  return path.lower().endswith(LIST_SUFFIXES) and not os.path.isdir(os.path.expanduser(path))


def _clean_path(name: str) -> str:
  """Return a path of a list without '~', '.', and doubled slashes."""
  name = os.path.expanduser(name)
  # With '..' behind a link to a folder, the shortest spelling would be another file.
  return name if '..' in name.split('/') else os.path.normpath(name)


def _check_distinct(names: Sequence[str], path: str) -> None:
  """Check that no two rows of a list name the same file, whatever the spelling.

  Raises:
    ValueError: two rows do.
  """
  root = os.path.abspath(os.path.dirname(path))
  first_names: dict[str, str] = {}
  for name in names:
    place = os.path.join(root, os.path.expanduser(name))
    folder, base = os.path.split(place)
    is_plain = '..' not in name.split('/')
    place = os.path.normpath(place) if is_plain else os.path.join(os.path.realpath(folder), base)
    if place in first_names:
      first = first_names[place]
      if first == name:
        raise ValueError(f'{path} has {name!r} more than once; keep one row')
      raise ValueError(f'{path} has {first!r} and {name!r}, the same file; keep one row')
    first_names[place] = name


def _check_files(names: Sequence[str], path: str) -> None:
  """Check that all files of a list are there.

  Raises:
    ValueError: one is not.
  """
  root = os.path.dirname(path)
  sizes = digests.stat_files(root, pa.array(names, pa.large_string()))[:, 0]
  missing = np.flatnonzero(sizes < 0)
  if not len(missing):
    return
  name = names[missing[0]]
  place = os.path.join(root, name)
  if os.path.exists(place):
    raise ValueError(f'{path}: {place} is not a file')
  count = f' (the first of {len(missing):,})' if len(missing) > 1 else ''
  remedy = "paths are absolute or start at the list's folder"
  if os.path.exists(os.path.join(root, name.replace('\\', '/'))):
    remedy = 'write / instead of \\ in its paths'
  raise ValueError(f'{path}: {place} is not there{count}; {remedy}')


def _read_columns(path: str, required: Sequence[str] = ('path', 'label')) -> pa.Table:
  """Read the columns of a list as strings.

  Raises:
    ValueError: the file cannot be read, or a column is missing or occurs twice.
  """
  columns = ('path', 'label', 'split')
  try:
    _check_list(path)
    if path.lower().endswith('.parquet'):
      table = pa.parquet.read_table(path)
    else:
      delimiter = '\t' if path.lower().endswith('.tsv') else ','
      # Names of files may hold line breaks.
      parse_options = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
      with pa.csv.open_csv(path, parse_options=parse_options) as reader:
        names = reader.schema.names
      table = pa.csv.read_csv(
        path,
        parse_options=parse_options,
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
      )
    names = [name.strip() for name in table.column_names]
    names = [name.lower() if name.lower() in columns else name for name in names]
    table = table.rename_columns(names)
    for column in required:
      if column not in names:
        hint = '; rename the column that holds it'
        if len(names) == 1:
          hint = '; columns are separated by commas, in a .tsv by tabs'
        raise ValueError(f'it has no column {column}, but {", ".join(names)}{hint}')
    present = [column for column in columns if column in names]
    for column in present:
      if names.count(column) > 1:
        raise ValueError(f'it has {names.count(column)} columns {column}; keep one')
    rows = {column: table[column].cast(pa.string()) for column in present}
    if 'split' in rows:
      rows['split'] = pc.utf8_trim_whitespace(rows['split'])
    return pa.table(rows)
  except (ValueError, OSError, pa.ArrowException) as error:
    message = (getattr(error, 'strerror', None) or str(error)).splitlines()[0]
    if 'invalid UTF8' in message:
      message = 'its text is not UTF-8; save it as UTF-8'
    raise ValueError(
      f'{path} cannot be read as a list of {" and ".join(required)}: {message}'
    ) from error


def _check_list(path: str) -> None:
  """Check that a list is a file that can be read as a whole, and no text in UTF-16.

  Raises:
    ValueError: it is not.
    OSError: it cannot be opened, or is a pipe or a device.
  """
  with digests.open_regular(path) as file:
    size = os.fstat(file.fileno()).st_size
    if size > _MAX_LIST:
      raise ValueError(f'it has {size:,} bytes, more than the limit of {_MAX_LIST:,}')
    if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
      raise ValueError('its text is UTF-16; save it as UTF-8')


def _check_rows(rows: pa.Table, path: str, columns: Sequence[str] = ('path', 'label')) -> None:
  """Check that there are rows, and that each has a value in some columns.

  Raises:
    ValueError: there are no rows, or the first row that is wrong.
  """
  if not rows.num_rows:
    raise ValueError(f'{path} has no rows')
  for column in columns:
    is_empty = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(rows[column], '')), '')
    if pc.any(is_empty).as_py():
      row = is_empty.index(True).as_py() + 1
      raise ValueError(f'{path}, row {row}: {column} is empty; fill it in or remove the row')


def _select_split(rows: pa.Table, path: str, split: str) -> pa.Table:
  """Return the rows of a split.

  Raises:
    ValueError: there is no column 'split', no such value in it, or a row without a value.
  """
  if 'split' not in rows.column_names:
    raise ValueError(f'{path} has no column split; add one, or leave split={split!r} empty')
  _check_rows(rows, path, ('split',))
  choose(f'{path}: split', split, rows['split'].unique().drop_null().to_pylist())
  return rows.filter(pc.equal(rows['split'], split))
