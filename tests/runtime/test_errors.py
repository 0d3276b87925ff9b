import errno

import pytest

from sjft_jax.runtime.errors import system_error

# What Orbax raises when TensorStore cannot write, with other names.
TENSORSTORE = (
  'RESOURCE_EXHAUSTED: Error writing "params.bias/0" in OCDBT database at local file '
  '"/disk/run/checkpoints/2.orbax-checkpoint-tmp/state/": Failed writing: "/disk/run/x/d/3d0": '
  "Failed to write 5881856 bytes to file 5: No space left on device [os_error_code='28']"
)


def test_system_errors_name_the_fault_the_place_and_the_remedy():
  full = system_error(OSError(errno.ENOSPC, 'No space left on device', '/disk/a.npz'))
  assert full == 'the disk is full at /disk/a.npz; make room and run the same command: it goes on'
  assert 'quota' in system_error(OSError(errno.EDQUOT, 'Disk quota exceeded'))
  assert 'network disk is gone' in system_error(OSError(errno.ESTALE, 'Stale file handle'))
  assert 'can only be read' in system_error(OSError(errno.EROFS, 'Read-only file system'))


def test_system_error_behind_other_errors_is_found():
  try:
    try:
      raise ValueError(TENSORSTORE)
    except ValueError as error:
      raise RuntimeError('a thread failed') from error
  except RuntimeError as error:
    message = system_error(error)
  path = '/disk/run/checkpoints/2.orbax-checkpoint-tmp/state/'
  assert message == f'the disk is full at {path}; make room and run the same command: it goes on'


@pytest.mark.parametrize(
  ('error', 'message'),
  [
    (
      RuntimeError('write() failed: No space left on device; writing /data/x/train.0; at byte 8'),
      'the disk is full at /data/x/train.0; make room and run the same command: it goes on',
    ),
    (ImportError('libx.so: cannot open shared object file: Too many open files'), 'ulimit -n'),
    (RuntimeError("can't start new thread"), 'ulimit -u'),
    (OSError(errno.EFBIG, 'File too large', 'a.npz'), 'a file may not grow so large at a.npz'),
  ],
)
def test_limits_of_the_system_are_named(error, message):
  assert message in system_error(error)


@pytest.mark.parametrize(
  'error',
  [
    ValueError('a.png cannot be opened: Permission denied'),
    ValueError('steps=0 is impossible'),
    FileNotFoundError(errno.ENOENT, 'No such file', 'images'),
    RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 28 bytes'),
  ],
)
def test_other_errors_are_not_system_errors(error):
  assert system_error(error) is None
