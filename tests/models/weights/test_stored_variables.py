import numpy as np
import pytest
from models.weights.weight_files import normal

from sjft_jax.models.weights.layouts import layouts
from sjft_jax.models.weights.stored_variables import locate, locate_kernel, tensor_name


@pytest.mark.parametrize('origin', ['torch', 'keras'])
def test_fc6_reads_the_map_in_the_order_of_its_origin(origin):
  """The convolution with the converted kernel is the product with the flattened map."""
  feature_map, outputs = normal(3, 3, 5), 4
  variable = locate_kernel('fc', (3, 3, 5, outputs), origin, is_bgr=False)
  if origin == 'torch':
    weight = normal(outputs, 45)
    expected = weight @ feature_map.transpose(2, 0, 1).ravel()
  else:
    weight = normal(45, outputs)
    expected = feature_map.ravel() @ weight
  (shapes,) = variable.tensors.values()
  assert weight.shape in shapes
  product = np.einsum('hwi,hwio->o', feature_map, variable.convert(weight))
  np.testing.assert_allclose(product, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('origin', 'path', 'names'),
  [
    ('torch', 'stage1_block1/conv1/kernel', ['layer1.0.conv1.weight']),
    ('torch', 'stage1_block1/norm1/scale', ['layer1.0.bn1.weight']),
    ('torch', 'stage1_block1/norm1/bias', ['layer1.0.bn1.bias']),
    ('torch', 'stage1_block1/norm1/var', ['layer1.0.bn1.running_var']),
    ('torch', 'classifier/bias', ['fc.bias']),
    ('keras', 'stage1_block1/norm2/scale', ['conv2_block1_2_bn/gamma']),
    ('keras', 'stage1_block1/norm2/mean', ['conv2_block1_2_bn/moving_mean']),
    ('caffe', 'stem/kernel', ['conv1/0']),
    ('caffe', 'stem_norm/bias', ['scale_conv1/1']),
    ('caffe', 'stem_norm/mean', ['bn_conv1/0', 'bn_conv1/2', 'conv1/1']),
    ('caffe', 'stem_norm/var', ['bn_conv1/1', 'bn_conv1/2']),
    ('caffe', 'stage1_block1/norm1/mean', ['bn2a_branch2a/0', 'bn2a_branch2a/2']),
  ],
)
def test_variables_are_located_under_their_origin_s_names(origin, path, names):
  layout, *_ = layouts('resnet50v1', origin)
  shape = (1, 1, 2, 3) if path.endswith('kernel') else (3,)
  variable = locate(layout, ('params', *path.split('/')), shape, {'conv1/1'})
  assert list(variable.tensors) == names


def test_statistics_of_caffe_are_divided_and_less_the_bias():
  layout, *_ = layouts('resnet50v1', 'caffe')
  variable = locate(layout, ('batch_stats', 'stem_norm', 'mean'), (2,), {'conv1/1'})
  mean = variable.convert(np.float32([[8, 4]]), np.float32([4]), np.float32([1, 3]))
  np.testing.assert_array_equal(mean, np.float32([1, -2]))


def test_a_layer_without_another_name_keeps_its_own():
  layout, *_ = layouts('alexnet_caffe', 'caffe')
  assert tensor_name(layout, 'conv1', 'bias') == 'conv1/1'
  assert tensor_name(layout, 'other', 'kernel') == 'other/0'
