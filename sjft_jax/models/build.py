"""The joint network of a run and the variables that it starts from."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from sjft_jax.models import joint, trunk
from sjft_jax.models.weights import convert, run_checkpoint
from sjft_jax.runtime import artifacts


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
  """The section `model` of the configuration.

  Attributes:
    name, width, style, fully_connected, batch_norm, batch_norm_momentum, dtype, remat: the trunk,
      see `trunk.build_trunk`.
    pretrained: where the trunk's weights come from: a file, a published name (see `convert.load`),
      the directory of an earlier run (see `run_checkpoint.load_trunk`), or '' for random ones.
    normalization: of the images (see `preprocess.normalize`); 'auto': as the weights expect.
  """

  name: str
  width: float
  style: str
  fully_connected: bool
  batch_norm: str
  batch_norm_momentum: float
  dtype: str
  remat: bool
  pretrained: str
  normalization: str


class Network(NamedTuple):
  """A joint network.

  Attributes:
    model: the module.
    variables: 'params' and 'batch_stats' to start from.
    description: what it takes to build the model again around a checkpoint's variables.
  """

  model: joint.Joint
  variables: dict[str, Any]
  description: dict[str, Any]


def build_network(
  options: ModelOptions,
  *,
  num_target_classes: int,
  num_source_classes: int,
  image_size: int,
  seed: int,
) -> Network:
  """Build the joint network: heads at random, the trunk at random or pretrained.

  Args:
    options: which trunk, and where its weights come from.
    num_target_classes, num_source_classes: outputs of the two heads.
    image_size: side of the images in pixels.
    seed: of what is random.

  Raises:
    ValueError: an impossible option, or weights that do not fit.
  """
  kind: dict[str, Any] = {
    'name': options.name,
    'width': options.width,
    'fully_connected': options.fully_connected,
  }
  style, normalization = options.style, options.normalization
  weights = None
  if options.pretrained:
    load = run_checkpoint.load_trunk if _is_directory(options.pretrained) else convert.load
    weights = load(options.pretrained, style=style, **kind)
    style = weights.style
  if normalization == 'auto':
    normalization = weights.normalization if weights is not None else 'imagenet'
  shared = trunk.build_trunk(
    **kind,
    style=style,
    batch_norm=options.batch_norm,
    batch_norm_momentum=options.batch_norm_momentum,
    dtype=options.dtype,
    remat=options.remat,
  )
  model = joint.Joint(shared, num_target_classes, num_source_classes, normalization)
  variables = joint.init(model, jax.random.key(seed), image_size)
  if weights is not None:
    variables = joint.with_trunk(variables, weights.params, weights.batch_stats)
  return Network(model, variables, kind | {'style': style, 'normalization': normalization})


def _is_directory(path: str) -> bool:
  return artifacts.absolute_path(path).is_dir()
