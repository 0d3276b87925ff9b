"""Layers of the trunk that a training leaves as they start: `training.freeze`."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax

from sjft_jax.models.batch_norm import BatchNorm
from sjft_jax.training.schedules import depth_groups

PyTree = Any
_BELOW = 'below:'


def frozen_layers(freeze: str, layers: Iterable[str]) -> frozenset[str]:
  """Return which layers of a trunk stay as they start.

  Args:
    freeze: '', none; 'trunk', all; or 'below:<layer>', those that are nearer to the image than this
      layer. The layers of one block, or a convolution and its batch norm, are equally near.
    layers: the names of the trunk's layers.

  Raises:
    ValueError: anything else, or a layer with none below it.
  """
  depths = depth_groups(layers)
  if not freeze:
    return frozenset()
  if freeze == 'trunk':
    return frozenset(depths)
  names = [name for name in sorted(depths, key=lambda name: depths[name]) if depths[name]]
  layer = freeze.removeprefix(_BELOW)
  if not freeze.startswith(_BELOW) or layer not in names:
    raise ValueError(
      f"freeze={freeze!r} is impossible; use 'trunk', '', or '{_BELOW}<layer>' with one of "
      f'{", ".join(names)}'
    )
  return frozenset(name for name, depth in depths.items() if depth < depths[layer])


def frozen_mask(params: Mapping[str, PyTree], layers: Collection[str]) -> PyTree:
  """Return for every parameter of a joint network whether it is of one of these trunk layers."""
  trunk = {
    name: jax.tree.map(lambda _, is_frozen=name in layers: is_frozen, layer)
    for name, layer in params['trunk'].items()
  }
  heads = {part: jax.tree.map(lambda _: False, tree) for part, tree in params.items()}
  return heads | {'trunk': trunk}


def with_frozen_statistics(
  apply: Callable[..., Any], layers: Collection[str]
) -> Callable[..., Any]:
  """Return `apply` with the batch norms in these trunk layers as they are in evaluation.

  Args:
    apply: that of a joint network.
    layers: names of layers of its trunk.
  """

  def intercept(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    if isinstance(context.module, BatchNorm) and context.module.path[1] in layers:
      kwargs = kwargs | {'is_frozen': True}
    return call(*args, **kwargs)

  def frozen_apply(*args: Any, **kwargs: Any) -> Any:
    with nn.intercept_methods(intercept):
      return apply(*args, **kwargs)

  return frozen_apply if layers else apply
