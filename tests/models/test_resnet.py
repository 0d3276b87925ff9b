import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.models.convolution import Conv
from sjft_jax.models.resnet import STYLES, ResNet, Style, resnet
from sjft_jax.runtime import compilation


@functools.cache
def shapes(model, side=32):
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))


def count(tree):
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def random_variables(model, seed=0):
  """Draw every leaf at random, variances positive: no norm is the identity."""
  random = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key in ('var', 'source_var', 'scale'):
      return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    return random.normal(0, 0.1, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes(model))


# With 1000-way heads: torchvision's resnet18, resnet50, resnet152; timm's resnetv2_50, _101, _152
# (whose stem is bare as here).
@pytest.mark.parametrize(
  ('depth', 'version', 'millions'),
  [
    (18, 1, 11.690 - 0.513),
    (50, 1, 25.557 - 2.049),
    (152, 1, 60.193 - 2.049),
    (50, 2, 25.549 - 2.049),
    (101, 2, 44.542 - 2.049),
    (152, 2, 60.185 - 2.049),
  ],
)
def test_parameter_counts_are_the_published_ones(depth, version, millions):
  params = shapes(resnet(depth, version))['params']
  assert count(params) / 1e6 == pytest.approx(millions, abs=6e-4)


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('depth', [18, 34, 50, 101, 152, pytest.param(200, marks=pytest.mark.slow)])
def test_a_network_has_as_many_layers_as_its_name_says(depth, version):
  params = shapes(resnet(depth, version))['params']
  kernels = [
    path
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if leaf.ndim > 1 and 'projection' not in jax.tree_util.keystr(path)
  ]
  assert len(kernels) + 1 == depth  # The head is the last layer.


def names(tree):
  return {
    '/'.join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)
  }


def test_parameters_have_the_names_that_checkpoints_are_converted_to():
  norms = {f'norm{i}/{part}' for i in (1, 2, 3) for part in ('scale', 'bias')}
  block = norms | {f'conv{i}/kernel' for i in (1, 2, 3)}
  v1 = block | {'projection/kernel', 'projection_norm/scale', 'projection_norm/bias'}
  v2 = block | {'projection/kernel'}
  for version, expected, outer in ((1, v1, 'stem_norm'), (2, v2, 'norm')):
    style = STYLES[version]['torch']
    params = shapes(ResNet((1,), True, version, style, width=0.125))['params']
    expected = {f'stage1_block1/{name}' for name in expected}
    assert names(params) == expected | {'stem/kernel', f'{outer}/scale', f'{outer}/bias'}
  released = shapes(ResNet((1,), True, style=STYLES[2]['released'], width=0.125))['params']
  assert 'norm1' not in released['stage1_block1']
  assert 'stem_norm' in released
  keras = ResNet((2,), True, style=STYLES[2]['keras'], width=0.125)
  biases = {name for name in names(shapes(keras)['params']) if name.endswith('bias')}
  assert {name for name in biases if 'norm' not in name} == {
    'stem/bias',
    'stage1_block1/projection/bias',
    'stage1_block1/conv3/bias',
    'stage1_block2/conv3/bias',
  }


def strided_convolutions(model):
  """List the convolutions that halve the resolution of an image of 64 pixels."""
  # Sides are those of outputs: a convolution reads the output of the one before it in its block.
  variables = shapes(model)
  _, captured = jax.eval_shape(
    lambda v: model.apply(
      v,
      jnp.zeros((1, 64, 64, 3)),
      capture_intermediates=lambda module, _: isinstance(module, Conv),
      mutable=['intermediates'],
    ),
    variables,
  )
  strided, side = [], 16
  blocks = {name: tree for name, tree in captured['intermediates'].items() if '_block' in name}
  for block in sorted(blocks):
    for i in (1, 2, 3):
      output_side = blocks[block][f'conv{i}']['__call__'][0].shape[1]
      if output_side != side:
        assert output_side == side // 2
        strided.append(f'{block}/conv{i}')
      side = output_side
    assert 'projection' not in blocks[block] or (
      blocks[block]['projection']['__call__'][0].shape[1] == side
    )
  return strided


