import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sjft_jax.training.optimizer import sgd, step_schedule

OPTIONS = {
  'learning_rate': 0.1,
  'momentum': 0.9,
  'weight_decay': 0.01,
  'drop_every': 4,
  'drop_factor': 0.1,
}


def recurrence(style, gradients, w, *, learning_rate, momentum, weight_decay, drop_every,
               drop_factor):  # fmt: skip
  """SGD written out in float64."""
  v = np.zeros_like(w)
  for t, gradient in enumerate(gradients):
    rate = learning_rate * drop_factor ** (t // drop_every)
    g = gradient + weight_decay * w
    if style == 'caffe':
      v = momentum * v + rate * g
      w = w - v
    else:
      v = momentum * v + g
      w = w - rate * v
  return w


@pytest.mark.parametrize('style', ['caffe', 'torch'])
def test_updates_follow_the_recurrence_through_drops(style):
  random = np.random.default_rng(0)
  gradients, start = random.normal(size=(10, 5)), random.normal(size=5)
  optimizer = sgd(momentum_style=style, **OPTIONS)
  w = jnp.asarray(start, jnp.float32)
  state = optimizer.init(w)
  for gradient in gradients:
    updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, w)
    w = optax.apply_updates(w, updates)
  expected = recurrence(style, gradients, start, **OPTIONS)
  other = recurrence('torch' if style == 'caffe' else 'caffe', gradients, start, **OPTIONS)
  np.testing.assert_allclose(w, expected, rtol=1e-5, atol=1e-6)
  assert np.abs(other - expected).max() > 1e-2  # The drop parts them.


def test_schedule_drops_after_every_so_many_steps():
  schedule = step_schedule(learning_rate=0.01, drop_every=3, drop_factor=0.5)
  rates = [float(schedule(t)) for t in range(10)]
  expected = [0.01] * 3 + [0.005] * 3 + [0.0025] * 3 + [0.00125]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


@pytest.mark.parametrize('bad', [{'momentum_style': 'nesterov'}, {'drop_every': 0}])
def test_impossible_options_are_refused(bad):
  with pytest.raises(ValueError, match='|'.join(bad)):
    sgd(**({'momentum_style': 'caffe', **OPTIONS} | bad))
