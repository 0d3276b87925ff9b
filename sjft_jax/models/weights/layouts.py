"""Which layer of a published weight file is which layer of a trunk."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping

from sjft_jax.models import alexnet, resnet, trunk, vgg
from sjft_jax.models.weights.formats import Origin


@dataclasses.dataclass(frozen=True)
class Layout:
  """How one publisher names the layers of one network, and what its weights expect.

  Attributes:
    origin: how tensors lie in a layer.
    normalization: of the images, a key of `preprocess.NORMALIZATIONS`.
    names: a trunk's layer, such as 'stage1_block1/conv1': its name in the file, the first layer's
      first. Also 'classifier', the layer after the trunk.
    style: what makes `trunk.build_trunk` the publisher's variant.
    ignored: how the names of further tensors begin that are no part of the trunk.
  """

  origin: Origin
  normalization: str
  names: Mapping[str, str]
  style: str = 'auto'
  ignored: tuple[str, ...] = ()


def layouts(name: str, origin: Origin) -> list[Layout]:
  """Every layout in which files of this origin hold the trunk `name`; often one, or none."""
  if name in trunk.RESNETS:
    depth, version = trunk.RESNETS[name]
    found = _resnet_v1(depth) if version == 1 else _resnet_v2(depth)
  elif name in trunk.VGGS:
    found = _vgg(*trunk.VGGS[name])
  else:
    found = _alexnet(caffe=trunk.ALEXNETS[name])
  return [layout for layout in found if layout.origin == origin]


def _resnet_v1(depth: int) -> Iterator[Layout]:
  def torchvision(i: int, j: int) -> dict[str, str]:
    at = f'layer{i}.{j - 1}'
    parts = {'projection': f'{at}.downsample.0', 'projection_norm': f'{at}.downsample.1'}
    for n in (1, 2, 3):
      parts |= {f'conv{n}': f'{at}.conv{n}', f'norm{n}': f'{at}.bn{n}'}
    return parts

  def hugging_face(i: int, j: int) -> dict[str, str]:
    at = f'encoder.stages.{i - 1}.layers.{j - 1}'
    layers = {'projection': f'{at}.shortcut'} | {str(n): f'{at}.layer.{n - 1}' for n in (1, 2, 3)}
    return _with_norms(layers, '{}.convolution', '{}.normalization')

  def keras(i: int, j: int) -> dict[str, str]:
    at = f'conv{i + 1}_block{j}'
    layers = {'projection': f'{at}_0'} | {str(n): f'{at}_{n}' for n in (1, 2, 3)}
    return _with_norms(layers, '{}_conv', '{}_bn')

  def caffe(block_name: Callable[[int, int], str]) -> Callable[[int, int], dict[str, str]]:
    def block(i: int, j: int) -> dict[str, str]:
      at = block_name(i, j)
      layers = {'projection': f'{at}_branch1'}
      layers |= {str(n): f'{at}_branch2{"abc"[n - 1]}' for n in (1, 2, 3)}
      return _with_norms(layers, 'res{}', 'bn{}')

    return block

  names = {'stem': 'conv1', 'stem_norm': 'bn1', 'classifier': 'fc'}
  names |= _in_blocks(depth, torchvision)
  yield Layout('torch', 'imagenet', names, style='torch')

  # A classifier's file, then the network's alone.
  for prefix in ('resnet.', ''):
    at = f'{prefix}embedder.embedder'
    names = {'stem': f'{at}.convolution', 'stem_norm': f'{at}.normalization'}
    names |= {ours: prefix + name for ours, name in _in_blocks(depth, hugging_face).items()}
    yield Layout('torch', 'imagenet', names | {'classifier': 'classifier.1'}, style='torch')

  names = {'stem': 'conv1_conv', 'stem_norm': 'conv1_bn', 'classifier': 'predictions'}
  names |= _in_blocks(depth, keras)
  yield Layout('keras', 'caffe', names, style='keras')

  for block_name in (_lettered, _numbered):
    names = {'stem': 'conv1', 'stem_norm': 'bn_conv1', 'classifier': 'fc1000'}
    names |= _in_blocks(depth, caffe(block_name))
    yield Layout('caffe', 'caffe', names, style='caffe')


def _resnet_v2(depth: int) -> Iterator[Layout]:
  def timm(i: int, j: int) -> dict[str, str]:
    at = f'stages.{i - 1}.blocks.{j - 1}'
    parts = {'projection': f'{at}.downsample.conv'}
    for n in (1, 2, 3):
      parts |= {f'conv{n}': f'{at}.conv{n}', f'norm{n}': f'{at}.norm{n}'}
    return parts

  def keras(i: int, j: int) -> dict[str, str]:
    at = f'conv{i + 1}_block{j}'
    parts = {'projection': f'{at}_0_conv', 'norm1': f'{at}_preact_bn'}
    parts |= {f'conv{n}': f'{at}_{n}_conv' for n in (1, 2, 3)}
    return parts | {f'norm{n}': f'{at}_{n - 1}_bn' for n in (2, 3)}

  def released(i: int, j: int) -> dict[str, str]:
    at = _numbered(i, j)
    parts = {'projection': f'res{at}_branch1'}
    parts |= {f'conv{n}': f'res{at}_branch2{"abc"[n - 1]}' for n in (1, 2, 3)}
    return parts | {f'norm{n}': f'bn{at}_branch2{"ab"[n - 2]}' for n in (2, 3)}

  names = {'stem': 'stem.conv', 'norm': 'norm', 'classifier': 'head.fc'}
  yield Layout('torch', 'inception', names | _in_blocks(depth, timm), style='torch')

  names = {'stem': 'conv1_conv', 'norm': 'post_bn', 'classifier': 'predictions'}
  yield Layout('keras', 'inception', names | _in_blocks(depth, keras), style='keras')

  # The paper's own network names each first norm after the block that feeds it.
  names = {'stem': 'conv1', 'stem_norm': 'bn_conv1', 'classifier': 'fc_source'}
  names |= _in_blocks(depth, released)
  blocks = [*_blocks(depth)]
  for before, (i, j) in itertools.pairwise(blocks):
    names[f'stage{i}_block{j}/norm1'] = f'bn{_numbered(*before)}'
  names['norm'] = f'bn{_numbered(*blocks[-1])}'
  yield Layout('caffe', 'caffe', names, style='released', ignored=('fc_target/',))


def _vgg(depth: int, norm: bool) -> Iterator[Layout]:
  convolutions = [
    (i, j) for i, size in enumerate(vgg.STAGE_SIZES[depth], 1) for j in range(1, size + 1)
  ]
  # torch counts every module: convolution, (norm,) ReLU, and a pooling after each stage.
  step = 3 if norm else 2
  features: dict[str, str] = {}
  for position, (i, j) in enumerate(convolutions):
    index = step * position + i - 1
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
  names = {ours: ours for ours in names} | {'classifier': 'fc8'}
  yield Layout('caffe', 'caffe', names)
  if depth == 16:
    names = {f'conv{i}_{j}': f'VGG16_0/Conv_{n}' for n, (i, j) in enumerate(convolutions)}
    yield Layout('lpips', 'imagenet', names, ignored=('NetLinLayer_',))


def _alexnet(*, caffe: bool) -> Iterator[Layout]:
  if caffe:
    names = {ours: ours for ours in (*alexnet.LAYERS, 'fc6', 'fc7')} | {'classifier': 'fc8'}
    yield Layout('caffe', 'caffe', names)
    return
  names = {ours: f'features.{n}' for ours, n in zip(alexnet.LAYERS, (0, 3, 6, 8, 10), strict=True)}
  names |= {'fc6': 'classifier.1', 'fc7': 'classifier.4', 'classifier': 'classifier.6'}
  yield Layout('torch', 'imagenet', names)
  names = {ours: f'AlexNet_0/Conv_{n}' for n, ours in enumerate(alexnet.LAYERS)}
  yield Layout('lpips', 'imagenet', names, ignored=('NetLinLayer_',))


def _blocks(depth: int) -> Iterator[tuple[int, int]]:
  for i, size in enumerate(resnet.STAGE_SIZES[depth], 1):
    for j in range(1, size + 1):
      yield i, j


def _in_blocks(depth: int, parts: Callable[[int, int], dict[str, str]]) -> dict[str, str]:
  return {
    f'stage{i}_block{j}/{part}': name
    for i, j in _blocks(depth)
    for part, name in parts(i, j).items()
  }


def _with_norms(layers: dict[str, str], convolution: str, norm: str) -> dict[str, str]:
  """The names of convolutions and of their norms; `layers`: '1', '2', '3' and 'projection'."""
  names: dict[str, str] = {}
  for layer, name in layers.items():
    pair = (
      ('projection', 'projection_norm')
      if layer == 'projection'
      else (f'conv{layer}', f'norm{layer}')
    )
    names |= {pair[0]: convolution.format(name), pair[1]: norm.format(name)}
  return names


def _lettered(i: int, j: int) -> str:
  """He's names of blocks in ResNet-50: 2a, 2b, 2c, 3a, 3b, ..."""
  return f'{i + 1}{chr(ord("a") + j - 1)}'


def _numbered(i: int, j: int) -> str:
  """He's names of blocks in ResNet-101 and -152: 2a, 2b, 2c, 3a, 3b1, 3b2, ..."""
  return f'{i + 1}b{j - 1}' if i in (2, 3) and j > 1 else _lettered(i, j)
