"""The files that a run leaves, and the scores in them."""

import copy
import dataclasses
import functools
import json
import operator
from types import SimpleNamespace

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from etils import epath
from PIL import Image

from sjft_jax import config as configs
from sjft_jax import exports, results
from sjft_jax.data.dataset import Domains, ImageArrays, SubsetDataset
from sjft_jax.output import tables
from sjft_jax.output.image_grid import GAP, LINE, LINES, SIDE
from sjft_jax.report import scores
from sjft_jax.report.summary import print_table
from sjft_jax.results import Round
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.runtime import artifacts
from sjft_jax.selection.subset import Subset
from sjft_jax.training import metrics, significance

CLASSES = ('a', 'b, c')


def make_images(labels):
  size = len(labels)
  rng = np.random.default_rng(size)
  images = ImageArrays(rng.integers(0, 256, (size, 8, 8, 3), np.uint8))
  images.classes, images.labels = CLASSES, np.array(labels, np.int32)
  return images


@pytest.fixture
def trainer(tmp_path):
  domains = Domains(make_images([0, 1, 1]), make_images([0, 0, 1, 1]), make_images([0] * 12))
  return SimpleNamespace(
    directory=epath.Path(tmp_path / 'arms' / 'rounds'),
    fingerprint='this',
    domains=domains,
    logging=SimpleNamespace(selection_format='auto'),
  )


def make_round(*test, source_images=5, seconds=1.5):
  """Return a round after which the test images have these probabilities of the first class."""
  p = np.array(test, np.float32)
  return Round(
    num_neighbors=np.array([2, 4, 3]),
    source_images=source_images,
    hardness=np.array([0.1, 0.6, 0.2]),
    is_correct=np.array([True, False, True]),
    test={'center': np.stack([p, 1 - p], axis=1)},
    seconds=seconds,
  )


def make_results(**rounds):
  """Return what results.json holds after these rounds of each arm."""
  summary = results.summarize(rounds, make_images([0, 0, 1, 1]), ('center',))
  start = {'fingerprint': 'this', 'seed': 0, 'device': '1 × cpu', 'seconds': {'rank': 1.5}}
  return json.loads(json.dumps(start | summary))


RANKING = Ranking(
  np.array([[3, 1, 2, 0], [5, 4, 6, 7], [8, 9, 10, 11]], np.int32),
  np.arange(12, dtype=np.float32).reshape(3, 4) / 8,
)


def test_a_round_is_loaded_as_it_was_saved(trainer):
  assert results.load_round(trainer, 1) is None
  results.save_round(trainer, 1, make_round(0.75, 0.25, 0.25, 0.5))
  assert (trainer.directory / 'rounds' / '2' / 'round.npz').exists()
  loaded, expected = results.load_round(trainer, 1), make_round(0.75, 0.25, 0.25, 0.5)
  assert (loaded.source_images, loaded.seconds, loaded.device) == (5, 1.5, '')
  for name in ('num_neighbors', 'hardness', 'is_correct'):
    np.testing.assert_array_equal(getattr(loaded, name), getattr(expected, name))
  assert loaded.test.keys() == {'center'}
  np.testing.assert_array_equal(loaded.test['center'], expected.test['center'])
  trainer.fingerprint = 'other'
  with pytest.raises(ValueError, match='made from other data'):
    results.load_round(trainer, 1)


def test_all_devices_that_rounds_ended_on_are_named(trainer):
  rounds = [
    dataclasses.replace(make_round(0.75), device=device) for device in ('1 × a', '8 × b', '1 × a')
  ]
  results.save_round(trainer, 1, rounds[1])
  rounds[1] = results.load_round(trainer, 1)
  assert results.devices([make_round(0.75), *rounds]) == '1 × a; 8 × b'
  assert results.devices([make_round(0.75)]) == results.device()  # Of an earlier version.


def read_selection(trainer, subset):
  results.save_selection(trainer, 0, subset, RANKING)
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
  results.save_selection(trainer, 0, subset, RANKING)
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
  results.save_selection(trainer, 0, subset, RANKING)
  assert [path.name for path in directory.iterdir()] == ['selection.parquet']
  trainer.logging.selection_format = 'csv'
  results.save_selection(trainer, 0, subset, RANKING)
  assert [path.name for path in directory.iterdir()] == ['selection.csv']


