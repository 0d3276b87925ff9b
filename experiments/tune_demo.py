"""Choose the learning rates of every arm of the demo on held-out target training images.

  python -m experiments.tune_demo --output=experiments/tune_demo.json

The test set is not looked at. The five training images of each class are cut from cells that share
no pixels; each fold holds two of them out, trains every arm on the other three with every setting
of the grid, and scores the held-out ones. An arm's setting is the one with the lowest mean
held-out cross-entropy; the grid, the folds and the rule are the same for all. The output holds
everything that was tried; what it holds already is not tried again.
"""

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict

from configs import demo
from experiments.folds import FOLDS, fold_domains
from sjft_jax import pipeline
from sjft_jax.runtime import artifacts, compilation

OUTPUT = flags.DEFINE_string('output', 'experiments/tune_demo.json', 'File of the record.')

LEARNING_RATES = (0.0003, 0.0006, 0.001)
# layer_decay and head_rate: factors from each layer of the trunk to the one below it, and for the
# heads. Others were worse for every arm in an earlier grid (see NOTES.md).
LAYER_RATES = ((1.0, 1.0),)


def settings() -> Iterator[dict[str, float]]:
  """Yield the options of the solver at every point of the grid."""
  for learning_rate, (layer_decay, head_rate) in itertools.product(LEARNING_RATES, LAYER_RATES):
    yield {'learning_rate': learning_rate, 'layer_decay': layer_decay, 'head_rate': head_rate}


def get_config(setting: dict[str, float]) -> ConfigDict:
  """Return the demo's configuration with one setting in all arms, scored on a single view."""
  config = demo.get_config()
  config.evaluation.views = ('center',)
  for arm in config.arms:
    config.overrides[arm].solver = setting
  return config


def scores(
  trials: list[dict[str, Any]], key: str, arm: str, setting: dict[str, float]
) -> list[float]:
  """Return the scores of one setting of an arm, one for each fold that was tried."""
  return [trial[key] for trial in trials if {**setting, 'arm': arm}.items() <= trial.items()]


def print_best(trials: list[dict[str, Any]], arm: str) -> None:
  """Print an arm's best learning rate for each pair of layer rates, and which one is chosen."""
  losses = {tuple(s.values()): np.mean(scores(trials, 'cross_entropy', arm, s)) for s in settings()}
  accuracies = {tuple(s.values()): np.mean(scores(trials, 'top1', arm, s)) for s in settings()}
  for rates in LAYER_RATES:
    best = min((setting for setting in losses if setting[1:] == rates), key=losses.__getitem__)
    chosen = '; chosen' if losses[best] == min(losses.values()) else ''
    print(
      f'{arm}, layer_decay, head_rate {rates}: learning rate {best[0]}, held-out cross-entropy '
      f'{losses[best]:.3f}, accuracy {accuracies[best]:.1%}{chosen}'
    )


def main(_: object) -> None:
  logging.set_verbosity(logging.WARNING)
  compilation.enable_cache()
  output = Path(OUTPUT.value)
  trials = json.loads(output.read_text())['tried'] if output.exists() else []
  arms = demo.get_config().arms
  with tempfile.TemporaryDirectory() as scratch:
    for fold in range(len(FOLDS)):
      domains, ranking = fold_domains(fold), None
      for number, setting in enumerate(settings()):
        if scores(trials, 'top1', arms[-1], {**setting, 'fold': fold}):
          continue
        workdir = epath.Path(scratch) / f'{fold}-{number}'
        workdir.mkdir()
        if ranking:  # It depends on the fold only.
          shutil.copy(ranking, workdir)
        ranking = workdir / 'ranking.npz'
        results = pipeline.run_on_datasets(domains, get_config(setting), workdir)
        for arm, outcome in results['arms'].items():
          last = outcome['rounds'][-1]['test']['center']
          trials.append({'arm': arm, **setting, 'fold': fold, **last})
        artifacts.write_json(output, {'device': results['device'], 'tried': trials})
  for arm in arms:
    print_best(trials, arm)


if __name__ == '__main__':
  app.run(main)
