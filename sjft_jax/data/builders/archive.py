"""Find, download and check the official archives of a data set; read them from front to back."""

import dataclasses
import gzip
import hashlib
import http
import io
import posixpath
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import scipy.io

from sjft_jax.runtime import console

_Label = TypeVar('_Label')

# Bytes of a file in an archive, which is read as a whole: of an archive within it or a long list.
MAX_MEMBER = 2**29
# Bytes of a header that holds a long name, and of a list of a small data set.
_MAX_HEADER, _MAX_LIST = 2**16, 2**26
# How many times its own bytes a packed archive may hold. Images can hardly be packed; lists of them
# become a twentieth.
_MAX_PACKING = 32
_EXTENDED_TYPES = (
  tarfile.GNUTYPE_LONGNAME,
  tarfile.GNUTYPE_LONGLINK,
  tarfile.XHDTYPE,
  tarfile.XGLTYPE,
  tarfile.SOLARIS_XHDTYPE,
)


@dataclasses.dataclass(frozen=True)
class Archive:
  """A file that a data set is published as.

  Attributes:
    name: its official name.
    url: a stable public address; '': there is none, or it needs a registration.
    size: in bytes, as published; 0: unknown.
    checksum: as published, 'md5:…' or 'sha256:…' in hexadecimal; '': unknown.
  """

  name: str
  url: str = ''
  size: int = 0
  checksum: str = ''


def find_or_download(archive: Archive, folder: Path, homepage: str) -> Path:
  """Return the path of an archive in a folder; if it is not there, download it where possible.

  Args:
    archive: what to look for.
    folder: where to look, and where to put a download.
    homepage: where a person gets the archive, for the error message.

  Raises:
    ValueError: the archive is not there and cannot be downloaded.
  """
  path = folder / archive.name
  if path.is_file():
    return path
  if not archive.url:
    raise ValueError(f'{archive.name} is missing; get it from {homepage} and put it into {folder}')
  try:
    download(archive.url, path)
  except OSError as error:
    raise ValueError(
      f'{archive.url} cannot be downloaded ({error}); put {archive.name} into {folder} yourself'
    ) from error
  return path


