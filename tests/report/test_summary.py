import re

import pytest

from sjft_jax.report import summary


def make_row(name, gain=None, p_value=0.01, source_images=2617, arm='constant'):
  row = {
    'arm': arm,
    'name': name,
    'source_images': source_images,
    'mean_class_accuracy': 0.6253,
    'top1': 0.6249,
    'fused': 0.6312,
  }
  if gain is None:
    return row
  is_significant = p_value < 0.05
  return row | {
    'gain': gain,
    'standard_error': 0.015,
    'p_value': p_value,
    'is_significant': is_significant,
  }


@pytest.mark.parametrize(
  ('gain', 'p_value', 'expected'),
  [
    (-0.002, 0.9, r'selected: -0.2 points, no gain over plain fine-tuning\.'),
    (0.0, 1.0, r'selected: \+0.0 points, no gain over plain fine-tuning\.'),
    (0.4, 0.0625, r'selected: \+40.0 points, a gain that may be chance .* \(p = 0.06\)\.'),
    (0.021, 0.0496, r'selected: \+2.1 points, a gain .* \(p = 0.0496\); .*'),
    (0.021, 0.0012, r'selected: \+2.1 points, a gain .* \(p = 0.0012\); another seed may differ\.'),
  ],
)
def test_a_verdict_claims_no_more_than_the_p_value_allows(gain, p_value, expected):
  assert re.fullmatch(expected, summary.verdict(make_row('selected', gain, p_value)))


def test_the_table_has_a_row_for_each_arm_and_a_verdict_for_each_selection(capsys):
  rows = [
    make_row('no source', source_images=0, arm='none'),
    make_row('random source', 0.03, arm='random'),
    make_row('selected', 0.026),
  ]
  summary.print_table({'test_images': 1504, 'view': 'ten_crop', 'table': rows})
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].strip() == '1,504 test images, ten crop'
  cells = [[cell.strip() for cell in line.split('│')[1:-1]] for line in lines if '│' in line]
  assert cells == [
    ['no source', '–', '62.5%', '62.5%', '', '63.1%'],
    ['random source', '2,617', '62.5%', '62.5%', '+3.0 ± 1.5', '63.1%'],
    ['selected', '2,617', '62.5%', '62.5%', '+2.6 ± 1.5', '63.1%'],
  ]
  verdicts = [line for line in lines if 'points' in line]
  assert verdicts == [summary.verdict(rows[-1])]


def test_names_of_images_are_printed_as_they_are(capsys):
  names = ['[b]/x.jpg', r'\[b]', '[/b] :cat:']
  summary.print_predictions(('image', 'class', 'probability'), (names, ['[a]'] * 3, [0.5] * 3))
  lines = capsys.readouterr().out.splitlines()
  cells = [[cell.strip() for cell in line.split('│')[1:-1]] for line in lines if '│' in line]
  assert cells == [[name, '[a]', '50.0%'] for name in names]


def test_a_cross_entropy_of_nothing_has_no_sign(capsys):
  scores = {'mean_class_accuracy': 1.0, 'top1': 1.0}
  rows = [(name, scores | {'cross_entropy': x}) for name, x in (('a', -0.0), ('b', -1e-8))]
  summary.print_scores(rows, '9 images')
  printed = capsys.readouterr().out
  assert printed.count(' 0.000 ') == 2
  assert '-0.000' not in printed


@pytest.mark.parametrize('settings', [1, 2])
@pytest.mark.parametrize('folds', [0, 2])
def test_what_is_said_of_a_choice_is_true_of_few_settings_and_folds(capsys, settings, folds):
  arms = {'none': {'accuracy': 0.5, 'cross_entropy': 1.0, 'setting': {}}}
  record = {'held_out_images': 9, 'arms': arms, 'arm': 'none', 'complete': False, 'num_folds': 3}
  record |= {'num_completed_folds': folds, 'tried': settings * [{'arm': 'none', 'fold': 1}]}
  summary.print_tuning(record)
  text = ' '.join(capsys.readouterr().out.split())
  assert ('best of several settings' in text) == (settings > 1)
  assert ('the choice is by 2 of 3 folds.' in text) == bool(folds)
  assert ('among the settings that all arms have tried on the first fold.' in text) != bool(folds)


def test_every_arm_that_selects_has_a_verdict_and_the_growing_one_is_the_last():
  arms = ('rounds', 'none', 'similar', 'mine', 'probe', 'knn', 'classes', 'random', 'all')
  rows = {arm: make_row(arm, None if arm == 'none' else 0.01, arm=arm) for arm in arms}
  verdicts = summary.verdicts({'table': [*rows.values()]})
  assert verdicts == [
    summary.verdict(rows[arm]) for arm in ('mine', 'classes', 'similar', 'rounds')
  ]
  # An arm that the configuration adds is the answer where no other one selects.
  assert summary.verdict_arms(['none', 'mine', 'random']) == ['mine']
