"""Explain in one line the errors of a full or lost disk, and those of the system's limits."""

import errno
import os
import re
from collections.abc import Iterator

# What keeps a disk or the system from working, and the remedy.
_SYSTEM_ERRORS = {
  errno.ENOSPC: ('the disk is full', 'make room'),
  errno.EDQUOT: ('the quota of this disk is used up', 'make room'),
  errno.EROFS: ('the disk can only be read', 'mount it for writing'),
  errno.EIO: ('reading or writing failed', 'check the disk'),
  errno.ESTALE: ('the network disk is gone', 'mount it'),
  errno.ENOTCONN: ('the network disk is gone', 'mount it'),
  errno.EACCES: ('access is denied', 'change its permissions'),
  errno.EFBIG: ('a file may not grow so large', 'raise the limit (ulimit -f) or use another disk'),
  errno.EMFILE: ('too many files are open', 'raise the limit (ulimit -n)'),
  errno.ENFILE: ('too many files are open in the whole system', 'end other programs'),
  errno.EAGAIN: ('no more processes or threads may start', 'raise the limit (ulimit -u)'),
  errno.ENOMEM: ('memory ran out', 'end other programs'),
  **dict.fromkeys(
    (
      *(errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.EHOSTDOWN),
      *(errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    ),
    ('the disk or the store does not answer', 'wait until it does'),
  ),
}
# What the messages of TensorStore begin with where an object store refuses.
_STORE_FAULT = re.compile(
  r'(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|UNAUTHENTICATED|PERMISSION_DENIED)\b'
)
# In messages of TensorStore and ArrayRecord.
_PATH = re.compile(r'(?<=")/[^"]+|(?<=writing )/[^;]+')


def system_error(error: BaseException) -> str | None:
  """Return a line with the fault of the disk or the system behind an error and the remedy, or None.

  Such a fault is none of the files': they are not damaged.
  """
  for cause in _causes(error):
    if type(cause).__module__.partition('.')[0] in ('urllib', 'requests'):
      return None  # Of a download, whose own message names the address and what to do.
    number = _error_number(cause)
    if number in _SYSTEM_ERRORS:
      fault, remedy = _SYSTEM_ERRORS[number]
      path = getattr(cause, 'filename', None) or _PATH.search(str(cause))
      where = f' at {path if isinstance(path, str) else path[0]}' if path else ''
      return f'{fault}{where}; {remedy} and run the same command: it goes on'
  return None


def _error_number(error: BaseException) -> int | None:
  if isinstance(error, OSError):
    return error.errno
  # TensorStore, which writes Orbax's checkpoints, has no exceptions of its own.
  code = re.search(r"\[os_error_code='(\d+)'", str(error))
  if code:
    return int(code[1])
  if _STORE_FAULT.match(str(error)):
    return errno.ETIMEDOUT
  if not isinstance(error, RuntimeError | ImportError):
    return None
  if "can't start new thread" in str(error):
    return errno.EAGAIN
  # ArrayRecord and the loader of shared libraries have the message alone.
  return next((number for number in _SYSTEM_ERRORS if os.strerror(number) in str(error)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__
