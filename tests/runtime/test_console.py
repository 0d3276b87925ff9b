"""Tests of what commands print."""

import io

import pytest
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
