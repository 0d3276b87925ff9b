"""What a run was made with: settings, seconds, versions, and images that were left out."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from sjft_jax import workdir
from sjft_jax.report.page import Section, Table
from sjft_jax.report.record import RunRecord
from sjft_jax.runtime import artifacts

_MAX_ROWS = 30  # Of a list of images.


def settings_section(run: RunRecord) -> Section:
  """Show the options, those that are not at their default first, the seconds and the versions."""
  options = workdir.option_table(json.loads(run.config.to_json()))
  changed = [option for option in options if option[1] != option[2]]

  def cells(option: tuple[str, Any, Any]) -> list[str]:
    name, value, default = option
    return [name, json.dumps(value, ensure_ascii=False), json.dumps(default, ensure_ascii=False)]

  headings = ('option', 'value', 'default')
  tables = [
    Table(
      caption='Options that differ from their defaults',
      headings=headings,
      rows=[cells(option) for option in changed],
    ),
    Table(
      caption=f'All {len(options)} options',
      headings=headings,
      rows=[cells(option) for option in options],
      is_folded=True,
    ),
    _seconds(run),
    *_versions(run.workdir / 'versions.json'),
  ]
  text = [f'Device: {run.results["device"]}. Seed {run.config.seed}.'] if run.results else []
  return Section(id='settings', title='Settings, seconds, versions', text=text, tables=tables)


def _seconds(run: RunRecord) -> Table:
  seconds = {f'train {arm}': rounds[-1].seconds for arm, rounds in run.rounds.items() if rounds} | (
    run.results['seconds'] if run.results else {}
  )
  return Table(
    caption='Seconds a stage',
    headings=('stage', 'seconds'),
    rows=[[name, f'{value:,.1f}'] for name, value in seconds.items()],
    numbers=(1,),
  )


def _versions(path: epath.Path) -> Iterator[Table]:
  if path.exists():
    # A finished run does not write it anew.
    versions = artifacts.load_json(path, {}, 'delete it: the report does without')
    yield Table(
      caption=f'Versions of all {len(versions)} installed packages',
      headings=('package', 'version'),
      rows=[[name, str(version)] for name, version in versions.items()],
      is_folded=True,
    )


def screening_section(run: RunRecord) -> Section:
  """Show which images were left out or stand in two places, from the lists of the screening."""
  tables, text = [], []
  for file, what in (
    ('bad_images.csv', 'images that cannot be read, which were left out'),
    ('duplicates.csv', 'pairs of a source image and a target image that it duplicates'),
    ('train_test_copies.csv', 'training images whose files are test images as well'),
    ('contradictions.csv', 'training images whose files are in another class as well'),
  ):
    path = run.workdir / file
    if not path.exists():
      text.append(f'Not looked for: {what}.')
      continue
    rows = list(csv.reader(io.StringIO(path.read_text())))
    text.append(f'{len(rows[1:]):,} {what}.')
    if rows[1:]:
      more = len(rows) - 1 - _MAX_ROWS
      tables.append(
        Table(
          caption=f'{len(rows) - 1:,} {what}',
          headings=rows[0],
          rows=rows[1 : _MAX_ROWS + 1],
          remark=f'{more:,} more are in {file}.' if more > 0 else '',
          is_folded=True,
        )
      )
  return Section(id='screening', title='Bad images and duplicates', text=text, tables=tables)
