import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.models.vgg import CHANNELS, VGG, vgg


def shapes(model, side=224):
  images = jnp.zeros((1, side, side, 3))
  return jax.eval_shape(lambda: model.init(jax.random.key(0), images))


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def random_variables(model, seed=0):
  """Draw kernels of unit gain and everything else at random too, variances positive."""
  random = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key in ('var', 'scale'):
      return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    gain = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim == 4 else 0.1
    return np.float32(gain) * random.standard_normal(leaf.shape, np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes(model))


@pytest.mark.parametrize(
  ('depth', 'norm', 'parameters'),
  # torchvision's vgg16, vgg19, vgg16_bn and vgg19_bn.
  [
    (16, False, 138_357_544),
    (19, False, 143_667_240),
    (16, True, 138_365_992),
    (19, True, 143_678_248),
  ],
)
def test_parameter_counts_are_the_published_ones(depth, norm, parameters):
  head = 4096 * 1000 + 1000
  variables = shapes(vgg(depth, norm=norm))
  assert count(variables['params']) == parameters - head
  assert sum('conv' in name or 'fc' in name for name in variables['params']) + 1 == depth
  convolutions = shapes(vgg(depth, norm=norm, fully_connected=False), 16)
  assert convolutions['params'].keys() == variables['params'].keys() - {'fc6', 'fc7'}


@pytest.mark.parametrize(
  ('fully_connected', 'side', 'features'), [(True, 224, 4096), (False, 16, 512)]
)
def test_images_below_the_smallest_side_are_refused(fully_connected, side, features):
  model = vgg(16, norm=False, fully_connected=fully_connected)

  def shape(height, width):
    images = jnp.zeros((2, height, width, 3))
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images)[0]).shape

  assert shape(side, side + 7) == (2, features)
  with pytest.raises(ValueError, match=f'{side + 7}×{side - 1} images are too small .* {side} pix'):
    shape(side + 7, side - 1)


def test_the_error_for_small_images_names_a_remedy():
  with pytest.raises(ValueError, match='fully_connected=False'):
    shapes(vgg(16, norm=False), 64)


def test_an_unknown_depth_is_refused():
  with pytest.raises(ValueError, match=r'depth=11 is no standard VGG; use one of \[16, 19\]'):
    vgg(11, norm=True)


SMALL = {'stage_sizes': (1, 1), 'norm': True, 'fully_connected': False}
IMAGES = np.random.default_rng(1).normal(size=(2, 3, 16, 17, 3)).astype(np.float32)


def train(model, variables, **options):
  """Return gradients of the features' squares and updated statistics, over two devices."""

  def loss(params, images, is_source):
    features, updates = model.apply(
      {**variables, 'params': params},
      images,
      train=True,
      is_source=is_source,
      mutable=['batch_stats'],
      **options,
    )
    return jnp.square(features).sum(), updates

  is_source = jnp.array([[True, False, False], [False, False, True]])
  run = jax.vmap(jax.grad(loss, has_aux=True), (None, 0, 0), axis_name='batch')
  return jax.jit(run)(variables['params'], IMAGES, is_source)


def test_remat_changes_neither_parameters_nor_gradients_nor_statistics():
  model, remat = VGG(**SMALL), VGG(**SMALL, remat=True)
  variables = random_variables(model)
  assert jax.tree.map(jnp.shape, shapes(remat)) == jax.tree.map(jnp.shape, shapes(model))
  plain = train(model, variables)
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain[0])) > 0.1
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    train(remat, variables),
    plain,
  )
  jaxpr = jax.make_jaxpr(lambda: train(remat, variables))()
  assert 'remat' in str(jaxpr) or 'checkpoint' in str(jaxpr)


@pytest.mark.parametrize('mode', ['mixed', 'per_domain', 'frozen'])
def test_batch_norm_follows_its_mode(mode):
  model = VGG(**SMALL, batch_norm=mode, batch_norm_momentum=0.5)
  variables = random_variables(model)
  _, updates = train(model, variables)
  names = {'mean', 'var'} | ({'source_mean', 'source_var'} if mode == 'per_domain' else set())
  for layer in ('norm1_1', 'norm2_1'):
    assert set(updates['batch_stats'][layer]) == names
    for name in names:
      new, old = updates['batch_stats'][layer][name], variables['batch_stats'][layer][name]
      assert np.array_equal(new, np.broadcast_to(old, new.shape)) == (mode == 'frozen')


def test_bfloat16_is_of_activations_only():
  model = VGG(**SMALL, dtype=jnp.bfloat16)
  variables = random_variables(model)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {jnp.dtype(jnp.float32)}
  features = model.apply(variables, IMAGES[0])
  assert features.dtype == jnp.float32
  exact = VGG(**SMALL).apply(variables, IMAGES[0])
  error = np.abs(features - exact).max() / np.abs(exact).max()
  assert 1e-4 < error < 0.05


def test_fully_connected_layers_drop_out_in_training_only():
  model = vgg(16, norm=False)
  images = jnp.zeros((1, 2, 224, 224, 3))

  def run(train):
    def apply(variables, images):
      return model.apply(variables, images, train=train)

    return jax.eval_shape(jax.vmap(apply, (None, 0), axis_name='batch'), shapes(model), images)

  assert run(train=False).shape == (1, 2, 4096)
  with pytest.raises(flax.errors.InvalidRngError, match='dropout'):
    run(train=True)


@pytest.mark.reference
@pytest.mark.parametrize(
  ('depth', 'norm', 'fully_connected', 'size'),
  [
    (16, True, True, (225, 263)),
    (16, False, False, (97, 131)),
    (19, True, False, (97, 131)),
  ],
)
def test_network_agrees_with_pytorch(depth, norm, fully_connected, size):
  import torch
  from torch.nn import functional

  model = vgg(depth, norm=norm, fully_connected=fully_connected)
  variables = random_variables(model)
  params, stats = variables['params'], variables.get('batch_stats', {})
  images = np.random.default_rng(1).normal(size=(1, *size, 3)).astype(np.float32)

  def conv(x, layer, padding):
    weight = torch.from_numpy(params[layer]['kernel']).permute(3, 2, 0, 1)
    return functional.conv2d(x, weight, torch.from_numpy(params[layer]['bias']), padding=padding)

  def batch_norm(x, layer):
    tensors = [stats[layer]['mean'], stats[layer]['var'], params[layer]['scale']]
    tensors.append(params[layer]['bias'])
    return functional.batch_norm(x, *map(torch.from_numpy, tensors), eps=1e-5)

  x = torch.from_numpy(images).permute(0, 3, 1, 2)
  # Configurations D and E of Table 1, M a pooling.
  plan = {16: 'cc M cc M ccc M ccc M ccc', 19: 'cc M cc M cccc M cccc M cccc'}[depth]
  for i, stage in enumerate(plan.split(' M '), start=1):
    if i > 1:
      x = functional.max_pool2d(x, 2, 2)
    for j in range(1, len(stage) + 1):
      x = conv(x, f'conv{i}_{j}', padding=1)
      if norm:
        x = batch_norm(x, f'norm{i}_{j}')
      x = x.relu()
    assert x.shape[1] == CHANNELS[i - 1]
  if fully_connected:
    x = functional.max_pool2d(x, 2, 2)
    x = conv(conv(x, 'fc6', padding=0).relu(), 'fc7', padding=0).relu()
  expected = x.mean((2, 3)).numpy()

  features = model.apply(variables, images)
  assert expected.max() > 0.1
  np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * expected.max())
