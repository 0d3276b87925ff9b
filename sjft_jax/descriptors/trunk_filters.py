"""Filter banks of the first layers of any trunk, with or without nonlinearity."""

import contextlib
import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8

from sjft_jax.descriptors.alexnet import USUAL, Filters, Responses, Variant
from sjft_jax.models import alexnet, build, trunk
from sjft_jax.models.preprocess import normalize
from sjft_jax.models.weights import published
from sjft_jax.runtime.choice import choose

NAMES = tuple(name for name in trunk.NAMES if name not in trunk.ALEXNETS)


class _ReachedError(Exception):
  """All layers have been computed."""


def load(
  variant: Variant = USUAL, *, name: str, layers: Sequence[str], tap: str, pretrained: str
) -> Filters:
  """Load the filters of some layers of a trunk, and compile what responds to images.

  Args:
    variant: of the network.
    name: one of `NAMES`.
    layers: paths of modules that give a map of the image, such as 'stem', 'stem_norm',
      'stage1_block1' or 'stage1_block1/conv2'. A vision transformer has 'stem', its patch
      embedding.
    tap: 'linear' takes what the module gives, 'relu' its positive part.
    pretrained: a file, a published name or an earlier run (see `build.load_weights`); images are
      normalised as these weights expect, or as `variant` says.

  Raises:
    ModuleNotFoundError: see `convert.load`.
    ValueError: unknown, repeated or no layers; unknown tap; no such weights, or they do not fit.
  """
  choose('tap', tap, alexnet.TAPS)
  if pretrained == 'auto':
    # Publishers do not number the first version of a ResNet.
    names = {name, name.removesuffix('v1')}
    known = [key for key in published.PUBLISHED if key.rpartition('/')[2] in names]
    example = f', or a published name such as {known[0]!r}' if known else ''
    raise ValueError(
      f"pretrained='auto' is for AlexNet; for name={name!r} give a file or an earlier run{example}"
    )
  spec = trunk.TrunkSpec(name, variant.width, False, variant.style)
  weights = build.load_weights(pretrained, spec, variant.normalization)
  model = trunk.build_trunk(**spec._replace(style=weights.style)._asdict())
  variables = {'params': weights.params, 'batch_stats': weights.batch_stats}

  def compute(images: UInt8[Array, 'batch height width 3'], wanted: Collection[str]) -> Any:
    """Return the maps of the wanted modules by path; none wanted: of all."""
    maps: dict[str, Array] = {}
    with nn.intercept_methods(_keep_maps(maps, wanted)), contextlib.suppress(_ReachedError):
      model.apply(variables, normalize(images, weights.normalization))
    return maps

  shape = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.uint8)
  shapes = jax.eval_shape(lambda images: compute(images, ()), shape)
  for layer in layers:
    choose('layers', layer, list(shapes))
  if not layers or len(set(layers)) < len(layers):
    raise ValueError(f'layers={tuple(layers)} must name one or more layers, each once')

  @jax.jit
  def respond(images: UInt8[Array, 'batch height width 3']) -> Responses:
    # GPUs would compute float32 convolutions with 10-bit mantissas; a descriptor should not
    # depend on the device.
    with jax.default_matmul_precision('highest'):
      maps = compute(images, layers)
    return tuple(nn.relu(maps[layer]) if tap == 'relu' else maps[layer] for layer in layers)

  digest = f'{build.digest_weights(weights)} {weights.style} {weights.normalization}'
  num_filters = tuple(shapes[layer].shape[-1] for layer in layers)
  return Filters(num_filters, respond, hashlib.sha256(f'{name} {digest}'.encode()).hexdigest())


def _keep_maps(maps: dict[str, Array], wanted: Collection[str]) -> Callable[..., Any]:
  """Return an interceptor that keeps the maps of modules, and ends once all wanted ones are there.

  What comes after them is not computed, and its weights are no constants of the program.
  """

  def intercept(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    output = call(*args, **kwargs)
    path = '/'.join(context.module.path)
    is_map = context.method_name == '__call__' and getattr(output, 'ndim', 0) == 4
    if is_map and (not wanted or path in wanted):
      maps[path] = output
      if wanted and len(maps) == len(wanted):
        raise _ReachedError
    return output

  return intercept
