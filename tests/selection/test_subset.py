import numpy as np
import pytest

from sjft_jax.selection.subset import select

RANKING = np.array([[5, 3, 1, 0], [3, 2, 4, 9], [3, 5, 7, 8]])
COUNTS = np.array([1, 2, 4])
LABELS = np.array([0, 0, 0, 2, 2, 3, 3, 3, 4, 4])  # No image is of class 1.


def select_by(method, counts=COUNTS, labels=LABELS):
  return select(method, ranking=RANKING, num_neighbors=counts, source_labels=labels, seed=0)


def test_nearest_draws_from_each_targets_own_prefix():
  subset = select_by('nearest')
  assert not subset.is_shared
  np.testing.assert_array_equal(subset.distinct, [2, 3, 5, 7, 8])
  uniform = np.linspace(0, 1, 12, endpoint=False)
  for target, count in enumerate(COUNTS):
    neighbors = subset.draw(np.full(12, target), uniform)
    # Twelve evenly spaced numbers hit every neighbour equally often.
    np.testing.assert_array_equal(neighbors, np.repeat(RANKING[target, :count], 12 // count))


def test_random_has_as_many_images_as_nearest_and_grows_by_prefix():
  small, large = select_by('random'), select_by('random', np.array([4, 4, 4]))
  assert small.is_shared
  assert len(small) == len(select_by('nearest')) == 5
  assert len(large) == len(select_by('nearest', np.array([4, 4, 4])))
  assert set(small.distinct) < set(large.distinct)
  neighbors = small.draw(np.array([0, 1, 2] * 100), np.linspace(0, 1, 300, endpoint=False))
  assert set(neighbors) == set(small.distinct)


def test_classes_are_those_with_the_largest_share_of_neighbours():
  subset = select_by('classes')
  assert subset.is_shared
  # Of class 3, two of three images are near, of 2 and 4 one of two, of 0 one of three. Classes 3
  # and 2 have as many images as are near.
  np.testing.assert_array_equal(subset.distinct, [3, 4, 5, 6, 7])
  assert len(select_by('classes', np.array([4, 4, 4]))) == 10
  one_hot = np.arange(5) == LABELS[:, None]
  np.testing.assert_array_equal(select_by('classes', labels=one_hot).distinct, [3, 4, 5, 6, 7])
  np.testing.assert_array_equal(select_by('classes', np.array([1, 0, 0])).distinct, [5, 6, 7])


def test_images_of_several_classes_count_once_and_of_none_not():
  labels = np.arange(5) == LABELS[:, None]
  labels[:3, 3] = True
  labels[9] = False
  # Near are all of class 4, one of two of 2, and three of six of 3, with which there are enough.
  subset = select_by('classes', labels=labels)
  np.testing.assert_array_equal(subset.distinct, np.arange(9))


def test_all_has_the_whole_source():
  everything = select_by('all')
  np.testing.assert_array_equal(everything.distinct, np.arange(10))
  np.testing.assert_array_equal(everything.draw(np.array([2]), np.array([0.99])), [9])


def test_none_has_no_subset():
  assert select_by('none') is None


def test_unknown_method_is_an_error():
  with pytest.raises(
    ValueError, match=r"method='zoo' is unknown; use one of nearest, similar, classes, random"
  ):
    select_by('zoo')
