"""The names of a trunk's layers in published weight files."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping

from sjft_jax.models import alexnet, resnet, trunk, vgg
from sjft_jax.models.weights.formats import Origin

# The numbers of a ResNet's stage and of a block in it, from 1, give the block's name in a file, or
# the file's names of the block's layers.
_BlockName = Callable[[int, int], str]
_BlockLayers = Callable[[int, int], dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Layout:
  """One publisher's names of the layers of one network, and what its weights expect.

  Attributes:
    origin: the kind of file, which decides how a layer's tensors are named and laid out.
    normalization: of the images, a key of `preprocess.NORMALIZATIONS`.
    names: the file's name of each of a trunk's layers, such as 'stage1_block1/conv1', the first
      layer's first. Also 'classifier', the layer after the trunk.
    style: the publisher's variant, for `trunk.build_trunk`.
    ignored: beginnings of the names of further tensors, which are no part of the trunk.
  """

  origin: Origin
  normalization: str
  names: Mapping[str, str]
  style: str = 'auto'
  ignored: tuple[str, ...] = ()


def layouts(name: str, origin: Origin) -> list[Layout]:
  """Return every layout in which files of an origin hold the trunk `name`; often one, or none."""
  if name in trunk.RESNETS:
    depth, version = trunk.RESNETS[name]
    candidates = _resnet_v1(depth) if version == 1 else _resnet_v2(depth)
  elif name in trunk.VGGS:
    candidates = _vgg(*trunk.VGGS[name])
  else:
    candidates = _alexnet(is_caffe=trunk.ALEXNETS[name])
  return [layout for layout in candidates if layout.origin == origin]


def _resnet_v1(depth: int) -> Iterator[Layout]:
  names = {'stem': 'conv1', 'stem_norm': 'bn1', 'classifier': 'fc'}
  names |= _block_names(depth, _torchvision_block)
  yield Layout('torch', 'imagenet', names, style='torch')

  # Hugging Face's files are of a classifier, or of the network alone.
  for prefix in ('resnet.', ''):
    stem = f'{prefix}embedder.embedder'
    names = {'stem': f'{stem}.convolution', 'stem_norm': f'{stem}.normalization'}
    blocks = _block_names(depth, _hugging_face_block)
    names |= {layer: prefix + file_layer for layer, file_layer in blocks.items()}
    yield Layout('torch', 'imagenet', names | {'classifier': 'classifier.1'}, style='torch')

  names = {'stem': 'conv1_conv', 'stem_norm': 'conv1_bn', 'classifier': 'predictions'}
  names |= _block_names(depth, _keras_v1_block)
  yield Layout('keras', 'caffe', names, style='keras')

  for block_name in (_lettered_block_name, _numbered_block_name):
    names = {'stem': 'conv1', 'stem_norm': 'bn_conv1', 'classifier': 'fc1000'}
    names |= _block_names(depth, _caffe_v1_block(block_name))
    yield Layout('caffe', 'caffe', names, style='caffe')


def _resnet_v2(depth: int) -> Iterator[Layout]:
  names = {'stem': 'stem.conv', 'norm': 'norm', 'classifier': 'head.fc'}
  yield Layout('torch', 'inception', names | _block_names(depth, _timm_v2_block), style='torch')

  names = {'stem': 'conv1_conv', 'norm': 'post_bn', 'classifier': 'predictions'}
  yield Layout('keras', 'inception', names | _block_names(depth, _keras_v2_block), style='keras')

  # The paper's own network names each first norm after the block that feeds it.
  names = {'stem': 'conv1', 'stem_norm': 'bn_conv1', 'classifier': 'fc_source'}
  names |= _block_names(depth, _released_v2_block)
  blocks = [*_blocks(depth)]
  for before, (i, j) in itertools.pairwise(blocks):
    names[f'stage{i}_block{j}/norm1'] = f'bn{_numbered_block_name(*before)}'
  names['norm'] = f'bn{_numbered_block_name(*blocks[-1])}'
  yield Layout('caffe', 'caffe', names, style='released', ignored=('fc_target/',))


def _vgg(depth: int, norm: bool) -> Iterator[Layout]:
  convolutions = [
    (i, j) for i, size in enumerate(vgg.STAGE_SIZES[depth], 1) for j in range(1, size + 1)
  ]
  # torch counts every module: convolution, (norm,) ReLU, and a pooling after each stage.
  modules_per_layer = 3 if norm else 2
  features: dict[str, str] = {}
  for position, (i, j) in enumerate(convolutions):
    index = modules_per_layer * position + i - 1
    features |= {f'conv{i}_{j}': f'features.{index}', f'norm{i}_{j}': f'features.{index + 1}'}
  for fc6, fc7, classifier in (
    ('classifier.0', 'classifier.3', 'classifier.6'),  # torchvision
    ('pre_logits.fc1', 'pre_logits.fc2', 'head.fc'),  # timm
  ):
    names = features | {'fc6': fc6, 'fc7': fc7, 'classifier': classifier}
    yield Layout('torch', 'imagenet', names)
  if norm:
    return

  names = {f'conv{i}_{j}': f'block{i}_conv{j}' for i, j in convolutions}
  names |= {'fc6': 'fc1', 'fc7': 'fc2', 'classifier': 'predictions'}
  yield Layout('keras', 'caffe', names)
  names = {layer: layer for layer in names} | {'classifier': 'fc8'}
  yield Layout('caffe', 'caffe', names)
  if depth == 16:
    names = {f'conv{i}_{j}': f'VGG16_0/Conv_{n}' for n, (i, j) in enumerate(convolutions)}
    yield Layout('lpips', 'imagenet', names, ignored=('NetLinLayer_',))


def _alexnet(*, is_caffe: bool) -> Iterator[Layout]:
  if is_caffe:
    names = {layer: layer for layer in (*alexnet.LAYERS, 'fc6', 'fc7')} | {'classifier': 'fc8'}
    yield Layout('caffe', 'caffe', names)
    return
  indices = (0, 3, 6, 8, 10)
  names = {layer: f'features.{i}' for layer, i in zip(alexnet.LAYERS, indices, strict=True)}
  names |= {'fc6': 'classifier.1', 'fc7': 'classifier.4', 'classifier': 'classifier.6'}
  yield Layout('torch', 'imagenet', names)
  names = {layer: f'AlexNet_0/Conv_{i}' for i, layer in enumerate(alexnet.LAYERS)}
  yield Layout('lpips', 'imagenet', names, ignored=('NetLinLayer_',))


def _blocks(depth: int) -> Iterator[tuple[int, int]]:
  """Yield the numbers of every block's stage and of the block in it, from 1."""
  for i, size in enumerate(resnet.STAGE_SIZES[depth], 1):
    for j in range(1, size + 1):
      yield i, j


