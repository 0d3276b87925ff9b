import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.models.alexnet import LAYERS, MIN_SIDE_FULLY_CONNECTED, AlexNet, local_response_norm


def shapes(model, side=224):
  images = jnp.zeros((1, side, side, 3))
  return jax.eval_shape(lambda: model.init(jax.random.key(0), images))['params']


def random_params(model, seed=0):
  """Kernels of unit gain, and random biases."""
  random = np.random.default_rng(seed)

  def draw(leaf):
    gain = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim == 4 else 0.1
    return np.float32(gain) * random.standard_normal(leaf.shape, np.float32)

  return jax.tree.map(draw, shapes(model))


def random_images(*size, scale=1):
  return scale * np.random.default_rng(1).normal(size=(*size, 3)).astype(np.float32)


@pytest.mark.parametrize(
  ('caffe', 'parameters'),
  # torchvision's alexnet and Caffe's bvlc_alexnet.
  [(False, 61_100_840), (True, 60_965_224)],
)
def test_parameter_counts_are_the_published_ones(caffe, parameters):
  head = 4096 * 1000 + 1000
  params = shapes(AlexNet(caffe=caffe))
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters - head
  assert list(params) == [*LAYERS, 'fc6', 'fc7']
  assert set(shapes(AlexNet(caffe=caffe, fully_connected=False), 31)) == set(LAYERS)


@pytest.mark.parametrize('caffe', [False, True])
def test_features_without_fully_connected_average_conv5_at_any_size(caffe):
  model = AlexNet(caffe=caffe, fully_connected=False)
  params = {'params': random_params(model)}
  images = random_images(2, 67, 101)
  features = model.apply(params, images, train=True)
  assert features.shape == (2, 256)
  (conv5,) = model.apply(params, images, layers=('conv5',), tap='linear', method='responses')
  assert (np.asarray(conv5) < 0).any()
  np.testing.assert_allclose(features, np.maximum(conv5, 0).mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('caffe', [False, True])
def test_the_smallest_side_leaves_a_layer_one_response(caffe, layer):
  model = AlexNet(caffe=caffe, fully_connected=False)
  side = model.layers[layer].min_side

  def respond(height, width):
    images = jnp.zeros((1, height, width, 3))
    options = {'layers': (layer,), 'tap': 'relu', 'method': 'responses'}
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, **options)[0])

  (responses,) = respond(side, side)
  assert responses.shape == (1, 1, 1, model.layers[layer].features)
  with pytest.raises(ValueError, match=f'{side}×{side - 1} .* AlexNet {layer}, .* {side} pixels'):
    respond(side, side - 1)


@pytest.mark.parametrize('caffe', [False, True])
def test_fc6_needs_the_smallest_side(caffe):
  model = AlexNet(caffe=caffe)
  side = MIN_SIDE_FULLY_CONNECTED[caffe]

  def features(side):
    images = jnp.zeros((2, 300, side, 3))
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images)[0])

  assert features(side).shape == (2, 4096)
  with pytest.raises(ValueError, match=f'300×{side - 1} .* {side} .* fully_connected=False'):
    features(side - 1)
  model = model.clone(fully_connected=False)
  options = {'layers': ('conv5',), 'tap': 'relu', 'method': 'responses'}
  for less, pooled in ((0, 6), (1, 5)):
    images = jnp.zeros((1, side - less, side - less, 3))
    (conv5,) = jax.eval_shape(
      lambda images: model.init_with_output(jax.random.key(0), images, **options)[0], images
    )
    windows = (conv5.shape[1] - 3) / 2 + 1
    assert pooled == (np.ceil(windows) if caffe else np.floor(windows))


@pytest.mark.parametrize('caffe', [False, True])
def test_fully_connected_layers_drop_out_in_training_only(caffe):
  model = AlexNet(caffe=caffe)
  images = jnp.zeros((1, 2, 227, 227, 3))

  def run(train):
    def apply(params, images):
      return model.apply({'params': params}, images, train=train)

    return jax.eval_shape(jax.vmap(apply, (None, 0), axis_name='batch'), shapes(model), images)

  assert run(train=False).shape == (1, 2, 4096)
  with pytest.raises(flax.errors.InvalidRngError, match='dropout'):
    run(train=True)