def download(url: str, path: Path) -> None:
  """Download a file; what an interrupted attempt left in `path`.part is not downloaded again.

  Args:
    url: its address.
    path: where to put it; folders are created.

  Raises:
    OSError: the file cannot be downloaded or written.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'{path.name}.part')
  size = part.stat().st_size if part.exists() else 0
  headers = {'User-Agent': 'sjft_jax'} | ({'Range': f'bytes={size}-'} if size else {})
  request = urllib.request.Request(url, headers=headers)
  try:
    with urllib.request.urlopen(request, timeout=60) as response:
      if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        size = 0
      total = size + int(response.headers.get('Content-Length', 0))
      with (
        part.open('ab' if size else 'wb') as file,
        console.progress(f'downloading {path.name}, MiB', total // 2**20, size // 2**20) as advance,
      ):
        while block := response.read(2**20):
          file.write(block)
          old_size, size = size, size + len(block)
          advance(size // 2**20 - old_size // 2**20)
  except urllib.error.HTTPError as error:
    if not size or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
      raise
    total = size
    if error.headers.get('Content-Range') != f'bytes */{size}':
      part.unlink()  # It is longer than the file, so it is not the beginning of it.
      download(url, path)
      return
  if size < total:
    raise OSError(f'{size:,} of {total:,} bytes came; the next attempt goes on from there')
  part.replace(path)


def check_archives(archives: Collection[Archive], paths: Mapping[str, Path]) -> None:
  """Check that files have the published sizes and checksums; sizes first, which cost nothing.

  Args:
    archives: what is published.
    paths: the file of each archive, by its name.

  Raises:
    ValueError: the first file that differs.
  """
  for archive in archives:
    size = paths[archive.name].stat().st_size
    if size != archive.size > 0:
      raise ValueError(
        f'{paths[archive.name]} has {size:,} bytes, the official {archive.name} {archive.size:,}; '
        'remove it and get it again'
      )
  with_checksum = [archive for archive in archives if archive.checksum]
  if not with_checksum:
    return
  mib = sum(-(-paths[archive.name].stat().st_size // 2**20) for archive in with_checksum)
  with console.progress('checking archives, MiB', mib) as advance:
    for archive in with_checksum:
      algorithm, expected = archive.checksum.split(':')
      digest = hashlib.new(algorithm)
      with paths[archive.name].open('rb') as file:
        while block := file.read(2**20):
          digest.update(block)
          advance(1, archive.name)
      if digest.hexdigest() != expected:
        raise ValueError(
          f'{paths[archive.name]} is not the official {archive.name}: its {algorithm} is '
          f'{digest.hexdigest()}, not {expected}; remove it and get it again'
        )


def members(file: Path | io.BufferedIOBase, name: str = '') -> Iterator[tuple[str, bytes]]:
  """Yield name and content of each file in a tar archive, packed by gzip or not, in its order.

  Each header is parsed by `tarfile`; the way from one to the next is our own, because `tarfile`
  reads whatever a header declares, follows sizes backwards and keeps all headers. Memory grows with
  the largest file, which may have `MAX_MEMBER` bytes, and not with the archive. Links, folders and
  devices are passed over; nothing is written.

  Args:
    file: the archive's path, or the archive itself.
    name: what errors call it; '': the path.

  Raises:
    ValueError: the archive is truncated or no tar archive, or holds more than `_MAX_PACKING` times
      its own bytes; a file in it is sparse, or has a size that is negative or too large.
  """
  if isinstance(file, Path):
    mib = -(-file.stat().st_size // 2**20)
    with file.open('rb') as stream, console.progress(f'{file.name}, MiB', mib) as advance:
      position = 0
      for member in members(stream, name or str(file)):
        yield member
        old_position, position = position, stream.tell() // 2**20
        advance(position - old_position)
      advance(mib - position)
    return
  try:
    is_packed = file.read(2) == b'\x1f\x8b'
    file.seek(0)
    if not is_packed:
      yield from _read_members(file)
      return
    with gzip.open(file) as unpacked:
      for member in _read_members(unpacked):
        _check_packing(unpacked, file)
        yield member
      while unpacked.read(2**20):  # What is packed is checked at its very end.
        _check_packing(unpacked, file)
  except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise ValueError(f'{name} is truncated or no tar archive ({error}); get it again') from error
  except _MemberError as error:
    raise ValueError(f'{name}: {error}; get it again') from error


class _MemberError(Exception):
  """A file in an archive is refused; the message names it."""


def _check_packing(unpacked: gzip.GzipFile, file: io.BufferedIOBase) -> None:
  if unpacked.tell() > _MAX_PACKING * file.tell() + 2**26:
    raise _MemberError(f'it unpacks to more than {_MAX_PACKING} times its own bytes')


def _read_members(stream: io.BufferedIOBase) -> Iterator[tuple[str, bytes]]:
  """Yield name and content of each file in an unpacked tar archive.

  Raises:
    tarfile.TarError: the archive is truncated or no tar archive.
    _MemberError: a member is refused.
  """
  records: dict[str, str] = {}  # What extended headers say of the member behind them.
  while True:
    try:
      header = tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), 'utf-8', 'surrogateescape')
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
      return
    is_extended = header.type in _EXTENDED_TYPES
    name = header.name if is_extended else records.get('path', header.name)
    size = str(header.size) if is_extended else records.get('size', str(header.size))
    limit = _MAX_HEADER if is_extended else MAX_MEMBER
    if not (size.isdecimal() and len(size) < 20 and int(size) <= limit):
      raise _MemberError(f'{name[:200]!r} has a size of {size[:20]} bytes, the limit is {limit:,}')
    if is_extended:
      records |= _read_records(header, _read_exactly(stream, int(size)))
      continue
    if header.type == tarfile.GNUTYPE_SPARSE or 'sparse' in records:
      raise _MemberError(f'{name[:200]!r} is a sparse file')
    if header.isreg():
      yield posixpath.normpath(name), _read_exactly(stream, int(size))
    elif header.type not in tarfile.SUPPORTED_TYPES:
      _read_exactly(stream, int(size))
    records = {}


def _read_exactly(stream: io.BufferedIOBase, size: int) -> bytes:
  """Read what a header announces, and the padding behind it; the last one may be missing."""
  content = stream.read(size)
  if len(content) < size:
    raise tarfile.ReadError('unexpected end of data')
  stream.read(-size % tarfile.BLOCKSIZE)
  return content


def _read_records(header: tarfile.TarInfo, content: bytes) -> dict[str, str]:
  """Return 'path', 'size' and 'sparse' of the next member, as far as an extended header has them.

  Raises:
    tarfile.ReadError: it is damaged.
    _MemberError: it gives them to all members.
  """
  if header.type == tarfile.GNUTYPE_LONGNAME:
    return {'path': content.partition(b'\0')[0].decode('utf-8', 'surrogateescape')}
  if header.type == tarfile.GNUTYPE_LONGLINK:
    return {}
  records = {}
  position = 0
  while position < len(content):
    # 'length key=value', where the length counts itself and the line's end.
    length, _, _ = content[position : position + 9].partition(b' ')
    end = position + int(length) if length.isdigit() else position
    key, _, value = content[position + len(length) + 1 : end].partition(b'=')
    if not value.endswith(b'\n'):
      raise tarfile.ReadError('damaged extended header')
    position = end
    if key.startswith(b'GNU.sparse.'):
      records['sparse'] = ''
    elif key in (b'path', b'size'):
      records[key.decode()] = value[:-1].decode('utf-8', 'surrogateescape')
  if records and header.type == tarfile.XGLTYPE:
    raise _MemberError(f'{header.name[:200]!r} gives all members one {" and ".join(records)}')
  return records


def labelled_members(
  path: Path, labels: Mapping[str, _Label]
) -> Iterator[tuple[str, bytes, _Label]]:
  """Yield name, content and label of those files in a tar archive that have one, in its order.

  Args:
    path: the archive.
    labels: the label of each file, by its name in the archive.

  Raises:
    ValueError: the archive is truncated or no tar archive, or does not hold all of the files.
  """
  missing = set(labels)
  for name, content in members(path):
    if name in missing:
      missing.remove(name)
      yield name, content, labels[name]
  if missing:
    first = min(missing)
    more = f' and {len(missing) - 1:,} more' if len(missing) > 1 else ''
    raise ValueError(f'{path} does not hold {first}{more}, which the list of images names')


def read_lines(path: Path) -> list[str]:
  """Read the lines of a text file, without blank ones.

  Raises:
    ValueError: the file is no text, or too large for a list.
  """
  size = path.stat().st_size
  if size > _MAX_LIST:
    raise ValueError(f'{path} has {size:,} bytes, too many for a list of images; get it again')
  try:
    return [line.strip() for line in path.read_text('utf-8').splitlines() if line.strip()]
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is no text file; get it again') from error


def read_matlab(file: Path | io.BufferedIOBase, variable: str, *, name: str = '') -> np.ndarray:
  """Read a variable of a MATLAB file, without dimensions of length one.

  Args:
    file: the file's path, or the file itself.
    variable: its name.
    name: what errors call the file; '': the path.

  Raises:
    ValueError: the file is damaged, or the variable is not in it.
  """
  try:
    return np.atleast_1d(scipy.io.loadmat(file, squeeze_me=True)[variable])
  except Exception as error:  # A damaged file raises nearly anything.
    raise ValueError(f'{name or file} is no MATLAB file with {variable!r}; get it again') from error
