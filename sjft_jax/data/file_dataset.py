"""Data sets of image files, each of them read when its image is, and the names of classes."""

import functools
import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, UInt8

from sjft_jax.data import digests
from sjft_jax.data.dataset import EncodedDataset
from sjft_jax.data.decode import MAX_BYTES, UnreadableError
from sjft_jax.data.image_formats import is_image
from sjft_jax.runtime import console

# So many bytes of a file that is no image are enough for the error to say what it is.
_NAMING_BYTES = 512


class FileDataset(EncodedDataset):
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

  Raises:
    ValueError: the name of a file is not UTF-8.
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
    try:
      self._paths = pa.array(paths, pa.large_string())
    except UnicodeEncodeError as error:
      file = os.path.join(root, error.object)
      raise ValueError(f'{file!r} has a name that is not UTF-8; rename it') from error
    super().__init__(name, tuple(classes), labels)
    _report_twins(self.classes, root)

  @functools.cached_property
  def digests(self) -> UInt8[np.ndarray, 'image byte']:  # type: ignore[override]
    """The digest of the content of each file; zeros where a file cannot be read."""
    return digests.digest_files(self._root, self._paths, self._kind, self.name, max_bytes=MAX_BYTES)

  @functools.cached_property
  def fingerprint(self) -> str:  # type: ignore[override]
    """The sha256 of classes, labels, names, contents and, where there are any, groups."""
    content = hashlib.sha256('\0'.join(self.classes).encode())
    content.update('\0'.join(self._paths.to_pylist()).encode())
    for array_ in (self.labels, self.digests, self.groups):
      if array_ is not None:
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
          beginning = file.read(_NAMING_BYTES)
          if not is_image(beginning):
            return beginning
          file.seek(0)
        return file.readall()
    except OSError as error:
      raise UnreadableError(f'cannot be opened: {error.strerror}') from error


def _report_twins(classes: Sequence[str], root: str) -> None:
  """Print a line about classes whose names differ in capitals alone, and may be meant as one."""
  spellings: dict[str, list[str]] = {}
  for name in classes:
    spellings.setdefault(name.casefold(), []).append(name)
  twins = [' and '.join(names) for names in spellings.values() if len(names) > 1]
  if twins:
    named = ', '.join(twins[:3]) + (', …' if len(twins) > 3 else '')
    console.say(f'  Classes of {root} that differ in capitals alone count as several: {named}')


def sort_classes(names: Iterable[str]) -> list[str]:
  """Sort classes by name; by value, if all are numbers."""
  names = sorted(names)
  return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def normalize_class_name(name: str, place: str) -> str:
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
