"""Domains stay apart in a step, and devices and micro-batches change nothing in it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sjft_jax.models.joint import Joint
from sjft_jax.models.resnet import ResNet
from sjft_jax.training import optimizer
from sjft_jax.training.losses import LossOptions, joint_loss
from sjft_jax.training.optimizer import SolverOptions
from sjft_jax.training.sharding import replicate, shard_batch, unreplicate
from sjft_jax.training.step import create_state, make_predict, make_train_step, with_ema_params

PAIRS, SIDE = 8, 32
NUM_TARGET, NUM_SOURCE = 3, 5
# Plain gradient descent with a learning rate of 1: the update is the gradient.
GRADIENT_DESCENT = optax.sgd(1.0)


def make_model(batch_norm):
  return Joint(
    ResNet((1, 1), bottleneck=False, width=0.125, batch_norm=batch_norm), NUM_TARGET, NUM_SOURCE
  )


@functools.cache
def init_variables(batch_norm):
  images = np.zeros((1, SIDE, SIDE, 3), np.uint8)
  variables = jax.device_get(jax.jit(make_model(batch_norm).init)(jax.random.key(0), images))
  # With heads at 0.01 the trunk would have hardly any gradient to compare.
  params = {
    name: jax.tree.map(lambda x: 30 * x, tree) if name != 'trunk' else tree
    for name, tree in variables['params'].items()
  }
  return {'params': params, 'batch_stats': variables['batch_stats']}


def make_batch(seed=0):
  random = np.random.default_rng(seed)
  is_source = np.arange(2 * PAIRS) % 2 == 1
  # Images grow brighter along the batch: no two devices see the same statistics.
  images = random.integers(0, 128, (2 * PAIRS, SIDE, SIDE, 3)) + 8 * np.arange(2 * PAIRS).reshape(
    -1, 1, 1, 1
  )
  labels = np.where(
    is_source, random.integers(0, NUM_SOURCE, 2 * PAIRS), random.integers(0, NUM_TARGET, 2 * PAIRS)
  )
  return {
    'image': images.astype(np.uint8),
    'label': labels.astype(np.int32),
    'is_source': is_source,
  }


LOSS = LossOptions(target_weight=0.5, source_weight=0.5)


@functools.cache
def cached_train_step(batch_norm, backend):
  del backend  # Part of the key, since tracing depends on it.
  return make_train_step(make_model(batch_norm).apply, GRADIENT_DESCENT, 0, LOSS)


def run(batch, *, batch_norm='mixed', devices=1, accumulation=1):
  """Take a step; return the state (of all devices, and of the first) and the metrics."""
  train_step = cached_train_step(batch_norm, jax.default_backend())
  state = create_state(**init_variables(batch_norm), optimizer=GRADIENT_DESCENT)
  batch = shard_batch(batch, accumulation=accumulation, num_devices=devices)
  state, metrics = train_step(replicate(state, devices), batch)
  return state, unreplicate(state), jax.device_get(metrics)


def assert_close(a, b, rtol=1e-4, atol=2e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def oracle(batch, batch_norm):
  """Return gradient, batch statistics and losses by one plain pass over the whole batch."""
  variables = init_variables(batch_norm)
  model = make_model(batch_norm)

  def loss(params):
    # Batch norm synchronises over a mapped axis; here its size is one.
    logits, updates = jax.vmap(
      lambda images, is_source: model.apply(
        {**variables, 'params': params}, images, True, is_source, mutable=['batch_stats']
      ),
      axis_name='batch',
    )(batch['image'][None], batch['is_source'][None])
    logp = {d: jax.nn.log_softmax(x[0]) for d, x in logits.items()}
    target, source = np.flatnonzero(~batch['is_source']), np.flatnonzero(batch['is_source'])
    target_loss = -logp['target'][target, batch['label'][target]].mean()
    source_loss = -logp['source'][source, batch['label'][source]].mean()
    value = 0.5 * target_loss + 0.5 * source_loss
    return value, (updates['batch_stats'], target_loss, source_loss)

  gradient, (batch_stats, *losses) = jax.device_get(
    jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
  )
  return gradient, jax.tree.map(lambda x: x[0], batch_stats), losses


def applied_gradient(state, batch_norm):
  """Return the gradient of the first step, from the parameters after it."""
  params = init_variables(batch_norm)['params']
  return jax.tree.map(lambda before, after: np.asarray(before) - after, params, state.params)


@pytest.mark.slow
@pytest.mark.parametrize('batch_norm', ['mixed', 'per_domain', 'frozen'])
def test_step_is_the_same_on_any_number_of_devices(batch_norm):
  batch = make_batch()
  gradient, batch_stats, (target_loss, source_loss) = oracle(batch, batch_norm)
  assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradient))
  for devices in (1, 4):
    state, first, metrics = run(batch, batch_norm=batch_norm, devices=devices)
    assert_close(applied_gradient(first, batch_norm), gradient)
    assert_close(first.batch_stats, batch_stats)
    # Every device holds the same state, to the last bit.
    for leaf in jax.tree.leaves(jax.device_get(state)):
      np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    np.testing.assert_allclose(metrics['target_loss'][0] / PAIRS, target_loss, rtol=1e-5)
    np.testing.assert_allclose(metrics['source_loss'][0] / PAIRS, source_loss, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_micro_batches_do_not_change_a_step_with_frozen_batch_norm(backend, monkeypatch):
  # The program for a GPU, a loop over the micro-batches, runs here too.
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  batch = make_batch()
  gradient, _, (target_loss, _) = oracle(batch, 'frozen')
  for devices, accumulation in ((1, 4), (2, 2)):
    _, first, metrics = run(batch, batch_norm='frozen', devices=devices, accumulation=accumulation)
    assert first.step == 1
    assert_close(applied_gradient(first, 'frozen'), gradient)
    np.testing.assert_allclose(metrics['target_loss'][0] / PAIRS, target_loss, rtol=1e-5)


@pytest.mark.slow
def test_uneven_spread_of_domains_does_not_change_a_step():
  batch = make_batch()
  order = np.argsort(batch['is_source'], kind='stable')  # Some parts are of one domain only.
  batch = {name: leaf[order][: PAIRS + 4] for name, leaf in batch.items()}
  gradient, _, _ = oracle(batch, 'frozen')
  _, first, metrics = run(batch, batch_norm='frozen', devices=2, accumulation=3)
  assert_close(applied_gradient(first, 'frozen'), gradient)
  assert metrics['target_accuracy'][1] == PAIRS
  assert metrics['source_accuracy'][1] == 4


@pytest.mark.slow
def test_batch_statistics_are_updated_once_per_micro_batch():
  batch = make_batch()
  variables, model = init_variables('mixed'), make_model('mixed')
  batch_stats = variables['batch_stats']

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(0, None), axis_name='batch')
  def update_stats(images, batch_stats):
    current = {'params': variables['params'], 'batch_stats': batch_stats}
    return model.apply(current, images, train=True, mutable=['batch_stats'])[1]['batch_stats']

  for part in (slice(0, PAIRS), slice(PAIRS, None)):
    batch_stats = jax.tree.map(
      lambda x: x[0], jax.device_get(update_stats(batch['image'][None, part], batch_stats))
    )
  states = [run(batch, devices=devices, accumulation=2)[1] for devices in (1, 2)]
  for state in states:
    assert_close(state.batch_stats, batch_stats, rtol=1e-5)
  assert_close(states[0].params, states[1].params)


@pytest.mark.slow
@pytest.mark.parametrize('domain', ['target', 'source'])
def test_head_of_an_absent_domain_has_no_gradient(domain):
  batch = make_batch()
  present = 'source' if domain == 'target' else 'target'
  batch['is_source'][:] = present == 'source'
  batch['label'] = batch['label'] % NUM_TARGET
  _, state, metrics = run(batch, devices=2)
  gradient = applied_gradient(state, 'mixed')
  assert all(not leaf.any() for leaf in jax.tree.leaves(gradient[domain]))
  for name in ('trunk', present):
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient[name]))
  norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
  assert metrics['gradient_norm'] == (pytest.approx(norm, rel=1e-4), 1)
  assert metrics[f'{domain}_loss'] == (0, 0)
  assert metrics[f'{present}_accuracy'][1] == 2 * PAIRS


@pytest.mark.slow
def test_accuracy_counts_the_hits_of_each_domain():
  batch = make_batch()
  variables = init_variables('frozen')
  logits = jax.jit(make_model('frozen').apply)(variables, batch['image'])
  _, _, metrics = run(batch, batch_norm='frozen', devices=2)
  for domain, members in (('target', ~batch['is_source']), ('source', batch['is_source'])):
    hits = np.asarray(logits[domain]).argmax(axis=1) == batch['label']
    assert metrics[f'{domain}_accuracy'] == (np.sum(hits & members), PAIRS)


def drawing_apply(variables, images, *, train, is_source, mutable, rngs):
  """Return zeros and a bias as logits; list the random numbers drawn in the batch statistics."""
  assert train
  assert mutable == ['batch_stats']
  drawn = jax.random.randint(rngs['dropout'], (1,), 0, 10_000).astype(jnp.float32)
  # And the number of source images, which shows whether is_source is right.
  sources = jax.lax.psum(is_source.sum().astype(jnp.float32)[None], 'batch')
  stats = {
    name: jnp.concatenate([variables['batch_stats'][name][1:], value])
    for name, value in (('drawn', drawn), ('sources', sources))
  }
  logits = jnp.zeros((len(images), 2)) + variables['params']['bias']
  return {'target': logits, 'source': logits}, {'batch_stats': stats}


def draw(seed=0, devices=1, steps=2):
  """Return the batch statistics after two steps of two micro-batches with `drawing_apply`."""
  train_step = make_train_step(drawing_apply, GRADIENT_DESCENT, seed, LOSS)
  stats = {'drawn': np.zeros(4, np.float32), 'sources': np.zeros(4, np.float32)}
  state = create_state(
    params={'bias': np.zeros((1, 2), np.float32)}, batch_stats=stats, optimizer=GRADIENT_DESCENT
  )
  batch = make_batch()
  batch['label'] %= 2
  batch['is_source'][PAIRS:] = False
  state = replicate(state, devices)
  for _ in range(steps):
    state, _ = train_step(state, shard_batch(batch, accumulation=2, num_devices=devices))
  return unreplicate(state).batch_stats


@pytest.mark.slow
def test_dropout_key_depends_on_seed_step_and_micro_batch():
  drawn = draw()['drawn']
  assert len(set(drawn)) == 4
  assert not set(drawn) & set(draw(seed=1)['drawn'])
  # The statistics are averaged over the devices: another device's number would show.
  np.testing.assert_array_equal(draw(devices=4)['drawn'], drawn)


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_network_gets_the_domains_of_each_micro_batch(backend, monkeypatch):
  expected = draw()['drawn']
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  stats = draw(devices=2)
  np.testing.assert_array_equal(stats['sources'], [PAIRS / 2, 0, PAIRS / 2, 0])
  np.testing.assert_array_equal(stats['drawn'], expected)


@pytest.mark.slow
def test_predict_returns_the_probabilities_of_the_target_head():
  variables = init_variables('mixed')
  images = make_batch()['image']
  state = replicate(create_state(**variables, optimizer=GRADIENT_DESCENT), 2)
  p = make_predict(make_model('mixed').apply)(state, images.reshape(2, PAIRS, SIDE, SIDE, 3))
  expected = jax.nn.softmax(jax.jit(make_model('mixed').apply)(variables, images)['target'])
  assert p.shape == (2, PAIRS, NUM_TARGET)
  assert p.dtype == jnp.float32
  np.testing.assert_allclose(p.reshape(-1, NUM_TARGET), expected, rtol=1e-5, atol=1e-6)


def test_shard_batch_makes_the_same_micro_batches_on_any_number_of_devices():
  batch = {'label': np.arange(24, dtype=np.int32)}
  for devices in (1, 2, 4):
    label = shard_batch(batch, accumulation=3, num_devices=devices)['label']
    assert label.shape == (devices, 3, 8 // devices)
    for micro in range(3):
      assert sorted(label[:, micro].ravel()) == list(range(8 * micro, 8 * micro + 8))


def test_shard_batch_refuses_indivisible_batches():
  with pytest.raises(
    ValueError,
    match='24 images .* 4 devices .* accumulation=4 .* change the batch size or accumulation',
  ):
    shard_batch({'label': np.arange(24)}, accumulation=4, num_devices=4)


def test_unreplicate_returns_what_was_replicated():
  tree = {'a': np.arange(3.0, dtype=np.float32), 'b': np.int32(7)}
  replicas = replicate(tree)
  assert replicas['a'].shape == (jax.local_device_count(), 3)
  result = unreplicate(replicas)
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(result))
  jax.tree.map(np.testing.assert_array_equal, result, tree)


@pytest.mark.slow
def test_multi_label_source_counts_an_image_if_its_likeliest_class_is_present():
  batch = make_batch()
  every_class = np.repeat(batch['is_source'][:, None], NUM_SOURCE, axis=1)
  _, state, metrics = run(batch | {'multi_hot': every_class})
  assert metrics['source_accuracy'] == (PAIRS, PAIRS)
  _, _, (target_loss, _) = oracle(batch, 'mixed')
  total, count = metrics['target_loss']
  assert float(total) / int(count) == pytest.approx(float(target_loss), rel=1e-4)
  _, other, metrics = run(batch | {'multi_hot': np.zeros_like(every_class)})
  assert metrics['source_accuracy'] == (0, PAIRS)
  # The logits of the source head rise for present classes and fall for absent ones.
  difference = state.params['source']['bias'] - other.params['source']['bias']
  assert (difference > 0).all()


def linear_apply(variables, images, *, train=True, is_source=None, mutable=(), rngs=None):
  """Apply a trunk of one layer to the images' mean colours, and two heads."""
  params = variables['params']
  features = jnp.mean(images.astype(jnp.float32) / 255, axis=(1, 2)) @ params['trunk']['conv1']
  logits = {domain: features @ params[domain] for domain in ('target', 'source')}
  return (logits, {}) if train else logits


