"""The report of a run, from the command line and while the run is under way."""

import csv
import dataclasses
import json
import re
import shutil
import sys
import time

import commands
import numpy as np
import pytest
from etils import epath
from report import synthetic
from small_run import make_config, write_data

from sjft_jax import pipeline
from sjft_jax import workdir as workdirs
from sjft_jax.report import borrowing, conditions, draw, page, predictions, scores, summary
from sjft_jax.runtime import artifacts
from sjft_jax.workdir import FORMAT


def start(workdir):
  return commands.start([sys.executable, '-m', 'sjft_jax.report', f'--run={workdir}'])


def embedded(text, id_):
  """Return the JSON that a page holds under an id."""
  pattern = f'<script type="application/json" id="{id_}">(.*?)</script>'
  return json.loads(re.search(pattern, text, re.DOTALL)[1])


@pytest.mark.slow
def test_a_run_leaves_its_report_and_the_command_makes_the_same(trained_run):
  workdir, results = trained_run
  before = (workdir / 'report.html').read_bytes()
  process = start(workdir)
  output, errors = process.communicate(timeout=300)
  assert process.returncode == 0, output + errors
  assert f'{workdir}/report.html' in output.splitlines()[-1]
  assert (workdir / 'report.html').read_bytes() == before
  text = before.decode()
  (line,) = summary.verdicts(results)
  assert f'<h1>{line}</h1>' in text
  for row in results['table']:
    cells = [f'>{cell}</' for cell in summary.table_row(row) if cell]
    assert all(cell in text for cell in cells)


@pytest.mark.slow
def test_neighbours_are_those_of_the_ranking(trained_run):
  workdir, _ = trained_run
  content = embedded((workdir / 'report.html').read_text(), 'explorer')
  ranking = np.load(workdir / 'ranking.npz')
  rounds = [np.load(workdir / f'arms/rounds/rounds/{n}/round.npz') for n in (1, 2, 3)]
  with (workdir / 'duplicates.csv').open() as file:
    left_out = {row['source'] for row in csv.DictReader(file)}
  sources = [f'stripes {c}/{i}.png' for c in range(6) for i in range(8)]
  sources = [name for name in sources if name not in left_out]
  names = [f'stripes {c}: stripes {c}/{i}.png' for c in range(3) for i in range(4)]
  assert sorted(target['title'] for target in content['targets']) == names
  hardness = rounds[-1]['hardness']
  assert [names.index(target['title']) for target in content['targets']] == list(
    np.argsort(-hardness, kind='stable')
  )
  for target in content['targets']:
    index = names.index(target['title'])
    assert [cells[:3] for cells in target['rounds']] == [
      [str(n), f'{r["num_neighbors"][index]}', f'{r["hardness"][index]:.3f}']
      for n, r in enumerate(rounds, 1)
    ]
    ranks = [r for r in (1, 2, 3, 4, 5, 10, 20) if r <= rounds[-1]['num_neighbors'][index]]
    assert [neighbor['lines'][1] for neighbor in target['neighbors']] == [
      f'neighbour {rank}' for rank in ranks
    ]
    for neighbor, rank in zip(target['neighbors'], ranks, strict=True):
      source = ranking['indices'][index, rank - 1]
      name = sources[source]
      assert neighbor['alt'] == f'{name.partition("/")[0]}, {name}'
      assert neighbor['lines'][2] == f'{ranking["divergences"][index, rank - 1]:.3g} nats'


@pytest.mark.slow
def test_the_report_is_drawn_after_every_round_and_a_failure_is_one_line(
  small_data, tmp_path, monkeypatch, capsys
):
  headlines = []
  write = page.write

  def fail_once(path, content):
    headlines.append(content.headline)
    if len(headlines) == 2:
      raise RuntimeError('no ink\nno paper')
    write(path, content)

  monkeypatch.setattr(page, 'write', fail_once)
  changes = {'pretrain.steps': 0, 'arms': ('none', 'rounds'), 'selection.rounds': 2}
  pipeline.run(make_config(small_data, **changes), tmp_path / 'run')
  assert headlines[:4] == [
    f'Not finished: {done} of 4 rounds are done, so there is no verdict yet.'
    for done in (1, 2, 3, 4)
  ]
  assert len(headlines) == 5
  (line,) = [line for line in capsys.readouterr().out.splitlines() if 'no ink' in line]
  assert 'report.html could not be written (RuntimeError: no ink); the run goes on' in line
  assert 'no paper' not in line
  assert headlines[-1] in (tmp_path / 'run' / 'report.html').read_text()


