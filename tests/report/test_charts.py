"""The charts as specifications; `test_browser` draws them."""

import re
from pathlib import Path

from sjft_jax import report
from sjft_jax.report import charts

ARMS = [f'arm {number}' for number in range(9)]


def looks(spec, arms):
  """Return the colour and the dash of each arm that a chart of curves has."""
  color, dash = (spec['encoding'][name]['scale'] for name in ('color', 'strokeDash'))
  assert color['domain'] == dash['domain'] == arms
  return list(zip(color['range'], map(tuple, dash['range']), strict=True))


def draw(arms):
  rows = [{'arm': arm, 'x': 1, 'y': 0.5} for arm in arms]
  return looks(charts.curves(rows, ARMS, x='step', y='loss', number='.2f'), arms)


def test_each_of_many_arms_has_its_own_look():
  look = draw(ARMS)
  assert len(set(look)) == len(ARMS)
  sheet = (Path(report.__file__).parent / 'page.css').read_text()
  for color, _ in look:
    name = re.fullmatch(r'var\((--series-\d)\)', color)[1]
    assert sheet.count(f'{name}:') == 2  # In light and in dark.


def test_an_arm_looks_the_same_where_others_have_no_curve():
  look = draw(ARMS)
  assert draw([ARMS[1], ARMS[8]]) == [look[1], look[8]]
