"""The networks of timm and torchvision that equal one of ours, and weights in their names."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sjft_jax.models import trunk
from sjft_jax.models.resnet import STYLES
from sjft_jax.models.trunk import TrunkSpec
from sjft_jax.models.weights.layouts import Layout, layouts
from sjft_jax.models.weights.stored_variables import (
  Path,
  Shape,
  StoredVariable,
  convolution_shape,
  locate,
)

# The versions of ResNets that timm has, by depth.
_TIMM_RESNETS = {1: (18, 34, 50, 101, 152, 200), 2: (18, 34, 50, 101, 152)}
_TIMM_POINTWISE = 'convnextv2_atto', 'convnextv2_nano'
# torchvision's AlexNet pools the last map to 6×6 pixels, which ours has at these image sides.
_TORCHVISION_ALEXNET_SIDES = range(223, 255)


class Architecture(NamedTuple):
  """A network of another library that computes the logits of a trunk and its target head.

  Attributes:
    library: 'timm' or 'torchvision'.
    name: of the network there.
    layout: the names of its layers.
    matrices: the layers whose kernels are [outputs, inputs] there, but convolutions here or the
      classifier.
    has_pointwise: whether the trunk's dense layers are convolutions of 1 × 1 pixels there.
  """

  library: str
  name: str
  layout: Layout
  matrices: tuple[str, ...]
  has_pointwise: bool = False


def find_architecture(spec: TrunkSpec, image_size: int) -> Architecture | None:
  """Return the network of another library that equals a trunk with a head; None if there is none.

  Args:
    spec: the trunk.
    image_size: side of the square images in pixels.
  """
  if spec.name in trunk.RESNETS:
    depth, version = trunk.RESNETS[spec.name]
    style = next(iter(STYLES[version])) if spec.style == 'auto' else spec.style
    if style != 'torch' or spec.width != 1 or depth not in _TIMM_RESNETS[version]:
      return None
    if version == 1:
      return _architecture('timm', f'resnet{depth}', spec.name, 'fc', ('classifier',))
    return _architecture('timm', f'resnetv2_{depth}', spec.name, 'head.fc', ())
  if spec.name in trunk.INVERTED_RESIDUALS:
    styles = trunk.INVERTED_RESIDUALS[spec.name].styles
    if (styles[0] if spec.style == 'auto' else spec.style) != styles[0]:
      return None
    return _architecture('timm', spec.name, spec.name, 'classifier', ('classifier',))
  if spec.name in trunk.CONVNEXTS:
    architecture = _architecture('timm', spec.name, spec.name, 'head.fc', ('classifier',))
    return architecture._replace(has_pointwise=spec.name in _TIMM_POINTWISE)
  if spec.name in trunk.VITS:
    return _architecture('timm', spec.name, spec.name, 'head', ('classifier',))
  if not spec.fully_connected:
    return None
  if spec.name in trunk.VGGS:
    return _architecture('timm', spec.name, spec.name, 'head.fc', ('classifier',))
  if spec.name == 'alexnet' and image_size in _TORCHVISION_ALEXNET_SIDES:
    matrices = ('fc6', 'fc7', 'classifier')
    return _architecture('torchvision', 'alexnet', spec.name, 'classifier.6', matrices)
  return None


def _architecture(
  library: str, name: str, trunk_name: str, classifier: str, matrices: tuple[str, ...]
) -> Architecture:
  """Return an architecture in the layout that gives its last layer the name `classifier`."""
  # Of layouts with this name, timm's is the first.
  layout = next(
    layout for layout in layouts(trunk_name, 'torch') if layout.names['classifier'] == classifier
  )
  return Architecture(library, name, layout, matrices)


def tensor_shapes(
  variables: Mapping[str, Any], architecture: Architecture | None
) -> dict[str, Shape]:
  """Return the name and the shape of every tensor that a file of weights has.

  Args:
    variables: the network's 'params', of 'trunk' and 'target', and 'batch_stats', or their shapes.
    architecture: whose names and layouts the tensors have. None: ours, where a name is the path of
      a variable, such as 'params/trunk/stem/kernel'.
  """
  return dict(
    _locate(path, leaf.shape, architecture)[:2] for path, leaf in flatten_dict(variables).items()
  )


def to_tensors(
  variables: Mapping[str, Any], architecture: Architecture | None
) -> dict[str, np.ndarray]:
  """Return a network's variables as the tensors of a file; arguments as for `tensor_shapes`."""
  tensors = {}
  for path, value in flatten_dict(variables).items():
    name, shape, _ = _locate(path, value.shape, architecture)
    if architecture is not None and path[-1] == 'kernel':
      value = value.reshape(convolution_shape(value.shape)).transpose(3, 2, 0, 1)
    tensors[name] = np.ascontiguousarray(value.reshape(shape))
  return tensors


def to_variables(
  tensors: Mapping[str, Any], shapes: Mapping[str, Any], architecture: Architecture | None
) -> dict[str, Any]:
  """Return the variables of a network from the tensors of a file, which may be traced.

  Args:
    tensors: by name.
    shapes: the network's variables, or their shapes.
    architecture: as for `tensor_shapes`.
  """
  variables = {}
  for path, leaf in flatten_dict(shapes).items():
    name, _, stored = _locate(path, leaf.shape, architecture)
    variables[path] = stored.convert(tensors[name]).reshape(leaf.shape)
  return {'batch_stats': {}, **unflatten_dict(variables)}


def _locate(
  path: Path, shape: Shape, architecture: Architecture | None
) -> tuple[str, Shape, StoredVariable]:
  """Return the name and the shape of a variable's tensor, and how the variable is made of it."""
  if architecture is None:
    name = '/'.join(path)
    return name, shape, StoredVariable({name: (shape,)}, lambda tensor: tensor)
  collection, module, *rest = path
  layer = (*rest[:-1],) if module == 'trunk' else ('classifier',)
  stored = locate(architecture.layout, (collection, *layer, path[-1]), shape, ())
  ((name, shapes),) = stored.tensors.items()
  is_dense = module == 'trunk' and len(shape) == 2
  is_matrix = path[-1] == 'kernel' and (
    '/'.join(layer) in architecture.matrices or (is_dense and not architecture.has_pointwise)
  )
  return name, shapes[int(is_matrix)], stored
