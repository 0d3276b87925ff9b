import pytest


@pytest.fixture
def small_tiles(monkeypatch):
  """Make many tiles of a few hundred sources."""
  # By name: the package is imported once its annotations can be checked.
  monkeypatch.setattr('sjft_jax.retrieval.knn.TILE', 64)
