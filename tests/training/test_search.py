"""The settings that are tried, and successive halving."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sjft_jax import config as configs
from sjft_jax.training import search
from sjft_jax.training.search import TuningOptions

GRID = {
  'folds': 3,
  'settings': 6,
  'learning_rates': (0.1, 1.0),
  'layer_decays': (1.0, 0.7),
  'head_rates': (1.0, 10.0),
  'steps': (1.0,),
  'source_weights': (1.0, 0.3),
}


def draw(arm='rounds', seed=0, **changes):
  config = configs.arm_config(configs.default(), arm)
  return search.draw_settings(config, TuningOptions(**GRID | changes), seed)


def test_own_options_come_first_and_no_setting_twice():
  own, *others = settings = draw()
  assert own == {
    'solver.learning_rate': 0.01,
    'solver.layer_decay': 1.0,
    'solver.head_rate': 1.0,
    'loss.source_weight': 0.5,
  }
  assert len(settings) == 6
  assert own not in others
  whole = draw(settings=100)
  assert len(whole) == 16
  assert len({tuple(setting.items()) for setting in whole}) == 16
  assert whole[:6] == settings
  assert draw(seed=1) != settings
  assert {setting['solver.learning_rate'] for setting in whole} == {0.01, 0.001}
  assert {setting['loss.source_weight'] for setting in whole} == {0.5, 0.15}


def test_arm_without_a_source_has_no_weight_of_it():
  settings = draw('none', settings=100)
  assert len(settings) == 8
  assert all('loss.source_weight' not in setting for setting in settings)


def test_factors_that_change_nothing_make_no_setting_twice():
  config = configs.default()
  config.overrides.rounds.loss = {'source_weight': 0.0}
  options = TuningOptions(**GRID | {'settings': 100})
  settings = search.draw_settings(configs.arm_config(config, 'rounds'), options, seed=0)
  assert len({tuple(setting.items()) for setting in settings}) == len(settings) == 8


def test_steps_move_the_schedule_along():
  settings = draw('none', settings=100, steps=(0.5,))
  assert settings[0]['training.steps'] == 16000
  assert settings[1]['training.steps'] == 8000
  assert settings[1]['solver.drop_every'] == 2000
  assert settings[1]['solver.warmup_steps'] == 0


def test_l2_sp_is_tried_on_request():
  settings = draw('none', settings=100, l2_sps=(0.0, 0.1))
  assert len(settings) == 16
  assert settings[0]['solver.l2_sp'] == 0.0
  assert {setting['solver.l2_sp'] for setting in settings} == {0.0, 0.1}


def test_setting_has_no_other_options_than_are_listed():
  own = draw(steps=(0.5,), l2_sps=(0.0, 0.1))[0]
  assert sorted(own) == sorted(search.OPTIONS)


def test_setting_changes_the_options_of_its_sections():
  assert search.nested(
    {'solver.head_rate': 10.0, 'training.steps': 5, 'solver.layer_decay': 1}
  ) == {
    'solver': {'head_rate': 10.0, 'layer_decay': 1},
    'training': {'steps': 5},
  }


@given(st.dictionaries(st.integers(0, 50), st.floats(0, 1), min_size=1))
def test_better_half_survives(scores):
  kept = search.survivors(scores)
  assert len(kept) == math.ceil(len(scores) / 2)
  assert kept == sorted(kept)
  rest = scores.keys() - set(kept)
  assert all(scores[a] <= scores[b] for a in kept for b in rest)


def test_first_of_equals_survives():
  assert search.survivors({4: 0.5, 2: 0.5, 7: 0.5, 9: 0.1}) == [2, 9]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'folds': 1}, 'folds=1 must be 2 or more'),
    ({'settings': 0}, 'settings=0 must be 1 or more'),
    ({'learning_rates': (0.1, 0.0)}, r'learning_rates=\(0\.1, 0\.0\) must be above 0'),
    ({'steps': (math.inf,)}, 'steps=.* must be above 0 and finite'),
    ({'l2_sps': (-0.1,)}, r'l2_sps=\(-0\.1,\) must be 0 or more'),
    ({'learning_rates': (0.1, '1/3')}, "learning_rates: '1/3' is no number"),
    ({'l2_sps': ('a',)}, "l2_sps: 'a' is no number"),
    ({'layer_decays': (1.5,)}, r'layer_decays=\(1\.5,\) must be 1 or less'),
  ],
)
def test_impossible_grid_is_an_error(changes, message):
  with pytest.raises(ValueError, match=message):
    TuningOptions(**GRID | changes)
