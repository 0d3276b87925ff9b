"""Learning rates of every arm of the demo, from held-out target training images.

  python -m experiments.tune_demo --output=experiments/tune_demo.json

The test set is not looked at. The five training images of each class are cut from cells that share
no pixels; each fold holds two of them out, trains every arm on the other three with every setting
of the grid, and scores the held-out ones. An arm's setting is the one with the lowest mean
held-out cross-entropy; the same grid, folds and rule for all. Everything tried is in the output;
what is there already is not tried again.
"""

import itertools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from etils import epath

from configs import demo
from sjft_jax import pipeline
from sjft_jax.data import registry
from sjft_jax.data.dataset import SubsetDataset
from sjft_jax.runtime import artifacts, compilation

OUTPUT = flags.DEFINE_string('output', 'experiments/tune_demo.json', 'Where the record goes.')
GRID = {
  'learning_rate': (0.0001, 0.0003, 0.001, 0.003),
  # Factors from each layer of the trunk to the one below it, and for the heads.
  'layer_decay, head_rate': ((1.0, 1.0), (1.0, 10.0), (0.7, 10.0)),
}
FOLDS = ((0, 1), (2, 3))  # The held-out images of each class.


def fold_domains(held_out):
  config = demo.get_config()
  train, _ = registry.open_target(**config.target)
  place = np.concatenate([np.arange(n) for n in np.bincount(train.labels)])
  out = np.isin(place, held_out)
  parts = (SubsetDataset(train, np.flatnonzero(chosen)) for chosen in (~out, out))
  return pipeline.Domains(*parts, registry.load(**config.source))


def settings():
  for learning_rate, (layer_decay, head_rate) in itertools.product(*GRID.values()):
    yield {'learning_rate': learning_rate, 'layer_decay': layer_decay, 'head_rate': head_rate}


def configured(setting):
  config = demo.get_config()
  config.evaluation.views = ('center',)
  for arm in config.arms:
    config.overrides[arm].solver = setting
  return config


def main(_):
  logging.set_verbosity(logging.WARNING)
  compilation.enable_cache()
  output = Path(OUTPUT.value)
  tried = json.loads(output.read_text())['tried'] if output.exists() else []

  def held_out(setting, arm, score='cross_entropy'):
    """One value for each fold that was tried."""
    return [row[score] for row in tried if {**setting, 'arm': arm}.items() <= row.items()]

  arms = demo.get_config().arms
  with tempfile.TemporaryDirectory() as scratch:
    for fold, out in enumerate(FOLDS):
      domains, ranking = fold_domains(out), None
      for number, setting in enumerate(settings()):
        if held_out({**setting, 'fold': fold}, arms[-1]):
          continue
        workdir = epath.Path(scratch) / f'{fold}-{number}'
        workdir.mkdir()
        if ranking:  # It depends on the fold only.
          shutil.copy(ranking, workdir)
        ranking = workdir / 'ranking.npz'
        results = pipeline.run_on_datasets(domains, configured(setting), workdir)
        for arm, outcome in results['arms'].items():
          last = outcome['rounds'][-1]['test']['center']
          tried.append({'arm': arm, **setting, 'fold': fold, **last})
        artifacts.write_json(output, {'device': results['device'], 'tried': tried})
  for arm in arms:
    loss = {tuple(s.values()): np.mean(held_out(s, arm)) for s in settings()}
    accuracy = {tuple(s.values()): np.mean(held_out(s, arm, 'top1')) for s in settings()}
    for rates in GRID['layer_decay, head_rate']:
      best = min((setting for setting in loss if setting[1:] == rates), key=loss.__getitem__)
      chosen = '; chosen' if loss[best] == min(loss.values()) else ''
      print(
        f'{arm}, layer_decay, head_rate {rates}: learning rate {best[0]}, held-out cross-entropy '
        f'{loss[best]:.3f}, accuracy {accuracy[best]:.1%}{chosen}'
      )


if __name__ == '__main__':
  app.run(main)