@pytest.mark.slow
def test_a_run_whose_images_have_changed_is_refused(tmp_path):
  data = write_data(tmp_path / 'data')
  workdir = tmp_path / 'run'
  changes = {'pretrain.steps': 0, 'arms': ('none',), 'selection.rounds': 1}
  pipeline.run(make_config(data, **changes), workdir)
  (workdir / 'report.html').unlink()
  image = data / 'target' / 'train' / 'stripes 0' / '0.png'
  shutil.copy(data / 'source' / 'train' / 'stripes 5' / '0.png', image)
  message = commands.refusal(start(workdir))
  assert 'was made with other images than those where its options say' in message
  shutil.rmtree(data / 'source')
  message = commands.refusal(start(workdir))
  assert 'config.source: ' in message
  assert str(data / 'source') in message
  assert not (workdir / 'report.html').exists()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (None, 'has no config.json, so it is no work directory; give one such as runs/mine'),
    ({'repeats': 3}, 'holds 3 repeats, each with a report of its own; give '),
  ],
)
def test_what_is_no_work_directory_of_one_run_is_refused(tmp_path, options, message):
  if options:
    artifacts.write_json(tmp_path / 'config.json', {'format': FORMAT, 'options': options})
  with pytest.raises(ValueError, match=re.escape(message)):
    draw.open_run(tmp_path)


def test_images_with_several_classes_count_for_each_and_shares_are_of_pairs(tmp_path):
  run = synthetic.make_run(tmp_path, classes=['a', 'b'], images=20, rounds=1, k0=5)
  source = run.domains.source
  (single,) = borrowing.class_section(run).tables
  several = np.eye(len(source.classes), dtype=bool)[source.labels]
  source.labels = several
  (table,) = borrowing.class_section(run).tables
  assert table.rows == single.rows
  several[:, 39] = True  # A class that every image shows.
  section = borrowing.class_section(dataclasses.replace(run))  # Which has counted nothing yet.
  (table,), (chart,) = section.tables, section.charts
  borrowed = re.match(r'In round 1, (\d+) of', section.text[0])[1]
  assert table.rows[0][:4] == ['source class 39', f'{borrowed} of 2,000', '100', '100.0%']
  cells = [row for row in chart.spec['datasets']['rows'] if row['row'] == 'source class 39']
  assert [(cell['count'], cell['share']) for cell in cells] == [(50, 1.0), (50, 1.0)]


def test_an_unfinished_run_has_no_verdict(tmp_path):
  run = synthetic.make_run(tmp_path, classes=['a', 'b'], images=20, is_finished=False)
  drawn = draw.make_page(run)
  assert drawn.headline == 'Not finished: 12 of 13 rounds are done, so there is no verdict yet.'
  assert 'fusion' not in [section.id for section in drawn.sections]


def test_borrowed_images_without_a_class_have_no_chart(tmp_path):
  run = synthetic.make_run(tmp_path, classes=['a', 'b'], images=20, rounds=1, k0=5)
  source = run.domains.source
  source.labels = np.zeros((len(source), len(source.classes)), bool)
  section = borrowing.class_section(run)
  assert 'from 0 of 40 source classes' in section.text[0]
  assert not section.charts
  assert not section.tables


