import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sjft_jax.selection.hardness import entropy
from sjft_jax.selection.schedule import grow, max_num_neighbors
from sjft_jax.selection.subset import select


@given(hnp.arrays(np.float64, (5, 4), elements=st.floats(1e-3, 1)))
def test_entropy_equals_scipy(unnormalised):
  p = unnormalised / unnormalised.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(entropy(p), scipy.stats.entropy(p, axis=1), rtol=1e-9, atol=1e-12)


def test_entropy_of_certainty_is_zero_and_of_ignorance_log_of_classes():
  p = np.array([[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]], np.float32)
  np.testing.assert_allclose(entropy(p), [0, np.log(4)], rtol=1e-7)


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
def test_deepest_bounds_every_history_and_is_reached(k0, rounds, sigma0, sigma1, data):
  k = np.full(3, k0)
  for _ in range(rounds - 1):
    hardness = np.array(data.draw(st.lists(st.floats(0, 3), min_size=3, max_size=3)))
    correct = np.array(data.draw(st.lists(st.booleans(), min_size=3, max_size=3)))
    grown = grow(k, hardness, correct, delta=0.1, sigma0=sigma0, sigma1=sigma1)
    assert (grown >= k).all()
    k = grown
  depth = max_num_neighbors(num_neighbors=k0, rounds=rounds, sigma0=sigma0, sigma1=sigma1)
  assert (k <= depth).all()
  worst = np.array([k0])
  for _ in range(rounds - 1):
    options = [
      grow(worst, np.ones(1), np.array([c]), delta=0.1, sigma0=sigma0, sigma1=sigma1)
      for c in (False, True)
    ]
    worst = max(options, key=lambda option: option[0])
  assert worst[0] == depth


RANKING = np.array([[5, 3, 1, 0], [3, 2, 4, 9], [3, 5, 7, 8]])
COUNTS = np.array([1, 2, 4])


def choose(method, counts=COUNTS):
  return select(method, ranking=RANKING, num_neighbors=counts, num_source=10, seed=0)


def test_nearest_draws_from_each_targets_own_prefix():
  subset = choose('nearest')
  np.testing.assert_array_equal(subset.distinct(), [2, 3, 5, 7, 8])
  uniform = np.linspace(0, 1, 12, endpoint=False)
  for target, count in enumerate(COUNTS):
    drawn = subset.draw(np.full(12, target), uniform)
    # Twelve evenly spaced numbers hit every neighbour equally often.
    np.testing.assert_array_equal(drawn, np.repeat(RANKING[target, :count], 12 // count))


def test_random_has_as_many_images_as_nearest_and_grows_by_prefix():
  small, large = choose('random'), choose('random', np.array([4, 4, 4]))
  assert len(small) == len(choose('nearest')) == 5
  assert len(large) == len(choose('nearest', np.array([4, 4, 4])))
  assert set(small.distinct()) < set(large.distinct())
  drawn = small.draw(np.array([0, 1, 2] * 100), np.linspace(0, 1, 300, endpoint=False))
  assert set(drawn) == set(small.distinct())


def test_all_and_none():
  everything = choose('all')
  np.testing.assert_array_equal(everything.distinct(), np.arange(10))
  np.testing.assert_array_equal(everything.draw(np.array([2]), np.array([0.99])), [9])
  assert choose('none') is None
  with pytest.raises(ValueError, match=r"'closest' is unknown; use one of nearest, random"):
    choose('closest')