def test_the_split_is_written_where_it_was_drawn(trainer, tmp_path):
  path = epath.Path(tmp_path / 'split.csv')
  results.save_split(path, trainer.domains, trainer.domains)
  assert not path.exists()
  whole = make_images([0, 1, 0, 1])
  train, test = (SubsetDataset(whole, np.array(part)) for part in ([0, 3], [1, 2]))
  drawn = trainer.domains._replace(target=train, test=test)
  results.save_split(path, drawn, drawn)
  rows = {
    'image': [0, 3, 1, 2],
    'class': ['a', 'b, c', 'b, c', 'a'],
    'set': ['train', 'train', 'test', 'test'],
  }
  assert pyarrow.csv.read_csv(path).to_pydict() == rows
  # A copy of a test image, and a test image that cannot be read.
  screened = [SubsetDataset(data, np.array([1])) for data in (train, test)]
  results.save_split(path, drawn, drawn._replace(target=screened[0], test=screened[1]))
  rows['set'] = ['left out', 'train', 'left out', 'test']
  assert pyarrow.csv.read_csv(path).to_pydict() == rows
  assert results.count_trained(path, ['0', '3', '1', '2']) == 1
  with artifacts.suppress_writes(epath.Path(tmp_path)):
    results.save_split(path, trainer.domains, trainer.domains)
  assert path.exists()
  results.save_split(path, trainer.domains, trainer.domains)
  assert not path.exists()


def test_the_figure_has_a_row_for_each_class_and_a_column_for_each_rank(trainer, tmp_path):
  path = epath.Path(tmp_path / 'neighbors.png')
  ranking = Ranking(np.tile(np.arange(12, dtype=np.int32), (3, 1)), np.ones((3, 12), np.float32))
  results.save_neighbor_figure(path, trainer.domains, ranking)
  figure = results.neighbor_figure(trainer.domains, ranking, np.array([0, 1]))
  # A target image, its nearest neighbour and the tenth.
  assert figure.width == GAP + 3 * (SIDE + GAP)
  assert figure.height == GAP + LINE + 6 + 2 * (SIDE + LINES * LINE + GAP)
  with Image.open(path) as written:
    np.testing.assert_array_equal(np.asarray(written), np.asarray(figure))


def test_the_log_of_a_round_has_scores_and_the_hardest_images(trainer):
  round_ = make_round(0.75, 0.25, 0.25, 0.75)
  values = results.round_metrics(trainer.domains, round_, RANKING)
  assert set(values) == {'test_accuracy_center', 'hardness', 'num_neighbors', 'hardest'}
  assert values['test_accuracy_center'] == 0.5
  hardest = results.neighbor_figure(trainer.domains, RANKING, np.array([1, 2, 0]))
  np.testing.assert_array_equal(np.asarray(values['hardest']), np.asarray(hardest))
  no_ranking = Ranking(RANKING.indices[:, :0], RANKING.divergences[:, :0])
  values = results.round_metrics(trainer.domains, round_, no_ranking)
  assert set(values) == {'test_accuracy_center', 'hardness'}


def test_gains_are_over_plain_fine_tuning(trainer):
  baseline = make_round(0.75, 0.25, 0.25, 0.75, source_images=0)  # Two of four are right.
  first, last = make_round(0.75, 0.5, 0.75, 0.25), make_round(0.75, 0.75, 0.5, 0.25)
  rounds = {'none': [baseline], 'rounds': [first, last]}
  test = trainer.domains.test
  summary = results.summarize(rounds, test, ('center',))
  assert (summary['test_images'], summary['view']) == (4, 'center')
  plain, growing = summary['table']
  assert [row['name'] for row in summary['table']] == ['no source', 'selected, growing']
  assert [row['source_images'] for row in summary['table']] == [0, 5]
  assert 'gain' not in plain
  assert plain['top1'] == plain['mean_class_accuracy'] == 0.5
  p = last.test['center']
  gain = significance.paired_gain(
    p.argmax(1) == test.labels, baseline.test['center'].argmax(1) == test.labels, test.labels
  )
  assert {name: growing[name] for name in gain._fields} == gain._asdict()
  assert growing['is_significant'] is False
  assert growing['cross_entropy'] == pytest.approx(metrics.cross_entropy(p, test.labels))
  arms = summary['arms']
  assert [len(arm['rounds']) for arm in arms.values()] == [1, 2]
  assert 'fused' not in arms['none']
  fused = (first.test['center'] + last.test['center']) / 2
  assert arms['rounds']['fused']['center']['top1'] == metrics.top1(fused, test.labels)
  assert growing['fused'] == arms['rounds']['fused']['center']['mean_class_accuracy']
  assert arms['rounds']['rounds'][0] == {
    'source_images': 5,
    'num_neighbors': {'mean': 3.0, 'max': 4},
    'hardness': pytest.approx(0.3),
    'training_accuracy': pytest.approx(2 / 3),
    'seconds': 1.5,
    'test': {
      'center': {
        'mean_class_accuracy': metrics.mean_class_accuracy(first.test['center'], test.labels, 2),
        'top1': metrics.top1(first.test['center'], test.labels),
        'cross_entropy': metrics.cross_entropy(first.test['center'], test.labels),
      }
    },
  }


