"""The variables of a trunk as weight files store them: names, shapes and conversion of tensors."""

import dataclasses
from collections.abc import Callable, Container

import numpy as np

from sjft_jax.models.weights.formats import Origin
from sjft_jax.models.weights.layouts import Layout

Shape = tuple[int, ...]
Path = tuple[str, ...]

# The names of a layer's tensors in a file. A norm's 'bias' is 'shift' here. Caffe's batch norm has
# neither scale nor shift: they are a layer of their own.
_TENSOR_NAMES = {
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


@dataclasses.dataclass(frozen=True)
class StoredVariable:
  """A trunk's variable in a weight file.

  Attributes:
    tensors: names of the tensors that it is made of, each with its possible shapes.
    convert: computes the variable from these tensors, in their order.
  """

  tensors: dict[str, tuple[Shape, ...]]
  convert: Callable[..., np.ndarray]


def locate(layout: Layout, path: Path, shape: Shape, available: Container[str]) -> StoredVariable:
  """Describe where a variable lies in a weight file.

  Args:
    layout: of the file.
    path: of the variable in the trunk, such as ('params', 'stage1_block1', 'conv1', 'kernel').
    shape: of the variable.
    available: names of the tensors that the file has.
  """
  layer, leaf = '/'.join(path[1:-1]), path[-1]
  if tensors := layout.tensors.get('/'.join(path[1:])):
    return _locate_own_tensors(layout, tensors, path, shape)
  if leaf == 'kernel':
    # Weights that expect Caffe's mean were trained on BGR.
    is_bgr = layout.normalization == 'caffe' and layer in ('stem', 'conv1_1', 'conv1')
    return locate_kernel(tensor_name(layout, layer, 'kernel'), shape, layout.origin, is_bgr=is_bgr)
  if leaf in ('mean', 'var'):
    return _locate_statistic(layout, layer, leaf, shape, available)
  is_norm = 'norm' in path[-2]
  name = tensor_name(layout, layer, 'shift' if is_norm and leaf == 'bias' else leaf)
  if is_norm and layout.origin == 'caffe':
    name = name.replace('bn', 'scale', 1)
  return StoredVariable({name: _vector_shapes(layout, shape)}, lambda vector: vector.reshape(shape))


def tensor_name(layout: Layout, layer: str, kind: str) -> str:
  """Return the name in a file of a tensor of a trunk's layer.

  Args:
    layout: of the file.
    layer: a key of `layout.names`, or a layer that has the same name in the file.
    kind: 'kernel', 'bias', 'scale', 'shift', 'mean' or 'var'.
  """
  return _TENSOR_NAMES[layout.origin][kind].format(layout.names.get(layer, layer))


def locate_kernel(name: str, shape: Shape, origin: Origin, *, is_bgr: bool) -> StoredVariable:
  """Describe where the kernel of a convolution lies in a weight file.

  A fully connected layer is a convolution whose window is the whole map. Most files have it as a
  product with the flattened map, which is flattened channel by channel or pixel by pixel.

  Args:
    name: of the tensor.
    shape: of the kernel, (height, width, inputs, outputs) or (inputs, outputs).
    origin: of the file.
    is_bgr: whether the file's kernel takes the channels of an image in the order BGR.
  """
  height, width, inputs, outputs = kernel_shape = convolution_shape(shape)
  flat_size = height * width * inputs
  by_channel = origin in ('torch', 'caffe')
  shapes: tuple[Shape, ...]
  if by_channel:
    # Old Caffe gave every blob four axes.
    shapes = (outputs, inputs, height, width), (outputs, flat_size), (1, 1, outputs, flat_size)
  else:
    # Keras gives a depthwise kernel its channels first, and one output for each.
    depthwise = [(height, width, outputs, 1)] if inputs == 1 else []
    shapes = kernel_shape, (flat_size, outputs), *depthwise

  def convert(kernel: np.ndarray) -> np.ndarray:
    kernel = kernel.reshape(shapes[0])
    kernel = kernel.transpose(2, 3, 1, 0) if by_channel else kernel
    kernel = kernel[:, :, ::-1] if is_bgr else kernel
    return kernel.reshape(shape)

  return StoredVariable({name: shapes}, convert)


def convolution_shape(shape: Shape) -> Shape:
  """Return the shape of a kernel as one of a convolution, (height, width, inputs, outputs)."""
  return shape if len(shape) == 4 else (1, 1, *shape)


def _locate_own_tensors(
  layout: Layout, names: tuple[str, ...], path: Path, shape: Shape
) -> StoredVariable:
  """Describe where a variable lies that is not named after its layer (`Layout.tensors`)."""
  leaf = path[-1]
  if leaf == 'kernel':
    part_shape = (*shape[:-1], shape[-1] // len(names))
    parts = [locate_kernel(name, part_shape, layout.origin, is_bgr=False) for name in names]
    return StoredVariable(
      {name: shapes for part in parts for name, shapes in part.tensors.items()},
      lambda *kernels: _join(
        [part.convert(kernel) for part, kernel in zip(parts, kernels, strict=True)]
      ),
    )
  if leaf == 'class_token' and len(names) == 2:
    # The shapes of the positions stand with their own variable.
    return StoredVariable(
      {names[0]: (shape,), names[1]: ()}, lambda token, positions: token + positions[:, :1]
    )
  if leaf == 'positions':
    # The file of a network with registers may have the class token's position, too.
    longer = (1, shape[1] + 1, shape[2])
    has_more = len(layout.tensors['stem_tokens/class_token']) == 2
    return StoredVariable(
      {names[0]: (longer,) if has_more else (shape,)}, lambda tensor: tensor[:, -shape[1] :]
    )
  size = shape[-1] // len(names)
  # Some have the channels as the first axis of a map, or as the last of several.
  shapes = ((*shape[:-1], size), (size, 1, 1), (1, 1, 1, size))
  return StoredVariable(
    dict.fromkeys(names, shapes),
    lambda *tensors: _join([tensor.reshape(-1) for tensor in tensors]).reshape(shape),
  )


def _join(parts: list[np.ndarray]) -> np.ndarray:
  """Join parts along their last axis; one part may be traced."""
  return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _locate_statistic(
  layout: Layout, layer: str, leaf: str, shape: Shape, available: Container[str]
) -> StoredVariable:
  """Describe where the running mean or variance of a norm lies in a weight file."""
  shapes = _vector_shapes(layout, shape)
  tensors = {tensor_name(layout, layer, leaf): shapes}
  is_sum = layout.origin == 'caffe'
  if is_sum:
    tensors[f'{layout.names.get(layer, layer)}/2'] = ((1,), (), (1, 1, 1, 1))
  # Batch norm takes off a bias that precedes it: Keras's v1 and He's first convolution have one.
  convolution = _preceding_convolution(layer)
  bias = tensor_name(layout, convolution, 'bias')
  has_bias = (
    leaf == 'mean' and {'stem_norm', convolution} <= layout.names.keys() and bias in available
  )
  if has_bias:
    tensors[bias] = shapes

  def convert(statistic: np.ndarray, *others: np.ndarray) -> np.ndarray:
    statistic = statistic.reshape(shape)
    if is_sum:
      factor = others[0].item()  # Statistics are sums, over this many (decayed) batches.
      statistic = statistic / factor if factor else np.zeros_like(statistic)
    return statistic - others[-1].reshape(shape) if has_bias else statistic

  return StoredVariable(tensors, convert)


def _vector_shapes(layout: Layout, shape: Shape) -> tuple[Shape, ...]:
  # Old Caffe gave every blob four axes.
  return (shape, (1, 1, 1, *shape)) if layout.origin == 'caffe' else (shape,)


def _preceding_convolution(norm: str) -> str:
  """Return the convolution before a norm of a v1 ResNet.

  For 'stem_norm' it is 'stem'; for 'stage1_block1/norm2', 'stage1_block1/conv2'.
  """
  return norm.removesuffix('_norm') if norm.endswith('_norm') else norm.replace('norm', 'conv')