def test_local_response_norm_follows_its_definition():
  x = random_images(2, 4, 5, scale=100).reshape(2, 4, 5, 3)
  x = np.concatenate([x, -2 * x, x + 30], axis=-1)
  expected = np.empty_like(x)
  for c in range(9):
    around = x[..., max(0, c - 2) : c + 3].astype(np.float64)
    expected[..., c] = x[..., c] / (1 + 1e-4 * (around**2).sum(-1) / 5) ** 0.75
  np.testing.assert_allclose(local_response_norm(x), expected, rtol=1e-6)
  assert np.abs(expected / x).min() < 0.9


def test_the_groups_of_conv2_are_separate():
  model = AlexNet(caffe=True, fully_connected=False)
  params = random_params(model)
  options = {'layers': ('conv2',), 'tap': 'linear', 'method': 'responses'}
  images = random_images(1, 63, 63)
  (before,) = model.apply({'params': params}, images, **options)
  params['conv1']['kernel'][..., :40] = 0  # The norm changes two more channels.
  (after,) = model.apply({'params': params}, images, **options)
  changed = np.abs(after - before).max((0, 1, 2)) > 1e-6
  assert changed[:128].all()
  assert not changed[128:].any()


@pytest.mark.slow
def test_bfloat16_is_of_activations_only():
  model = AlexNet(caffe=True, fully_connected=False, dtype=jnp.bfloat16)
  params = random_params(model)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {jnp.dtype(jnp.float32)}
  images = random_images(2, 31, 31)
  features = model.apply({'params': params}, images)
  assert features.dtype == jnp.float32
  exact = model.clone(dtype=jnp.float32).apply({'params': params}, images)
  error = np.abs(features - exact).max() / np.abs(exact).max()
  assert 1e-4 < error < 0.05


@pytest.mark.reference
def test_local_response_norm_agrees_with_pytorch():
  import torch

  x = random_images(2, 6, 7, scale=100).repeat(4, axis=-1)
  theirs = torch.nn.functional.local_response_norm(
    torch.from_numpy(x).permute(0, 3, 1, 2), size=5, alpha=1e-4, beta=0.75, k=1
  )
  np.testing.assert_allclose(local_response_norm(x), theirs.permute(0, 2, 3, 1), rtol=1e-5)


@pytest.mark.reference
@pytest.mark.parametrize(
  ('caffe', 'fully_connected', 'size'),
  [
    (False, True, (224, 224)),
    (False, True, (231, 321)),
    (False, False, (97, 131)),
    (True, True, (227, 227)),
    (True, True, (224, 301)),
    (True, False, (97, 131)),
  ],
)
def test_network_agrees_with_pytorch(caffe, fully_connected, size):
  """The reference is written layer by layer in PyTorch, with the same random weights."""
  import torch
  from torch.nn import functional

  model = AlexNet(caffe=caffe, fully_connected=fully_connected)
  params = random_params(model)
  # Images in Caffe's range let its normalisation matter.
  images = random_images(2, *size, scale=60 if caffe else 1)

  def conv(x, layer, stride=1, padding=0, groups=1):
    weight = torch.from_numpy(params[layer]['kernel']).permute(3, 2, 0, 1)
    bias = torch.from_numpy(params[layer]['bias'])
    return functional.conv2d(x, weight, bias, stride, padding, groups=groups).relu()

  def pool(x):
    return functional.max_pool2d(x, 3, 2, ceil_mode=caffe)

  def norm(x):
    return functional.local_response_norm(x, 5, 1e-4, 0.75, 1) if caffe else x

  groups = 2 if caffe else 1
  x = torch.from_numpy(images).permute(0, 3, 1, 2)
  x = pool(norm(conv(x, 'conv1', 4, 0 if caffe else 2)))
  x = pool(norm(conv(x, 'conv2', 1, 2, groups)))
  x = conv(x, 'conv3', 1, 1)
  x = conv(x, 'conv4', 1, 1, groups)
  x = conv(x, 'conv5', 1, 1, groups)
  if fully_connected:
    x = conv(conv(pool(x), 'fc6'), 'fc7')
  expected = x.mean((2, 3)).numpy()

  features = model.apply({'params': params}, images)
  assert expected.max() > 0.1
  np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * expected.max())
