"""The joint network of a run and the variables that it starts from."""

import hashlib
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from sjft_jax.models import joint, preprocess, trunk
from sjft_jax.models.weights import convert, run_checkpoint
from sjft_jax.models.weights.convert import Weights
from sjft_jax.runtime import artifacts
from sjft_jax.runtime.choice import choose


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
  """The section `model` of the configuration.

  Attributes:
    name, width, style, fully_connected, batch_norm, batch_norm_momentum, dtype, remat: the trunk,
      see `trunk.build_trunk`.
    pretrained: the origin of the trunk's weights: a file or a published name (see `convert.load`),
      the directory of an earlier run (see `run_checkpoint.load_trunk`), or '' for random ones.
    normalization: of the images (see `preprocess.normalize`); 'auto': as the weights expect, or
      'imagenet' for random ones.
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
    description: what `run_checkpoint.save_description` takes, except for the classes;
      'weights_digest' is the SHA-256 of the values of the pretrained weights, '' if the trunk is
      random.
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
  """Build the joint network, with random heads and a random or pretrained trunk.

  Args:
    options: the trunk, and the origin of its weights.
    num_target_classes, num_source_classes: outputs of the two heads.
    image_size: side of the images in pixels.
    seed: of the random variables.

  Raises:
    ModuleNotFoundError: see `convert.load`.
    ValueError: an impossible option, or weights that do not fit.
  """
  spec = trunk.TrunkSpec(options.name, options.width, options.fully_connected, options.style)
  weights: Weights | None = None
  normalization = options.normalization
  if options.pretrained:
    weights = load_weights(options.pretrained, spec, normalization)
    spec, normalization = spec._replace(style=weights.style), weights.normalization
  elif normalization == 'auto':
    normalization = 'imagenet'
  shared = trunk.build_trunk(
    **spec._asdict(),
    batch_norm=options.batch_norm,
    batch_norm_momentum=options.batch_norm_momentum,
    dtype=options.dtype,
    remat=options.remat,
  )
  model = joint.Joint(shared, num_target_classes, num_source_classes, normalization)
  key = jax.random.key(seed)
  variables = joint.init(model, key, image_size, heads_only=weights is not None)
  if weights is not None:
    variables = joint.replace_trunk(variables, weights.params, weights.batch_stats)
  digest = '' if weights is None else digest_weights(weights)
  description = spec._asdict() | {'normalization': normalization, 'weights_digest': digest}
  return Network(model, variables, description)


def rebuild(description: dict[str, Any], *, dtype: str, num_source_classes: int) -> joint.Joint:
  """Build the network that was trained, to predict.

  Args:
    description: of the network, as in `run_checkpoint.TrainedNetwork`.
    dtype: of activations and products.
    num_source_classes: outputs of the source head; 0: it is left out.

  Raises:
    ValueError: there is no such network.
  """
  spec = {name: description[name] for name in trunk.TrunkSpec._fields}
  # Prediction takes the running statistics, of the target if there are those of both domains.
  shared = trunk.build_trunk(**spec, batch_norm='frozen', dtype=dtype)
  choose('normalization', description['normalization'], preprocess.NORMALIZATIONS)
  return joint.Joint(
    shared, len(description['classes']), num_source_classes, description['normalization']
  )


def digest_weights(weights: Weights) -> str:
  """Return the SHA-256 of the values of a trunk's variables."""
  content = hashlib.sha256()
  for path, value in jax.tree.leaves_with_path((weights.params, weights.batch_stats)):
    content.update(f'{jax.tree_util.keystr(path)} {value.shape}'.encode())
    content.update(np.ascontiguousarray(value).tobytes())
  return content.hexdigest()


def load_weights(pretrained: str, spec: trunk.TrunkSpec, normalization: str = 'auto') -> Weights:
  """Load a trunk's weights from a file, by a published name or from an earlier run.

  Args:
    pretrained: the origin of the weights, as in `ModelOptions`.
    spec: the trunk.
    normalization: of the images; 'auto': as the weights expect.

  Raises:
    ModuleNotFoundError: see `convert.load`.
    ValueError: weights that are not there, or do not fit.
  """
  pretrained = os.path.expanduser(pretrained)
  is_run = artifacts.absolute_path(pretrained).is_dir()
  load = run_checkpoint.load_trunk if is_run else convert.load
  return load(pretrained, **spec._asdict(), normalization=normalization)
