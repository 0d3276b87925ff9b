import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.models import preprocess, trunk
from sjft_jax.models.alexnet import AlexNet
from sjft_jax.models.resnet import STYLES, ResNet
from sjft_jax.models.vgg import VGG


def output(model, side, train=False):
  """Shapes of features and variables."""
  images = jnp.zeros((2, side, side, 3))
  return jax.eval_shape(
    lambda: model.init_with_output(
      jax.random.key(0), images, train=train, is_source=jnp.zeros(2, bool)
    )
  )


@pytest.mark.parametrize(
  ('options', 'side', 'features'),
  [
    ({'name': 'resnet18v1'}, 64, 512),
    ({'name': 'resnet18v2'}, 63, 512),
    ({'name': 'resnet50v2', 'width': 0.5}, 64, 1024),
    ({'name': 'resnet34v1', 'width': 0.125}, 64, 64),
    ({'name': 'vgg16'}, 224, 4096),
    ({'name': 'vgg19_bn', 'fully_connected': False}, 64, 512),
    ({'name': 'alexnet'}, 224, 4096),
    ({'name': 'alexnet', 'fully_connected': False}, 64, 256),
    ({'name': 'alexnet_caffe'}, 227, 4096),
  ],
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_every_trunk_has_one_interface(options, side, features, dtype):
  model = trunk.build_trunk(**options, dtype=dtype, batch_norm='per_domain')
  for train in (False, True):
    out, variables = output(model, side, train)
    assert (out.shape, out.dtype) == ((2, features), jnp.float32)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_options_reach_the_networks():
  options = {'batch_norm': 'per_domain', 'batch_norm_momentum': 0.9}
  model = trunk.build_trunk(
    name='resnet50v1', style='caffe', width=0.5, dtype='bfloat16', remat=True, **options
  )
  assert model == ResNet(
    (3, 4, 6, 3), True, 1, STYLES[1]['caffe'], 0.5, 'per_domain', 0.9, jnp.bfloat16, True
  )
  model = trunk.build_trunk(
    name='vgg19_bn', fully_connected=False, dtype='bfloat16', remat=True, **options
  )
  assert model == VGG(
    (2, 2, 4, 4, 4), True, 'per_domain', 0.9, fully_connected=False, dtype=jnp.bfloat16, remat=True
  )
  assert trunk.build_trunk(
    name='alexnet_caffe', fully_connected=False, dtype='bfloat16'
  ) == AlexNet(caffe=True, fully_connected=False, dtype=jnp.bfloat16)
  assert not trunk.build_trunk(name='vgg16').norm


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'name': 'resnet51v2'}, "name='resnet51v2' is unknown; known: resnet18v1.* alexnet_caffe"),
    ({'name': 'alexnet', 'width': 0.5}, 'width=0.5 with the alexnet trunk'),
    ({'name': 'vgg16', 'width': 2}, 'width=2 with the vgg16 trunk'),
    ({'name': 'vgg16', 'style': 'torch'}, "style='torch' with the vgg16 trunk.*'auto'"),
    ({'name': 'alexnet', 'remat': True}, 'remat=True with the alexnet trunk'),
    ({'name': 'resnet50v2', 'style': 'caffe'}, "style='caffe' is unknown for a v2 ResNet"),
    ({'name': 'vgg16', 'batch_norm': 'live'}, "batch_norm='live' is unknown"),
    ({'name': 'resnet18v1', 'batch_norm_momentum': 1.0}, "batch_norm_momentum=1.0 .*'frozen'"),
    ({'name': 'resnet18v1', 'dtype': 'float16'}, "dtype='float16' is unknown.* bfloat16"),
    ({'name': 'resnet18v1', 'width': 0.001}, 'width=0.001 leaves no channel'),
  ],
)
def test_impossible_trunks_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    trunk.build_trunk(**options)


@pytest.mark.parametrize(
  ('normalization', 'expected'),
  [
    ('imagenet', lambda rgb: (rgb / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
    ('inception', lambda rgb: rgb / 127.5 - 1),
    ('caffe', lambda rgb: rgb - [123.68, 116.779, 103.939]),
  ],
)
def test_images_are_normalised_as_the_weights_were_trained(normalization, expected):
  colors = np.uint8([[[[124, 116, 104], [0, 0, 0], [255, 255, 255]]]])
  normalized = preprocess.normalize(jnp.asarray(colors), normalization)
  assert normalized.dtype == jnp.float32
  np.testing.assert_allclose(normalized, expected(colors), rtol=1e-4, atol=1e-5)


def test_an_unknown_normalization_is_refused():
  with pytest.raises(ValueError, match="normalization='keras' is unknown; known: imagenet, incep"):
    preprocess.normalize(jnp.zeros((1, 1, 1, 3), jnp.uint8), 'keras')
