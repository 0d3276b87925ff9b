import pytest

from sjft_jax.models import resnet, trunk
from sjft_jax.models.weights.layouts import layouts


@pytest.mark.parametrize(
  ('name', 'origin', 'names'),
  [
    (
      'resnet50v2',
      'torch',
      {
        'stage2_block1/projection': 'stages.1.blocks.0.downsample.conv',
        'stage2_block4/norm3': 'stages.1.blocks.3.norm3',
        'norm': 'norm',
        'classifier': 'head.fc',
      },
    ),
    (
      'resnet50v2',
      'keras',
      {
        'stem': 'conv1_conv',
        'stage1_block1/norm1': 'conv2_block1_preact_bn',
        'stage1_block1/conv1': 'conv2_block1_1_conv',
        'stage1_block1/norm2': 'conv2_block1_1_bn',
        'stage4_block3/conv3': 'conv5_block3_3_conv',
        'stage1_block1/projection': 'conv2_block1_0_conv',
        'norm': 'post_bn',
      },
    ),
    (
      'resnet152v1',
      'keras',
      {'stem_norm': 'conv1_bn', 'stage3_block36/norm3': 'conv4_block36_3_bn'},
    ),
    # The paper's own network: a block's first norm bears the name of the block before.
    (
      'resnet152v2',
      'caffe',
      {
        'stem_norm': 'bn_conv1',
        'stage1_block2/norm1': 'bn2a',
        'stage2_block1/norm1': 'bn2c',
        'stage2_block3/norm1': 'bn3b1',
        'stage2_block2/norm2': 'bn3b1_branch2a',
        'stage2_block2/conv3': 'res3b1_branch2c',
        'stage3_block36/conv1': 'res4b35_branch2a',
        'stage4_block1/norm1': 'bn4b35',
        'norm': 'bn5c',
      },
    ),
    ('vgg16_bn', 'torch', {'conv2_1': 'features.7', 'norm5_3': 'features.41'}),
    ('vgg16', 'torch', {'conv2_1': 'features.5', 'conv5_3': 'features.28', 'fc6': 'classifier.0'}),
    ('vgg19', 'keras', {'conv5_4': 'block5_conv4', 'fc7': 'fc2', 'classifier': 'predictions'}),
    ('vgg19', 'caffe', {'conv5_4': 'conv5_4', 'fc7': 'fc7', 'classifier': 'fc8'}),
    ('alexnet', 'torch', {'conv3': 'features.6', 'fc7': 'classifier.4'}),
    (
      'mobilenetv2_100',
      'torch',
      {
        'stage1_block1/project': 'blocks.0.0.conv_pw',
        'stage1_block1/project_norm': 'blocks.0.0.bn2',
        'stage6_block3/project': 'blocks.5.2.conv_pwl',
        'head_norm': 'bn2',
      },
    ),
    (
      'mobilenetv2_100',
      'keras',
      {
        'stage1_block1/depthwise': 'expanded_conv_depthwise',
        'stage7_block1/expand': 'block_16_expand',
      },
    ),
    (
      'convnext_tiny',
      'torch',
      {
        'stage2_block1/downsample': 'stages.1.downsample.1',
        'stage3_block9/norm': 'stages.2.blocks.8.norm',
      },
    ),
    (
      'convnext_tiny',
      'keras',
      {'stage4_block1/downsample_norm': 'convnext_tiny_downsampling_layernorm_2'},
    ),
    ('vit_large_patch16_224', 'torch', {'block24/mlp/fc2': 'blocks.23.mlp.fc2'}),
  ],
)
def test_layers_have_the_names_that_publishers_give(name, origin, names):
  layout, *_ = layouts(name, origin)
  assert {layer: layout.names[layer] for layer in names} == names


def test_caffe_numbers_the_blocks_of_its_deeper_resnets():
  lettered, numbered = layouts('resnet101v1', 'caffe')
  for i, j, letter, number in [(2, 2, '3b', '3b1'), (3, 1, '4a', '4a'), (4, 3, '5c', '5c')]:
    layer = f'stage{i}_block{j}/conv2'
    assert lettered.names[layer] == f'res{letter}_branch2b'
    assert numbered.names[layer] == f'res{number}_branch2b'


@pytest.mark.parametrize('name', trunk.NAMES)
def test_layouts_name_each_layer_once(name):
  for origin in ('torch', 'keras', 'caffe', 'lpips'):
    for layout in layouts(name, origin):
      assert len(set(layout.names.values())) == len(layout.names)
      layers = {path.rpartition('/')[0] for path in layout.tensors}
      assert not layers & set(layout.names)
      if name in trunk.RESNETS:
        assert layout.style in resnet.STYLES[trunk.RESNETS[name][1]]
