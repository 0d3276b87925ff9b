import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.models.batch_norm import BatchNorm

DEVICES, IMAGES, CHANNELS = 2, 3, 4
# The devices hold different numbers of images of each domain.
IS_SOURCE = np.array([[True, False, False], [True, True, False]])


def varied_images(seed=0):
  """Draw maps `[device, b, h, w, c]` that differ in mean and deviation along all but h and w."""
  random = np.random.default_rng(seed)
  scale, shift = random.uniform(0.3, 3, (2, DEVICES, IMAGES, 1, 1, CHANNELS))
  return (scale * random.normal(size=(DEVICES, IMAGES, 5, 6, CHANNELS)) + shift).astype(np.float32)


def make_variables(mode, seed=1):
  random = np.random.default_rng(seed)

  def positive():
    return random.uniform(0.5, 2, CHANNELS).astype(np.float32)

  names = ['mean', 'var'] + (['source_mean', 'source_var'] if mode == 'per_domain' else [])
  return {
    'params': {'scale': positive(), 'bias': positive()},
    'batch_stats': {name: positive() for name in names},
  }


def training_pass(model, variables, x, is_source=None):
  """Return outputs and batch statistics of every device of a mapped axis 'batch'."""

  def run(x, is_source):
    return model.apply(variables, x, is_source, mutable=['batch_stats'])

  y, updates = jax.vmap(run, axis_name='batch')(x, is_source)
  return y, updates['batch_stats']


def normalise(x, mean, var, params, epsilon=1e-5):
  return (x - mean) / (var + epsilon) ** 0.5 * params['scale'] + params['bias']


class FlaxNorm(nn.Module):
  """Flax's batch norm under the interface of ours."""

  momentum: float

  @nn.compact
  def __call__(self, x, is_source):
    norm = nn.BatchNorm(
      use_running_average=False,
      momentum=self.momentum,
      axis_name='batch',
      use_fast_variance=False,
    )
    nn.share_scope(self, norm)
    return norm(x)


def test_mixed_equals_flax_and_so_do_its_gradients():
  x, variables = varied_images(), make_variables('mixed')
  weights = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)

  def run(model):
    def loss(x, params):
      y, updates = training_pass(model, {**variables, 'params': params}, x)
      return (y * weights).sum(), (y, updates)

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, variables['params'])

  ours, theirs = run(BatchNorm(True, momentum=0.7)), run(FlaxNorm(momentum=0.7))
  assert np.abs(ours[0][0]).max() > 0.1
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_a_large_mean_does_not_spoil_the_variance():
  x = varied_images() + np.float32(2000)
  exact = x.astype(np.float64)
  variables = make_variables('mixed')
  y, _ = training_pass(BatchNorm(True), variables, x)
  expected = normalise(
    exact, exact.mean((0, 1, 2, 3)), exact.var((0, 1, 2, 3)), variables['params']
  )
  np.testing.assert_allclose(y, expected, rtol=1e-3, atol=2e-3)


def test_each_domain_is_normalised_by_its_own_images_on_all_devices():
  x, variables = varied_images(), make_variables('per_domain')
  y, stats = training_pass(BatchNorm(True, 'per_domain', momentum=0.7), variables, x, IS_SOURCE)
  for prefix, members in (('', ~IS_SOURCE), ('source_', IS_SOURCE)):
    own = x[members].astype(np.float64)
    mean, var = own.mean((0, 1, 2)), own.var((0, 1, 2))
    np.testing.assert_allclose(
      np.asarray(y)[members], normalise(own, mean, var, variables['params']), rtol=1e-4, atol=1e-5
    )
    for name, current in (('mean', mean), ('var', var)):
      expected = 0.7 * variables['batch_stats'][prefix + name] + 0.3 * current
      for device in range(DEVICES):
        np.testing.assert_allclose(stats[prefix + name][device], expected, rtol=1e-5)


