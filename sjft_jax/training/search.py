"""The settings that `tune` tries for an arm, and which of them it keeps: successive halving."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_collections import ConfigDict

# Values of options, named 'section.option'.
Setting = dict[str, float]
# Those that a setting may have.
OPTIONS = (
  *('solver.learning_rate', 'solver.layer_decay', 'solver.head_rate', 'solver.l2_sp'),
  *('training.steps', 'solver.drop_every', 'solver.warmup_steps', 'loss.source_weight'),
)


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
  """The section `tuning` of the configuration.

  Attributes:
    folds: parts of the training images, each of which is held out once.
    settings: settings that are tried for each arm, at most.
    learning_rates, steps, source_weights: factors on the arm's own values.
    layer_decays, head_rates, l2_sps: values.

  Raises:
    ValueError: fewer than two folds, no setting, or an impossible value of the grid.
  """

  folds: int
  settings: int
  learning_rates: Sequence[float]
  layer_decays: Sequence[float]
  head_rates: Sequence[float]
  l2_sps: Sequence[float] = ()
  steps: Sequence[float]
  source_weights: Sequence[float]

  def __post_init__(self) -> None:
    if self.folds < 2:
      raise ValueError(f'folds={self.folds} must be 2 or more')
    if self.settings < 1:
      raise ValueError(f'settings={self.settings} must be 1 or more')
    names = ('learning_rates', 'layer_decays', 'head_rates', 'steps', 'source_weights')
    for name in (*names, 'l2_sps'):
      for value in getattr(self, name):
        if not isinstance(value, int | float):
          raise ValueError(f'{name}: {value!r} is no number of Python (int or float)')
    for name in names:
      values = getattr(self, name)
      for value in values:
        if not 0 < value < math.inf:
          raise ValueError(f'{name}={tuple(values)} must be above 0 and finite')
    if any(not 0 <= value < math.inf for value in self.l2_sps):
      raise ValueError(f'l2_sps={tuple(self.l2_sps)} must be 0 or more and finite')
    if any(value > 1 for value in self.layer_decays):
      raise ValueError(f'layer_decays={tuple(self.layer_decays)} must be 1 or less')


def draw_settings(config: ConfigDict, options: TuningOptions, seed: int) -> list[Setting]:
  """Draw the settings to try for an arm from the grid; the first is the configuration's own.

  Args:
    config: the options of the arm.
    options: the grid, and how many settings to draw.
    seed: of the draw. Arms with equal options draw equal settings.
  """
  solver, loss = config.solver, config.loss
  own = 1.0, solver.layer_decay, solver.head_rate, solver.l2_sp, 1.0, 1.0
  has_source = config.selection.method != 'none'
  grid = list(
    itertools.product(
      options.learning_rates or (1.0,),
      options.layer_decays or (solver.layer_decay,),
      options.head_rates or (solver.head_rate,),
      options.l2_sps or (solver.l2_sp,),
      options.steps or (1.0,),
      (options.source_weights or (1.0,)) if has_source else (1.0,),
    )
  )
  order = np.random.Generator(np.random.Philox(seed)).permutation(len(grid))
  points = dict.fromkeys([own, *(grid[i] for i in order)])
  settings = []
  for learning_rate, layer_decay, head_rate, l2_sp, steps, source_weight in points:
    setting: Setting = {
      'solver.learning_rate': _rounded(learning_rate * solver.learning_rate),
      'solver.layer_decay': layer_decay,
      'solver.head_rate': head_rate,
    }
    if options.l2_sps:
      setting['solver.l2_sp'] = l2_sp
    if any(factor != 1 for factor in options.steps):
      setting['training.steps'] = max(round(steps * config.training.steps), 1)
      # Drops and warm-up keep their place in the schedule.
      setting['solver.drop_every'] = max(round(steps * solver.drop_every), 1)
      setting['solver.warmup_steps'] = round(steps * solver.warmup_steps)
    if has_source:
      setting['loss.source_weight'] = _rounded(source_weight * loss.source_weight)
    if setting not in settings:  # A factor on a weight of 0, or on very few steps, changes nothing.
      settings.append(setting)
  return settings[: options.settings]


def nested(setting: Setting) -> dict[str, dict[str, Any]]:
  """Return a setting as section → option → value, as `overrides` of an arm are."""
  overrides: dict[str, dict[str, Any]] = {}
  for name, value in setting.items():
    section, _, option = name.partition('.')
    overrides.setdefault(section, {})[option] = value
  return overrides


def survivors(scores: Mapping[int, float]) -> list[int]:
  """Return the better half of the settings, rounded up, in their order.

  Args:
    scores: that of each setting by its number; lower is better, and the first of equals.
  """
  ranked = sorted(scores, key=lambda number: (scores[number], number))
  return sorted(ranked[: math.ceil(len(scores) / 2)])


def _rounded(value: float) -> float:
  """Return a product of decimal numbers without the last bits' noise, for people to read."""
  return float(f'{value:.12g}')