@pytest.mark.parametrize(
  ('version', 'style', 'strided'),
  [
    (1, 'torch', ['stage2_block1/conv2', 'stage3_block1/conv2']),
    (1, 'caffe', ['stage2_block1/conv1', 'stage3_block1/conv1']),
    (1, 'keras', ['stage2_block1/conv1', 'stage3_block1/conv1']),
    (2, 'released', ['stage2_block1/conv1', 'stage3_block1/conv1']),
    (2, 'torch', ['stage2_block1/conv2', 'stage3_block1/conv2']),
    (2, 'keras', ['stage1_block2/conv2', 'stage2_block2/conv2']),
  ],
)
def test_strides_follow_the_style(version, style, strided):
  style = STYLES[version][style]
  assert strided_convolutions(ResNet((2, 2, 2), True, version, style, width=0.125)) == strided


def test_a_strided_block_without_projection_keeps_every_second_pixel():
  model = ResNet((2, 1), True, style=STYLES[2]['keras'], width=0.125)
  variables = random_variables(model)
  block = variables['params']['stage1_block2']
  block['conv3'] = jax.tree.map(np.zeros_like, block['conv3'])  # Leaves the shortcut alone.
  images = np.random.default_rng(0).normal(size=(1, 33, 35, 3)).astype(np.float32)
  _, captured = model.apply(
    variables,
    images,
    capture_intermediates=lambda module, _: (module.name or '').startswith('stage1'),
    mutable=['intermediates'],
  )
  before, after = (captured['intermediates'][f'stage1_block{i}']['__call__'][0] for i in (1, 2))
  assert before.shape[1:3] == (9, 9)
  np.testing.assert_array_equal(after, before[:, ::2, ::2])


@pytest.mark.parametrize('border', ['padded', 'zeros', 'ceil'])
@pytest.mark.parametrize('sides', [(16, 18), (15, 20)])
def test_pooling_at_the_border_follows_the_style(border, sides):
  model = ResNet((), True, style=Style(pool=border, bias=True), width=0.125)
  variables = random_variables(model)
  variables['params']['stem']['bias'] -= 3  # Negative maps: a zero of the padding shows.
  variables['params']['norm']['bias'] += 30  # The ReLU cuts nothing.
  images = np.random.default_rng(0).normal(size=(1, *sides, 3)).astype(np.float32)
  x = np.asarray(
    Conv(8, 7, 2, padding=3, use_bias=True).apply({'params': variables['params']['stem']}, images)
  )

  def windows(side):
    """List the first and one past the last pixel of windows, without the border."""
    if border == 'ceil':  # Caffe's number of windows, the last clipped.
      return [(2 * i, min(2 * i + 3, side)) for i in range(-(-(side - 3) // 2) + 1)]
    return [(max(2 * i - 1, 0), min(2 * i + 2, side)) for i in range((side - 1) // 2 + 1)]

  pooled = []
  for top, bottom in windows(x.shape[1]):
    for left, right in windows(x.shape[2]):
      window = x[0, top:bottom, left:right]
      highest = window.max((0, 1))
      overhangs = window.shape[:2] != (3, 3)
      pooled.append(np.maximum(highest, 0) if border == 'zeros' and overhangs else highest)
  stats, params = variables['batch_stats']['norm'], variables['params']['norm']
  pooled = (pooled - stats['mean']) / np.sqrt(stats['var'] + 1e-5) * params['scale']
  expected = (pooled + params['bias']).mean(axis=0)
  np.testing.assert_allclose(model.apply(variables, images)[0], expected, rtol=1e-5)


@pytest.mark.slow
def test_initial_weights_are_he_normal():
  params = jax.jit(ResNet((1, 1), bottleneck=False).init)(
    jax.random.key(0), jnp.zeros((1, 32, 32, 3))
  )['params']
  block = params['stage2_block1']
  deviations = [block[name]['kernel'].std() for name in ('conv2', 'projection')]
  np.testing.assert_allclose(deviations, np.sqrt([2 / (9 * 128), 2 / 128]), rtol=0.03)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'depth': 51}, 'depth=51 .* 50'),
    ({'width': 0.001}, 'width=0.001 leaves no channel'),
    ({'style': 'caffe'}, "style='caffe' is unknown; .*use one of auto, released, torch, keras"),
    (
      {'version': 1, 'style': 'released'},
      "style='released' is unknown; .*auto, torch, caffe, keras",
    ),
  ],
)
def test_impossible_networks_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    resnet(**({'depth': 18} | options))


def test_the_default_style_is_the_papers_code_or_torchvisions():
  assert resnet(50, 2).style == STYLES[2]['released']
  assert resnet(50, 1).style == STYLES[1]['torch']


def training_pass(model, variables, images, is_source=None):
  """Run a training pass over images `[device, b, h, w, 3]` on a mapped axis 'batch'."""

  def run(images, is_source):
    return model.apply(variables, images, True, is_source, mutable=['batch_stats'])

  return jax.vmap(run, axis_name='batch')(images, is_source)


def varied_images(side=32):
  """Draw the images of two devices, whose own statistics differ."""
  images = np.random.default_rng(0).normal(size=(2, 3, side, side, 3)).astype(np.float32)
  images[1] = 3 * images[1] + 2
  return images


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('batch_norm', ['mixed', 'per_domain', 'frozen'])
def test_every_norm_follows_the_mode(version, batch_norm):
  model = ResNet((1,), False, version, width=0.125, batch_norm=batch_norm, batch_norm_momentum=0.5)
  variables, images = random_variables(model), varied_images()
  is_source = np.array([[True, True, False], [False, False, False]])
  features, updates = training_pass(model, variables, images, is_source)
  new, old = updates['batch_stats'], variables['batch_stats']
  assert len(jax.tree.leaves(old)) == (2 if batch_norm == 'per_domain' else 1) * 2 * 3
  moved = jax.tree.map(lambda a, b: np.abs(a - b[None]).max(axis=1), new, old)
  if batch_norm == 'frozen':
    assert not any(leaf.any() for leaf in jax.tree.leaves(moved))
    np.testing.assert_allclose(features[1], model.apply(variables, images[1]), rtol=1e-5, atol=1e-6)
  else:
    assert all(leaf.all() for leaf in jax.tree.leaves(moved))
    # Both devices hold what both devices' images gave.
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf[0], leaf[1]), new)
  # A changed image changes those that share its statistics.
  images[1, 2] += 9
  others, _ = training_pass(model, variables, images, is_source)
  changed = np.abs(others - features).max(axis=-1) > 1e-4
  itself = np.arange(6).reshape(2, 3) == 5
  expected = {'mixed': np.full((2, 3), True), 'per_domain': ~is_source, 'frozen': itself}
  np.testing.assert_array_equal(changed, expected[batch_norm])


