import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  """Give every test an empty cache of its own."""
  folder = tmp_path_factory.mktemp('cache')
  monkeypatch.setenv('XDG_CACHE_HOME', str(folder))
  return folder / 'sjft_jax'