def _block_names(depth: int, layers: _BlockLayers) -> dict[str, str]:
  """Return the names of all blocks' layers."""
  return {
    f'stage{i}_block{j}/{layer}': name
    for i, j in _blocks(depth)
    for layer, name in layers(i, j).items()
  }


def _torchvision_block(i: int, j: int) -> dict[str, str]:
  block = f'layer{i}.{j - 1}'
  names = {'projection': f'{block}.downsample.0', 'projection_norm': f'{block}.downsample.1'}
  for n in (1, 2, 3):
    names |= {f'conv{n}': f'{block}.conv{n}', f'norm{n}': f'{block}.bn{n}'}
  return names


def _hugging_face_block(i: int, j: int) -> dict[str, str]:
  block = f'encoder.stages.{i - 1}.layers.{j - 1}'
  units = {'projection': f'{block}.shortcut'}
  units |= {str(n): f'{block}.layer.{n - 1}' for n in (1, 2, 3)}
  return _unit_names(units, '{}.convolution', '{}.normalization')


def _keras_v1_block(i: int, j: int) -> dict[str, str]:
  block = f'conv{i + 1}_block{j}'
  units = {'projection': f'{block}_0'} | {str(n): f'{block}_{n}' for n in (1, 2, 3)}
  return _unit_names(units, '{}_conv', '{}_bn')


def _caffe_v1_block(block_name: _BlockName) -> _BlockLayers:
  def layers(i: int, j: int) -> dict[str, str]:
    block = block_name(i, j)
    units = {'projection': f'{block}_branch1'}
    units |= {str(n): f'{block}_branch2{"abc"[n - 1]}' for n in (1, 2, 3)}
    return _unit_names(units, 'res{}', 'bn{}')

  return layers


def _unit_names(units: dict[str, str], convolution: str, norm: str) -> dict[str, str]:
  """Return the names of a block's convolutions and of their norms.

  Args:
    units: the names that a convolution and its norm share: of '1', '2', '3' and 'projection'.
    convolution: turns such a name into that of the convolution.
    norm: the same for the norm.
  """
  names: dict[str, str] = {}
  for unit, name in units.items():
    is_projection = unit == 'projection'
    names[unit if is_projection else f'conv{unit}'] = convolution.format(name)
    names['projection_norm' if is_projection else f'norm{unit}'] = norm.format(name)
  return names


def _timm_v2_block(i: int, j: int) -> dict[str, str]:
  block = f'stages.{i - 1}.blocks.{j - 1}'
  names = {'projection': f'{block}.downsample.conv'}
  for n in (1, 2, 3):
    names |= {f'conv{n}': f'{block}.conv{n}', f'norm{n}': f'{block}.norm{n}'}
  return names


def _keras_v2_block(i: int, j: int) -> dict[str, str]:
  block = f'conv{i + 1}_block{j}'
  names = {'projection': f'{block}_0_conv', 'norm1': f'{block}_preact_bn'}
  names |= {f'conv{n}': f'{block}_{n}_conv' for n in (1, 2, 3)}
  return names | {f'norm{n}': f'{block}_{n - 1}_bn' for n in (2, 3)}


def _released_v2_block(i: int, j: int) -> dict[str, str]:
  block = _numbered_block_name(i, j)
  names = {'projection': f'res{block}_branch1'}
  names |= {f'conv{n}': f'res{block}_branch2{"abc"[n - 1]}' for n in (1, 2, 3)}
  return names | {f'norm{n}': f'bn{block}_branch2{"ab"[n - 2]}' for n in (2, 3)}


def _lettered_block_name(i: int, j: int) -> str:
  """Return He's name of a block in ResNet-50: 2a, 2b, 2c, 3a, 3b, ..."""
  return f'{i + 1}{chr(ord("a") + j - 1)}'


def _numbered_block_name(i: int, j: int) -> str:
  """Return He's name of a block in ResNet-101 and -152: 2a, 2b, 2c, 3a, 3b1, 3b2, ..."""
  return f'{i + 1}b{j - 1}' if i in (2, 3) and j > 1 else _lettered_block_name(i, j)
