"""Which share of the source images that a demo run used are letters, which cannot help textures.

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
        used = {row['source'] for row in csv.DictReader(file)}
      if used:
        letters = sum(families[key] in source.irrelevant for key in used)
        arm, round_ = path.parts[-4], path.parts[-2]
        print(
          f'{run} {arm} round {round_}: {letters:,} of {len(used):,}, {letters / len(used):.1%}'
        )


if __name__ == '__main__':
  main()
