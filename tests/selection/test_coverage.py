import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sjft_jax.selection.coverage import choose_num_neighbors, count_source_images


def slow_count(ranking, num_neighbors):
  return len({int(i) for row in ranking for i in row[:num_neighbors]})


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=150)
def test_the_smallest_number_of_neighbors_with_enough_source_images_is_chosen(
  num_targets, num_source, seed, data
):
  rng = np.random.default_rng(seed)
  depth = data.draw(st.integers(1, num_source))
  ranking = np.stack([rng.permutation(num_source)[:depth] for _ in range(num_targets)])
  ranking = ranking.astype(np.int32)
  counts = [slow_count(ranking, k) for k in range(1, depth + 1)]
  np.testing.assert_array_equal(count_source_images(ranking), counts)
  asked = data.draw(st.integers(0, num_source + 5))
  enough = [k for k, count in enumerate(counts, 1) if count >= asked]
  expected = min(enough, default=depth)
  assert choose_num_neighbors(ranking, asked) == (expected, counts[expected - 1])


@pytest.mark.parametrize(('asked', 'chosen'), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 3), (99, 3)])
def test_neighbors_that_targets_share_count_once(asked, chosen):
  ranking = np.array([[0, 1, 2], [5, 1, 0]], np.int32)  # 0 and 5; 1 too; 2 too.
  coverage = choose_num_neighbors(ranking, asked)
  assert coverage == (chosen, (2, 3, 4)[chosen - 1])
