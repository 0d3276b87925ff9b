import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """Give every test an empty cache of its own."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache/sjft_jax'
