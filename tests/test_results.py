"""The results of a run, and the scores in them."""

import copy
import dataclasses
import functools
import json
import operator
from types import SimpleNamespace

import numpy as np
import pyarrow.csv
import pytest
from etils import epath
from sample_rounds import make_domains, make_images, make_round

from sjft_jax import config as configs
from sjft_jax import exports, results
from sjft_jax.data.dataset import SubsetDataset
from sjft_jax.report import scores
from sjft_jax.report.summary import print_table
from sjft_jax.runtime import artifacts, distributed
from sjft_jax.training import metrics, significance


def make_results(**rounds):
  """Return what results.json holds after these rounds of each arm."""
  summary = results.summarize(rounds, make_images([0, 0, 1, 1]), ('center',))
  start = {'fingerprint': 'this', 'seed': 0, 'device': '1 × cpu', 'seconds': {'rank': 1.5}}
  return json.loads(json.dumps(start | summary))


def test_all_devices_that_rounds_ended_on_are_named():
  rounds = [
    dataclasses.replace(make_round(0.75), device=device) for device in ('1 × a', '8 × b', '1 × a')
  ]
  assert results.devices([make_round(0.75), *rounds]) == '1 × a; 8 × b'
  # Those of an earlier version name none.
  assert results.devices([make_round(0.75)]) == distributed.describe_devices()


def test_the_split_is_written_where_it_was_drawn(tmp_path):
  path, domains = epath.Path(tmp_path / 'split.csv'), make_domains()
  results.save_split(path, domains, domains)
  assert not path.exists()
  whole = make_images([0, 1, 0, 1])
  train, test = (SubsetDataset(whole, np.array(part)) for part in ([0, 3], [1, 2]))
  drawn = domains._replace(target=train, test=test)
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
    results.save_split(path, domains, domains)
  assert path.exists()
  results.save_split(path, domains, domains)
  assert not path.exists()


def test_gains_are_over_plain_fine_tuning():
  baseline = make_round(0.75, 0.25, 0.25, 0.75, source_images=0)  # Two of four are right.
  first, last = make_round(0.75, 0.5, 0.75, 0.25), make_round(0.75, 0.75, 0.5, 0.25)
  rounds = {'none': [baseline], 'rounds': [first, last]}
  test = make_domains().test
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


def test_arms_without_neighbors_of_their_own_have_none_in_the_results():
  rounds = {arm: [make_round(0.75, 0.25, 0.25, 0.75)] for arm in ('none', 'rounds')}
  arms = results.summarize(rounds, make_domains().test, ('center',), ['none'])['arms']
  assert arms['none']['rounds'][0]['num_neighbors'] == {'mean': 0.0, 'max': 0}
  assert arms['rounds']['rounds'][0]['num_neighbors'] == {'mean': 3.0, 'max': 4}


def test_without_plain_fine_tuning_there_is_no_gain():
  rounds = {'constant': [make_round(0.75, 0.25, 0.25, 0.75)]}
  (row,) = results.summarize(rounds, make_domains().test, ('center',))['table']
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


def test_in_one_round_nothing_is_called_growing():
  rounds = {'rounds': [make_round(0.75, 0.25, 0.25, 0.75)]}
  (row,) = results.summarize(rounds, make_domains().test, ('center',))['table']
  assert row['name'] == 'selected'
  both = {'constant': rounds['rounds'], **rounds}
  table = results.summarize(both, make_domains().test, ('center',))['table']
  assert [row['name'] for row in table] == ['selected', 'selected, growing']
