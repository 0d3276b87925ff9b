"""Explain the errors of a full or lost disk in one line."""

import errno
import re
from collections.abc import Iterator

# What keeps a disk from working, and the remedy.
_DISK_ERRORS = {
  errno.ENOSPC: ('the disk is full', 'make room'),
  errno.EDQUOT: ('the quota of this disk is used up', 'make room'),
  errno.EROFS: ('the disk can only be read', 'mount it for writing'),
  errno.EIO: ('reading or writing failed', 'check the disk'),
  errno.ESTALE: ('the network disk is gone', 'mount it'),
  errno.ENOTCONN: ('the network disk is gone', 'mount it'),
}


def disk_error(error: BaseException) -> str | None:
  """Return a line with the fault of the disk behind an error and the remedy, or None."""
  for cause in _causes(error):
    # TensorStore, which writes Orbax's checkpoints, has no exceptions of its own.
    code = re.search(r"\[os_error_code='(\d+)'", str(cause))
    number = cause.errno if isinstance(cause, OSError) else code and int(code[1])
    if number in _DISK_ERRORS:
      fault, remedy = _DISK_ERRORS[number]
      path = getattr(cause, 'filename', None) or re.search(r'(?<=")/[^"]+', str(cause))
      where = f' at {path if isinstance(path, str) else path[0]}' if path else ''
      return f'{fault}{where}; {remedy} and run the same command: it goes on'
  return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__
