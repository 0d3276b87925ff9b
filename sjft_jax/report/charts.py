"""The charts of the report, as Vega-Lite specifications, and the JavaScript that draws them.

Colours are variables of the page's style sheet, so that a chart follows its light or dark theme.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from etils import epy

from sjft_jax.runtime import artifacts

with epy.lazy_imports():  # A run draws its page after a round; until then nothing needs them.
  import altair as alt
  import vl_convert

Row = Mapping[str, Any]
Spec = dict[str, Any]

# Arms differ by colour, dash and shape: no one has to tell colours apart. With four of each beside
# five colours, the first twenty arms differ in both.
_COLORS = tuple(f'var(--series-{number})' for number in range(1, 6))
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
_SHAPES = ('circle', 'square', 'triangle-up', 'diamond')
_ACCENT, _LINE, _TEXT = 'var(--accent)', 'var(--line)', 'var(--text)'
_CONFIG = {
  'background': 'transparent',
  'font': 'system-ui, sans-serif',
  'aria': False,  # The page describes each chart and gives its numbers in a table.
  'view': {'stroke': None},
  'mark': {'color': _ACCENT},
  'rule': {'color': _TEXT},
  'axis': {
    'labelColor': _TEXT,
    'titleColor': _TEXT,
    'domainColor': _LINE,
    'tickColor': _LINE,
    'gridColor': _LINE,
    'labelFontSize': 12,
    'titleFontSize': 12,
    'titleFontWeight': 'normal',
    'labelLimit': 130,
  },
  'legend': {
    'labelColor': _TEXT,
    'labelFontSize': 12,
    'labelLimit': 200,
    'title': None,
    'orient': 'top',
    'columns': 2,
    'symbolStrokeWidth': 2,
  },
}
_ROW_HEIGHT = 16  # Pixels of a class.


@functools.cache
def javascript() -> str:
  """Return the libraries Vega, Vega-Lite and Vega-Embed, to be embedded in a page.

  They are inside the package vl-convert; to bundle them takes seconds, so the user's cache keeps
  the bundle.
  """
  version = '.'.join(alt.SCHEMA_VERSION.lstrip('v').split('.')[:2])

  def make() -> dict[str, np.ndarray]:
    script = vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;', version)
    return {'script': np.frombuffer(script.encode(), np.uint8)}

  fingerprint = artifacts.fingerprint(version, metadata.version('vl-convert-python'))
  return artifacts.load_or_make('vega', fingerprint, make)['script'].tobytes().decode()


def gains(rows: Sequence[Row]) -> Spec:
  """Draw the gain of each arm over plain fine-tuning with its standard error.

  Args:
    rows: 'arm', and in points 'gain', 'low' and 'high', one standard error below and above it.
  """
  base = _chart().encode(y=alt.Y('arm:N', sort=None, title=None))
  bars = base.mark_rule(strokeWidth=3).encode(
    x=alt.X('low:Q', title='gain in points of mean class accuracy', axis=alt.Axis(tickCount=6)),
    x2='high:Q',
  )
  points = base.mark_point(filled=True, size=110, opacity=1).encode(
    x='gain:Q', tooltip=[_tip('arm:N'), _tip('gain:Q', '+.1f'), *_tips('low high', '+.1f')]
  )
  zero = (
    alt.Chart(alt.InlineData(values=[{'zero': 0}])).mark_rule(strokeDash=[3, 3]).encode(x='zero:Q')
  )
  return _spec(zero + bars + points, rows, height=34 * len(rows))


def curves(rows: Sequence[Row], arms: Sequence[str], *, x: str, y: str, number: str) -> Spec:
  """Draw a curve for each arm.

  Args:
    rows: 'arm', 'x' and 'y'.
    arms: all arms of the run, so that each looks the same in every chart; those without a row are
      left out.
    x, y: the titles of the axes.
    number: the format of y, of d3.
  """
  steps = sorted({row['x'] for row in rows})
  is_short = len(steps) <= 12
  ticks = alt.Axis(values=steps) if is_short else alt.Axis(tickCount=5)
  ticks.format = ',d'
  chart = _chart().mark_line(strokeWidth=2, point={'size': 50} if is_short else False)
  chart = chart.encode(
    x=alt.X('x:Q', title=x, axis=ticks, scale=alt.Scale(zero=not is_short, nice=not is_short)),
    y=alt.Y('y:Q', title=y, scale=alt.Scale(zero=False), axis=alt.Axis(format=number)),
    color=alt.Color(
      'arm:N', scale=_arm_scale(_COLORS, arms, rows), legend=alt.Legend(symbolType='stroke')
    ),
    strokeDash=alt.StrokeDash('arm:N', scale=_arm_scale(_DASHES, arms, rows)),
    tooltip=[
      _tip('arm:N'),
      alt.Tooltip('x:Q', title=x),
      alt.Tooltip('y:Q', title=y, format=number),
    ],
  )
  return _spec(chart, rows, height=220)


def class_accuracies(rows: Sequence[Row], arms: Sequence[str], classes: Sequence[str]) -> Spec:
  """Draw the accuracy of each class, one row a class and a point for each arm.

  Args:
    rows: 'class', 'arm' and 'accuracy', a share.
    arms: as for `curves`.
    classes: in the order of the rows.
  """
  y = alt.Y('class:N', sort=list(classes), title=None, axis=alt.Axis(grid=True))
  x = alt.X(
    'accuracy:Q',
    title='share classified correctly',
    scale=alt.Scale(domain=[0, 1]),
    axis=alt.Axis(format='%', orient='top', tickCount=5),
  )
  points = (
    _chart()
    .mark_point(size=60, strokeWidth=2, filled=False)
    .encode(
      x=x,
      y=y,
      color=alt.Color('arm:N', scale=_arm_scale(_COLORS, arms, rows)),
      shape=alt.Shape('arm:N', scale=_arm_scale(_SHAPES, arms, rows)),
      tooltip=[*_tips('class arm', None), _tip('accuracy:Q', '.1%')],
    )
  )
  return _spec(points, rows, height=_ROW_HEIGHT * len(classes))


def counts(
  rows: Sequence[Row],
  row_names: Sequence[str],
  column_names: Sequence[str],
  *,
  y: str,
  x: str,
  share: str,
) -> Spec:
  """Draw a table of counts as squares, the darker the more.

  Args:
    rows: 'row', 'column' and 'count' of the cells that are not 0, and 'share', 0–1, which is drawn.
    row_names, column_names: in their order.
    y, x: the titles of the axes.
    share: the meaning of 'share'.
  """
  largest = max(row['share'] for row in rows)
  is_labelled = len(column_names) <= 40
  labels = alt.Axis(labelAngle=-90, orient='top', labelOverlap=True, labelLimit=90)
  chart = (
    _chart()
    .mark_rect()
    .encode(
      x=alt.X(
        'column:N',
        title=x,
        scale=alt.Scale(domain=list(column_names), paddingInner=0.08),
        axis=labels if is_labelled else alt.Axis(labels=False, ticks=False, orient='top'),
      ),
      y=alt.Y(
        'row:N',
        title=y,
        scale=alt.Scale(domain=list(row_names), paddingInner=0.08),
        axis=alt.Axis(labelOverlap=True, labelLimit=130),
      ),
      fillOpacity=alt.FillOpacity(
        'share:Q', scale=alt.Scale(domain=[0, largest], range=[0.12, 1]), legend=None
      ),
      tooltip=[
        alt.Tooltip('row:N', title=y),
        alt.Tooltip('column:N', title=x),
        _tip('count:Q', ',d'),
        alt.Tooltip('share:Q', title=share, format='.1%'),
      ],
    )
  )
  return _spec(chart, rows, height=min(max(_ROW_HEIGHT * len(row_names), 120), 640))


def quantiles(rows: Sequence[Row]) -> Spec:
  """Draw how hard the target images are after each round.

  Args:
    rows: 'round', and in nats 'median', the quartiles 'q25' and 'q75', and 'q10' and 'q90'.
  """
  base = _chart().encode(
    x=alt.X('round:O', title='round', axis=alt.Axis(labelAngle=0)),
    tooltip=[_tip('round:O'), *_tips('q10 q25 median q75 q90', '.3f')],
  )
  y = alt.Y('q10:Q', title='entropy in nats')
  whiskers = base.mark_rule().encode(y=y, y2='q90:Q')
  boxes = base.mark_bar(size=26).encode(y='q25:Q', y2='q75:Q')
  medians = base.mark_tick(color='var(--background)', size=26, thickness=3).encode(y='median:Q')
  return _spec(whiskers + boxes + medians, rows, height=220)


def _chart() -> 'alt.Chart':
  return alt.Chart(alt.NamedData('rows'))


def _spec(chart: 'alt.Chart | alt.LayerChart', rows: Sequence[Row], *, height: int) -> Spec:
  sized = chart.properties(
    width='container', height=height, autosize=alt.AutoSizeParams(type='fit-x', contains='padding')
  )
  spec: Spec = sized.to_dict(context={'pre_transform': False})
  spec['config'] = _CONFIG
  # Altair would compare every row with its schema, which takes a second for a thousand.
  spec['datasets'] = {**spec.get('datasets', {}), 'rows': list(rows)}
  return spec


def _tip(field: str, number: str | None = None) -> 'alt.Tooltip':
  title = field.partition(':')[0]
  return (
    alt.Tooltip(field, title=title, format=number) if number else alt.Tooltip(field, title=title)
  )


def _tips(fields: str, number: str | None) -> 'list[alt.Tooltip]':
  kind = 'Q' if number else 'N'
  return [_tip(f'{field}:{kind}', number) for field in fields.split()]


def _arm_scale(values: Sequence[Any], arms: Sequence[str], rows: Sequence[Row]) -> 'alt.Scale':
  """Return a scale from the arms that have rows to values; an arm's own do not depend on others."""
  drawn = {row['arm'] for row in rows}
  scale = {arm: value for arm, value in zip(arms, itertools.cycle(values)) if arm in drawn}
  return alt.Scale(domain=list(scale), range=list(scale.values()))
