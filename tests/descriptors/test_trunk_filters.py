"""Filter banks of the layers of any trunk."""

import jax
import numpy as np
import pytest
import safetensors.numpy
import untrained_run

from sjft_jax import config, inputs
from sjft_jax.descriptors import bank
from sjft_jax.models import joint, preprocess, trunk
from sjft_jax.models.trunk import TrunkSpec
from sjft_jax.models.weights import convert, libraries


def write_weights(path, name, seed=0):
  """Write a file of timm with random weights of a trunk."""
  model = joint.Joint(
    trunk.build_trunk(name=name, style='torch' if 'resnet' in name else 'auto'), 5, 0
  )
  shapes = joint.variable_shapes(model, 64)
  architecture = libraries.find_architecture(TrunkSpec(name, style='auto'), 64)
  tensors = libraries.to_tensors(untrained_run.draw(shapes, seed), architecture)
  safetensors.numpy.save_file(tensors, path)
  return str(path)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp('weights')
  names = ('resnet18v1', 'vit_tiny_patch16_224')
  return {name: write_weights(folder / f'{name}.safetensors', name) for name in names}


def draw_images(side=48):
  return np.random.default_rng(0).integers(0, 256, (2, side, side + 3, 3), np.uint8)


def test_layers_are_the_networks_own(files):
  path = files['resnet18v1']
  layers = ('stage1_block1', 'stem', 'stage2_block1/conv1')
  options = {'name': 'resnet18v1', 'layers': layers, 'pretrained': path}
  loaded = bank.load(**options, tap='linear')
  assert loaded.num_filters == (64, 64, 128)
  maps = loaded.respond(draw_images())
  weights = convert.load(path, name='resnet18v1')
  model = trunk.build_trunk(name='resnet18v1')
  _, captured = jax.jit(
    lambda variables, x: model.apply(
      variables, x, capture_intermediates=True, mutable=['intermediates']
    )
  )(
    {'params': weights.params, 'batch_stats': weights.batch_stats},
    preprocess.normalize(draw_images(), weights.normalization),
  )
  for layer, responses in zip(layers, maps, strict=True):
    expected = captured['intermediates']
    for part in layer.split('/'):
      expected = expected[part]
    np.testing.assert_allclose(responses, expected['__call__'][0], rtol=1e-4, atol=1e-4)
  assert (np.asarray(maps[1]) < 0).any()
  for linear, relu in zip(
    maps, bank.load(**options, tap='relu').respond(draw_images()), strict=True
  ):
    np.testing.assert_allclose(relu, np.maximum(linear, 0), rtol=1e-4, atol=1e-4)


def test_a_transformer_has_its_patch_embedding(files):
  options = {'name': 'vit_tiny_patch16_224', 'tap': 'linear'}
  loaded = bank.load(**options, layers=('stem',), pretrained=files['vit_tiny_patch16_224'])
  assert loaded.respond(draw_images())[0].shape == (2, 3, 3, 192)
  with pytest.raises(ValueError, match="layers='block1' is unknown; .*use one of stem$"):
    bank.load(**options, layers=('block1',), pretrained=files['vit_tiny_patch16_224'])


def test_only_what_the_layers_need_is_in_the_program(files):
  loaded = bank.load(
    name='resnet18v1', layers=('stem',), tap='linear', pretrained=files['resnet18v1']
  )
  program = jax.jit(loaded.respond).lower(draw_images()).as_text()
  assert program.count('stablehlo.convolution') == 1


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'layers': ('conv1',)}, "layers='conv1' is unknown; .*stage1_block1/conv1.* stem_norm"),
    ({'layers': ()}, 'one or more layers, each once'),
    ({'layers': ('stem', 'stem')}, 'each once'),
    ({'tap': 'pool'}, "tap='pool' is unknown; use one of linear, relu"),
    (
      {'pretrained': 'auto'},
      "for AlexNet; .*'resnet18v1' give a file .* such as 'torchvision/resnet18'$",
    ),
    (
      {'pretrained': 'auto', 'name': 'tf_efficientnet_lite0'},
      "such as 'timm/tf_efficientnet_lite0'$",
    ),
    ({'pretrained': 'auto', 'name': 'convnextv2_atto'}, 'give a file or an earlier run$'),
    ({'name': 'resnet18v2'}, "does not fit name='resnet18v2'.*name='resnet18v1'"),
  ],
)
def test_impossible_options_are_an_error(files, options, message):
  defaults = {'name': 'resnet18v1', 'layers': ('stem',), 'tap': 'linear'}
  with pytest.raises(ValueError, match=message):
    bank.load(**defaults | {'pretrained': files['resnet18v1']} | options)


def test_the_trunk_that_is_trained_has_its_width(tmp_path):
  spec = TrunkSpec('resnet18v1', 0.25, style='torch')
  model = joint.Joint(trunk.build_trunk(**spec._asdict()), 5, 0)
  shapes = joint.variable_shapes(model, 64)
  architecture = libraries.find_architecture(spec._replace(width=1.0), 64)
  tensors = libraries.to_tensors(untrained_run.draw(shapes, 0), architecture)
  safetensors.numpy.save_file(tensors, tmp_path / 'quarter.safetensors')
  options = config.default()
  options.model.update(
    name='resnet18v1', width=0.25, pretrained=str(tmp_path / 'quarter.safetensors')
  )
  options.bank.update(name='trunk', layers=('stem', 'stage2_block1'))
  assert inputs.load_bank(options).num_filters == (16, 32)


def test_the_bank_may_be_the_trunk_that_is_trained(files):
  options = config.default()
  options.model.name, options.model.pretrained = 'resnet18v1', files['resnet18v1']
  options.bank.name, options.bank.layers = 'trunk', ('stem',)
  named = bank.load(
    name='resnet18v1', layers=('stem',), tap='linear', pretrained=files['resnet18v1']
  )
  loaded = inputs.load_bank(options)
  assert (loaded.name, loaded.fingerprint) == ('resnet18v1', named.fingerprint)
  options.model.normalization = 'caffe'
  other = inputs.load_bank(options)
  assert other.fingerprint != named.fingerprint
  pixels = preprocess.normalize(draw_images(), 'caffe')
  kernel = convert.load(files['resnet18v1'], name='resnet18v1').params['stem']['kernel']
  expected = jax.lax.conv_general_dilated(
    pixels, kernel, (2, 2), ((3, 3), (3, 3)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  np.testing.assert_allclose(other.respond(draw_images())[0], expected, rtol=1e-3, atol=1e-2)
  options.model.style = 'caffe'
  assert inputs.load_bank(options).fingerprint != other.fingerprint
  options.model.pretrained = ''
  with pytest.raises(ValueError, match="bank: name='trunk' takes the filters of model.pretrained"):
    inputs.load_bank(options)
