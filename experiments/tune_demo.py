"""Learning rates of every arm of the demo, by held-out training images of the target.

  python -m experiments.tune_demo --output=experiments/tune_demo.json

The test set is not looked at. The five training images of each class are cut from cells that share
no pixels; each fold holds two of them out, trains every arm on the other three with every setting
of the grid, and scores the held-out ones. An arm's setting is the one with the lowest mean
held-out cross-entropy; the same grid, folds and rule for all. Everything tried is in the output.
"""

import itertools
import shutil
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags, logging

from configs import demo
from sjft_jax import artifacts, pipeline
from sjft_jax.data import registry
from sjft_jax.data.dataset import Part

OUTPUT = flags.DEFINE_string('output', 'experiments/tune_demo.json', 'Where the record goes.')
LEARNING_RATES = (0.0001, 0.0003, 0.001, 0.003)
# Factors on it: by layer downwards, and of the heads.
BY_LAYER = ((1.0, 1.0), (1.0, 10.0), (0.7, 10.0))
FOLDS = ((0, 1), (2, 3))  # The held-out images of each class.


def fold_domains(places):
  config = demo.get_config()
  train, _ = registry.open_target(**config.target)
  place = np.concatenate([np.arange(n) for n in np.bincount(train.labels)])
  out = np.isin(place, places)
  parts = (Part(train, np.flatnonzero(chosen)) for chosen in (~out, out))
  return pipeline.Domains(*parts, registry.load(**config.source))


def grid():
  for learning_rate, (layer_decay, head_rate) in itertools.product(LEARNING_RATES, BY_LAYER):
    yield {'learning_rate': learning_rate, 'layer_decay': layer_decay, 'head_rate': head_rate}


def with_solver(setting):
  config = demo.get_config()
  config.evaluation.views = ('center',)
  for arm in config.arms:
    config.overrides[arm].solver = setting
  return config


def main(_):
  logging.set_verbosity(logging.WARNING)
  tried = []
  with tempfile.TemporaryDirectory() as scratch:
    for fold, places in enumerate(FOLDS):
      domains, ranking = fold_domains(places), None
      for number, setting in enumerate(grid()):
        workdir = Path(scratch) / f'{fold}-{number}'
        workdir.mkdir()
        if ranking:  # It depends on the fold only.
          shutil.copy(ranking, workdir)
        ranking = workdir / 'ranking.npz'
        results = pipeline.run_on(domains, with_solver(setting), workdir)
        for arm, outcome in results['arms'].items():
          held_out = outcome['rounds'][-1]['test']['center']
          tried.append({'arm': arm, 'fold': fold, 'solver': setting, **held_out})
  chosen = {}
  for arm in demo.get_config().arms:

    def held_out_loss(setting, arm=arm):
      rows = [row for row in tried if (row['arm'], row['solver']) == (arm, setting)]
      return np.mean([row['cross_entropy'] for row in rows])

    for setting in grid():
      print(arm, setting, f'held-out cross-entropy {held_out_loss(setting):.3f}')
    chosen[arm] = min(grid(), key=held_out_loss)
    print(arm, 'chosen:', chosen[arm])
  record = {'device': results['device'], 'chosen': chosen, 'tried': tried}
  artifacts.write_json(Path(OUTPUT.value), record)


if __name__ == '__main__':
  app.run(main)
