import errno
import subprocess
import sys

import pytest

from sjft_jax.runtime import cli

# What Orbax raises when TensorStore cannot write, with other names.
TENSORSTORE = (
  'RESOURCE_EXHAUSTED: Error writing "params.bias/0" in OCDBT database at local file '
  '"/disk/run/checkpoints/2.orbax-checkpoint-tmp/state/": Failed writing: "/disk/run/x/d/3d0": '
  "Failed to write 5881856 bytes to file 5: No space left on device [os_error_code='28']"
)


def test_a_full_disk_is_told_from_a_lost_one_with_place_and_remedy():
  full = cli.disk_error(OSError(errno.ENOSPC, 'No space left on device', '/disk/a.npz'))
  assert full == 'the disk is full at /disk/a.npz; make room and run the same command: it goes on'
  assert 'quota' in cli.disk_error(OSError(errno.EDQUOT, 'Disk quota exceeded'))
  assert 'network disk is gone' in cli.disk_error(OSError(errno.ESTALE, 'Stale file handle'))
  assert 'can only be read' in cli.disk_error(OSError(errno.EROFS, 'Read-only file system'))


def test_the_disk_is_found_behind_other_errors():
  try:
    try:
      raise ValueError(TENSORSTORE)
    except ValueError as error:
      raise RuntimeError('a thread failed') from error
  except RuntimeError as error:
    told = cli.disk_error(error)
  place = '/disk/run/checkpoints/2.orbax-checkpoint-tmp/state/'
  assert told == f'the disk is full at {place}; make room and run the same command: it goes on'


@pytest.mark.parametrize(
  'error',
  [
    ValueError('steps=0 is impossible'),
    FileNotFoundError(errno.ENOENT, 'No such file', 'images'),
    RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 28 bytes'),
  ],
)
def test_other_errors_are_not_the_disks(error):
  assert cli.disk_error(error) is None


@pytest.mark.parametrize(
  ('raised', 'status', 'expected'),
  [
    ('ValueError("steps=0")', 1, 'error: steps=0\n'),
    ('OSError(28, "No space", "a.npz")', 1, 'error: the disk is full at a.npz; make room'),
    ('RuntimeError("os_error_code=\'122\'") from OSError(122, "")', 1, 'error: the quota of this'),
    ('RuntimeError("a slip")', 1, 'Traceback'),
    ('KeyboardInterrupt()', 130, ''),
  ],
)
def test_an_expected_error_ends_in_one_line(raised, status, expected):
  program = (
    'from absl import app; from sjft_jax import door\n'
    f'def work(): raise {raised}\n'
    'app.run(lambda _: cli.run_command(work, stopped="Stopped."))'
  )
  ended = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
  assert ended.returncode == status
  assert ended.stderr.startswith(expected)
  if not expected.startswith('Traceback'):
    assert ended.stderr.count('\n') == bool(expected)
  assert ended.stdout == ('\nStopped.\n' if status == 130 else '')
