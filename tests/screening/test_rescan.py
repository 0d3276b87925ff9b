"""Images that could not be read are looked at again at the next start."""

import errno
import pathlib

import numpy as np
import pytest
from small_run import write_folder

from sjft_jax.data import digests
from sjft_jax.data.decode import UnreadableError
from sjft_jax.data.folder import ClassFolder
from sjft_jax.screening.scan import find_unscanned, scan
from sjft_jax.screening.screen import exclude_unreadable


class Images:
  """Noise, in which some images cannot be read."""

  name = fingerprint = 'images'
  classes, labels = ('one',), np.zeros(5, np.int32)

  def __init__(self, *bad):
    self.bad, self.read = bad, []

  def __len__(self):
    return 5

  def read_image(self, index, *, min_side):
    self.read.append(index)
    if index in self.bad:
      raise UnreadableError('cannot be opened: Permission denied')
    return np.random.default_rng(index).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))


def test_what_failed_is_looked_at_again_and_nothing_else():
  assert list(scan(Images(1, 3)).bad) == [1, 3]
  mended = Images(3)
  result = scan(mended)
  assert (mended.read, list(result.bad)) == ([1, 3], [3])
  assert result.hashes[1].any()
  whole = Images()
  assert scan(whole).bad == {}
  assert whole.read == [1, 3]


def test_a_fault_that_passed_before_the_images_were_decoded_ends_the_call(tmp_path, monkeypatch):
  """The fingerprint with the digest of no content would never come again."""
  write_folder(tmp_path / 'data', 2, 2, seed=0)
  open_regular, faults = digests.open_regular, [OSError(errno.ESTALE, 'Stale file handle')]

  def fail_once(path):
    if path.endswith('stripes 0/1.png') and faults:
      raise faults.pop()
    return open_regular(path)

  monkeypatch.setattr(digests, 'open_regular', fail_once)
  data = ClassFolder(str(tmp_path / 'data'), '')
  with pytest.raises(ValueError, match=r'stripes 0/1\.png of data could not be read at first, and'):
    exclude_unreadable((data,), None, max_bad_share=0.5)
  again = ClassFolder(str(tmp_path / 'data'), '')
  assert exclude_unreadable((again,), None, max_bad_share=0.0) == (again,)


def test_cache_of_another_user_costs_time_alone(monkeypatch):
  """As where the program was called with sudo first."""
  exists = pathlib.Path.exists

  def refuse(path):
    if 'sjft_jax' in path.parts:
      raise PermissionError(errno.EACCES, 'Permission denied', str(path))
    return exists(path)

  monkeypatch.setattr(pathlib.Path, 'exists', refuse)
  assert scan(Images()).bad == {}
  assert len(find_unscanned([Images()])) == 1
