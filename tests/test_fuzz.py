"""Test of experiments/fuzz.py: it counts, goes on, and finds what is wrong."""

import json
import sys

import commands
import numpy as np
import pytest

from experiments import fuzz, fuzz_mutations, fuzz_parsers


def run(folder, *arguments):
  """Return the exit status and the counts of a short run."""
  command = [sys.executable, '-m', 'experiments.fuzz', f'--findings={folder}', '--json']
  process = commands.start([*command, *arguments])
  output, errors = process.communicate(timeout=300)
  assert output, errors
  return process.returncode, json.loads(output.splitlines()[-1])


def test_counts_add_up_over_calls(tmp_path):
  for minutes in (0.02, 0.03):
    status, tallies = run(tmp_path, '--parser=npz', f'--minutes={minutes}', '--seed=3')
    assert status == 0, tallies
    (tally,) = tallies.values()
    assert tally['inputs'] == sum(tally['outcomes'].values()) > 0
    assert tallies == json.loads((tmp_path / 'tallies.json').read_text())
  assert tally['outcomes']['refused'] > 10


@pytest.mark.slow
def test_some_parsers_have_no_finding_in_half_a_minute(tmp_path):
  names = ('torch', 'tiff', 'parquet', 'checkpoint')
  status, tallies = run(tmp_path, f'--parser={",".join(names)}', '--minutes=0.4', '--seed=4')
  assert status == 0, sorted(path.name for path in tmp_path.iterdir())
  assert sorted(tallies) == sorted(f'{name} 4' for name in names)


def test_inputs_are_a_function_of_their_number():
  content, others = b'{"a": [1, 2, {"b": "c"}]}' * 20, [b'x' * 100]
  first, second = (
    [fuzz_mutations.mutate(content, others, np.random.default_rng(n)) for n in range(50)]
    for _ in range(2)
  )
  assert first == second
  assert len(set(first)) > 40


@pytest.mark.parametrize(
  ('error', 'outcome'),
  [
    (KeyError('a'), 'KeyError'),
    (ValueError('of no file'), 'RuntimeError'),
    (ValueError('input.txt is damaged'), 'refused'),
    (None, 'accepted'),
  ],
)
def test_only_clear_errors_are_no_findings(tmp_path, monkeypatch, error, outcome):
  def write(folder):
    (folder / 'a.txt').write_bytes(b'a')

  def read(path):
    if error:
      raise error

  monkeypatch.setitem(fuzz.PARSERS, 'own', fuzz_parsers.Parser(write, read))
  inputs = fuzz._Input('own', tmp_path)
  path, changed = inputs.write(0, 1)
  assert path == changed == tmp_path / 'input.txt'
  try:
    result = inputs.read(path)
  except Exception as problem:
    result = type(problem).__name__
  assert result == outcome