def init_linear():
  random = np.random.default_rng(0)
  params = {'trunk': (3, 4), 'target': (4, NUM_TARGET), 'source': (4, NUM_SOURCE)}
  params = {name: random.normal(size=shape).astype(np.float32) for name, shape in params.items()}
  return params | {'trunk': {'conv1': params['trunk']}}


EVERY_OPTION = SolverOptions(
  learning_rate=0.1,
  schedule='cosine',
  warmup_steps=1,
  drop_every=2,
  drop_factor=0.5,
  momentum=0.9,
  momentum_style='caffe',
  weight_decay=0.1,
  l2_sp=0.2,
  layer_decay=0.5,
  head_rate=2.0,
  ema=0.5,
)


@pytest.mark.slow
def test_every_option_of_the_solver_works_replicated_and_after_a_reset():
  solver = optimizer.sgd(4, EVERY_OPTION)
  train_step = make_train_step(linear_apply, solver, 0, LOSS)
  reset = functools.partial(optimizer.reset_opt_state, solver)
  batch, final_states = make_batch(), []
  for devices in (1, 2):
    state = replicate(create_state(params=init_linear(), batch_stats={}, optimizer=solver), devices)
    trajectory = []
    for number in range(4):
      if number == 2:
        opt_state = jax.pmap(reset, axis_name='batch')(state.opt_state, state.params)
        state = state.replace(opt_state=opt_state)
      state, _ = train_step(state, shard_batch(batch, accumulation=2, num_devices=devices))
      trajectory.append(unreplicate(state.params))
    final_states.append(unreplicate(state))
    # Of the two steps since the reset, with weights 1/2 and 1.
    mean = jax.tree.map(lambda a, b: (a + 2 * b) / 3, *trajectory[2:])
    assert_close(unreplicate(with_ema_params(state)).params, mean, rtol=1e-5)
    start = optax.tree_utils.tree_get(unreplicate(state).opt_state, 'start')
    np.testing.assert_array_equal(start['trunk']['conv1'], init_linear()['trunk']['conv1'])
  assert_close(*final_states)
  images = batch['image'][None]
  p = make_predict(linear_apply)(with_ema_params(replicate(final_states[0], 1)), images)
  logits = linear_apply({'params': mean}, jnp.asarray(images[0]), train=False)
  expected = jax.nn.softmax(logits['target'])
  np.testing.assert_allclose(p[0], expected, rtol=1e-4)


