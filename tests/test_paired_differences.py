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
  results = []
  for seed in (0, 1, 2):
    table = [
      {'name': name, 'source_images': 0, 'mean_class_accuracy': value + 0.01 * seed, 'top1': value}
      | scores
      for name, value, scores in ROWS
    ]
    results.append({'seed': seed, 'view': 'center', 'test_images': 10, 'table': table})
  folders = [tmp_path / name / 'seeds' for name in 'ab']
  for folder in folders:
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
  assert output.count(' − ') == 15  # Pairs of six rows.


@pytest.mark.slow
def test_rows_without_the_score_are_left_out(runs):
  output = compare(f'--run={runs[0]}', '--score=fused')
  assert 'nearest neighbours' not in output
  assert output.count(' ± ') == 2
