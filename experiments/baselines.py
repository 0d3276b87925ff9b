"""Compare selection with what it has to beat: plain fine-tuning with every option of the solver.

  python -m experiments.baselines --output=experiments/baselines.json

Each arm is the plain fine-tuning of the task textures_imagenet (tasks.py) with one more option, or
its selection with one more option of the sampling; all arms of a seed share the ranking. Learning
rates are the task's. The table has the mean class accuracy over the seeds, ten crops, and the gain
over plain fine-tuning; ± is the larger of its spread over the seeds, divided by the root of their
number, and the mean standard error over the test images.
"""

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments import tasks
from sjft_jax import pipeline
from sjft_jax.runtime import artifacts

OUTPUT = flags.DEFINE_string('output', 'experiments/baselines.json', 'File of the record.')
SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds of the runs.')

# Options by arm and section: those of plain fine-tuning, and those of selection in rounds.
PLAIN_ARMS = {
  'cosine': {'solver': {'schedule': 'cosine'}},
  'cosine, warm-up': {'solver': {'schedule': 'cosine', 'warmup_steps': 15}},
  'layer-wise rates': {'solver': {'layer_decay': 0.7, 'head_rate': 10.0}},
  'EMA': {'solver': {'ema': 0.98}},
  'label smoothing': {'loss': {'label_smoothing': 0.1}},
  'L2-SP': {'solver': {'l2_sp': 0.01}},
  'class-balanced': {'training': {'class_balanced': True}},
  'class cap': {'training': {'class_cap': 1}},
}
GROWING_ARMS = {'hard oversampled': {'training': {'oversample_hard': True}}}


def get_config(seed: int) -> ConfigDict:
  """Return the task's configuration with one arm for each option."""
  c = tasks.get_config('textures_imagenet')
  c.seed = seed
  c.arms = ('none', *PLAIN_ARMS, 'rounds', *GROWING_ARMS)
  for base, arms in (('none', PLAIN_ARMS), ('rounds', GROWING_ARMS)):
    for arm, options in arms.items():
      c.overrides[arm] = ConfigDict(c.overrides[base].to_dict())
      for section, values in options.items():
        if section not in c.overrides[arm]:
          c.overrides[arm][section] = ConfigDict()
        c.overrides[arm][section].update(values)
  return c


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
  """Average one arm's rows of the closing tables over the seeds."""
  accuracy = float(np.mean([row['mean_class_accuracy'] for row in rows]))
  if 'gain' not in rows[0]:
    return {'mean_class_accuracy': accuracy}
  gains = [float(row['gain']) for row in rows]
  spread = np.std(gains, ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
  error = max(spread, np.mean([row['standard_error'] for row in rows]))
  return {
    'mean_class_accuracy': accuracy,
    'gain': float(np.mean(gains)),
    'error': float(error),
    'gains': gains,
  }


def main(_: object) -> None:
  logging.set_verbosity(logging.WARNING)
  tables, device = [], ''
  with tempfile.TemporaryDirectory() as scratch:
    for seed in SEEDS.value:
      workdir = Path(scratch) / seed
      workdir.mkdir()
      if tables:  # The ranking does not depend on the seed.
        shutil.copy(Path(scratch) / SEEDS.value[0] / 'ranking.npz', workdir)
      results = pipeline.run(get_config(int(seed)), workdir)
      tables.append({row['name']: row for row in results['table']})
      device = results['device']
  summary = {name: summarize([table[name] for table in tables]) for name in tables[0]}
  for name, row in summary.items():
    gain = f' {100 * row["gain"]:+.1f} ± {100 * row["error"]:.1f}' if 'gain' in row else ''
    print(f'{name:28} {row["mean_class_accuracy"]:.1%}{gain}')
  record = {'device': device, 'seeds': SEEDS.value, 'summary': summary}
  artifacts.write_json(Path(OUTPUT.value), record)


if __name__ == '__main__':
  app.run(main)
