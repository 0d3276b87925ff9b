"""Print which share of the source images that demo runs used are letters, no help for textures.

python -m experiments.selection_share runs/seed0 runs/seed1
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from sjft_jax.data.demo import DemoDiverse
from sjft_jax.runtime import console


def main() -> None:
  source = DemoDiverse()
  families = {source.key(i): family for i, family in enumerate(source.families)}
  for run in map(Path, sys.argv[1:]):
    paths = sorted(run.glob('arms/*/rounds/*/selection.csv'))
    if not paths:
      sys.exit(f'error: {console.one_line(str(run))} holds no arms/*/rounds/*/selection.csv')
    for path in paths:
      try:
        selected = set(read_sources(path))
        letters = sum(families[key] in source.irrelevant for key in selected)
      except (KeyError, ValueError) as error:
        sys.exit(
          f'error: {console.one_line(f"{path} is damaged or no selection of the demo: {error}")}'
        )
      if selected:
        arm, round_ = path.parts[-4], path.parts[-2]
        share = f'{letters:,} of {len(selected):,}, {letters / len(selected):.1%}'
        console.say(f'{run} {arm} round {round_}: {share}')


def read_sources(path: Path) -> list[str]:
  """Return the column source of a selection."""
  columns = {'source': pa.string()}
  options = pa.csv.ConvertOptions(column_types=columns, include_columns=[*columns])
  parse = pa.csv.ParseOptions(newlines_in_values=True)
  names: list[str] = pa.csv.read_csv(path, parse_options=parse, convert_options=options)[
    'source'
  ].to_pylist()
  return names


if __name__ == '__main__':
  main()
