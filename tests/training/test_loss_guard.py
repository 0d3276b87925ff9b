import math

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sjft_jax.training.loss_guard import BadMetric, LossGuard, find_bad_metric

NAMES = [f'pets/cat {n}.jpg' for n in range(200)]


def make_metrics(loss):
  return {'target_loss': (2 * loss, 2)}


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_first_metric_that_is_not_finite_is_bad(value):
  metrics = {'target_loss': (1.0, 1), 'source_loss': (value, 2), 'gradient_norm': (value, 1)}
  bad = find_bad_metric(metrics, max_loss=0)
  assert bad.name == 'source_loss'
  assert not math.isfinite(bad.value)


def test_loss_of_either_domain_above_the_limit_is_bad():
  source = {'target_loss': (3.0, 3), 'source_loss': (30.0, 3), 'gradient_norm': (99.0, 1)}
  target = {'target_loss': (90.0, 3), 'source_loss': (3.0, 3)}
  assert find_bad_metric(source, max_loss=9.9) == BadMetric('source_loss', 10.0)
  assert find_bad_metric(source, max_loss=10) is None
  assert find_bad_metric(target, max_loss=10) == BadMetric('target_loss', 30.0)
  for metrics in (source, target):
    assert find_bad_metric(metrics, max_loss=30) is None
    assert find_bad_metric(metrics, max_loss=0) is None


def test_limit_is_for_each_class_of_a_multi_label_source():
  # Of 2,000 classes, each at chance.
  metrics = {'source_loss': (2 * 2000 * math.log(2), 2), 'target_loss': (math.log(3), 1)}
  assert find_bad_metric(metrics, max_loss=1000, source_terms=2000) is None
  assert find_bad_metric(metrics, max_loss=1, source_terms=2000).name == 'target_loss'
  assert find_bad_metric(metrics, max_loss=1000).name == 'source_loss'


def test_metrics_that_are_no_losses_need_only_be_finite():
  assert find_bad_metric({'gradient_norm': (1e9, 1)}, max_loss=1) is None
  assert find_bad_metric({'gradient_norm': (math.inf, 1)}, max_loss=1) is not None


def test_absent_domain_has_no_loss():
  assert find_bad_metric({'source_loss': (math.nan, 0)}, max_loss=1) is None


def test_arrays_on_the_device_are_accepted():
  metrics = {'target_loss': (jnp.float32(8), jnp.int32(2))}
  assert find_bad_metric(metrics, max_loss=3) == BadMetric('target_loss', 4.0)


@given(st.lists(st.floats(0, 100, allow_nan=False)), st.floats(0.5, 100))
def test_only_losses_above_the_limit_are_bad(losses, limit):
  bad = [n for n, loss in enumerate(losses) if find_bad_metric(make_metrics(loss), max_loss=limit)]
  assert bad == [n for n, loss in enumerate(losses) if loss > limit]


def make_guard(directory, names=NAMES):
  """Make a guard; return it with the list of the steps whose images it looks up."""
  looked_up = []

  def images(step):
    looked_up.append(step)
    return names

  guard = LossGuard(
    max_loss=1000.0, checkpoints=lambda: (0, 40, 80), images=images, directory=directory
  )
  return guard, looked_up


def error_message(directory, step, metrics, names=NAMES):
  guard, looked_up = make_guard(directory, names)
  with pytest.raises(FloatingPointError) as error:
    guard(step, metrics)
  assert looked_up == [step]
  assert len(str(error.value).splitlines()) == 1
  return str(error.value)


def test_guard_lets_good_steps_pass(tmp_path):
  guard, looked_up = make_guard(tmp_path)
  for step, loss in enumerate([1.0, 1000.0, 0.0]):
    guard(step, make_metrics(loss))
  assert looked_up == []
  assert not any(tmp_path.iterdir())


def test_error_names_step_images_checkpoint_and_remedy(tmp_path):
  message = error_message(tmp_path, 81, {'source_loss': (math.nan, 2)})
  path = tmp_path / 'bad_step.txt'
  assert message == (
    'source_loss is nan at step 82, with the images pets/cat 0.jpg, pets/cat 1.jpg, '
    f'pets/cat 2.jpg and 197 more (all in {path}); the last good checkpoint: 80; '
    'lower solver.learning_rate'
  )
  assert path.read_text().splitlines() == NAMES


def test_checkpoint_at_the_bad_step_is_not_good(tmp_path):
  message = error_message(tmp_path, 80, make_metrics(1234.5), ['a', 'b'])
  assert 'target_loss is 1234.5 at step 81, above training.max_loss=1000,' in message
  assert 'images a, b (all' in message
  assert 'the last good checkpoint: 40;' in message
  message = error_message(tmp_path, 0, make_metrics(1234.5), ['a'])
  assert message.endswith('; raise training.max_loss')  # No learning rate has had an effect.
  message = error_message(tmp_path, 0, make_metrics(math.inf), ['a'])
  assert 'there is no checkpoint before it' in message
  assert message.endswith('look at model.pretrained, model.batch_norm and model.dtype')
