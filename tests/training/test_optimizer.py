import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sjft_jax.runtime.checkpoints import Checkpoints
from sjft_jax.training.optimizer import (
  SolverOptions,
  ema_params,
  learning_rates,
  reset_opt_state,
  sgd,
)

# The paper's, but with drops that come within the steps of a test.
OPTIONS = {
  'learning_rate': 0.1,
  'schedule': 'step',
  'warmup_steps': 0,
  'drop_every': 4,
  'drop_factor': 0.1,
  'momentum': 0.9,
  'momentum_style': 'caffe',
  'weight_decay': 0.01,
  'l2_sp': 0.0,
  'layer_decay': 1.0,
  'head_rate': 1.0,
  'ema': 0.0,
}
STEPS = 10
EVERY_OPTION = OPTIONS | {'l2_sp': 0.3, 'layer_decay': 0.5, 'head_rate': 4.0, 'ema': 0.7}
# The power of layer_decay that applies to each layer.
DEPTHS = {'fc6': 1, 'conv2': 2, 'conv1': 3, 'target': 0, 'source': 0}


def make_optimizer(**options):
  return sgd(STEPS, SolverOptions(**OPTIONS | options))


def nest(arrays):
  """Arrange arrays by layer as the parameters of a network: the heads beside the trunk."""
  arrays = {name: {'kernel': jnp.asarray(x, jnp.float32)} for name, x in arrays.items()}
  heads = {name: arrays.pop(name) for name in ('target', 'source')}
  return {'trunk': arrays} | heads


def draw(seed, steps=STEPS):
  """Draw parameters and the gradients of each step, as float64 by layer."""
  random = np.random.default_rng(seed)
  start, *gradients = ({n: random.normal(size=(2, 3)) for n in DEPTHS} for _ in range(steps + 1))
  return start, gradients


def update(optimizer, params, state, gradient):
  updates, state = optimizer.update(nest(gradient), state, params)
  return optax.apply_updates(params, updates), state


def train(optimizer, start, gradients):
  params = nest(start)
  state = optimizer.init(params)
  for gradient in gradients:
    params, state = update(optimizer, params, state, gradient)
  return params, state


def oracle(start, gradients, o):
  """Return the parameters after all steps and their average, layer by layer, in float64."""
  w, trajectory = dict(start), []
  v = {name: np.zeros((2, 3)) for name in start}
  for t, gradient in enumerate(gradients):
    rate = o['learning_rate']
    if o['schedule'] == 'step':
      rate *= o['drop_factor'] ** (t // o['drop_every'])
    elif t > o['warmup_steps']:
      share = (t - o['warmup_steps']) / (len(gradients) - o['warmup_steps'])
      rate *= (1 + np.cos(np.pi * share)) / 2
    rate *= min(1, (t + 1) / (o['warmup_steps'] + 1))
    for name, depth in DEPTHS.items():
      layer_rate = rate * o['layer_decay'] ** depth * (1 if depth else o['head_rate'])
      g = gradient[name] + o['weight_decay'] * w[name]
      if depth and o['l2_sp']:
        g = gradient[name] + o['l2_sp'] * (w[name] - start[name])
      if o['momentum_style'] == 'caffe':
        v[name] = o['momentum'] * v[name] + layer_rate * g
        w[name] = w[name] - v[name]
      else:
        v[name] = o['momentum'] * v[name] + g
        w[name] = w[name] - layer_rate * v[name]
    trajectory.append(dict(w))
  weights = o['ema'] ** np.arange(len(trajectory))[::-1]
  mean = {n: np.average([p[n] for p in trajectory], axis=0, weights=weights) for n in start}
  return w, mean


def assert_close(params, expected, rtol=2e-5, atol=2e-6):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), params, nest(expected)
  )


@pytest.mark.parametrize('style', ['caffe', 'torch'])
def test_updates_follow_the_recurrence_of_the_paper_through_drops(style):
  start, gradients = draw(0)
  options = OPTIONS | {'momentum_style': style}
  params, state = train(make_optimizer(**options), start, gradients)
  assert_close(params, oracle(start, gradients, options)[0])
  assert ema_params(state, params) is params
  other = OPTIONS | {'momentum_style': 'torch' if style == 'caffe' else 'caffe'}
  with pytest.raises(AssertionError):  # After a drop the styles differ.
    assert_close(params, oracle(start, gradients, other)[0], atol=1e-2)


@settings(max_examples=12)
@given(
  seed=st.integers(0, 999),
  changes=st.fixed_dictionaries(
    {
      'momentum_style': st.sampled_from(['caffe', 'torch']),
      'schedule': st.sampled_from(['step', 'cosine']),
      'warmup_steps': st.integers(0, STEPS - 1),
      'l2_sp': st.sampled_from([0.0, 0.3]),
      'layer_decay': st.sampled_from([1.0, 0.5]),
      'head_rate': st.sampled_from([1.0, 4.0]),
      'ema': st.sampled_from([0.3, 0.9]),
    }
  ),
)
def test_options_combine_as_they_are_defined(seed, changes):
  start, gradients = draw(seed)
  options = OPTIONS | changes
  params, state = train(make_optimizer(**options), start, gradients)
  expected, mean = oracle(start, gradients, options)
  assert_close(params, expected)
  assert_close(ema_params(state, params), mean)