def test_with_ema_params_returns_the_parameters_where_there_is_no_average():
  state = create_state(params=init_linear(), batch_stats={}, optimizer=GRADIENT_DESCENT)
  assert with_ema_params(state).params is state.params


def test_step_smooths_labels_as_the_joint_loss_does():
  batch = make_batch()
  params = init_linear()
  options = dataclasses.replace(LOSS, label_smoothing=0.3)

  def loss(params):
    logits, _ = linear_apply({'params': params}, jnp.asarray(batch['image']))
    return joint_loss(
      logits,
      jnp.asarray(batch['label']),
      jnp.asarray(batch['is_source']),
      num_target=jnp.int32(PAIRS),
      num_source=jnp.int32(PAIRS),
      options=options,
    )

  gradient, sums = jax.grad(loss, has_aux=True)(params)
  train_step = make_train_step(linear_apply, GRADIENT_DESCENT, 0, options)
  state = replicate(create_state(params=params, batch_stats={}, optimizer=GRADIENT_DESCENT), 1)
  state, metrics = train_step(state, shard_batch(batch, accumulation=2, num_devices=1))
  update = jax.tree.map(lambda before, after: before - after, params, unreplicate(state).params)
  assert_close(update, gradient)
  assert float(metrics['source_loss'][0]) == pytest.approx(float(sums['source']), rel=1e-5)
