"""What a round leaves: its file, the table of its selection, and pictures of neighbours."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from etils import epath
from PIL import Image
from sample_rounds import make_domains, make_round

from sjft_jax import round_files
from sjft_jax.output import tables
from sjft_jax.output.image_grid import GAP, LINE, LINES, SIDE
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.selection.subset import Subset

RANKING = Ranking(
  np.array([[3, 1, 2, 0], [5, 4, 6, 7], [8, 9, 10, 11]], np.int32),
  np.arange(12, dtype=np.float32).reshape(3, 4) / 8,
)


@pytest.fixture
def trainer(tmp_path):
  return SimpleNamespace(
    directory=epath.Path(tmp_path / 'arms' / 'rounds'),
    fingerprint='this',
    domains=make_domains(),
    logging=SimpleNamespace(selection_format='auto'),
  )


def load_round(trainer):
  return round_files.load_round(trainer.directory, 1, trainer.fingerprint)


def test_a_round_is_loaded_as_it_was_saved(trainer):
  assert load_round(trainer) is None
  saved = dataclasses.replace(make_round(0.75, 0.25, 0.25, 0.5), device='8 × b')
  round_files.save_round(trainer, 1, saved)
  assert (trainer.directory / 'rounds' / '2' / 'round.npz').exists()
  loaded, expected = load_round(trainer), make_round(0.75, 0.25, 0.25, 0.5)
  assert (loaded.source_images, loaded.seconds, loaded.device) == (5, 1.5, '8 × b')
  for name in ('num_neighbors', 'hardness', 'is_correct'):
    np.testing.assert_array_equal(getattr(loaded, name), getattr(expected, name))
  assert loaded.test.keys() == {'center'}
  np.testing.assert_array_equal(loaded.test['center'], expected.test['center'])
  trainer.fingerprint = 'other'
  with pytest.raises(ValueError, match='made from other data'):
    load_round(trainer)


def read_selection(trainer, subset):
  round_files.save_selection(trainer, 0, subset, RANKING)
  path = trainer.directory / 'rounds' / '1' / 'selection.csv'
  table = pyarrow.csv.read_csv(path)
  assert table.column_names == ['target', 'source', 'rank', 'divergence']
  return table.to_pydict()


def test_a_selection_lists_each_target_with_its_neighbours(trainer):
  rows = read_selection(trainer, Subset(RANKING.indices, np.array([1, 3, 2])))
  assert rows['target'] == [0, 1, 1, 1, 2, 2]
  assert rows['source'] == [3, 5, 4, 6, 8, 9]
  assert rows['rank'] == [1, 1, 2, 3, 1, 2]
  np.testing.assert_allclose(rows['divergence'], [0, 0.5, 0.625, 0.75, 1, 1.125])


def test_a_shared_pool_is_listed_once_and_none_has_no_rows(trainer):
  rows = read_selection(trainer, Subset(np.array([[7, 2, 9]]), np.array([3, 3, 3])))
  assert rows['source'] == [2, 7, 9]
  assert rows['target'] == rows['rank'] == rows['divergence'] == [None] * 3
  assert read_selection(trainer, None)['source'] == []


def test_a_selection_in_another_format_replaces_the_earlier_one(trainer):
  subset = Subset(RANKING.indices, np.array([1, 3, 2]))
  rows = read_selection(trainer, subset)
  directory = trainer.directory / 'rounds' / '1'
  trainer.logging.selection_format = 'parquet'
  round_files.save_selection(trainer, 0, subset, RANKING)
  assert [path.name for path in directory.iterdir()] == ['selection.parquet']
  assert pyarrow.parquet.read_table(directory / 'selection.parquet').to_pydict() == {
    name: [None if value is None else str(value) for value in values]
    if name in ('target', 'source')
    else values
    for name, values in rows.items()
  }
  trainer.logging.selection_format = 'csv'
  assert read_selection(trainer, subset) == rows
  assert [path.name for path in directory.iterdir()] == ['selection.csv']


def test_a_large_selection_is_parquet_unless_another_format_is_asked_for(trainer, monkeypatch):
  monkeypatch.setattr(tables, 'MAX_CSV_ROWS', 5)
  subset = Subset(RANKING.indices, np.array([1, 3, 2]))  # Six rows.
  directory = trainer.directory / 'rounds' / '1'
  round_files.save_selection(trainer, 0, subset, RANKING)
  assert [path.name for path in directory.iterdir()] == ['selection.parquet']
  trainer.logging.selection_format = 'csv'
  round_files.save_selection(trainer, 0, subset, RANKING)
  assert [path.name for path in directory.iterdir()] == ['selection.csv']


def test_the_figure_has_a_row_for_each_class_and_a_column_for_each_rank(trainer, tmp_path):
  path = epath.Path(tmp_path / 'neighbors.png')
  ranking = Ranking(np.tile(np.arange(12, dtype=np.int32), (3, 1)), np.ones((3, 12), np.float32))
  round_files.save_neighbor_figure(path, trainer.domains, ranking)
  figure = round_files.neighbor_figure(trainer.domains, ranking, np.array([0, 1]))
  # A target image, its nearest neighbour and the tenth.
  assert figure.width == GAP + 3 * (SIDE + GAP)
  assert figure.height == GAP + LINE + 6 + 2 * (SIDE + LINES * LINE + GAP)
  with Image.open(path) as written:
    np.testing.assert_array_equal(np.asarray(written), np.asarray(figure))


def test_the_log_of_a_round_has_scores_and_the_hardest_images(trainer):
  round_ = make_round(0.75, 0.25, 0.25, 0.75)
  values = round_files.round_metrics(trainer.domains, round_, RANKING)
  assert set(values) == {'test_accuracy_center', 'hardness', 'num_neighbors', 'hardest'}
  assert values['test_accuracy_center'] == 0.5
  hardest = round_files.neighbor_figure(trainer.domains, RANKING, np.array([1, 2, 0]))
  np.testing.assert_array_equal(np.asarray(values['hardest']), np.asarray(hardest))
  no_ranking = Ranking(RANKING.indices[:, :0], RANKING.divergences[:, :0])
  values = round_files.round_metrics(trainer.domains, round_, no_ranking)
  assert set(values) == {'test_accuracy_center', 'hardness'}