def test_per_domain_gradients_are_those_of_each_domain_alone():
  x, variables = varied_images(), make_variables('per_domain')
  weights = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)

  def loss(x):
    model = BatchNorm(True, 'per_domain')
    return (training_pass(model, variables, x, IS_SOURCE)[0] * weights).sum()

  def domain_loss(x, weights):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    params = jax.tree.map(lambda v: v.reshape(1, 1, 1, -1), variables['params'])
    y = normalise(x, mean.reshape(1, 1, 1, -1), var.reshape(1, 1, 1, -1), params)
    return (y * weights).sum()

  gradient = np.asarray(jax.grad(loss)(x))
  for members in (~IS_SOURCE, IS_SOURCE):
    expected = jax.grad(domain_loss)(x[members], weights[members])
    np.testing.assert_allclose(gradient[members], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('absent', ['', 'source_'])
def test_running_statistics_of_an_absent_domain_follow_the_other(absent):
  x, variables = varied_images(), make_variables('per_domain')
  is_source = np.full((DEVICES, IMAGES), absent == '')

  def loss(x):
    y, stats = training_pass(BatchNorm(True, 'per_domain'), variables, x, is_source)
    return jnp.sin(y).sum(), (y, stats)

  gradient, (y, stats) = jax.grad(loss, has_aux=True)(x)
  assert np.isfinite(gradient).all()
  mixed, mixed_stats = training_pass(BatchNorm(True), make_variables('mixed'), x)
  np.testing.assert_allclose(y, mixed, rtol=1e-4, atol=1e-5)
  for name in ('mean', 'var'):
    expected = np.asarray(mixed_stats[name]) - 0.999 * make_variables('mixed')['batch_stats'][name]
    for domain in ('', 'source_'):
      moved = np.asarray(stats[domain + name]) - 0.999 * variables['batch_stats'][domain + name]
      np.testing.assert_allclose(moved, expected, rtol=1e-2, atol=1e-6)


def test_training_per_domain_without_domains_is_refused():
  with pytest.raises(ValueError, match="batch_norm='per_domain' .* is_source"):
    training_pass(BatchNorm(True, 'per_domain'), make_variables('per_domain'), varied_images())


@pytest.mark.parametrize('mode', ['mixed', 'per_domain', 'frozen'])
def test_evaluation_uses_the_running_statistics_of_the_target(mode):
  x, variables = varied_images()[0], make_variables(mode)
  y = BatchNorm(False, mode).apply(variables, x)
  stats = variables['batch_stats']
  expected = normalise(x, stats['mean'], stats['var'], variables['params'])
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_evaluation_with_domains_uses_the_statistics_of_each():
  x, variables = varied_images()[0], make_variables('per_domain')
  y = BatchNorm(False, 'per_domain').apply(variables, x, IS_SOURCE[0])
  for image, is_source in enumerate(IS_SOURCE[0]):
    prefix = 'source_' if is_source else ''
    mean, var = (variables['batch_stats'][prefix + name] for name in ('mean', 'var'))
    expected = normalise(x[image], mean, var, variables['params'])
    np.testing.assert_allclose(y[image], expected, rtol=1e-5, atol=1e-6)


def test_frozen_trains_scale_and_bias_only():
  # There is no mapped axis: nothing is shared between devices.
  x, variables = varied_images()[0], make_variables('frozen')

  def loss(params):
    y, updates = BatchNorm(True, 'frozen').apply(
      {**variables, 'params': params}, x, mutable=['batch_stats']
    )
    return y.sum(), (y, updates)

  gradient, (y, updates) = jax.grad(loss, has_aux=True)(variables['params'])
  np.testing.assert_allclose(y, BatchNorm(False, 'frozen').apply(variables, x), rtol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, updates['batch_stats'], variables['batch_stats'])
  assert all(np.abs(leaf).min() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize('mode', ['mixed', 'per_domain', 'frozen'])
def test_arithmetic_is_float32_for_bfloat16_input(mode):
  x, variables = varied_images().astype(jnp.bfloat16), make_variables(mode)
  model = BatchNorm(True, mode)
  y, stats = training_pass(model, variables, x, IS_SOURCE)
  full, full_stats = training_pass(model, variables, x.astype(jnp.float32), IS_SOURCE)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y, full.astype(jnp.bfloat16))
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(stats))
  jax.tree.map(np.testing.assert_array_equal, stats, full_stats)


def test_initial_variables_give_the_identity():
  for train in (False, True):
    variables = BatchNorm(train, 'per_domain').init(
      jax.random.key(0), jnp.ones((2, 3, 3, 4)), jnp.array([True, False])
    )
    assert set(variables['batch_stats']) == {'mean', 'var', 'source_mean', 'source_var'}
    for name, leaf in {**variables['params'], **variables['batch_stats']}.items():
      assert leaf.dtype == jnp.float32
      np.testing.assert_array_equal(leaf, [float(name in ('scale', 'var', 'source_var'))] * 4)


@pytest.mark.reference
def test_pytorch_differs_only_in_the_count_of_the_running_variance():
  import torch

  x, variables = varied_images(), make_variables('mixed')
  norm = torch.nn.BatchNorm2d(CHANNELS, eps=1e-5, momentum=0.3)
  params, stats = variables['params'], variables['batch_stats']
  norm.load_state_dict(
    {
      'weight': torch.tensor(params['scale']),
      'bias': torch.tensor(params['bias']),
      'running_mean': torch.tensor(stats['mean']),
      'running_var': torch.tensor(stats['var']),
      'num_batches_tracked': torch.tensor(0),
    }
  )
  together = x.reshape(-1, *x.shape[2:])
  expected = norm(torch.tensor(together.transpose(0, 3, 1, 2))).detach().numpy()
  y, new = training_pass(BatchNorm(True, momentum=0.7), variables, x)
  np.testing.assert_allclose(
    y.reshape(together.shape), expected.transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(new['mean'][0], norm.running_mean, rtol=1e-5)
  pixels = together[..., 0].size
  gain = (new['var'][0] - 0.7 * stats['var']) * pixels / (pixels - 1)
  np.testing.assert_allclose(0.7 * stats['var'] + gain, norm.running_var, rtol=1e-5)
