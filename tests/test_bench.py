"""Tests of experiments/bench.py, with the cost model, the page, and processes that take turns."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
from absl import flags

from experiments import bench, bench_page, bench_results, cost_model, turns
from experiments.turns import Task, run_tasks

# Other tests import commands, which have flags of the same names.
flags.FLAGS.remove_flag_values(flag.name for flag in flags.FLAGS.get_flags_for_module(bench))

ROOT = Path(__file__).parents[1]
# Says when it is alone, and for how long.
TIMED = """
import json, sys, time
from experiments.timing import exclusive
for _ in range(int(sys.argv[1])):
  with exclusive():
    start = time.monotonic()
    time.sleep(0.3)
    end = time.monotonic()
  print(json.dumps({f'turn {start}': end}), flush=True)
"""
# Never stops working by itself.
BUSY = """
import json, time
longest, last = 0.0, time.monotonic()
print(json.dumps({'start': last}), flush=True)
while True:
  now = time.monotonic()
  if now - last > 0.2:
    print(json.dumps({f'stopped {last}': now}), flush=True)
  last = now
  time.sleep(0.001)
"""


def run(*tasks, **options):
  """Run tasks; return the last record of each."""
  records = {}
  defaults = {'side_by_side': 8, 'limit': 60, 'turn_limit': 30}
  run_tasks(tasks, **defaults | options, report=records.__setitem__)
  return records


def python(name, program, *arguments, group=''):
  environment = {'PYTHONPATH': str(ROOT)}
  return Task(name, [sys.executable, '-c', program, *arguments], group, environment)


@pytest.mark.slow
def test_processes_are_alone_in_their_turns():
  records = run(
    python('a', TIMED, '2', group='pair'),
    python('busy', BUSY),
    python('b', TIMED, '2', group='pair'),
    limit=30,
  )
  assert [records[name]['status'] for name in 'ab'] == ['done', 'done']
  all_turns = sorted(
    (float(name.split()[1]), end, task)
    for task in 'ab'
    for name, end in records[task]['figures'].items()
  )
  assert all(end <= start for (_, end, _), (start, _, _) in itertools.pairwise(all_turns))
  # Neither of a pair has a second turn before the other one's first.
  assert {task for *_, task in all_turns[:2]} == {'a', 'b'}
  # The other one, which never ends, was stopped in each turn, and at the limit for good.
  busy = records['busy']
  assert busy['status'] == 'stopped at the limit'
  stops = [(float(k.split()[1]), v) for k, v in busy['figures'].items() if k != 'start']
  running = [turn for turn in all_turns if turn[0] > busy['figures']['start']]
  for start, end, _ in running:
    assert any(first <= start + 0.1 and end - 0.1 <= last for first, last in stops)


def test_a_failure_is_recorded_and_the_others_go_on():
  records = run(
    python('fails', "print('{\"before\": 1}'); raise ValueError('too bad')"),
    python('works', "print('no json'); print('{\"x\": 2}')"),
  )
  assert records['fails']['status'] == 'failed with status 1'
  assert records['fails']['figures'] == {'before': 1}
  assert records['fails']['error'][-1] == 'ValueError: too bad'
  assert records['works']['status'] == 'done'
  assert records['works']['figures'] == {'x': 2}


@pytest.mark.slow
def test_what_hangs_in_its_turn_is_killed_and_the_next_one_has_it():
  hangs = TIMED.replace('time.sleep(0.3)', 'time.sleep(100)')
  records = run(python('hangs', hangs, '1'), python('waits', TIMED, '1'), turn_limit=1)
  assert records['hangs']['status'].startswith('killed after 1 s')
  assert records['waits']['status'] == 'done'


@pytest.mark.slow
def test_near_the_limit_nobody_waits_for_the_rest_of_a_group(monkeypatch):
  monkeypatch.setattr(turns, '_LATE_SHARE', 0.9)
  records = run(
    python('slow', 'import time; time.sleep(100)', group='pair'),
    python('ready', TIMED, '1', group='pair'),
    python('last', 'pass'),
    limit=25,
    side_by_side=2,
  )
  assert records['ready']['status'] == 'done'
  assert records['slow']['status'] == 'stopped at the limit'
  assert records['last']['status'] == 'done'


def synthetic_rankings(overlaps, noise=0.0):
  """Return rows of rankings that follow the model."""
  rng, rows, targets, filters = np.random.default_rng(0), [], 1000, 352
  for bins in (16, 100):
    for sources in (8_000, 24_000, 64_000):
      for k in (1000,) if sources != 24_000 else (100, 1000, 5000):
        terms = [targets * filters * bins * 4e-13, targets * 2e-9 * (1 + k / 4000)]
        per_source = max(terms) if overlaps else sum(terms)
        seconds = (0.2 + sources * per_source) * np.exp(noise * rng.normal())
        rows.append({'bins': bins, 'sources': sources, 'k': k, 'seconds': seconds})
  return rows


def make_measurements(rows):
  return {
    'product': {'figures': {'rows': rows, 'targets': 1000, 'filters': 352}},
    'description alexnet': {'figures': {'64 at once': {'images_per_second': 5000.0}}},
    'loading': {'figures': {'threads': {'images_per_second': 8000.0}}},
    'step': {'figures': {'images_per_second': 900.0}},
  }


@pytest.mark.parametrize('overlaps', [True, False])
def test_the_cost_model_finds_the_rates_behind_rankings(overlaps):
  model = cost_model.fit(make_measurements(synthetic_rankings(overlaps, noise=0.02)))
  assert model.overlaps == overlaps
  assert abs(model.check.error) < 0.1
  np.testing.assert_allclose(model.product, 4e-13, rtol=0.1)
  # One device, and eight of them: an eighth of each stage.
  one, eight = (cost_model.predict(model, cost_model.SCALES[0]._replace(devices=n)) for n in (1, 8))
  np.testing.assert_allclose(one['product'], 1_281_167 * 12_000 * 352 * 100 * model.product)
  np.testing.assert_allclose(list(one.values()), [8 * seconds for seconds in eight.values()])
  assert one['decode'] == pytest.approx(1_281_167 / 8000)


def test_the_cost_model_says_when_it_fails_the_held_out_ranking():
  rows = synthetic_rankings(True)
  rows[-1]['seconds'] *= 2
  text = ' '.join(cost_model.describe(cost_model.fit(make_measurements(rows))))
  assert '-50%, NOT within 20%' in text


def test_the_cost_model_names_what_is_missing():
  measurements = make_measurements(synthetic_rankings(True))
  del measurements['loading']
  with pytest.raises(ValueError, match='loading / threads / images_per_second'):
    cost_model.fit(measurements)


def test_ratios_are_of_turns_against_the_faster_rival():
  measurements = {
    'step x ours': {'figures': {'seconds': {'ours': [1.0, 2.0, 1.0], 'product': [9, 9, 9]}}},
    'step x torch': {'figures': {'seconds': {'torch': [1.5, 3.0, 1.5]}}},
    'step x compiled': {'figures': {'seconds': {'torch compiled': [1.2, 2.2, 1.3]}}},
  }
  ratio, name = bench_results.step_ratio(measurements, 'step x')
  assert ratio == pytest.approx(1.2)
  assert name == 'torch compiled'


def test_an_unknown_measurement_is_refused():
  with pytest.raises(ValueError, match=r'--only=nothing is unknown; use .*rankings'):
    bench.choose_tasks('device', Path('x'), ['nothing'])


@pytest.mark.reference  # It times PyTorch.
def test_a_device_is_measured_at_toy_size(tmp_path):
  """All of it by the code that measures a GPU; every measurement ends and leaves its figures."""
  command = [sys.executable, '-m', 'experiments.bench', '--device', '--toy', '--jobs=2']
  subprocess.run(
    [*command, f'--output={tmp_path}'],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'GLIBC_TUNABLES': ''} | commands.ENVIRONMENT,
    check=True,
    timeout=1500,
  )
  results = json.loads((tmp_path / 'bench.json').read_text())
  measurements = results['measurements']
  names = {m.name for m in bench.MEASUREMENTS if 'toy' in m.flags}
  assert measurements.keys() == names
  unfinished = {name: row for name, row in measurements.items() if row['status'] != 'done'}
  assert not unfinished
  findings = bench_results.find(measurements)
  assert all(finding.answer for finding in findings)
  assert measurements['resume']['figures']['differences'] == []
  rankings = measurements['rankings']['figures']['rankings']
  assert {row['same_positions'] for row in rankings.values()} == {1.0}
  assert 'Held out' in (tmp_path / 'bench.html').read_text()


def test_the_page_shows_what_was_and_what_was_not_measured(tmp_path):
  rows = [
    row | {'host_peak_mib': 900.0, 'device_peak_mib': None} for row in synthetic_rankings(True)
  ]
  measurements = make_measurements(rows)
  measurements['product']['figures'] |= {
    'peak_flops': {'float32': 1e12},
    'fraction_of_peak': 0.9,
    'sources_per_second': 100.0,
    'tile': {'k': 10, 'compute_ms': 1.0},
  }
  for row in measurements.values():
    row |= {'status': 'done', 'seconds': 1.0, 'turn_seconds': 0.5, 'command': 'a -m b'}
  measurements['resume'] = {'status': 'failed with status 1', 'figures': {}, 'error': ['<b>why']}
  results = {
    'scale': 'toy',
    'date': 'today',
    'seconds': 3.0,
    'command': '--device',
    'machine': bench.describe_machine(),
    'versions': bench.find_versions(),
    'measurements': measurements,
  }
  bench_page.write(tmp_path / 'bench.html', results, price=3.0)
  html = (tmp_path / 'bench.html').read_text()
  for text in ('Not measured to the end: resume', '&lt;b&gt;why', '0.85 or more: met', 'Held out'):
    assert text in html
  assert html.count('data-chart=') >= 4
