import numpy as np
import pytest


@pytest.fixture
def image():
  """Return a small image of noise."""
  return np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  """Give every test an empty cache of its own."""
  folder = tmp_path_factory.mktemp('cache')
  monkeypatch.setenv('XDG_CACHE_HOME', str(folder))
  return folder / 'sjft_jax'