def test_arms_without_neighbors_of_their_own_have_none_in_the_results(trainer):
  rounds = {arm: [make_round(0.75, 0.25, 0.25, 0.75)] for arm in ('none', 'rounds')}
  arms = results.summarize(rounds, trainer.domains.test, ('center',), ['none'])['arms']
  assert arms['none']['rounds'][0]['num_neighbors'] == {'mean': 0.0, 'max': 0}
  assert arms['rounds']['rounds'][0]['num_neighbors'] == {'mean': 3.0, 'max': 4}


def test_without_plain_fine_tuning_there_is_no_gain(trainer):
  rounds = {'constant': [make_round(0.75, 0.25, 0.25, 0.75)]}
  (row,) = results.summarize(rounds, trainer.domains.test, ('center',))['table']
  assert row['name'] == 'selected'
  assert 'gain' not in row


def test_results_of_other_data_or_without_their_files_are_none(tmp_path, capsys):
  workdir = epath.Path(tmp_path)
  assert results.load_results(workdir, 'this') is None
  saved = make_results(none=[make_round(0.75, 0.25, 0.25, 0.75)])
  artifacts.write_json(workdir / 'results.json', saved)
  needed = ['config.json', 'network.json', 'test_images.npz', 'ranking.npz']
  needed.append('arms/none/rounds/1/round.npz')
  for name in needed:
    assert results.load_results(workdir, 'this') is None
    assert f'{workdir / name} is missing' in ''.join(capsys.readouterr().out.splitlines())
    (workdir / name).parent.mkdir(parents=True, exist_ok=True)
    (workdir / name).touch()
  assert results.load_results(workdir, 'this') == saved
  with pytest.raises(ValueError, match=r'results\.json was made from other data or weights; use a'):
    results.load_results(workdir, 'other')


def places(value, place=()):
  """Yield the way to every value within a value of JSON."""
  for key in value if isinstance(value, dict) else range(len(value)):
    yield (*place, key)
    if isinstance(value[key], dict | list):
      yield from places(value[key], (*place, key))


def show(saved):
  """Show results in every way that commands do."""
  print_table(saved)
  run = SimpleNamespace(results=saved, title=str, rounds={}, config=configs.default())
  for section in (scores.make_answer, scores.score_section, scores.fusion_section):
    section(run)
  for arm in saved['arms']:
    exports._describe_gain(saved, arm)
    for round_ in saved['arms'][arm]['rounds']:
      assert f'{round_["source_images"]:,} {round_["num_neighbors"]["mean"]:,.1f}'


def test_forged_results_are_refused_or_can_be_shown(tmp_path):
  """Whatever is deleted or put in its place, with the right checksum."""
  workdir, messages, shown = epath.Path(tmp_path), [], 0
  test = make_round(0.75, 0.75, 0.5, 0.25), make_round(0.75, 0.5, 0.75, 0.25)
  saved = make_results(none=[make_round(0.75, 0.25, 0.25, 0.75)], rounds=test)
  values = None, 'x', -1, 10**400, True, [], {}, [{}], {'x': {}}, float('nan'), float('-inf')
  for *way, last in places(saved):
    for value in (..., *values):
      forged = copy.deepcopy(saved)
      part = functools.reduce(operator.getitem, way, forged)
      if value is ...:
        del part[last]
      else:
        part[last] = value
      artifacts.write_json(workdir / 'results.json', forged)
      try:
        show(results.read_results(workdir))
        shown += 1
      except ValueError as error:
        messages.append(str(error))
  assert len(messages) > shown > 0
  start = f'{workdir}/results.json is damaged: '
  assert all(m.startswith(start) and m.endswith(artifacts.REMEDY) for m in messages)


def test_results_of_repeats_are_none_of_a_run(tmp_path):
  results_of_repeats = {'seeds': [0, 1], 'view': 'center', 'test_images': 2, 'table': []}
  artifacts.write_json(epath.Path(tmp_path / 'results.json'), results_of_repeats)
  with pytest.raises(ValueError, match='holds several repeats; give one of them: .*/repeat1$'):
    results.read_results(epath.Path(tmp_path))


def test_in_one_round_nothing_is_called_growing(trainer):
  rounds = {'rounds': [make_round(0.75, 0.25, 0.25, 0.75)]}
  (row,) = results.summarize(rounds, trainer.domains.test, ('center',))['table']
  assert row['name'] == 'selected'
  both = {'constant': rounds['rounds'], **rounds}
  table = results.summarize(both, trainer.domains.test, ('center',))['table']
  assert [row['name'] for row in table] == ['selected', 'selected, growing']
