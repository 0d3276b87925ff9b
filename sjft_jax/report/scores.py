"""What was gained: the answer, the scores of all arms, their learning curves, and fusion."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from sjft_jax.config import FROZEN_ARMS
from sjft_jax.report import charts, summary
from sjft_jax.report.page import Chart, Section, Table
from sjft_jax.report.record import RoundDigest, RunRecord
from sjft_jax.training.metric_writer import parse_line

_CURVE_POINTS = 200  # Of each arm.


def make_answer(run: RunRecord) -> tuple[str, list[str]]:
  """Return the answer in a sentence, and what else has to be said at once."""
  if run.results is None:
    done = sum(map(len, run.rounds.values()))
    total = sum(map(run.num_rounds, run.rounds))
    return f'Not finished: {done} of {total} rounds are done, so there is no verdict yet.', []
  rows = summary.verdict_rows(run.results)
  if not rows:
    return (
      'No verdict: this run has not compared a selection with plain fine-tuning.',
      ['It would with the arms none and rounds.'],
    )
  *others, row = rows
  (baseline,) = (other for other in run.results['table'] if other['arm'] == 'none')
  plain = (
    'with pretraining on the source alone' if run.config.pretrain.steps else 'without a source'
  )
  numbers = (
    f'{100 * row["gain"]:+.1f} ± {100 * row["standard_error"]:.1f} points: '
    f'{row["mean_class_accuracy"]:.1%} mean class accuracy against '
    f'{baseline["mean_class_accuracy"]:.1%} {plain}. ± is one standard error of drawing '
    f'other than these {run.results["test_images"]:,} test images; training with another seed is '
    'not in it.'
  )
  return summary.verdict(row), [numbers, *map(summary.verdict, others)]


def score_section(run: RunRecord) -> Section:
  """Show the closing table, or the scores so far."""
  if run.results is None:
    rows = [
      [run.title(arm), f'{len(rounds)} of {run.num_rounds(arm)}', *_score_cells(rounds[-1])]
      for arm, rounds in run.rounds.items()
      if rounds
    ]
    table = Table(
      caption=f'After the newest round, {len(run.domains.test):,} test images, {run.view}',
      headings=('training', 'rounds', 'class accuracy', 'top-1'),
      rows=rows,
      numbers=(1, 2, 3),
    )
    return Section(id='scores', title='Scores so far', tables=[table])
  table = Table(
    caption=summary.table_title(run.results),
    headings=summary.HEADINGS,
    rows=[summary.table_row(row) for row in run.results['table']],
    numbers=range(1, len(summary.HEADINGS)),
    remark='source: images that could be drawn in the last round. gain: points of class accuracy '
    'over no source. fused: class accuracy of the averaged probabilities of all rounds.',
  )
  gains = [
    {
      'arm': row['name'],
      'gain': 100 * row['gain'],
      'low': 100 * (row['gain'] - row['standard_error']),
      'high': 100 * (row['gain'] + row['standard_error']),
    }
    for row in run.results['table']
    if 'gain' in row
  ]
  figures = []
  if gains:
    caption = 'Gain over plain fine-tuning, ± one standard error; the dashed line is no gain'
    figures.append(
      Chart(
        caption=caption,
        description=f'{caption}. Numbers are in the table.',
        spec=charts.gains(gains),
      )
    )
  return Section(id='scores', title='Scores of all arms', charts=figures, tables=[table])


def _score_cells(round_: RoundDigest) -> list[str]:
  scores = next(iter(round_.scores.values()))
  return [f'{scores["mean_class_accuracy"]:.1%}', f'{scores["top1"]:.1%}']


def curve_section(run: RunRecord) -> Section | None:
  """Show test accuracy by round, and what the logs hold of each training."""
  trained = {arm: rounds for arm, rounds in run.rounds.items() if arm not in FROZEN_ARMS}
  rounds = [
    {'arm': run.title(arm), 'x': number, 'y': scores['mean_class_accuracy']}
    for arm, digests in trained.items()
    for number, round_ in enumerate(digests, 1)
    for scores in [next(iter(round_.scores.values()))]
  ]
  if not rounds:
    return None
  figures = [
    Chart(
      caption=f'Test images: mean class accuracy after each round, {run.view}',
      description='Mean class accuracy by round and arm; numbers are in the table below.',
      spec=charts.curves(rounds, run.titles, x='round', y='mean class accuracy', number='.1~%'),
    )
  ]
  logs = {arm: _read_log(run.workdir / 'arms' / arm / 'log.jsonl') for arm in trained}
  for metric, caption, y, number in (
    ('target_loss', 'Training: loss of target images', 'cross-entropy in nats', '.2~f'),
    ('target_accuracy', 'Training: accuracy on target images, augmented', 'accuracy', '.1~%'),
    ('source_loss', 'Training: loss of source images', 'cross-entropy in nats', '.2~f'),
  ):
    rows = [
      {'arm': run.title(arm), 'x': step, 'y': value}
      for arm in trained
      for step, value in _curve(logs[arm], metric)
    ]
    if rows:
      figures.append(
        Chart(
          caption=caption,
          description=f'{caption}, by step and arm. Every value is in the log.jsonl of an arm.',
          spec=charts.curves(rows, run.titles, x='step', y=y, number=number),
        )
      )
  table = Table(
    caption='Mean class accuracy after each round',
    headings=('training', *(f'round {n}' for n in range(1, run.config.selection.rounds + 1))),
    rows=[
      [
        run.title(arm),
        *(_score_cells(round_)[0] for round_ in digests),
        *[''] * (run.config.selection.rounds - len(digests)),
      ]
      for arm, digests in trained.items()
    ],
    numbers=range(1, run.config.selection.rounds + 1),
    is_folded=True,
  )
  return Section(id='curves', title='Learning curves', charts=figures, tables=[table])


def _read_log(path: epath.Path) -> list[dict[str, Any]]:
  """Return the lines of a log; none if there is no log, and without those that are damaged."""
  lines = path.read_bytes().splitlines(keepends=True) if path.exists() else ()
  return [entry for entry in map(parse_line, lines) if entry is not None]


def _curve(log: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
  """Return the steps and values of a metric, averaged to a number of points that can be drawn."""
  points = [(e['step'], e[metric]) for e in log if isinstance(e.get(metric), int | float)]
  blocks = np.array_split(np.array(points), min(len(points), _CURVE_POINTS)) if points else []
  return [(round(step), float(f'{value:.5g}')) for step, value in (b.mean(axis=0) for b in blocks)]


def fusion_section(run: RunRecord) -> Section | None:
  """Show what the average of all rounds scores; it is known once the run is finished."""
  if run.results is None:
    return None
  rows = []
  for arm, scores in run.results['arms'].items():
    for view, fused in scores.get('fused', {}).items():
      last = scores['rounds'][-1]['test'][view]
      name = 'mean_class_accuracy'
      rows.append(
        [run.title(arm), view.replace('_', ' '), f'{last[name]:.1%}', f'{fused[name]:.1%}']
      )
  if not rows:
    return None
  table = Table(
    caption='Mean class accuracy of the last round, and of all rounds’ averaged probabilities',
    headings=('training', 'view', 'last round', 'all rounds fused'),
    rows=rows,
    numbers=(2, 3),
  )
  return Section(id='fusion', title='Fusion of the rounds', tables=[table])
