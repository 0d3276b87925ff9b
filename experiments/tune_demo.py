"""Learning rate and number of steps of every arm of the demo, from held-out target training images.

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
LEARNING_RATES = (0.0003, 0.001, 0.003, 0.01)
STEPS = (75, 150)
FOLDS = ((0, 1), (2, 3))  # The held-out images of each class.


def fold_domains(held_out):
  config = demo.get_config()
  train, _ = registry.open_target(**config.target)
  place = np.concatenate([np.arange(n) for n in np.bincount(train.labels)])
  out = np.isin(place, held_out)
  parts = (Part(train, np.flatnonzero(chosen)) for chosen in (~out, out))
  return pipeline.Domains(*parts, registry.load(**config.source))


def settings(learning_rate, steps):
  config = demo.get_config()
  config.evaluation.views = ('center',)
  for arm in config.arms:
    config.overrides[arm].solver = {
      'learning_rate': learning_rate,
      'drop_every': demo.drop_every(steps),
    }
    config.overrides[arm].training = {'steps': steps}
  return config


def main(_):
  logging.set_verbosity(logging.WARNING)
  tried = []
  with tempfile.TemporaryDirectory() as scratch:
    for fold, held_out in enumerate(FOLDS):
      domains, ranking = fold_domains(held_out), None
      for learning_rate, steps in itertools.product(LEARNING_RATES, STEPS):
        workdir = Path(scratch) / f'{fold}-{learning_rate}-{steps}'
        workdir.mkdir()
        if ranking:  # It depends on the fold only.
          shutil.copy(ranking, workdir)
        ranking = workdir / 'ranking.npz'
        results = pipeline.run_on(domains, settings(learning_rate, steps), workdir)
        for arm, outcome in results['arms'].items():
          last = outcome['rounds'][-1]['test']['center']
          tried.append(
            {'arm': arm, 'learning_rate': learning_rate, 'steps': steps, 'fold': fold, **last}
          )
  chosen = {}
  for arm in demo.get_config().arms:

    def held_out_loss(setting, arm=arm):
      rows = [
        row
        for row in tried
        if row['arm'] == arm and (row['learning_rate'], row['steps']) == setting
      ]
      return np.mean([row['cross_entropy'] for row in rows])

    best = min(itertools.product(LEARNING_RATES, STEPS), key=held_out_loss)
    chosen[arm] = dict(zip(('learning_rate', 'steps'), best, strict=True))
    print(arm, chosen[arm], f'held-out cross-entropy {held_out_loss(best):.3f}')
  record = {'device': results['device'], 'chosen': chosen, 'tried': tried}
  artifacts.write_json(Path(OUTPUT.value), record)


if __name__ == '__main__':
  app.run(main)
