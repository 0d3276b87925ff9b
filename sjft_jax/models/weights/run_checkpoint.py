"""The networks that earlier runs of this package have trained, read from their work directories."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import optax
from etils import epath
from flax.traverse_util import flatten_dict

from sjft_jax.models import joint, trunk
from sjft_jax.models.weights.convert import Weights
from sjft_jax.runtime import artifacts, checkpoints, console

# The file of a work directory that describes the network of its checkpoints.
DESCRIPTION = 'network.json'
# The weights in an exported folder, and in most of others.
_EXPORTED = 'model.safetensors'
# What a description says of the trunk, as JSON has it.
NETWORK_TYPES: dict[str, type | tuple[type, ...]] = {
  'name': str,
  'width': (int, float),
  'fully_connected': bool,
  'style': str,
  'normalization': str,
}


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
  """The newest network of a training.

  Attributes:
    directory: of the training: 'pretrain' or 'arms/<arm>' of `workdir`.
    workdir: the work directory.
    step: number of steps that the network has taken.
    description: see `save_description`.
    params, batch_stats: of the joint network, as they are evaluated.
  """

  directory: epath.Path
  workdir: epath.Path
  step: int
  description: dict[str, Any]
  params: dict[str, Any]
  batch_stats: dict[str, Any]


class _Training(NamedTuple):
  """A directory with checkpoints, its work directory, and the description of its network."""

  directory: epath.Path
  workdir: epath.Path
  description: dict[str, Any]


def save_description(workdir: epath.Path, description: dict[str, Any]) -> None:
  """Write what readers of checkpoints need to know.

  Args:
    workdir: the work directory.
    description: the trunk's name, width, fully_connected, style and normalization, the digest of
      its weights, and the target's classes.
  """
  artifacts.write_json(workdir / DESCRIPTION, description)


def load_trunk(
  path: str,
  *,
  name: str,
  width: float,
  style: str,
  fully_connected: bool,
  normalization: str = 'auto',
) -> Weights:
  """Load the trunk of the newest checkpoint of a training.

  Args:
    path: see `load_newest`.
    name: of the trunk that gets the weights, as in `trunk.build_trunk`.
    width: of that trunk.
    style: 'auto' is the checkpoint's own; any other overrules it.
    fully_connected: of that trunk; if False, the training's fc6 and fc7 are left out.
    normalization: of the images, likewise.

  Raises:
    ValueError: no checkpoint, several, or one that is damaged or of another trunk.
  """
  training = _find_training(path)
  options: dict[str, Any] = {'name': name, 'width': width}
  if fully_connected:
    options['fully_connected'] = True
  for option, value in options.items():
    trained_value = training.description[option]
    if trained_value != value:
      raise ValueError(
        f'{training.directory} holds a network with {option}={trained_value!r}, not {value!r}; '
        f'set {option}={trained_value!r}'
      )
  trained = _load(training, heads=())
  # It may have been stopped; how many steps it was to have is known to its command alone.
  console.say(f'  {training.directory}: the trunk as it is after {trained.step:,} steps')
  params = trained.params['trunk']
  if style not in ('auto', training.description['style']):
    _check_style(training, style)
  if not fully_connected:
    params = {layer: params[layer] for layer in params if layer not in ('fc6', 'fc7')}
  return Weights(
    params,
    drop_source_statistics(trained.batch_stats.get('trunk', {})),
    trained.description['style'] if style == 'auto' else style,
    trained.description['normalization'] if normalization == 'auto' else normalization,
    None,
  )


def _check_style(training: _Training, style: str) -> None:
  """Check that a network has the same variables in another style: surplus ones have no effect.

  Raises:
    ValueError: it has not.
  """
  trained = _expected_shapes(training.description, 0, training.workdir / DESCRIPTION)
  asked = _expected_shapes(
    training.description | {'style': style}, 0, training.workdir / DESCRIPTION
  )
  if (
    flatten_dict(trained['params']['trunk']).keys() != flatten_dict(asked['params']['trunk']).keys()
  ):
    raise ValueError(
      f'{training.directory} holds a network with style={training.description["style"]!r}, which '
      f"has other variables than {style!r}; set style='auto'"
    )


def load_newest(path: str) -> TrainedNetwork:
  """Load the network of the newest checkpoint of a training.

  Args:
    path: an arm of a work directory ('runs/dogs/arms/rounds'), its 'pretrain', or a work directory
      with one of these only.

  Raises:
    ValueError: no checkpoint, several, or one that is damaged or of another network than its work
      directory describes.
  """
  training = _find_training(path)
  return _load(training, heads=('target',) if training.directory.parent.name == 'arms' else ())


def load_network(directory: epath.Path, trained: TrainedNetwork) -> TrainedNetwork:
  """Load the network that a round of `trained` ended with.

  Args:
    directory: of the round's network, which is kept with the option `keep_rounds`.
    trained: the newest network of the same training.

  Raises:
    ValueError: the checkpoint is damaged, or of another network.
  """
  remedy = _remedy(trained.directory, trained.workdir)
  step, saved = checkpoints.load_newest(directory, remedy)
  _check_variables(saved, trained.description, ('target',), directory, trained.workdir)
  variables = {name: saved[name] for name in ('params', 'batch_stats')}
  return dataclasses.replace(trained, step=step, **variables)


def find_target_workdir(path: str) -> epath.Path | None:
  """Return the work directory of a training on target images; None where a path is none of these.

  Args:
    path: the origin of weights, as in `ModelOptions`.
  """
  root = artifacts.absolute_path(path)
  if not path or not root.is_dir():
    return None
  training = _find_training(path)
  return training.workdir if training.directory.parent.name == 'arms' else None


def _find_training(path: str) -> _Training:
  root = artifacts.absolute_path(path)
  # At most as deep as an arm of a repeat; object stores have no '**'.
  directories = sorted(
    {
      step.parent.parent
      for depth in ('', '*/', '*/*/', '*/*/*/')
      for step in artifacts.glob(root, f'{depth}checkpoints/[0-9]*')
    }
  )
  weights = root / _EXPORTED
  if not directories and weights.is_file():
    raise ValueError(f'{path} holds no training, but weights of a network: give {weights}')
  if len(directories) != 1:
    names = ', '.join(str(directory) for directory in directories) or 'none'
    raise ValueError(f'{path}: give the folder of one training; with checkpoints there: {names}')
  (directory,) = directories
  workdir = next((p for p in (directory, *directory.parents) if (p / DESCRIPTION).is_file()), None)
  if workdir is None:
    raise ValueError(f'{directory} lies in no work directory: {DESCRIPTION} is missing above it')
  description = artifacts.load_json(workdir / DESCRIPTION, NETWORK_TYPES | {'classes': list})
  if not all(isinstance(name, str) for name in description['classes']):
    raise ValueError(f'{workdir / DESCRIPTION} has a class that is no text; {artifacts.REMEDY}')
  return _Training(directory, workdir, description)


def _load(training: _Training, heads: tuple[str, ...]) -> TrainedNetwork:
  """Load the newest network of a training, whose trunk and heads are checked."""
  directory, remedy = training.directory, _remedy(training.directory, training.workdir)
  step, state = checkpoints.load_newest(directory / 'checkpoints', remedy)
  try:
    # The evaluated parameters are their moving average (`training.optimizer.EmaState`), if any.
    params = optax.tree_utils.tree_get(state['opt_state'], 'average', default=state['params'])
    variables = {'params': params, 'batch_stats': state['batch_stats']}
  except (KeyError, TypeError, IndexError) as error:
    raise ValueError(f'{directory} holds no state of a training; {remedy}') from error
  _check_variables(variables, training.description, heads, directory, training.workdir)
  return TrainedNetwork(directory, training.workdir, step, training.description, **variables)


def _check_variables(
  variables: Any,
  description: dict[str, Any],
  heads: tuple[str, ...],
  directory: epath.Path,
  workdir: epath.Path,
) -> None:
  """Check that a checkpoint holds variables of the network that its work directory describes.

  Checksums do not reveal a forged one, which would end in an error of Flax.

  Args:
    variables: 'params' and 'batch_stats'.
    description: see `save_description`.
    heads: that are needed, beside the trunk. A source head may have any number of classes.
    directory, workdir: of the checkpoint, and the work directory.

  Raises:
    ValueError: it does not.
  """
  try:
    parts = ['trunk', *heads, *(['source'] if 'source' in variables['params'] else [])]
    params = {part: variables['params'][part] for part in parts}
    statistics = drop_source_statistics(variables['batch_stats'])
    found = flatten_dict({'params': params, 'batch_stats': statistics})
    num_classes = variables['params']['source']['kernel'].shape[1] if 'source' in parts else 0
    shapes = _expected_shapes(description, num_classes, workdir / DESCRIPTION)
    shapes['params'] = {part: shapes['params'][part] for part in parts}
    fits = {path: value.shape for path, value in found.items()} == {
      path: value.shape for path, value in flatten_dict(shapes).items()
    }
  except (KeyError, TypeError, IndexError, AttributeError):
    fits = False
  remedy = _remedy(directory, workdir)
  if not fits:
    raise ValueError(f'{directory} holds another network than {DESCRIPTION} describes; {remedy}')
  if any(value.dtype != np.float32 or not np.isfinite(value).all() for value in found.values()):
    raise ValueError(f'{directory} holds values that are not finite or no float32; {remedy}')


def _expected_shapes(
  description: dict[str, Any], num_source_classes: int, place: epath.Path
) -> dict[str, Any]:
  """Return the shapes of the variables of a network.

  Raises:
    ValueError: there is no such network.
  """
  try:
    spec = {name: description[name] for name in trunk.TrunkSpec._fields}
    model = joint.Joint(trunk.build_trunk(**spec), len(description['classes']), num_source_classes)
    # No trunk's variables depend on the size of images.
    shapes = joint.variable_shapes(model, 256)
  except (ValueError, TypeError, OverflowError) as error:
    reason = (str(error).splitlines() or [''])[0][:200]
    raise ValueError(f'{place} describes no network: {reason}; {artifacts.REMEDY}') from error
  return shapes


def _remedy(training: epath.Path, workdir: epath.Path) -> str:
  return (
    f'delete {training} and {workdir / "results.json"} and run the command of this work directory '
    'again, which trains it anew'
  )


def drop_source_statistics(batch_stats: dict[str, Any]) -> dict[str, Any]:
  """Return the statistics of the target alone, where per-domain batch norm has the source's too."""
  return {
    name: drop_source_statistics(value) if isinstance(value, dict) else value
    for name, value in batch_stats.items()
    if not name.startswith('source_')
  }
