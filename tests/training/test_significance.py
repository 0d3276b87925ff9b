import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from sjft_jax.training.significance import LEVEL, class_mean, paired_gain

outcomes = st.lists(
  st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=9
)


def exact_p_value(first, second, labels):
  """All sign flips, one by one."""
  weights = [1 / (len(set(labels)) * labels.count(label)) for label in labels]
  d = [w * (int(a) - int(b)) for w, a, b in zip(weights, first, second, strict=True)]
  sums = [
    abs(sum(s * x for s, x in zip(signs, d, strict=True)))
    for signs in itertools.product((-1, 1), repeat=len(d))
  ]
  return np.mean([value >= abs(sum(d)) - 1e-12 for value in sums])


@given(outcomes)
def test_p_value_is_that_of_all_sign_flips(images):
  first, second, labels = map(list, zip(*images, strict=True))
  result = paired_gain(np.array(first), np.array(second), np.array(labels))
  # Four standard deviations of 9,999 draws.
  assert result.p_value == pytest.approx(exact_p_value(first, second, labels), abs=0.021)


@given(outcomes)
def test_gain_is_the_mean_over_classes_of_the_mean_difference(images):
  first, second, labels = map(np.array, zip(*images, strict=True))
  expected = np.mean(
    [first[labels == c].mean() - second[labels == c].mean() for c in np.unique(labels)]
  )
  result = paired_gain(first, second, labels)
  assert result.gain == pytest.approx(expected, abs=1e-12)
  mirrored = paired_gain(second, first, labels)
  assert mirrored.gain == pytest.approx(-result.gain)
  assert mirrored[1:] == pytest.approx(result[1:])


def test_p_value_agrees_with_scipy():
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(8), 6)
  first, second = rng.random(48) < 0.8, rng.random(48) < 0.6
  result = paired_gain(first, second, labels)
  expected = scipy.stats.permutation_test(
    (first.astype(float), second.astype(float)),
    lambda a, b: a.mean() - b.mean(),
    permutation_type='samples',
    n_resamples=20_000,
    rng=rng,
  )
  assert result.p_value == pytest.approx(expected.pvalue, abs=0.01)


def test_standard_error_is_that_of_a_mean_where_classes_are_of_one_size():
  rng = np.random.default_rng(1)
  first, second = rng.random(60) < 0.8, rng.random(60) < 0.6
  difference = first.astype(float) - second
  result = paired_gain(first, second, np.repeat(np.arange(12), 5))
  assert result.standard_error == pytest.approx(difference.std(ddof=1) / np.sqrt(60))


def test_one_image_a_class_has_an_error():
  first, second = np.array([True] * 5), np.array([False, False, True, True, True])
  result = paired_gain(first, second, np.arange(5))
  assert result.gain == pytest.approx(0.4)
  assert result.standard_error == pytest.approx(np.std([1, 1, 0, 0, 0], ddof=1) / np.sqrt(5))
  assert result.p_value == pytest.approx(0.5, abs=0.02)


def test_five_images_can_never_show_a_gain():
  result = paired_gain(np.ones(5, bool), np.zeros(5, bool), np.arange(5))
  assert result.gain == 1
  assert result.standard_error == pytest.approx(1 / 5)  # 1 / (classes · √images) · √images
  assert result.p_value > LEVEL


@pytest.mark.parametrize('classes', [3, 5, 7, 102])
@pytest.mark.parametrize('images', [1, 3, 7])
def test_images_that_are_all_alike_have_an_error(classes, images):
  # Weights of 1/21, say, sum up to 1 only nearly.
  labels = np.repeat(np.arange(classes), images)
  mean, error = class_mean(np.ones(len(labels)), labels)
  assert mean == pytest.approx(1)
  assert error == pytest.approx(1 / len(labels))
  assert class_mean(np.zeros(len(labels)), labels) == (0, 0)


def test_a_tie_is_neither_gain_nor_loss():
  """A sum of thirds, sevenths and elevenths that is 0 is rounded to a little more or less."""
  random = np.random.default_rng(0)
  labels = np.repeat(np.arange(4), (1, 7, 3, 11))
  for _ in range(100):
    is_correct = random.random(len(labels)) < 0.5
    order = np.concatenate([random.permutation(np.flatnonzero(labels == c)) for c in range(4)])
    assert paired_gain(is_correct, is_correct[order], labels).gain == 0


def test_equal_classifiers_have_no_gain():
  same = np.array([True, False, True])
  assert paired_gain(same, same, np.array([0, 0, 1])) == (0, 0, 1)


@pytest.mark.parametrize('images', [1, 2, 3, 5, 24])
def test_verdict_is_rarely_given_without_a_difference(images):
  from experiments.false_alarms import draw

  rng = np.random.default_rng(images)
  alarms = sum(
    paired_gain(*draw(rng, classes, images)).p_value < LEVEL
    for classes in (5, 20, 60)
    for _ in range(60)
  )
  # At 5 in 100, 20 or more of 180 come about once in 1,400 times.
  assert alarms < 20


def test_the_error_of_an_accuracy_in_one_class_is_that_of_a_mean():
  is_correct = np.array([1.0, 1, 0, 1, 0, 1, 1])
  mean, error = class_mean(is_correct, np.zeros(7, int))
  assert mean == pytest.approx(5 / 7)
  assert error == pytest.approx(scipy.stats.sem(is_correct))
