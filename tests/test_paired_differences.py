"""The comparison of arms over seeds: rows that have the same title, or not every score."""

import sys

import commands
import pytest
from etils import epath

from sjft_jax import repeats
from sjft_jax.runtime import artifacts

ROWS = (
  ('nearest neighbours', 0.5, {}),
  ('selected', 0.7, {'fused': 0.72}),
  ('selected', 0.8, {'fused': 0.82}),
)


@pytest.fixture
def runs(tmp_path):
  """Return two work directories with repeats, whose folders have the same name."""
  folders = [tmp_path / name / 'seeds' for name in 'ab']
  for number, folder in enumerate(folders):
    results = []
    for seed in (0, 1, 2):
      table = [
        # In the second run, an arm has one or two points more for each arm above it.
        {'name': name, 'mean_class_accuracy': value + 0.01 * (seed + number * row), 'top1': value}
        | {'source_images': 0, **scores}
        for row, (name, value, scores) in enumerate(ROWS)
      ]
      results.append({'seed': seed, 'view': 'center', 'test_images': 10, 'table': table})
    folder.mkdir(parents=True)
    artifacts.write_json(epath.Path(folder) / 'results.json', repeats.summarize(results))
  return folders


def compare(*options):
  command = [sys.executable, '-m', 'experiments.paired_differences', *options]
  output, errors = commands.start(command, COLUMNS='500').communicate(timeout=300)
  assert 'per cent' in output, errors
  return output


@pytest.mark.slow
def test_rows_of_one_title_and_runs_of_one_name_are_all_compared(runs):
  output = compare(f'--run={runs[0]}')
  assert 'selected, row 3 − selected ' in output
  output = compare(*(f'--run={run}' for run in runs))
  assert output.count(' ± ') == 6
  assert output.count(' − ') == 15 + 3  # Pairs of six rows, and of the three arms of both runs.
  (line,) = (
    line for line in output.splitlines() if 'selected − nearest' in line and 'less' in line
  )
  assert line.startswith(f'│ {runs[0]}: selected − nearest neighbours, less {runs[1]} ')
  assert ''.join(line.split()).endswith('│-1.0│-1.0to-1.0│')


@pytest.mark.slow
def test_rows_without_the_score_are_left_out(runs):
  output = compare(f'--run={runs[0]}', '--score=fused')
  assert 'nearest neighbours' not in output
  assert output.count(' ± ') == 2


@pytest.mark.slow
def test_a_run_of_one_round_has_nothing_fused_to_compare(runs):
  path = epath.Path(runs[0]) / 'results.json'
  results = artifacts.load_json(path, {})
  for row in results['table']:
    row.pop('fused', None)
  artifacts.write_json(path, results)
  command = [sys.executable, '-m', 'experiments.paired_differences', f'--run={runs[0]}']
  _, errors = commands.start([*command, '--score=fused']).communicate(timeout=300)
  assert f'{runs[0]} has no rounds to fuse' in errors


@pytest.mark.slow
def test_a_run_without_repeats_is_not_called_damaged(tmp_path):
  artifacts.write_json(
    epath.Path(tmp_path) / 'results.json', {'seed': 0, 'view': 'center', 'table': []}
  )
  for run, message in ((tmp_path, 'is a single run'), (tmp_path / 'x', 'has no results.json')):
    command = [sys.executable, '-m', 'experiments.paired_differences', f'--run={run}']
    _, errors = commands.start(command).communicate(timeout=300)
    assert message in errors
    assert 'Traceback' not in errors
    assert 'delete' not in errors


@pytest.mark.slow
def test_runs_that_are_scored_in_different_views_are_refused(runs):
  path = epath.Path(runs[1]) / 'results.json'
  results = artifacts.load_json(path, {})
  artifacts.write_json(path, results | {'view': 'ten_crop'})
  command = [sys.executable, '-m', 'experiments.paired_differences', *(f'--run={r}' for r in runs)]
  _, errors = commands.start(command).communicate(timeout=300)
  assert 'the runs are scored in different views: center, ten_crop' in errors
