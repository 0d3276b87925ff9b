import re

import pytest

from sjft_jax.report import summary


def make_row(name, gain=None, standard_error=0.01, source_images=2617):
  row = {
    'name': name,
    'source_images': source_images,
    'mean_class_accuracy': 0.6253,
    'top1': 0.6249,
  }
  return row if gain is None else row | {'gain': gain, 'standard_error': standard_error}


@pytest.mark.parametrize(
  ('gain', 'expected'),
  [
    (-0.002, r'selected: -0.2 points, no gain over plain fine-tuning\.'),
    (0.0, r'selected: \+0.0 points, no gain over plain fine-tuning\.'),
    (0.019, r'selected: \+1.9 points, a gain within two standard errors: .* may be chance\.'),
    (
      0.021,
      r'selected: \+2.1 points, a gain beyond two standard errors .* another seed may differ\.',
    ),
  ],
)
def test_a_verdict_claims_no_more_than_the_standard_error_allows(gain, expected):
  assert re.fullmatch(expected, summary.verdict(make_row('selected', gain)))


def test_the_table_has_a_row_for_each_arm_and_a_verdict_for_each_selection(capsys):
  rows = [
    make_row('no source', source_images=0),
    make_row('random source', 0.03),
    make_row('selected', 0.026, 0.015),
  ]
  summary.print_table({'test_images': 1504, 'view': 'ten_crop', 'table': rows})
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].strip() == '1,504 test images, ten crop'
  cells = [[cell.strip() for cell in line.split('│')[1:-1]] for line in lines if '│' in line]
  assert cells == [
    ['no source', '–', '62.5%', '62.5%', ''],
    ['random source', '2,617', '62.5%', '62.5%', '+3.0 ± 1.0'],
    ['selected', '2,617', '62.5%', '62.5%', '+2.6 ± 1.5'],
  ]
  verdicts = [line for line in lines if 'points' in line]
  assert verdicts == [summary.verdict(rows[-1])]
