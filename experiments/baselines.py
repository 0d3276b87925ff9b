"""What selection has to beat: plain fine-tuning with every option of the solver, on the demo.

  python -m experiments.baselines --output=experiments/baselines.json

Each arm is the demo's plain fine-tuning with one more option, or its selection with one more option
of the sampling; all arms of a seed share the ranking. Learning rates are the demo's. The table has
the mean class accuracy over the seeds, ten crops, and the gain over plain fine-tuning; ± is the
larger of its spread over the seeds, divided by the root of their number, and the mean standard
error over the test images.
"""

import json
import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

from configs import demo
from sjft_jax import pipeline
from sjft_jax.runtime import artifacts

OUTPUT = flags.DEFINE_string('output', 'experiments/baselines.json', 'Where the record goes.')
SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Runs.')
# Of plain fine-tuning.
PLAIN = {
  'cosine': {'solver': {'schedule': 'cosine'}},
  'cosine, warm-up': {'solver': {'schedule': 'cosine', 'warmup_steps': 15}},
  'layer-wise rates': {'solver': {'layer_decay': 0.7, 'head_rate': 10.0}},
  'EMA': {'solver': {'ema': 0.98}},
  'label smoothing': {'loss': {'label_smoothing': 0.1}},
  'L2-SP': {'solver': {'pull_to_start': 0.01}},
  'class-balanced': {'training': {'class_balanced': True}},
  'class cap': {'training': {'class_cap': 1}},
}
# Of selection in rounds.
GROWING = {'hard oversampled': {'training': {'oversample_hard': True}}}


def config(seed):
  c = demo.get_config()
  c.seed = seed
  c.arms = ['none', *PLAIN, 'rounds', *GROWING]
  for base, options in (('none', PLAIN), ('rounds', GROWING)):
    for name, more in options.items():
      c.overrides[name] = ConfigDict(c.overrides[base].to_dict())
      for section, values in more.items():
        if section not in c.overrides[name]:
          c.overrides[name][section] = ConfigDict()
        c.overrides[name][section].update(values)
  return c


def main(argv):
  del argv
  logging.set_verbosity(logging.WARNING)
  tables = []
  with tempfile.TemporaryDirectory() as scratch:
    for seed in map(int, SEEDS.value):
      workdir = Path(scratch) / str(seed)
      workdir.mkdir()
      if tables:  # The ranking does not depend on the seed.
        shutil.copy(Path(scratch) / SEEDS.value[0] / 'ranking.npz', workdir)
      results = pipeline.run(config(seed), workdir)
      tables.append({row['name']: row for row in results['table']})
  summary = {}
  for name in tables[0]:
    rows = [table[name] for table in tables]
    summary[name] = {'mean_class_accuracy': np.mean([row['mean_class_accuracy'] for row in rows])}
    if 'gain' in rows[0]:
      gains = [row['gain'] for row in rows]
      spread = np.std(gains, ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
      error = max(spread, np.mean([row['standard_error'] for row in rows]))
      summary[name] |= {'gain': np.mean(gains), 'error': error, 'gains': gains}
      print(f'{name:28} {summary[name]["mean_class_accuracy"]:.1%} ', end='')
      print(f'{100 * np.mean(gains):+.1f} ± {100 * error:.1f}')
    else:
      print(f'{name:28} {summary[name]["mean_class_accuracy"]:.1%}')
  record = {'device': results['device'], 'seeds': SEEDS.value, 'summary': summary}
  artifacts.write_json(Path(OUTPUT.value), json.loads(json.dumps(record, default=float)))


if __name__ == '__main__':
  app.run(main)
