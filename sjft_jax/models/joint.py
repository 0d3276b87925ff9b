"""The joint network: one trunk shared by both domains and one linear head for each."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from sjft_jax.models.preprocess import normalize


class Joint(nn.Module):
  """Trunk and two heads (Ge & Yu 2017, Section 3.1); every image passes through both heads.

  Parameters lie under 'trunk', 'target' and 'source'. Heads start at N(0, 0.01²) with zero bias,
  as in the released code, and are float32, as the trunk's features are.

  Attributes:
    trunk: `trunk(images, train, is_source)` → features `[b, f]` (see `trunk.build_trunk`).
    num_target_classes: outputs of the target head.
    num_source_classes: outputs of the source head; 0: there is no source head.
    normalization: of the images, as the trunk's weights were trained (`preprocess.normalize`).
  """

  trunk: nn.Module
  num_target_classes: int
  num_source_classes: int
  normalization: str = 'imagenet'

  @nn.compact
  def __call__(
    self,
    images: UInt8[Array, 'b h w 3'],
    train: bool = False,
    is_source: Bool[Array, ' b'] | None = None,
  ) -> dict[str, Float[Array, 'b classes']]:
    """Compute the logits of both heads.

    Args:
      images: RGB 0–255.
      train: whether this is a training pass.
      is_source: the domain of each image, for the trunk's batch norm.

    Returns:
      {'target': logits, 'source': logits}; without a source head, the former alone.
    """
    features = self.features(images, train, is_source)
    heads = {'target': self.num_target_classes, 'source': self.num_source_classes}
    kernel_init = nn.initializers.normal(0.01)
    return {
      domain: nn.Dense(num_classes, kernel_init=kernel_init, name=domain)(features)
      for domain, num_classes in heads.items()
      if num_classes
    }

  def features(
    self,
    images: UInt8[Array, 'b h w 3'],
    train: bool = False,
    is_source: Bool[Array, ' b'] | None = None,
  ) -> Float[Array, 'b features']:
    """Compute the trunk's features, which both heads see; arguments are those of `__call__`."""
    normalized = normalize(images, self.normalization)
    features: Array = self.trunk(normalized, train=train, is_source=is_source)
    return features


def init(
  model: Joint, key: PRNGKeyArray, image_size: int, *, heads_only: bool = False
) -> dict[str, Any]:
  """Draw random variables.

  Only the initialisers run, not the network, which saves seconds in a deep one; and they are one
  program, since to compile each alone takes several times as long. It is hardly optimised: it runs
  once.

  Args:
    model: the network.
    key: of the random numbers.
    image_size: side of the square images in pixels.
    heads_only: whether the trunk gets no parameters, for one that is pretrained.

  Returns:
    'params' and 'batch_stats' (empty without batch norm).
  """

  def draw(key: PRNGKeyArray) -> dict[str, Any]:
    variables = _draw(model, key, image_size)
    if heads_only:
      del variables['params']['trunk']
    return variables

  options = {'xla_backend_optimization_level': 1}
  variables: dict[str, Any] = jax.jit(draw, compiler_options=options)(key)
  return variables


def variable_shapes(model: Joint, image_size: int) -> dict[str, Any]:
  """Return the shapes and types of the variables that `init` draws.

  Args:
    model: the network.
    image_size: side of the square images in pixels.
  """
  shapes: dict[str, Any] = jax.eval_shape(lambda: _draw(model, jax.random.key(0), image_size))
  return shapes


def _draw(model: Joint, key: PRNGKeyArray, image_size: int) -> dict[str, Any]:
  images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.uint8)
  return {'batch_stats': {}, **model.lazy_init(key, images)}


def replace_trunk(
  variables: dict[str, Any], params: dict[str, Any], batch_stats: dict[str, Any]
) -> dict[str, Any]:
  """Return variables of a joint network with another trunk's parameters and running statistics.

  Args:
    variables: 'params' and 'batch_stats' of the joint network.
    params: the trunk's.
    batch_stats: the trunk's, of one domain; with per-domain batch norm both domains get them.
  """
  stats = {
    path: flatten_dict(batch_stats)[(*path[1:-1], path[-1].removeprefix('source_'))]
    for path in flatten_dict(variables['batch_stats'])
  }
  return {'params': {**variables['params'], 'trunk': params}, 'batch_stats': unflatten_dict(stats)}
