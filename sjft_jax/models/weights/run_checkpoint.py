"""The networks that earlier runs of this package have trained, read from their work directories."""

import dataclasses
from typing import Any, NamedTuple

import optax
from etils import epath

from sjft_jax.models.weights.convert import Weights
from sjft_jax.runtime import artifacts, checkpoints

# The file of a work directory that describes the network of its checkpoints.
DESCRIPTION = 'network.json'
_DESCRIPTION_TYPES: dict[str, type | tuple[type, ...]] = {
  'name': str,
  'width': (int, float),
  'fully_connected': bool,
  'style': str,
  'normalization': str,
  'classes': list,
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


def load_trunk(path: str, *, name: str, width: float, style: str, fully_connected: bool) -> Weights:
  """Load the trunk of the newest checkpoint of a training.

  Args:
    path: see `load_newest`.
    name: of the trunk that gets the weights, as in `trunk.build_trunk`.
    width: of that trunk.
    style: 'auto' is the checkpoint's own; any other overrules it.
    fully_connected: of that trunk; if False, the training's fc6 and fc7 are left out.

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
  trained = _load(training)
  params = trained.params['trunk']
  if not fully_connected:
    params = {layer: params[layer] for layer in params if layer not in ('fc6', 'fc7')}
  return Weights(
    params,
    drop_source_statistics(trained.batch_stats.get('trunk', {})),
    trained.description['style'] if style == 'auto' else style,
    trained.description['normalization'],
    None,
  )


def load_newest(path: str) -> TrainedNetwork:
  """Load the network of the newest checkpoint of a training.

  Args:
    path: an arm of a work directory ('runs/dogs/arms/rounds'), its 'pretrain', or a work directory
      with one of these only.

  Raises:
    ValueError: no checkpoint, several, or one that is damaged.
  """
  return _load(_find_training(path))


def load_network(directory: epath.Path, trained: TrainedNetwork) -> TrainedNetwork:
  """Load the network that a round of `trained` ended with.

  Args:
    directory: of the round's network, which is kept with the option `keep_rounds`.
    trained: the newest network of the same training.

  Raises:
    ValueError: the checkpoint is damaged.
  """
  step, variables = checkpoints.load_newest(directory, _remedy(trained.directory, trained.workdir))
  return dataclasses.replace(trained, step=step, **variables)


def _find_training(path: str) -> _Training:
  root = artifacts.absolute_path(path)
  # At most as deep as an arm of a work directory; object stores have no '**'.
  directories = sorted(
    {
      step.parent.parent
      for depth in ('', '*/', '*/*/')
      for step in artifacts.glob(root, f'{depth}checkpoints/[0-9]*')
    }
  )
  if len(directories) != 1:
    names = ', '.join(str(directory) for directory in directories) or 'none'
    raise ValueError(f'{path}: give the folder of one training; with checkpoints there: {names}')
  (directory,) = directories
  workdir = next((p for p in (directory, *directory.parents) if (p / DESCRIPTION).is_file()), None)
  if workdir is None:
    raise ValueError(f'{directory} lies in no work directory: {DESCRIPTION} is missing above it')
  return _Training(
    directory, workdir, artifacts.load_json(workdir / DESCRIPTION, _DESCRIPTION_TYPES)
  )


def _load(training: _Training) -> TrainedNetwork:
  step, state = checkpoints.load_newest(
    training.directory / 'checkpoints', _remedy(training.directory, training.workdir)
  )
  return TrainedNetwork(
    training.directory,
    training.workdir,
    step,
    training.description,
    # The evaluated parameters are their moving average (`training.optimizer.EmaState`), if any.
    optax.tree_utils.tree_get(state['opt_state'], 'average', default=state['params']),
    state['batch_stats'],
  )


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
