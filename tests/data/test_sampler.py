import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sjft_jax.data import sampler
from sjft_jax.data.sampler import Sampler, repeats, shuffled_indices

CLASSES = 4


@st.composite
def orders(draw, least_cap=0):
  """An order with any combination of options, and its labels and levels."""
  sizes = draw(st.lists(st.integers(1, 9), min_size=CLASSES, max_size=CLASSES))
  labels = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), sizes))
  cap = draw(st.integers(least_cap, 3))
  micro_batch = draw(st.integers(1, CLASSES * cap or 12))
  times = draw(
    st.none()
    | st.lists(st.integers(1, 10), min_size=len(labels), max_size=len(labels)).map(np.array)
  )
  return Sampler(
    labels.astype(np.int32), draw(st.integers(0, 99)), micro_batch, draw(st.booleans()), cap, times
  )


def epochs(sequence, number):
  """The first epochs of a sequence, [epoch, place]."""
  size = sequence._size_and_limit[0]
  return sequence(0, number * size).reshape(number, size)


def test_by_default_the_order_is_that_of_permutations_by_seed_and_epoch():
  # These numbers decide what every finished run was trained with.
  first = [6, 0, 5, 1, 4, 2, 3]
  sequence = Sampler(np.arange(7, dtype=np.int32) % 3, 5, 2)
  for function in (sequence, lambda start, stop: shuffled_indices(5, start, stop, 7)):
    assert function(0, 7).tolist() == first
    expected = [sampler.keyed_rng(sampler.ORDER, 5, epoch).permutation(7) for epoch in range(4)]
    np.testing.assert_array_equal(function(0, 28), np.concatenate(expected))


def test_shuffling_goes_through_every_epoch():
  size = 7
  sequence = shuffled_indices(5, 0, 10 * size, size)
  rows = sequence.reshape(10, size)
  np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(size), (10, 1)))
  assert len(set(map(tuple, rows.tolist()))) > 5
  for start, stop in itertools.combinations(range(0, 70, 9), 2):
    np.testing.assert_array_equal(shuffled_indices(5, start, stop, size), sequence[start:stop])


def test_random_streams_with_zeros_appended_are_different():
  assert sampler.keyed_rng(0, 1).random() != sampler.keyed_rng(0, 1, 0).random()


@settings(deadline=None, max_examples=60)
@given(sequence=orders(), start=st.integers(0, 300), number=st.integers(1, 300))
def test_any_part_is_that_of_the_whole_also_in_another_process(sequence, start, number):
  whole = sequence(0, start + number)
  part = pickle.loads(pickle.dumps(sequence))(start, start + number)
  np.testing.assert_array_equal(part, whole[start:])


@settings(deadline=None, max_examples=100)
@given(sequence=orders())
def test_options_keep_their_promises_alone_and_together(sequence):
  labels, cap = sequence.labels, sequence.class_cap
  least = np.ones(len(labels)) if sequence.levels is None else sequence.levels
  for epoch in epochs(sequence, 3):
    times = np.bincount(epoch, minlength=len(labels))
    assert (times >= least).all()
    by_class = np.bincount(labels, weights=times)
    if sequence.class_balanced:
      assert len(set(by_class)) == 1
    elif not cap:
      np.testing.assert_array_equal(times, least)
    for label in range(CLASSES):
      # The images of a class repeat evenly.
      ratio = (times / least)[labels == label]
      assert np.floor(ratio).min() + 1 >= np.ceil(ratio).max() - 1e-9
    if cap:
      rows = labels[epoch.reshape(-1, sequence.micro_batch)]
      assert max(np.bincount(row).max() for row in rows) <= cap


@settings(deadline=None, max_examples=30)
@given(sequence=orders(least_cap=1))
def test_under_a_cap_an_epoch_is_no_longer_than_it_has_to_be(sequence):
  least = 1 if sequence.levels is None else sequence.levels
  sizes = np.bincount(np.repeat(sequence.labels, least))
  size, _ = sequence._size_and_limit
  if not sequence.class_balanced:
    fewer = size // sequence.micro_batch - 1
    assert fewer * sequence.micro_batch < sizes.sum() or fewer * sequence.class_cap < sizes.max()


def test_a_cap_leaves_the_order_random():
  # Of 20 classes, an order that spread them evenly would never draw two of one into ten.
  labels = np.repeat(np.arange(20), 30)

  def counts(cap):
    rows = labels[epochs(Sampler(labels, 0, 10, class_cap=cap), 20).reshape(-1, 10)]
    return (rows[:, :, None] == np.arange(20)).sum(axis=1)

  two_or_more, two = (counts(0) >= 2).mean(), (counts(2) == 2).mean()
  assert two == pytest.approx(two_or_more, rel=0.1)
  sequence = Sampler(labels, 0, 10, class_cap=2)
  assert len(set(map(tuple, epochs(sequence, 20).tolist()))) == 20


def test_which_images_repeat_differs_between_epochs():
  labels = np.repeat(np.arange(2), (3, 10))
  rows = epochs(Sampler(labels, 0, 1, class_balanced=True), 30)
  often = {int(np.bincount(row)[:3].argmax()) for row in rows}
  assert often == {0, 1, 2}


def test_a_cap_that_cannot_fill_a_micro_batch_is_refused_with_the_remedy():
  labels = np.repeat(np.arange(3), 50)
  Sampler(labels, 0, 6, class_cap=2)
  with pytest.raises(ValueError, match=r'class_cap=2 with 3 classes fills 6 of the 10 .* to 4 or'):
    Sampler(labels, 0, 10, class_cap=2)
  Sampler(labels, 0, 10, class_cap=4)(0, 1000)


def test_levels_are_multiples_of_the_first_number_of_neighbours():
  neighbors = np.array([100, 149, 150, 300, 500, 1000, 1700])
  np.testing.assert_array_equal(repeats(neighbors, 100), [1, 1, 2, 3, 5, 10, 10])
  np.testing.assert_array_equal(repeats(np.array([0, 3]), 80), [1, 1])