@pytest.mark.parametrize('method', ['nearest', 'similar'])
@pytest.mark.parametrize('arms', [('none', 'constant', 'rounds'), ('none', 'rounds')])
def test_the_answer_its_numbers_and_the_predictions_are_of_one_arm(tmp_path, arms, method):
  run = synthetic.make_run(tmp_path, classes=['a', 'b'], images=20, rounds=2, k0=5)
  run.config.overrides.rounds.selection.method = method
  table = [row for row in run.results['table'] if row['arm'] in arms]
  rounds = {arm: run.rounds[arm] for arm in arms}
  run = dataclasses.replace(run, rounds=rounds, results=run.results | {'table': table})
  headline, (numbers, *_) = scores.make_answer(run)
  row = table[-1]
  assert headline == summary.verdict(row)
  assert numbers.startswith(f'{100 * row["gain"]:+.1f} ± {100 * row["standard_error"]:.1f} points')
  assert run.main_arm == 'rounds'


def test_plain_fine_tuning_of_a_pretrained_trunk_is_not_without_a_source(tmp_path):
  run = synthetic.make_run(tmp_path, classes=['a', 'b'], images=20, rounds=2, k0=5)
  assert 'without a source' in scores.make_answer(run)[1][0]
  run.config.pretrain.steps = 10
  assert 'with pretraining on the source alone' in scores.make_answer(run)[1][0]


def test_statements_hold_for_this_run(tmp_path):
  classes = [f'class {n}' for n in range(310)]
  run = synthetic.make_run(tmp_path, classes=classes, images=310, rounds=2, k0=5, log_lines=2)
  text = borrowing.neighbor_section(run).text[0]
  assert re.search(r'(\d+) of 310 .* are shown: the hardest of \1 of the 310 classes\.', text)
  text = conditions.screening_section(run).text
  assert text[0] == '1 images that cannot be read, which were left out.'
  assert text[2] == 'Not looked for: training images whose files are test images as well.'
  run = dataclasses.replace(
    run, rounds={'none': run.rounds['none'], 'classes': run.rounds['rounds']}
  )
  for row in predictions.hardness_section(run).tables[0].rows:
    assert row[1:3] == ['–', '–']


def test_the_answer_of_a_run_without_the_usual_selections_is_of_an_arm_of_its_own(tmp_path):
  run = synthetic.make_run(tmp_path, classes=['a', 'b'], images=20, rounds=2, k0=5)
  row = run.results['table'][-1] | {'arm': 'mine', 'name': 'mine'}
  baseline = next(row for row in run.results['table'] if row['arm'] == 'none')
  rounds = {'none': run.rounds['none'], 'mine': run.rounds['rounds']}
  run = dataclasses.replace(run, rounds=rounds, results=run.results | {'table': [baseline, row]})
  headline, _ = scores.make_answer(run)
  assert headline == summary.verdict(row)
  assert run.main_arm == 'mine'


@pytest.mark.slow
def test_100_classes_and_10_000_images_are_below_10_mb(tmp_path):
  classes = [f'a class with a long name {n}' for n in range(100)]
  run = synthetic.make_run(
    tmp_path, classes=classes, images=10_000, source_images=5000, rounds=3, k0=40, log_lines=8000
  )
  draw.make_page(run)
  start_time = time.process_time()
  text = page.render(draw.make_page(run))
  # After each round the pictures are made already.
  assert time.process_time() - start_time < 10
  assert len(text.encode()) < 10e6
  labels = {target['label'] for target in embedded(text, 'explorer')['targets']}
  assert len(labels) > 50  # The pictures are noise, and each class has its hardest first.


def test_relative_paths_that_lead_nowhere_are_named_with_the_remedy(tmp_path, monkeypatch):
  options = make_config(tmp_path)
  options.target.path = 'images/target'
  workdirs.save_config(options, epath.Path(tmp_path / 'run'))
  monkeypatch.chdir(tmp_path)
  remedy = "the run has the relative path 'images/target': start the command in the folder that the"
  with pytest.raises(ValueError, match=remedy):
    draw.open_run(tmp_path / 'run')
  options.target.path = str(tmp_path / 'gone')
  workdirs.save_config(options, epath.Path(tmp_path / 'run'))
  with pytest.raises(ValueError, match='is not a folder') as error:
    draw.open_run(tmp_path / 'run')
  assert 'the relative path' not in str(error.value)
