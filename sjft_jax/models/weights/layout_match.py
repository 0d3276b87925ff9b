"""A weight file's tensors under one layout, compared with the variables of a trunk."""

import dataclasses
import functools
import math
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from sjft_jax.models.trunk import TrunkSpec, build_trunk
from sjft_jax.models.weights.layouts import Layout
from sjft_jax.models.weights.stored_variables import (
  Path,
  Shape,
  StoredVariable,
  locate,
  tensor_name,
)


@dataclasses.dataclass(frozen=True)
class LayoutMatch:
  """How well the tensors of a file, read by a layout, fit a trunk.

  Attributes:
    layout: how the file names its tensors.
    tensors: the file's, by name.
    spec: of the trunk; the style 'auto' is the layout's.
  """

  layout: Layout
  tensors: dict[str, np.ndarray]
  spec: TrunkSpec

  @property
  def trunk_spec(self) -> TrunkSpec:
    """Return the spec with the layout's style in the place of 'auto'."""
    return self.spec._replace(style=self.layout.style) if self.spec.style == 'auto' else self.spec

  @functools.cached_property
  def stored_variables(self) -> dict[Path, StoredVariable]:
    """Return where the trunk's variables lie in the file, by path."""
    shapes, _ = _trunk_shapes(self.trunk_spec)
    return {path: locate(self.layout, path, shape, self.tensors) for path, shape in shapes.items()}

  @functools.cached_property
  def expected_shapes(self) -> dict[str, tuple[Shape, ...]]:
    """Return the names of the tensors that the trunk needs, each with its possible shapes."""
    expected: dict[str, tuple[Shape, ...]] = {}
    for variable in self.stored_variables.values():
      for name, shapes in variable.tensors.items():
        expected[name] = (*shapes, *expected.get(name, ()))
    return expected

  @property
  def missing_names(self) -> list[str]:
    """Return the names of tensors that the trunk needs and the file lacks."""
    return [name for name in self.expected_shapes if name not in self.tensors]

  @property
  def unexpected_names(self) -> list[str]:
    """Return the names of the file's tensors that a classifier with this trunk does not have."""
    # fc6 and fc7 are expected already, or may be left out.
    layers = [self.layout.names.get(layer, layer) for layer in ('fc6', 'fc7', 'classifier')]
    ignored = (*(f'{layer}{end}' for layer in layers for end in './'), *self.layout.ignored)
    return [
      name
      for name in self.tensors
      if not (name in self.expected_shapes or name.startswith(ignored))
      and not name.endswith('.num_batches_tracked')  # PyTorch counts the batches of its norms,
      and name != 'n_averaged'  # and its AveragedModel the networks.
    ]

  @property
  def shape_errors(self) -> list[str]:
    """Return descriptions of the tensors that have another shape than the trunk needs."""
    return [
      f'{name} is {list(self.tensors[name].shape)}, not {list(shapes[0])}'
      for name, shapes in self.expected_shapes.items()
      if name in self.tensors and self.tensors[name].shape not in shapes
    ]

  @property
  def problems(self) -> str:
    """Return what is wrong, with three tensors of each kind; '' if nothing is."""
    kinds = {
      'missing': self.missing_names,
      'unexpected': self.unexpected_names,
      'wrong shape': self.shape_errors,
    }
    return '; '.join(
      f'{kind}: {", ".join(names[:3])}' + (f' and {len(names) - 3} more' if names[3:] else '')
      for kind, names in kinds.items()
      if names
    )

  def variables(self) -> dict[str, Any]:
    """Return the trunk's 'params' and, if it has any, 'batch_stats', float32.

    There must be no problems.
    """
    return flax.traverse_util.unflatten_dict(
      {path: self._convert(variable) for path, variable in self.stored_variables.items()}
    )

  def classifier(self) -> dict[str, np.ndarray] | None:
    """Return the file's last layer if it reads the trunk's features: 'kernel' and 'bias', float32.

    The kernel is [features, classes]; the bias, [classes].
    """
    _, features = _trunk_shapes(self.trunk_spec)
    kernel = tensor_name(self.layout, 'classifier', 'kernel')
    classes = self.tensors[kernel].size // features if kernel in self.tensors else 0
    classifier = {}
    for leaf, shape in (('kernel', (1, 1, features, classes)), ('bias', (classes,))):
      variable = locate(self.layout, ('params', 'classifier', leaf), shape, self.tensors)
      for name, shapes in variable.tensors.items():
        if name not in self.tensors or self.tensors[name].shape not in shapes:
          return None
      classifier[leaf] = self._convert(variable).reshape(shape[-2:])
    return classifier

  def rename_classifier(self) -> 'LayoutMatch':
    """Return the match under the file's own name of the last layer, as fine-tuning may give it.

    If the unexpected tensors are not those of one such layer, this is the match itself.
    """
    separator = '.' if self.layout.origin == 'torch' else '/'
    layers = {name.rpartition(separator)[0] for name in self.unexpected_names}
    if len(layers) != 1:
      return self
    names = {**self.layout.names, 'classifier': layers.pop()}
    match = dataclasses.replace(self, layout=dataclasses.replace(self.layout, names=names))
    return self if match.unexpected_names or match.classifier() is None else match

  def _convert(self, variable: StoredVariable) -> np.ndarray:
    value = variable.convert(*(self.tensors[name] for name in variable.tensors))
    return np.ascontiguousarray(value, np.float32)


def match_layout(layout: Layout, tensors: dict[str, np.ndarray], spec: TrunkSpec) -> LayoutMatch:
  """Compare a file's tensors with a trunk.

  A larger network around the trunk's own and another name of the last layer are allowed for.
  """
  return LayoutMatch(layout, _extract_network(tensors, layout), spec).rename_classifier()


def find_stem(layout: Layout, tensors: dict[str, np.ndarray]) -> np.ndarray | None:
  """Return the kernel of the layout's first layer in a file, or None if there is none."""
  stem = tensor_name(layout, next(iter(layout.names)), 'kernel')
  return _extract_network(tensors, layout).get(stem)


@functools.cache
def _trunk_shapes(spec: TrunkSpec) -> tuple[dict[Path, Shape], int]:
  """Return the shapes of a trunk's variables by path, and its number of features."""
  model = build_trunk(**spec._asdict())
  images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
  features, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
  # Kernels are what an error should name first.
  leaves = sorted(
    flax.traverse_util.flatten_dict(variables).items(), key=lambda item: -item[1].ndim
  )
  return {path: leaf.shape for path, leaf in leaves}, features.shape[-1]


def trunk_bytes(spec: TrunkSpec) -> int:
  """Return the size of a trunk's variables, in float32."""
  shapes, _ = _trunk_shapes(spec)
  return 4 * sum(map(math.prod, shapes.values()))


def _extract_network(tensors: dict[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
  """Return the tensors of the network alone, where a file of torch has it in a larger one.

  There a prefix such as 'model.' or 'net.backbone.' precedes all of its names.
  """
  layers = [layer for layer in layout.names if layer != 'classifier']
  kernels = [tensor_name(layout, layer, 'kernel') for layer in layers]
  first = kernels[0]
  if first in tensors:
    return tensors
  prefixes = [name.removesuffix(first) for name in tensors if name.endswith(f'.{first}')]
  # A block's first layer may have the same name, but fewer of the trunk's layers are beside it.
  counts = {prefix: sum(prefix + name in tensors for name in kernels) for prefix in prefixes}
  best = [prefix for prefix in counts if counts[prefix] == max(counts.values())]
  if len(best) != 1:  # There is no such network, or there are two, and nothing says which to take.
    return tensors
  (prefix,) = best
  return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