@pytest.mark.parametrize('version', [1, 2])
def test_keras_style_has_its_own_epsilon(version):
  model = resnet(18, version, width=1 / 64, style='keras')
  # A norm of zero variance shows the epsilon: 5e-4 beside 1e-5.
  images = jnp.zeros((1, 32, 32, 3))
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
  last_norm = ('norm',) if version == 2 else ('stage4_block2', 'norm2')
  params, stats = variables['params'], variables['batch_stats']
  for key in last_norm:
    params, stats = params[key], stats[key]
  params['scale'] += np.float32(np.sqrt(1.001e-5))
  stats['mean'] -= 1
  np.testing.assert_allclose(model.apply(variables, images), 1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of a CPU compiler')
def test_every_further_block_costs_the_gradient_as_much():
  def flops(blocks):
    network = ResNet((blocks,), bottleneck=True, width=1 / 16)
    images = jnp.zeros((1, 32, 32, 3))
    variables = network.init(jax.random.key(0), images)

    def loss(params):
      features, _ = jax.vmap(
        lambda x: network.apply(variables | {'params': params}, x, True, mutable=['batch_stats']),
        axis_name='batch',
      )(images[None])
      return features.sum()

    lowered = jax.jit(jax.grad(loss)).lower(variables['params'])
    return compilation.compile_lowered(lowered).cost_analysis()['flops']

  few, more, many = map(flops, (4, 8, 12))
  assert many - more == pytest.approx(more - few, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize('version', [1, 2])
def test_remat_changes_nothing(version):
  images = varied_images()[:, :2]
  is_source = np.array([[True, False], [False, True]])
  model = {
    remat: ResNet((1, 1), False, version, width=0.125, batch_norm='per_domain', remat=remat)
    for remat in (False, True)
  }
  variables = random_variables(model[False])
  assert names(shapes(model[True])) == names(variables)

  def loss(params, remat):
    features, updates = training_pass(
      model[remat], {**variables, 'params': params}, images, is_source
    )
    return (features**2).sum(), updates

  def run(remat):
    return jax.jit(jax.value_and_grad(functools.partial(loss, remat=remat), has_aux=True))(
      variables['params']
    )

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), run(True), run(False)
  )
  for remat in (False, True):
    jaxpr = str(jax.make_jaxpr(functools.partial(loss, remat=remat))(variables['params']))
    assert ('prevent_cse' in jaxpr) == remat


