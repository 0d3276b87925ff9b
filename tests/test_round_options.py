"""How many neighbours the first round has."""

import numpy as np

from sjft_jax.retrieval.knn import Ranking
from sjft_jax.rounds import resolve_num_neighbors
from sjft_jax.selection.growth import SelectionOptions


def options(**changes):
  defaults = {
    'method': 'nearest',
    'num_neighbors': 3,
    'rounds': 2,
    'delta': 0.1,
    'sigma0': 1.0,
    'sigma1': 0.5,
  }
  return SelectionOptions(**(defaults | changes))


# The first neighbours are 0 and 5; with the second ones 1, with the third ones 2 and 3 come in.
INDICES = np.array([[0, 1, 2, 6, 7, 8], [5, 1, 3, 6, 7, 8]], np.int32)
RANKING = Ranking(INDICES, np.zeros(INDICES.shape, np.float32))


def resolve_one(selection, ranking, num_source=9):
  return resolve_num_neighbors({'arm': selection}, ranking, num_source)['arm']


def test_k0_is_the_smallest_that_reaches_enough_source_images(capsys):
  chosen = resolve_one(options(min_source_images=3), RANKING)
  assert chosen == options(min_source_images=3, num_neighbors=2)
  assert chosen.increments == {'sigma0': 2, 'sigma1': 1}
  assert 'K0 = 2 reaches 3 of 3 source images\n' in capsys.readouterr().out


def test_where_no_k0_reaches_enough_the_largest_is_used_and_said(capsys):
  # The ranking is deeper for the second round, but K0 is three at most.
  chosen = resolve_one(options(min_source_images=6), RANKING)
  assert chosen.num_neighbors == 3
  said = capsys.readouterr().out
  assert 'K0 = 3 reaches 5 of 6 source images; raise selection.num_neighbors' in said
  # There are no more than those.
  resolve_one(options(min_source_images=6), RANKING, num_source=5)
  assert 'K0 = 3 reaches 5 of 6 source images\n' in capsys.readouterr().out


def test_without_a_minimum_or_a_ranking_k0_stays(capsys):
  empty = Ranking(np.zeros((2, 0), np.int32), np.zeros((2, 0), np.float32))
  for same, ranking in (
    (options(), RANKING),
    (options(method='all', min_source_images=6), empty),
    (options(method='none', min_source_images=6), empty),
  ):
    assert resolve_one(same, ranking) is same
  assert not capsys.readouterr().out


def test_all_arms_agree_in_k0_and_it_is_printed_once(capsys):
  arms = {
    'none': options(method='none', min_source_images=3),
    'random': options(method='random', min_source_images=3),
    'constant': options(sigma0=0.0, sigma1=0.0, min_source_images=3),
    'rounds': options(min_source_images=3),
  }
  resolved = resolve_num_neighbors(arms, RANKING, 9)
  assert list(resolved) == list(arms)
  assert [selection.num_neighbors for selection in resolved.values()] == [2, 2, 2, 2]
  assert resolved['constant'].increments == {'sigma0': 0, 'sigma1': 0}
  assert capsys.readouterr().out.count('K0 = 2') == 1


def test_an_arm_by_features_has_the_k0_of_its_own_limits(capsys):
  arms = {
    'none': options(method='none', num_neighbors=9, min_source_images=5),
    'similar': options(method='similar', num_neighbors=6, sigma0=0.0, min_source_images=7),
    'constant': options(num_neighbors=2, sigma0=0.0, sigma1=0.0, min_source_images=7),
  }
  depth = max(selection.ranking_depth for selection in arms.values())
  assert depth == 6
  ranking = Ranking(INDICES[:, :depth], np.zeros((2, depth), np.float32))
  resolved = resolve_num_neighbors(arms, ranking, 9)
  assert [selection.num_neighbors for selection in resolved.values()] == [9, 5, 2]
  assert capsys.readouterr().out.count('raise selection.num_neighbors') == 1


def test_the_ranking_is_as_deep_as_the_largest_k0_needs():
  assert options(min_source_images=3).ranking_depth == options().ranking_depth == 6


def test_the_remedy_names_the_option_that_the_arm_has(capsys):
  overrides = {'arm': {'selection': {'num_neighbors': 3}}}
  resolve_num_neighbors({'arm': options(min_source_images=6)}, RANKING, 9, overrides)
  assert '; raise overrides.arm.selection.num_neighbors to reach more' in capsys.readouterr().out
