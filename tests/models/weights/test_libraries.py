"""The networks of timm and torchvision that equal ours, and weights in their names."""

import flax.traverse_util
import jax
import numpy as np
import pytest
import untrained_run
from models import torch_reference

from sjft_jax.models import joint, trunk
from sjft_jax.models.trunk import TrunkSpec
from sjft_jax.models.weights import convert, libraries

# Every trunk in the variant that has an equal.
EQUALS = {
  **{f'resnet{depth}v1': ('timm', f'resnet{depth}') for depth in (18, 34, 50, 101, 152, 200)},
  **{f'resnet{depth}v2': ('timm', f'resnetv2_{depth}') for depth in (18, 34, 50, 101, 152)},
  **{name: ('timm', name) for name in ('vgg16', 'vgg19', 'vgg16_bn', 'vgg19_bn')},
  'alexnet': ('torchvision', 'alexnet'),
  **{name: ('timm', name) for name in (*trunk.INVERTED_RESIDUALS, *trunk.CONVNEXTS, *trunk.VITS)},
}
# Those of one family differ in numbers alone.
COMPARED = (
  *(name for name in EQUALS if name.startswith(('resnet', 'vgg', 'alexnet'))),
  *('mobilenetv2_035', 'mobilenetv2_110d', 'efficientnet_lite0', 'tf_efficientnet_lite0'),
  *('convnext_tiny', 'convnextv2_atto', 'convnextv2_tiny', 'vit_tiny_patch16_224'),
  *('vit_base_patch32_384', 'vit_small_patch14_dinov2', 'vit_small_patch14_reg4_dinov2'),
)


def find(name, image_size=224, **spec):
  style = 'torch' if name in trunk.RESNETS else 'auto'
  return libraries.find_architecture(TrunkSpec(name, **{'style': style, **spec}), image_size)


def shapes(name, style, image_size=224):
  model = joint.Joint(trunk.build_trunk(name=name, style=style), 5, 0)
  return joint.variable_shapes(model, image_size)


@pytest.mark.parametrize('name', trunk.NAMES)
def test_a_trunk_has_the_equal_that_is_listed_or_none(name):
  architecture = find(name)
  assert (architecture and (architecture.library, architecture.name)) == EQUALS.get(name)


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('resnet50v1', {'style': 'caffe'}),
    ('resnet50v1', {'style': 'keras'}),
    ('resnet50v1', {'width': 0.5}),
    ('resnet50v2', {'style': 'keras'}),
    ('mobilenetv2_100', {'style': 'keras'}),
    ('resnet50v2', {'style': 'auto'}),  # The paper's.
    ('vgg16', {'fully_connected': False}),
    ('alexnet', {'fully_connected': False}),
    ('alexnet', {'image_size': 255}),
  ],
)
def test_variants_that_others_lack_have_no_equal(name, options):
  assert find(name, **options) is None


def test_the_default_style_of_v1_is_torchvisions():
  assert find('resnet18v1', style='auto').name == 'resnet18'


@pytest.mark.parametrize(
  ('name', 'style', 'has_equal'),
  [
    ('resnet18v1', 'torch', True),
    ('resnet50v2', 'torch', True),
    ('resnet50v2', 'keras', False),
    ('mobilenetv2_035', 'torch', True),
    ('convnextv2_atto', 'auto', True),
    ('convnext_tiny', 'auto', True),
    ('vit_tiny_patch16_224', 'auto', True),
    ('vit_small_patch14_reg4_dinov2', 'auto', True),
  ],
)
def test_tensors_are_the_variables_and_are_read_as_weights(tmp_path, name, style, has_equal):
  architecture = find(name, style=style)
  variables = untrained_run.draw(shapes(name, style), seed=0)
  tensors = libraries.to_tensors(variables, architecture)
  assert {k: t.shape for k, t in tensors.items()} == libraries.tensor_shapes(
    variables, architecture
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    libraries.to_variables(tensors, variables, architecture),
    variables,
  )
  assert (architecture is not None) == has_equal
  if architecture is None:
    assert set(tensors) == set(flax.traverse_util.flatten_dict(variables, sep='/'))
    return
  import safetensors.numpy

  file = tmp_path / 'model.safetensors'
  safetensors.numpy.save_file(tensors, file)
  weights = convert.load(str(file), name=name)
  assert weights.style == style
  params = {'trunk': weights.params, 'target': weights.classifier}
  jax.tree.map(np.testing.assert_array_equal, params, variables['params'])
  stats = {'trunk': weights.batch_stats} if weights.batch_stats else {}
  jax.tree.map(np.testing.assert_array_equal, stats, variables['batch_stats'])


@pytest.mark.reference
@pytest.mark.parametrize('name', COMPARED)
def test_the_library_has_tensors_of_the_same_names_and_shapes(name):
  import torch

  library, reference = EQUALS[name]
  with torch.device('meta'):
    if library == 'timm':
      model = torch_reference.timm().create_model(reference, num_classes=5)
    else:
      model = torch_reference.torchvision().models.get_model(reference, num_classes=5)
  expected = {
    key: tuple(tensor.shape)
    for key, tensor in model.state_dict().items()
    if not key.endswith('num_batches_tracked')
  }
  style = 'torch' if name in trunk.RESNETS else 'auto'
  assert libraries.tensor_shapes(shapes(name, style), find(name)) == expected
