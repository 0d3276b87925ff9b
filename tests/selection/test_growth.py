import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sjft_jax.selection.growth import SelectionOptions, grow

# The paper's constants for Stanford Dogs.
PAPER = {'num_neighbors': 100, 'rounds': 5, 'delta': 0.1, 'sigma0': 4.0, 'sigma1': 2.0}


def test_increments_are_multiples_of_k0():
  assert SelectionOptions(method='nearest', **PAPER).increments == {'sigma0': 400, 'sigma1': 200}


@pytest.mark.parametrize(
  ('method', 'depth'), [('nearest', 1700), ('random', 1700), ('all', 0), ('none', 0)]
)
def test_ranking_depth_is_that_of_the_last_round_where_there_is_a_ranking(method, depth):
  assert SelectionOptions(method=method, **PAPER).ranking_depth == depth


def test_growth_by_hand():
  """K0 = 100: σ0 = 400, σ1 = 200, δ = 0.1 (the paper's constants for Stanford Dogs)."""
  result = grow(
    np.array([100, 100, 100, 100, 500]),
    np.array([0.0, 0.1, 0.0999, 2.0, 2.0]),
    np.array([False, True, True, True, False]),
    delta=0.1,
    sigma0=400,
    sigma1=200,
  )
  np.testing.assert_array_equal(result, [500, 300, 100, 300, 900])


@given(st.integers(1, 50), st.integers(1, 6), st.integers(0, 9), st.integers(0, 9), st.data())
def test_ranking_depth_bounds_every_history_and_is_reached(k0, rounds, sigma0, sigma1, data):
  options = SelectionOptions(
    method='nearest',
    num_neighbors=k0,
    rounds=rounds,
    delta=0.1,
    sigma0=sigma0 / k0,
    sigma1=sigma1 / k0,
  )
  assert options.increments == {'sigma0': sigma0, 'sigma1': sigma1}
  k = np.full(3, k0)
  for _ in range(rounds - 1):
    hardness = np.array(data.draw(st.lists(st.floats(0, 3), min_size=3, max_size=3)))
    is_correct = np.array(data.draw(st.lists(st.booleans(), min_size=3, max_size=3)))
    grown = grow(k, hardness, is_correct, delta=0.1, sigma0=sigma0, sigma1=sigma1)
    assert (grown >= k).all()
    k = grown
  assert (k <= options.ranking_depth).all()
  worst = np.array([k0])
  for _ in range(rounds - 1):
    outcomes = [
      grow(worst, np.ones(1), np.array([is_correct]), delta=0.1, sigma0=sigma0, sigma1=sigma1)
      for is_correct in (False, True)
    ]
    worst = max(outcomes, key=lambda outcome: outcome[0])
  assert worst[0] == options.ranking_depth
  similar = dataclasses.replace(options, method='similar')
  assert (similar.ranking_depth, similar.feature_depth) == (0, options.ranking_depth)
