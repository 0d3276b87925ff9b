"""Print which share of the source images that demo runs used are letters, no help for textures.

python -m experiments.selection_share runs/seed0 runs/seed1
"""

import csv
import sys
from pathlib import Path

from sjft_jax.data.demo import DemoDiverse


def main() -> None:
  source = DemoDiverse()
  families = {source.key(i): family for i, family in enumerate(source.families)}
  for run in map(Path, sys.argv[1:]):
    for path in sorted(run.glob('arms/*/rounds/*/selection.csv')):
      with path.open(encoding='utf-8') as file:
        selected = {row['source'] for row in csv.DictReader(file)}
      if selected:
        letters = sum(families[key] in source.irrelevant for key in selected)
        arm, round_ = path.parts[-4], path.parts[-2]
        share = f'{letters:,} of {len(selected):,}, {letters / len(selected):.1%}'
        print(f'{run} {arm} round {round_}: {share}')


if __name__ == '__main__':
  main()
