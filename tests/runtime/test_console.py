"""Tests of what commands print."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from sjft_jax.runtime import console

FIGURES = [f'{i}.23456789 ± {i}.987654321' for i in range(12)]


@pytest.fixture(params=[False, True], ids=['file', 'terminal'])
def printed(request):
  """Return a function that prints a table of `FIGURES` and returns its text, one cell at a time."""

  def cells():
    table = Table(title='figures')
    for _ in FIGURES:
      table.add_column('a heading')
    table.add_row(*FIGURES)
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
      options = {'width': 80} if request.param else {}
      patch.setattr(
        console,
        '_console',
        console._Console(file=stream, force_terminal=request.param, color_system=None, **options),
      )
      console.print_table(table)
    rows = [line.strip('│').split('│') for line in stream.getvalue().splitlines() if '│' in line]
    return [''.join(''.join(parts).split()) for parts in zip(*rows, strict=True)]

  return cells


def test_no_figure_of_a_table_is_cut_off(printed):
  assert printed() == [''.join(figure.split()) for figure in FIGURES]


HOSTILE = '\x1b]0;owned\x07\x1b[2J\r\x9b31m [/b][red]:cat: \u202egnp\u2028\n\udce9.png'
PRINTED = r'\x1b]0;owned\x07\x1b[2J\r\x9b31m [/b][red]:cat: \u202egnp\u2028\n\udce9.png'


def is_plain(text):
  """Return whether a terminal prints text as it is, but for rich's own colours and bars."""
  return re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]|\n|\r', '', text).isprintable()


@pytest.mark.parametrize('is_terminal', [False, True])
def test_control_characters_are_printed_as_escapes(monkeypatch, is_terminal):
  stream = io.StringIO()
  settings = {'highlight': False, 'markup': False, 'emoji': False, 'width': 1000}
  monkeypatch.setattr(
    console, '_console', console._Console(file=stream, force_terminal=is_terminal, **settings)
  )
  console.say(HOSTILE)
  console.stage(HOSTILE)
  table = Table(title=HOSTILE)
  table.add_column(HOSTILE)
  table.add_row(HOSTILE)
  console.print_table(table)
  with console.progress(HOSTILE, 2) as advance:
    advance(1, HOSTILE)
  printed = stream.getvalue()
  assert printed.count(PRINTED) >= 7
  assert is_plain(printed)
  for character in ('\x07', '\x9b', '\u202e', '\x1b]', '\x1b[2J'):
    assert character not in printed


def test_long_line_is_cut_in_its_middle():
  line = console.one_line('start ' + 'x' * 10_000 + ' end')
  assert len(line) < 1000
  assert line.startswith('start x')
  assert line.endswith('x end')
  assert ' … ' in line


@given(st.text())
def test_printable_text_is_printable_and_plain_text_stays(text):
  assert console.printable(text).isprintable()
  if text.isprintable():
    assert console.printable(text) == text


def test_durations_have_the_largest_unit_that_fits():
  durations = [0.04, 9.94, 119, 150, 7200, 200_000]
  shown = [console.format_duration(seconds) for seconds in durations]
  assert shown == ['0.0 s', '9.9 s', '119 s', '2 min', '2.0 h', '2.3 days']


def test_one_thing_is_counted_in_the_singular():
  shown = [console.format_count(number, 'image') for number in (0, 1, 2, 1234)]
  assert shown == ['0 images', '1 image', '2 images', '1,234 images']
