import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sjft_jax.data.sampler import ORDER, Sampler, keyed_rng, repeats, shuffled_indices

CLASSES = 4


@st.composite
def samplers(draw, min_cap=0):
  """Draw a sampler with any combination of options."""
  sizes = draw(st.lists(st.integers(1, 9), min_size=CLASSES, max_size=CLASSES))
  labels = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), sizes))
  cap = draw(st.integers(min_cap, 3))
  micro_batch = draw(st.integers(1, CLASSES * cap or 12))
  repeats_or_none = draw(
    st.none()
    | st.lists(st.integers(1, 10), min_size=len(labels), max_size=len(labels)).map(np.array)
  )
  return Sampler(
    labels.astype(np.int32),
    draw(st.integers(0, 99)),
    micro_batch,
    draw(st.booleans()),
    cap,
    repeats_or_none,
  )


def first_epochs(sampler, number):
  """Return the first epochs of a sampler, [epoch, place]."""
  return sampler(0, number * sampler.epoch_size).reshape(number, sampler.epoch_size)


def test_by_default_the_order_is_that_of_permutations_by_seed_and_epoch():
  # These numbers decide what every finished run was trained with.
  first = [6, 0, 5, 1, 4, 2, 3]
  default = Sampler(np.arange(7, dtype=np.int32) % 3, 5, 2)
  for function in (default, lambda start, stop: shuffled_indices(5, start, stop, 7)):
    assert function(0, 7).tolist() == first
    expected = [keyed_rng(ORDER, 5, epoch).permutation(7) for epoch in range(4)]
    np.testing.assert_array_equal(function(0, 28), np.concatenate(expected))


def test_shuffling_goes_through_every_epoch():
  size = 7
  sequence = shuffled_indices(5, 0, 10 * size, size)
  rows = sequence.reshape(10, size)
  np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(size), (10, 1)))
  assert len(set(map(tuple, rows.tolist()))) > 5
  for start, stop in itertools.combinations(range(0, 70, 9), 2):
    np.testing.assert_array_equal(shuffled_indices(5, start, stop, size), sequence[start:stop])


def test_generators_whose_keys_differ_by_a_zero_are_different():
  assert keyed_rng(0, 1).random() != keyed_rng(0, 1, 0).random()


@settings(max_examples=60)
@given(sampler=samplers(), start=st.integers(0, 300), number=st.integers(1, 300))
def test_any_part_is_that_of_the_whole_also_in_another_process(sampler, start, number):
  whole = sampler(0, start + number)
  part = pickle.loads(pickle.dumps(sampler))(start, start + number)
  np.testing.assert_array_equal(part, whole[start:])


@settings(max_examples=100)
@given(sampler=samplers())
def test_options_keep_their_promises_alone_and_together(sampler):
  labels, cap = sampler.labels, sampler.class_cap
  minimum = np.ones(len(labels)) if sampler.repeats is None else sampler.repeats
  for epoch in first_epochs(sampler, 3):
    counts = np.bincount(epoch, minlength=len(labels))
    assert (counts >= minimum).all()
    by_class = np.bincount(labels, weights=counts)
    if sampler.class_balanced:
      assert len(set(by_class)) == 1
    elif not cap:
      np.testing.assert_array_equal(counts, minimum)
    for label in range(CLASSES):
      # The images of a class repeat evenly.
      ratio = (counts / minimum)[labels == label]
      assert np.floor(ratio).min() + 1 >= np.ceil(ratio).max() - 1e-9
    if cap:
      rows = labels[epoch.reshape(-1, sampler.micro_batch)]
      assert max(np.bincount(row).max() for row in rows) <= cap


@settings(max_examples=30)
@given(sampler=samplers(min_cap=1))
def test_under_a_cap_an_epoch_is_no_longer_than_it_has_to_be(sampler):
  minimum = 1 if sampler.repeats is None else sampler.repeats
  sizes = np.bincount(np.repeat(sampler.labels, minimum))
  if not sampler.class_balanced:
    fewer = sampler.epoch_size // sampler.micro_batch - 1
    assert fewer * sampler.micro_batch < sizes.sum() or fewer * sampler.class_cap < sizes.max()


def test_a_cap_leaves_the_order_random():
  # Of 20 classes, an order that spread them evenly would never draw two of one into ten.
  labels = np.repeat(np.arange(20), 30)

  def class_counts(cap):
    rows = labels[first_epochs(Sampler(labels, 0, 10, class_cap=cap), 20).reshape(-1, 10)]
    return (rows[:, :, None] == np.arange(20)).sum(axis=1)

  two_or_more, two = (class_counts(0) >= 2).mean(), (class_counts(2) == 2).mean()
  assert two == pytest.approx(two_or_more, rel=0.1)
  sampler = Sampler(labels, 0, 10, class_cap=2)
  assert len(set(map(tuple, first_epochs(sampler, 20).tolist()))) == 20


def test_which_images_repeat_differs_between_epochs():
  labels = np.repeat(np.arange(2), (3, 10))
  rows = first_epochs(Sampler(labels, 0, 1, class_balanced=True), 30)
  most_frequent = {int(np.bincount(row)[:3].argmax()) for row in rows}
  assert most_frequent == {0, 1, 2}


def test_a_cap_that_cannot_fill_a_micro_batch_is_refused_with_the_remedy():
  labels = np.repeat(np.arange(3), 50)
  Sampler(labels, 0, 6, class_cap=2)
  with pytest.raises(ValueError, match=r'class_cap=2 with 3 classes fills 6 of the 10 .* to 4, or'):
    Sampler(labels, 0, 10, class_cap=2)
  Sampler(labels, 0, 10, class_cap=4)(0, 1000)


def test_repeats_are_multiples_of_the_first_number_of_neighbours():
  neighbors = np.array([100, 149, 150, 300, 500, 1000, 1700])
  np.testing.assert_array_equal(repeats(neighbors, 100), [1, 1, 2, 3, 5, 10, 10])
  np.testing.assert_array_equal(repeats(np.array([0, 3]), 80), [1, 1])
