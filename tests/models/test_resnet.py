import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.models import trunk
from sjft_jax.models.resnet import ResNet, resnet


def shapes(model, side=32):
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))


def zeros(model, side):
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes(model, side))


def count(tree):
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def randomised(variables, seed=0):
  """Variables with every leaf random, variances positive: no norm is the identity."""
  random = np.random.default_rng(seed)
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
      if path[-1].key in ('var', 'scale')
      else random.normal(0, 0.1, leaf.shape).astype(np.float32)
    ),
    variables,
  )


@pytest.mark.parametrize(
  ('depth', 'millions'),
  # timm's resnetv2_50, _101 and _152 (a bare stem as here) less their 1000-way heads' 2.049.
  [(50, 25.549 - 2.049), (101, 44.542 - 2.049), (152, 60.185 - 2.049)],
)
def test_parameter_counts_are_the_published_ones(depth, millions):
  assert count(shapes(resnet(depth))['params']) / 1e6 == pytest.approx(millions, abs=6e-4)


@pytest.mark.parametrize('depth', [18, 34, 50, 101, 152, 200])
def test_a_network_has_the_layers_its_name_says(depth):
  params = shapes(resnet(depth))['params']
  weighty = [
    path
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if leaf.ndim > 1 and 'projection' not in jax.tree_util.keystr(path)
  ]
  assert len(weighty) + 1 == depth  # The head is the last layer.


def test_features_follow_the_width():
  images = jnp.zeros((2, 64, 64, 3))
  for name, width, features in [
    ('resnet18v2', 1.0, 512),
    ('resnet50v2', 0.5, 1024),
    ('resnet34v2', 0.125, 64),
  ]:
    model = trunk.build(name=name, width=width, batch_norm='mixed')
    out = jax.eval_shape(lambda m=model: m.init_with_output(jax.random.key(0), images)[0])
    assert out.shape == (2, features)


@pytest.mark.slow
def test_initial_weights_are_he_normal():
  model = ResNet((1, 1), bottleneck=False)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  block = params['params']['stage2_block1']
  assert float(block['conv2']['conv']['kernel'].std()) == pytest.approx(
    np.sqrt(2 / (9 * 128)), rel=0.01
  )
  assert float(block['projection']['dense']['kernel'].std()) == pytest.approx(
    np.sqrt(2 / 128), rel=0.03
  )


@pytest.mark.parametrize(
  'options',
  [
    {'name': 'resnet51v2', 'width': 1.0, 'batch_norm': 'mixed'},
    {'name': 'alexnet', 'width': 0.5, 'batch_norm': 'mixed'},
  ],
)
def test_impossible_trunks_are_refused(options):
  with pytest.raises(ValueError, match=r'resnet50v2|width'):
    trunk.build(**options)


@pytest.mark.parametrize('options', [{'width': 0.001}, {'batch_norm': 'live'}])
def test_impossible_options_are_refused(options):
  with pytest.raises(ValueError, match='|'.join(options)):
    trunk.build(**({'name': 'resnet18v2', 'width': 1.0, 'batch_norm': 'mixed'} | options))


def test_alexnet_is_a_trunk_too():
  model = trunk.build(name='alexnet', width=1, batch_norm='mixed')
  out, variables = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, 64, 64, 3)), train=True)
  )
  assert out.shape == (2, 256)
  assert set(variables) == {'params'}


def train_pass(model, variables, images):
  """A training pass over images `[device, b, h, w, 3]` on a mapped axis 'batch'."""

  def run(images):
    return model.apply(variables, images, train=True, mutable=['batch_stats'])

  return jax.jit(jax.vmap(run, axis_name='batch'))(images)


