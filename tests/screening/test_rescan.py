"""Images that could not be read are looked at again at the next start."""

import numpy as np
import pytest

from sjft_jax.data.decode import UnreadableError
from sjft_jax.screening.scan import scan


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
