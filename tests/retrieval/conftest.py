import pytest

from sjft_jax.retrieval import knn


@pytest.fixture
def small_tiles(monkeypatch):
  """Make many tiles of a few hundred sources."""
  monkeypatch.setattr(knn, 'TILE', 64)
