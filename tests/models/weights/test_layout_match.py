import numpy as np
import pytest
from models.weights.weight_files import normal

from sjft_jax.models.trunk import TrunkSpec
from sjft_jax.models.weights.layout_match import find_stem, match_layout
from sjft_jax.models.weights.layouts import layouts

SPEC = TrunkSpec('alexnet', fully_connected=False)
(LAYOUT,) = layouts('alexnet', 'torch')
SHAPES = {
  0: (64, 3, 11, 11),
  3: (192, 64, 5, 5),
  6: (384, 192, 3, 3),
  8: (256, 384, 3, 3),
  10: (256, 256, 3, 3),
}


@pytest.fixture
def tensors():
  """The tensors of AlexNet's convolutions and of a classifier of their 256 averages."""
  kernels = {f'features.{n}.weight': normal(*shape, seed=n) for n, shape in SHAPES.items()}
  biases = {f'features.{n}.bias': normal(shape[0], seed=n) for n, shape in SHAPES.items()}
  return kernels | biases | {'classifier.6.weight': normal(5, 256), 'classifier.6.bias': normal(5)}


def test_fitting_tensors_become_variables_and_a_classifier(tensors):
  match = match_layout(LAYOUT, tensors, SPEC)
  assert match.problems == ''
  variables = match.variables()
  assert set(variables) == {'params'}
  assert set(variables['params']) == {'conv1', 'conv2', 'conv3', 'conv4', 'conv5'}
  kernel = tensors['features.3.weight'].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(variables['params']['conv2']['kernel'], kernel)
  np.testing.assert_array_equal(variables['params']['conv2']['bias'], tensors['features.3.bias'])
  classifier = match.classifier()
  np.testing.assert_array_equal(classifier['kernel'], tensors['classifier.6.weight'].T)
  np.testing.assert_array_equal(classifier['bias'], tensors['classifier.6.bias'])


def test_problems_are_listed_by_kind(tensors):
  del tensors['features.0.bias'], tensors['features.6.weight']
  tensors['features.3.bias'] = normal(7)
  tensors['neck.weight'] = normal(2)
  match = match_layout(LAYOUT, tensors, SPEC)
  assert match.missing_names == ['features.6.weight', 'features.0.bias']
  assert match.unexpected_names == ['neck.weight']
  assert match.shape_errors == ['features.3.bias is [7], not [192]']
  assert match.problems == (
    'missing: features.6.weight, features.0.bias; unexpected: neck.weight; '
    'wrong shape: features.3.bias is [7], not [192]'
  )


def test_a_larger_network_and_another_classifier_are_allowed_for(tensors):
  kernel, bias = (tensors.pop(f'classifier.6.{leaf}') for leaf in ('weight', 'bias'))
  larger = {f'model.{name}': tensor for name, tensor in tensors.items()}
  larger |= {'model.head.weight': kernel, 'model.head.bias': bias, 'loss.weight': normal(3)}
  match = match_layout(LAYOUT, larger, SPEC)
  assert match.problems == ''
  assert match.layout.names['classifier'] == 'head'
  np.testing.assert_array_equal(match.classifier()['kernel'], kernel.T)


def test_the_automatic_style_is_the_layout_s():
  layout, *_ = layouts('resnet18v1', 'caffe')
  assert match_layout(layout, {}, TrunkSpec('resnet18v1')).trunk_spec.style == 'caffe'
  spec = TrunkSpec('resnet18v1', style='torch')
  assert match_layout(layout, {}, spec).trunk_spec.style == 'torch'


def test_the_stem_is_the_kernel_of_the_first_layer():
  layout, *_ = layouts('resnet18v1', 'torch')
  kernel = normal(8, 3, 7, 7)
  assert find_stem(layout, {'conv1.weight': kernel}) is kernel
  assert find_stem(layout, {'conv.weight': kernel}) is None
