"""The networks that earlier runs of this package have trained, read from their work directories."""

import dataclasses
import json
from typing import Any

import optax
import orbax.checkpoint as ocp
from etils import epath

from sjft_jax.models.weights.convert import Weights
from sjft_jax.runtime import artifacts

# In a work directory: which network its checkpoints are of.
DESCRIPTION = 'network.json'


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
  """The newest network of a run.

  Attributes:
    directory: of the training: 'pretrain' or 'arms/<arm>' of `workdir`.
    workdir: the work directory.
    step: how many steps it has taken.
    description: see `save_description`.
    params, batch_stats: of the joint network, as they are evaluated.
  """

  directory: epath.Path
  workdir: epath.Path
  step: int
  description: dict[str, Any]
  params: dict[str, Any]
  batch_stats: dict[str, Any]


def save_description(workdir: epath.Path, description: dict[str, Any]) -> None:
  """Write what readers of checkpoints need to know.

  Args:
    workdir: the work directory.
    description: the trunk's name, width, fully_connected, style and normalization, and the target's
      classes.
  """
  artifacts.write_json(workdir / DESCRIPTION, description)


def load_trunk(path: str, *, style: str, **expected: Any) -> Weights:
  """Load the trunk in the newest checkpoint of a run.

  Args:
    path: see `load_newest`.
    style: 'auto' is the checkpoint's own; any other overrules it.
    expected: the name, width and fully_connected of the network that will take it.

  Raises:
    ValueError: no checkpoint, several, or one of another network.
  """
  trained = load_newest(path, **expected)
  return Weights(
    trained.params['trunk'],
    _without_source_stats(trained.batch_stats.get('trunk', {})),
    trained.description['style'] if style == 'auto' else style,
    trained.description['normalization'],
    None,
  )


def load_newest(path: str, **expected: Any) -> TrainedNetwork:
  """Load the network of the newest checkpoint of a run.

  Args:
    path: an arm of a work directory ('runs/dogs/arms/rounds'), its 'pretrain', or a work directory
      with one of these only.
    expected: what its description has to say.

  Raises:
    ValueError: no checkpoint, several, or one that is damaged or of another network.
  """
  root = artifacts.absolute_path(path)
  # At most as deep as an arm of a work directory; stores know no '**'.
  directories = sorted(
    {
      step.parent.parent
      for depth in ('', '*/', '*/*/')
      for step in root.glob(f'{depth}checkpoints/[0-9]*')
    }
  )
  if len(directories) != 1:
    names = ', '.join(str(p) for p in directories) or 'none'
    raise ValueError(f'{path}: give the folder of one training; with checkpoints there: {names}')
  directory = directories[0]
  workdir = next((p for p in (directory, *directory.parents) if (p / DESCRIPTION).is_file()), None)
  if workdir is None:
    raise ValueError(f'{directory} lies in no work directory: {DESCRIPTION} is missing above it')
  description = json.loads((workdir / DESCRIPTION).read_text())
  for option, value in expected.items():
    if description[option] != value:
      raise ValueError(
        f'{directory} holds a network with {option}={description[option]!r}, not {value!r}; '
        f'set model.{option}={description[option]}'
      )
  step, state = _restore_newest(directory / 'checkpoints')
  return TrainedNetwork(
    directory,
    workdir,
    step,
    description,
    # What is evaluated is the parameters' moving average (`training.optimizer.EmaState`), if any.
    optax.tree_utils.tree_get(state['opt_state'], 'average', default=state['params']),
    state['batch_stats'],
  )


def load_network(directory: epath.Path, trained: TrainedNetwork) -> TrainedNetwork:
  """Load the network that a round of `trained` ended with (`training.keep_rounds`).

  Raises:
    ValueError: the checkpoint is damaged.
  """
  step, network = _restore_newest(directory)
  return dataclasses.replace(trained, step=step, **network)


def _restore_newest(directory: epath.Path) -> tuple[int, dict[str, Any]]:
  with ocp.CheckpointManager(directory) as manager:
    step = manager.latest_step()
    args = ocp.args.Composite(state=ocp.args.StandardRestore())
    try:
      return step, manager.restore(step, args=args)['state']
    except Exception as error:  # Damage raises nearly anything.
      reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
      raise ValueError(
        f'checkpoint {directory / str(step)} is damaged ({reason}); delete it, and the one before '
        'is used'
      ) from error


def _without_source_stats(batch_stats: dict[str, Any]) -> dict[str, Any]:
  """Drop what per-domain batch norm keeps of the source beside the target's statistics."""
  return {
    name: _without_source_stats(value) if isinstance(value, dict) else value
    for name, value in batch_stats.items()
    if not name.startswith('source_')
  }