@pytest.mark.slow
@pytest.mark.parametrize('version', [1, 2])
def test_low_precision_is_of_activations_only(version):
  low = ResNet((1, 1), True, version, width=0.125, dtype=jnp.bfloat16)
  full = low.clone(dtype=jnp.float32)
  variables = random_variables(full)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes(low)))
  images = varied_images()[0]
  features, captured = low.apply(
    variables, images, capture_intermediates=True, mutable=['intermediates']
  )
  inner = {k: v for k, v in captured['intermediates'].items() if k != '__call__'}
  assert len(jax.tree.leaves(inner)) > 15
  assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(inner))
  assert features.dtype == jnp.float32
  expected = full.apply(variables, images)
  error = np.linalg.norm(features - expected) / np.linalg.norm(expected)
  assert 1e-5 < error < 0.02
  _, updates = training_pass(low, variables, images[None])
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updates))


@pytest.mark.reference
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(
  ('bottleneck', 'version', 'style'),
  [
    (False, 1, 'torch'),
    (True, 1, 'torch'),
    (True, 1, 'caffe'),
    (False, 2, 'released'),
    (True, 2, 'released'),
    (True, 2, 'torch'),
    (True, 2, 'keras'),
  ],
)
def test_network_agrees_with_pytorch(bottleneck, version, style, train):
  """The reference is written from the papers layer by layer, in PyTorch with the same weights."""
  import torch
  from torch.nn import functional

  model = ResNet((2, 2, 1), bottleneck, version, STYLES[version][style], width=0.125)
  images = np.random.default_rng(1).normal(size=(4, 65, 66, 3)).astype(np.float32)
  variables = random_variables(model)
  # PyTorch updates them in place.
  copies = jax.tree.map(lambda a: torch.from_numpy(a.copy()), variables)
  params, stats = copies['params'], copies['batch_stats']
  epsilon = 1.001e-5 if style == 'keras' else 1e-5

  def conv(x, params, stride=1):
    kernel = params['kernel'].permute(3, 2, 0, 1)
    return functional.conv2d(x, kernel, params.get('bias'), stride, kernel.shape[-1] // 2)

  def norm(x, params, stats):
    mean, var, scale, bias = stats['mean'], stats['var'], params['scale'], params['bias']
    return functional.batch_norm(x, mean, var, scale, bias, training=train, eps=epsilon)

  def block(x, params, stats, stride):
    layers = (1, 2, 3) if bottleneck else (1, 2)
    strided = 2 if bottleneck and (style == 'torch' or (version, style) == (2, 'keras')) else 1
    y, shortcut = x, functional.max_pool2d(x, 1, stride)
    if version == 2 and 'norm1' in params:
      y = norm(y, params['norm1'], stats['norm1']).relu()
    if 'projection' in params:
      shortcut = conv(y, params['projection'], stride)
      if version == 1:
        shortcut = norm(shortcut, params['projection_norm'], stats['projection_norm'])
    for i in layers:
      if version == 2 and i > 1:
        y = norm(y, params[f'norm{i}'], stats[f'norm{i}']).relu()
      y = conv(y, params[f'conv{i}'], stride if i == strided else 1)
      if version == 1:
        y = norm(y, params[f'norm{i}'], stats[f'norm{i}'])
        y = y.relu() if i < len(layers) else y
    return (shortcut + y).relu() if version == 1 else shortcut + y

  with torch.no_grad():
    x = conv(torch.from_numpy(images.transpose(0, 3, 1, 2)), params['stem'], 2)
    assert ('stem_norm' in params) == (version == 1 or style == 'released')
    assert ('norm1' in params['stage1_block1']) == (style != 'released')
    if 'stem_norm' in params:
      x = norm(x, params['stem_norm'], stats['stem_norm']).relu()
    if style in ('caffe', 'released'):
      x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
    elif style == 'keras':
      x = functional.max_pool2d(functional.pad(x, (1, 1, 1, 1)), 3, 2)
    else:
      x = functional.max_pool2d(x, 3, 2, 1)
    strided = {(1, 2), (2, 2)} if (version, style) == (2, 'keras') else {(2, 1), (3, 1)}
    for stage, index in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]:
      name = f'stage{stage}_block{index}'
      x = block(x, params[name], stats[name], 2 if (stage, index) in strided else 1)
    if version == 2:
      x = norm(x, params['norm'], stats['norm']).relu()
    expected = x.mean(dim=(2, 3)).numpy()

  if train:
    features = training_pass(model, variables, images[None])[0][0]
  else:
    features = model.apply(variables, images)
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
