"""The arms that train no network: through the command line, predicted with, and where they fail."""

import csv
import json
import subprocess

import commands
import numpy as np
import pytest
import small_run
from sklearn.metrics.pairwise import cosine_distances

import sjft_jax
from sjft_jax.runtime import artifacts

OPTIONS = {
  'arms': ('knn', 'probe', 'none', 'similar'),
  'pretrain.steps': 0,
  'selection.rounds': 2,
  'evaluation.views': ('ten_crop', 'center'),
  'overrides.none.training.freeze': 'below:conv4',
}


def run(data, workdir, *more):
  """Run the command; return its output."""
  options = [f'--config.{name}={value}' for name, value in OPTIONS.items()]
  process = commands.start(small_run.command(data, workdir, *options, *more), subprocess.STDOUT)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  return output


@pytest.fixture(scope='module')
def finished(small_data, tmp_path_factory):
  """Return the work directory of a run, and its output."""
  workdir = tmp_path_factory.mktemp('arms') / 'run'
  return workdir, run(small_data, workdir)


def read_column(path, name):
  with path.open() as file:
    return {row[name] for row in csv.DictReader(file)}


def load_results(workdir):
  return artifacts.unseal(json.loads((workdir / 'results.json').read_text()))


@pytest.mark.slow
def test_closing_table_begins_with_what_the_trunk_knows_before_training(finished):
  workdir, output = finished
  assert output.index('linear probe') < output.index('round 1 of 2')
  results = load_results(workdir)
  names = [row['name'] for row in results['table']]
  assert names == ['nearest neighbours', 'linear probe', 'no source', 'selected by features']
  for arm in ('knn', 'probe'):
    (round_,) = results['arms'][arm]['rounds']
    assert round_['test'].keys() == {'ten_crop', 'center'}
    assert 'gain' in next(row for row in results['table'] if row['arm'] == arm)
    assert results['seconds'][f'train {arm}'] > 0
  page = (workdir / 'report.html').read_text()
  assert 'linear probe' in page
  assert 'nearest neighbours' in page


@pytest.mark.slow
def test_nearest_neighbour_is_that_of_the_kept_features(finished, small_data):
  workdir, output = finished
  features = np.load(workdir / 'features.npz')['features']
  assert features.shape == (12, 256)
  # Of the nearest images by these features, the votes of the run.
  k = int(output.partition('k = ')[2].split()[0])
  distances = cosine_distances(features)
  np.fill_diagonal(distances, 2)
  assert (distances >= -1e-6).all()
  round_ = np.load(workdir / 'arms/knn/rounds/1/round.npz')
  assert round_['is_correct'].all()  # Each training image is its own neighbour.
  p = round_['test/center']
  assert p.shape == (9, 3)
  assert (np.count_nonzero(p, axis=1) <= min(k, 3)).all()
  np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.slow
def test_pairs_of_the_similar_arm_are_those_of_the_ranking_by_features(finished):
  workdir, _ = finished
  ranking = np.load(workdir / 'feature_ranking.npz')
  assert ranking['indices'].shape == (12, 3)
  assert not (workdir / 'ranking.npz').exists()  # No arm needs it.
  with (workdir / 'arms/similar/rounds/2/selection.csv').open() as file:
    rows = list(csv.DictReader(file))
  divergences = [float(row['divergence']) for row in rows]
  np.testing.assert_allclose(divergences, ranking['divergences'].ravel(), rtol=1e-5)
  assert [int(row['rank']) for row in rows] == [1, 2, 3] * 12


@pytest.mark.slow
def test_classes_arm_borrows_whole_classes(small_data, tmp_path):
  changes = {'arms': ('classes', 'constant'), 'pretrain.steps': 0, 'selection.rounds': 1}
  results = sjft_jax.train(small_run.make_config(small_data, **changes), tmp_path / 'run')
  numbers = {arm: results['arms'][arm]['rounds'][0]['source_images'] for arm in changes['arms']}
  borrowed = read_column(tmp_path / 'run/arms/classes/rounds/1/selection.csv', 'source')
  left_out = read_column(tmp_path / 'run/duplicates.csv', 'source')
  source = small_data / 'source' / 'train'
  folders = {path.split('/')[0] for path in borrowed}
  images = {f'{folder}/{file.name}' for folder in folders for file in (source / folder).iterdir()}
  assert borrowed == images - left_out
  assert len(borrowed) == numbers['classes']
  assert numbers['classes'] >= numbers['constant'] > 0


@pytest.mark.slow
def test_probe_predicts_and_scores_as_the_run_did(finished, small_data):
  workdir, _ = finished
  classifier = sjft_jax.load(workdir / 'arms' / 'probe')
  round_ = np.load(workdir / 'arms/probe/rounds/1/round.npz')
  test = small_data / 'target' / 'test'
  for view in ('ten_crop', 'center'):
    p = classifier.predict(test, view=view)
    np.testing.assert_allclose(p, round_[f'test/{view}'], rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(classifier.predict(test, view='center', fused=True), p)
  # The head is the regression on the kept features, and every training image is right or not by it.
  features = np.load(workdir / 'features.npz')['features']
  head = classifier.network.params['target']
  labels = np.repeat(np.arange(3), 4)
  is_correct = (features @ head['kernel'] + head['bias']).argmax(axis=1) == labels
  np.testing.assert_array_equal(is_correct, round_['is_correct'])
  assert is_correct.mean() > 0.5
  with pytest.raises(ValueError, match=r'arms/knn has no network, .*; give another arm'):
    sjft_jax.load(workdir / 'arms' / 'knn')


@pytest.mark.slow
def test_finished_arms_are_not_repeated_and_lost_ones_are_the_same(finished, small_data):
  workdir, _ = finished
  results = load_results(workdir)
  before = np.load(workdir / 'arms/probe/rounds/1/round.npz')['test/center']
  (workdir / 'arms/probe/rounds/1/round.npz').unlink()
  output = run(small_data, workdir)
  # The neighbours, two rounds of both arms that train, and the ranking by features.
  assert output.count('done before') == 6
  assert 'C = ' in output
  after = np.load(workdir / 'arms/probe/rounds/1/round.npz')['test/center']
  np.testing.assert_array_equal(after, before)
  again = load_results(workdir)
  for row, other in zip(results['table'], again['table'], strict=True):
    assert row == other


@pytest.mark.slow
def test_a_layer_that_the_trunk_lacks_ends_the_run_with_a_line(small_data, tmp_path):
  command = small_run.command(small_data, tmp_path / 'run', '--config.training.freeze=below:conv9')
  error = commands.refusal(commands.start(command))
  assert "training: freeze='below:conv9' is impossible" in error
  assert 'conv2, conv3, conv4, conv5' in error
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_lower_layers_of_an_arm_stay_as_they_start(finished):
  workdir, _ = finished
  # The probe's network has the trunk that training starts from.
  start, end = (sjft_jax.load(workdir / 'arms' / arm).network.params for arm in ('probe', 'none'))
  for layer, values in start['trunk'].items():
    is_equal = all(np.array_equal(values[name], end['trunk'][layer][name]) for name in values)
    assert is_equal == (layer in ('conv1', 'conv2', 'conv3')), layer