def test_mixed_statistics_are_of_the_whole_batch_and_frozen_ones_stay():
  images = np.random.default_rng(0).normal(size=(2, 3, 32, 32, 3)).astype(np.float32)
  # Two devices with unlike images: their own statistics would differ.
  images[1] = 3 * images[1] + 2
  sizes = {'stage_sizes': (1,), 'bottleneck': False, 'width': 0.125}
  mixed, frozen = ResNet(**sizes), ResNet(**sizes, batch_norm='frozen')
  variables = randomised(zeros(mixed, 32))

  _, updates = train_pass(mixed, variables, images)
  stem = jax.lax.conv_general_dilated(
    images.reshape(6, 32, 32, 3),
    variables['params']['stem']['kernel'],
    (2, 2),
    [(3, 3), (3, 3)],
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  x = np.pad(np.asarray(stem), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2]
  pooled = windows.max(axis=(-2, -1)).astype(np.float64)
  old = variables['batch_stats']['stage1_block1']['norm1']
  new = updates['batch_stats']['stage1_block1']['norm1']
  for name, now in (('mean', pooled.mean((0, 1, 2))), ('var', pooled.var((0, 1, 2)))):
    expected = 0.999 * old[name] + 0.001 * now
    for device in range(2):
      np.testing.assert_allclose(new[name][device], expected, rtol=1e-5, atol=1e-6)

  features, updates = train_pass(frozen, variables, images)
  jax.tree.map(
    lambda new, old: np.testing.assert_array_equal(new, np.broadcast_to(old, new.shape)),
    updates['batch_stats'],
    variables['batch_stats'],
  )
  np.testing.assert_allclose(
    features[1], jax.jit(frozen.apply)(variables, images[1]), rtol=1e-5, atol=1e-6
  )


def test_frozen_scale_and_bias_train():
  model = ResNet((1,), bottleneck=False, width=0.125, batch_norm='frozen')
  images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
  variables = randomised(zeros(model, images.shape[1]))

  @jax.jit
  @jax.grad
  def gradient(params):
    return model.apply({**variables, 'params': params}, images, train=True).sum()

  for leaf in jax.tree.leaves(gradient(variables['params'])['norm']):
    assert float(jnp.abs(leaf).max()) > 0


@pytest.mark.reference
@pytest.mark.parametrize('bottleneck', [False, True])
@pytest.mark.parametrize('train', [False, True])
def test_network_agrees_with_pytorch(bottleneck, train):
  """Written layer by layer from the paper, in PyTorch with the same random weights."""
  import torch
  from torch.nn import functional

  model = ResNet((2, 1, 1), bottleneck, width=0.125)
  images = np.random.default_rng(1).normal(size=(4, 65, 65, 3)).astype(np.float32)
  variables = randomised(zeros(model, images.shape[1]))
  params, stats = variables['params'], variables['batch_stats']

  def conv(x, kernel, stride, padding):
    kernel = kernel if kernel.ndim == 4 else kernel[None, None]
    weight = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
    return functional.conv2d(x, weight, stride=stride, padding=padding)

  def norm_relu(x, params, stats):
    mean, var, scale, bias = (
      torch.from_numpy(a) for a in (stats['mean'], stats['var'], params['scale'], params['bias'])
    )
    return functional.batch_norm(x, mean, var, scale, bias, training=train, eps=1e-5).relu()

  def block(x, params, stats, stride):
    y = norm_relu(x, params['norm1'], stats['norm1'])
    shortcut = x
    if 'projection' in params:
      shortcut = conv(y, params['projection']['dense']['kernel'], stride, 0)
    for i, name in enumerate(['conv1', 'conv2', 'conv3'] if bottleneck else ['conv1', 'conv2']):
      if i:
        y = norm_relu(y, params[f'norm{i + 1}'], stats[f'norm{i + 1}'])
      (kernel,) = jax.tree.leaves(params[name])
      size = 3 if not bottleneck or name == 'conv2' else 1
      assert kernel.shape[:-2] == ((3, 3) if size == 3 else ())
      y = conv(y, kernel, stride if i == 0 else 1, size // 2)
    return shortcut + y

  stats = jax.tree.map(np.copy, stats)  # PyTorch updates them in place.
  x = torch.from_numpy(images.transpose(0, 3, 1, 2))
  x = functional.max_pool2d(conv(x, params['stem']['kernel'], 2, 3), 3, 2, 1)
  for stage, index, stride in [(1, 1, 1), (1, 2, 1), (2, 1, 2), (3, 1, 2)]:
    name = f'stage{stage}_block{index}'
    x = block(x, params[name], stats[name], stride)
  expected = norm_relu(x, params['norm'], stats['norm']).mean(dim=(2, 3)).numpy()

  if train:
    features = train_pass(model, variables, images[None])[0][0]
  else:
    features = jax.jit(model.apply)(variables, images)
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
