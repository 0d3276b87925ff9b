import jax
import jax.numpy as jnp
import pytest

from sjft_jax.models import trunk
from sjft_jax.models.alexnet import AlexNet
from sjft_jax.models.convnext import ConvNeXt
from sjft_jax.models.inverted_residual import STYLES as INVERTED_STYLES
from sjft_jax.models.resnet import STYLES, ResNet
from sjft_jax.models.vgg import VGG
from sjft_jax.models.vit import ViT


def output(model, side, train=False):
  """Return the shapes of features and variables."""
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
    ({'name': 'mobilenetv2_035'}, 33, 1280),
    ({'name': 'mobilenetv2_140', 'style': 'keras'}, 32, 1792),
    ({'name': 'tf_efficientnet_lite4'}, 32, 1280),
    ({'name': 'convnext_base'}, 33, 1024),
    ({'name': 'convnextv2_atto'}, 32, 320),
    ({'name': 'vit_tiny_patch16_384'}, 39, 192),
    ({'name': 'vit_small_patch14_reg4_dinov2'}, 28, 384),
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
  model = trunk.build_trunk(name='mobilenetv2_100', style='keras', dtype='bfloat16', **options)
  expected = {'style': INVERTED_STYLES['keras'], 'dtype': jnp.bfloat16, **options}
  assert {name: getattr(model, name) for name in expected} == expected
  for name, kind in (('convnext_tiny', ConvNeXt), ('vit_tiny_patch16_224', ViT)):
    model = trunk.build_trunk(name=name, dtype='bfloat16', remat=True)
    assert isinstance(model, kind)
    assert (model.dtype, model.remat) == (jnp.bfloat16, True)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'name': 'resnet51v2'}, "name='resnet51v2' is unknown; .* resnet18v1.* alexnet_caffe"),
    ({'name': 'alexnet', 'width': 0.5}, 'width=0.5 with the alexnet trunk'),
    ({'name': 'vgg16', 'width': 2}, 'width=2 with the vgg16 trunk'),
    ({'name': 'vit_base_patch16_256'}, "did you mean 'vit_base_patch16_224'.* convnext_tiny"),
    ({'name': 'convnext_tiny', 'width': 0.5}, 'width=0.5 with the convnext_tiny trunk'),
    ({'name': 'convnext_tiny', 'style': 'keras'}, "style='keras' with the convnext_tiny trunk"),
    ({'name': 'mobilenetv2_100', 'style': 'caffe'}, "style='caffe' is unknown; .* torch, keras"),
    ({'name': 'efficientnet_lite0', 'style': 'keras'}, "style='keras' is unknown; .* auto, torch"),
    ({'name': 'vgg16', 'style': 'torch'}, "style='torch' with the vgg16 trunk.*'auto'"),
    ({'name': 'alexnet', 'remat': True}, 'remat=True with the alexnet trunk'),
    ({'name': 'resnet50v2', 'style': 'caffe'}, "style='caffe' is unknown; .* released"),
    ({'name': 'vgg16', 'batch_norm': 'live'}, "batch_norm='live' is unknown"),
    ({'name': 'resnet18v2', 'batch_norm': 'live'}, "batch_norm='live' .* per_domain"),
    ({'name': 'resnet18v1', 'batch_norm_momentum': 1.0}, "batch_norm_momentum=1.0 .*'frozen'"),
    ({'name': 'resnet18v1', 'dtype': 'float16'}, "dtype='float16' is unknown.* bfloat16"),
    ({'name': 'resnet18v1', 'width': 0.001}, 'width=0.001 leaves no channel'),
  ],
)
def test_impossible_trunks_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    trunk.build_trunk(**options)