@pytest.mark.parametrize('schedule', ['step', 'cosine'])
@pytest.mark.parametrize('warmup_steps', [0, 3])
def test_learning_rates_are_those_that_the_updates_have(schedule, warmup_steps):
  options = OPTIONS | {'schedule': schedule, 'warmup_steps': warmup_steps}
  optimizer = make_optimizer(**options | {'momentum': 0.0, 'weight_decay': 0.0})
  params = nest(draw(0)[0])
  state, used = optimizer.init(params), []
  for _ in range(STEPS):
    updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    used.append(-updates['target']['kernel'][0, 0])
  assert len(set(map(float, used))) > 2
  # The last rate of a cosine is near zero, and the programs of both round in other places.
  rates = learning_rates(STEPS, SolverOptions(**options))
  np.testing.assert_allclose(rates, used, rtol=1e-6, atol=1e-6 * max(used))


def test_l2_sp_alone_moves_the_trunk_to_its_start_and_the_heads_to_zero():
  optimizer = make_optimizer(l2_sp=1.0, weight_decay=1.0, momentum=0.0, drop_every=1000)
  start, gradients = draw(1, steps=100)
  _, state = train(optimizer, start, [])
  params = nest(gradients[0])  # Somewhere else.
  for _ in range(100):
    params, state = update(optimizer, params, state, {name: 0 * g for name, g in start.items()})
  heads = {name: np.zeros((2, 3)) for name in ('target', 'source')}
  assert_close(params, start | heads, atol=2e-4)


@pytest.mark.parametrize('decay', [0.9, 0.9999])
def test_average_is_the_debiased_one_of_optax(decay):
  start, gradients = draw(2)
  optimizer, reference = make_optimizer(ema=decay), optax.ema(decay, debias=True)
  params = nest(start)
  state, average = optimizer.init(params), reference.init(params)
  jax.tree.map(np.testing.assert_array_equal, ema_params(state, params), params)
  for gradient in gradients:
    params, state = update(optimizer, params, state, gradient)
    with jax.numpy_dtype_promotion('standard'):
      expected, average = reference.update(params, average)
    # Where decay is almost 1, optax's is the imprecise one.
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-3 if decay > 0.99 else 1e-5, atol=1e-6),
      ema_params(state, params),
      expected,
    )
  assert_close(ema_params(state, params), oracle(start, gradients, OPTIONS | {'ema': decay})[1])


def test_reset_opt_state_keeps_nothing_but_the_start():
  start, gradients = draw(3)
  optimizer = make_optimizer(**EVERY_OPTION)
  params, state = train(optimizer, start, gradients)
  reset = reset_opt_state(optimizer, state, params)
  assert jax.tree.structure(reset) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, ema_params(reset, params), params)
  # As if training had begun with these parameters, but for the point that the trunk is pulled to.
  first_state = optimizer.init(nest(start))
  expected = optax.tree_utils.tree_set(
    optimizer.init(params), start=optax.tree_utils.tree_get(first_state, 'start')
  )
  jax.tree.map(np.testing.assert_array_equal, reset, expected)
  plain = make_optimizer()
  _, state = train(plain, start, gradients)
  jax.tree.map(
    np.testing.assert_array_equal, reset_opt_state(plain, state, params), plain.init(params)
  )


def test_state_holds_the_start_of_the_trunk_alone_and_only_with_l2_sp():
  params = nest(draw(0)[0])
  size = sum(x.size for x in jax.tree.leaves(params))
  trunk_size = sum(x.size for x in jax.tree.leaves(params['trunk']))

  def extra_size(**options):
    """Return the size of the state besides momentum and counters."""
    state = make_optimizer(**options).init(params)
    return sum(x.size for x in jax.tree.leaves(state) if x.ndim) - size

  assert extra_size() == 0
  assert extra_size(l2_sp=0.1) == trunk_size
  assert extra_size(ema=0.9) == size


def test_checkpoints_restore_the_average_and_the_start(tmp_path):
  start, gradients = draw(4)
  optimizer = make_optimizer(**EVERY_OPTION)
  expected = train(optimizer, start, gradients)
  params, state = train(optimizer, start, gradients[:6])
  with Checkpoints(tmp_path / 'checkpoints', fingerprint='a run') as checkpoints:
    checkpoints.save(6, (params, state), {})
    like = (nest(gradients[0]), optimizer.init(nest(gradients[0])))
    (params, state), _ = checkpoints.load_newest(like=like)
  for gradient in gradients[6:]:
    params, state = update(optimizer, params, state, gradient)
  jax.tree.map(np.testing.assert_array_equal, (params, state), expected)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'momentum_style': 'nesterov'},
      "momentum_style='nesterov' is unknown; use one of caffe, torch",
    ),
    ({'drop_every': 0}, 'drop_every=0 is below 1; raise it'),
    ({'schedule': 'linear'}, "schedule='linear' is unknown; use one of step, cosine"),
    ({'warmup_steps': STEPS}, 'warmup_steps=10 .* 10 steps; lower warmup_steps'),
  ],
)
def test_impossible_options_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    make_optimizer(**change)
