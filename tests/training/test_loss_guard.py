import math

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sjft_jax.training import loss_guard
from sjft_jax.training.loss_guard import BadStep, first_nonfinite


def steps_of(losses, first=0):
  return [(first + n, {'target_loss': (2 * loss, 2)}) for n, loss in enumerate(losses)]


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_the_first_step_that_is_not_finite_is_found(value):
  bad = first_nonfinite(steps_of([1.0, 2.0, value, value], first=40), max_loss=0)
  assert bad[:2] == (42, 'target_loss')
  assert not math.isfinite(bad.value)


def test_the_loss_of_either_domain_may_be_too_large():
  steps = [
    (7, {'target_loss': (3.0, 3), 'source_loss': (30.0, 3), 'gradient_norm': (99.0, 1)}),
    (8, {'target_loss': (90.0, 3), 'source_loss': (3.0, 3)}),
  ]
  assert first_nonfinite(steps, max_loss=9.9) == BadStep(7, 'source_loss', 10.0)
  assert first_nonfinite(steps, max_loss=10) == BadStep(8, 'target_loss', 30.0)
  assert first_nonfinite(steps, max_loss=30) is None
  assert first_nonfinite(steps, max_loss=0) is None


def test_other_metrics_need_only_be_finite():
  assert first_nonfinite([(0, {'gradient_norm': (1e9, 1)})], max_loss=1) is None
  assert first_nonfinite([(0, {'gradient_norm': (math.inf, 1)})], max_loss=1) is not None


def test_an_absent_domain_has_no_loss():
  assert first_nonfinite([(0, {'source_loss': (math.nan, 0)})], max_loss=1) is None


def test_arrays_of_the_device_are_understood():
  metrics = {'target_loss': (jnp.float32(8), jnp.int32(2))}
  assert first_nonfinite([(0, metrics)], max_loss=3) == BadStep(0, 'target_loss', 4.0)


@given(st.lists(st.floats(0, 100, allow_nan=False)), st.floats(0.5, 100))
def test_only_losses_above_the_limit_are_bad(losses, limit):
  bad = first_nonfinite(steps_of(losses), max_loss=limit)
  expected = next((n for n, loss in enumerate(losses) if loss > limit), None)
  assert (bad and bad.number) == expected


def error(directory, bad, names, checkpoints=(0, 40, 80)):
  asked = []

  def images(number):
    asked.append(number)
    return names

  found = loss_guard.error(
    bad, max_loss=1000.0, checkpoints=checkpoints, images=images, directory=directory
  )
  assert asked == [bad.number]
  assert isinstance(found, FloatingPointError)
  assert len(str(found).splitlines()) == 1
  return str(found)


def test_the_error_names_step_images_checkpoint_and_remedy(tmp_path):
  names = [f'pets/cat {n}.jpg' for n in range(200)]
  told = error(tmp_path, BadStep(81, 'source_loss', math.nan), names)
  path = tmp_path / 'bad_step.txt'
  assert told == (
    'source_loss is nan at step 82, with the images pets/cat 0.jpg, pets/cat 1.jpg, '
    f'pets/cat 2.jpg and 197 more (all in {path}); the last good checkpoint: 80; '
    'lower solver.learning_rate'
  )
  assert path.read_text().splitlines() == names


def test_a_checkpoint_of_the_parameters_that_gave_the_bad_loss_is_not_good(tmp_path):
  told = error(tmp_path, BadStep(80, 'target_loss', 1234.5), ['a', 'b'])
  assert 'target_loss is 1234.5 at step 81, above training.max_loss=1000,' in told
  assert 'images a, b (all' in told
  assert 'the last good checkpoint: 40;' in told
  told = error(tmp_path, BadStep(0, 'target_loss', math.inf), ['a'])
  assert 'there is no checkpoint before it' in told
  assert 'max_loss' not in told
