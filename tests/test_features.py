"""Ranking by features, with features that are made up, against a plain sort."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from data.numbered import NumberedDataset
from etils import epath
from sklearn.metrics.pairwise import cosine_distances

from sjft_jax import features
from sjft_jax.data.dataset import Domains

NUM_TARGET, NUM_SOURCE = 5, 40


@dataclass(frozen=True)
class FakeEvaluator:
  """Calls its step with the pixels of all images."""

  predict_step: Callable[..., np.ndarray] | None = None

  def __call__(self, state, data, view):
    assert view == 'center'
    return self.predict_step(np.stack([data[i][0, 0] for i in range(len(data))]))


@pytest.fixture
def trainer(tmp_path):
  """Return a trainer whose features are those of a table, and how many images it has seen."""
  rng = np.random.default_rng(0)
  table = rng.normal(size=(2, NUM_SOURCE, 7)).astype(np.float32)
  table[1, 3] = 0  # No filter responds to it.
  table[1, 9] = 2 * table[1, 8]  # At equal distance to everything.
  seen = []

  def feature_step(pixels):
    seen.append(len(pixels))
    return table[pixels[:, 0], pixels[:, 1]]

  return SimpleNamespace(
    directory=epath.Path(tmp_path / 'arms' / 'similar'),
    fingerprint='this',
    domains=Domains(
      NumberedDataset('target', np.arange(NUM_TARGET) % 3),
      NumberedDataset('test', [0]),
      NumberedDataset('source', np.arange(NUM_SOURCE) % 3, domain=1),
    ),
    evaluator=FakeEvaluator(),
    feature_step=feature_step,
    table=table,
    seen=seen,
  )


VARIABLES = {'params': {}, 'batch_stats': {}}


def test_neighbours_are_the_nearest_by_cosine_whatever_the_blocks(trainer, monkeypatch):
  monkeypatch.setattr(features, '_BLOCK', 7)
  ranking = features.load_or_rank_by_cosine(trainer, VARIABLES, 30)
  distances = cosine_distances(trainer.table[0, :NUM_TARGET], trainer.table[1])
  distances[:, 9] = distances[:, 8]
  expected = np.argsort(distances, axis=1, kind='stable')[:, :30]
  np.testing.assert_array_equal(np.sort(ranking.indices), np.sort(expected))
  np.testing.assert_allclose(
    ranking.divergences, np.take_along_axis(distances, expected, axis=1), atol=1e-6
  )
  assert (np.diff(ranking.divergences) >= 0).all()


def test_ties_are_in_order_of_index_in_a_short_last_block_too(trainer, monkeypatch):
  monkeypatch.setattr(features, '_BLOCK', 32)
  # So many features that OpenBLAS sums the products of 8 and of 32 images in another order.
  table = np.random.default_rng(1).random((2, NUM_SOURCE, 8192), np.float32)
  table[1, 32:] = table[1, :8]
  trainer.feature_step = lambda pixels: table[pixels[:, 0], pixels[:, 1]]
  ranking = features.load_or_rank_by_cosine(trainer, VARIABLES, NUM_SOURCE)
  for order in ranking.indices.tolist():
    assert [order.index(i + 32) - order.index(i) for i in range(8)] == [1] * 8


def test_features_and_ranking_are_computed_once(trainer):
  first = features.load_or_rank_by_cosine(trainer, VARIABLES, 4)
  assert trainer.seen == [NUM_TARGET, NUM_SOURCE]
  again = features.load_or_rank_by_cosine(trainer, VARIABLES, 4)
  np.testing.assert_array_equal(first.indices, again.indices)
  np.testing.assert_array_equal(
    features.load_or_compute(trainer, VARIABLES), trainer.table[0, :NUM_TARGET]
  )
  assert trainer.seen == [NUM_TARGET, NUM_SOURCE]
  trainer.fingerprint = 'other'
  with pytest.raises(ValueError, match='made from other data'):
    features.load_or_compute(trainer, VARIABLES)
