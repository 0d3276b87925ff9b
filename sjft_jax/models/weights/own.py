"""The network of an earlier run of this package, and its trunk."""

import json
from dataclasses import dataclass
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from sjft_jax import artifacts
from sjft_jax.models.weights.convert import Weights
from sjft_jax.training.optimizer import averaged

# In a work directory: which network its checkpoints are of.
DESCRIPTION = 'network.json'


@dataclass(frozen=True)
class Trained:
  """The newest checkpoint of a training.

  Attributes:
    directory: of the training: 'pretrain' or 'arms/<arm>' of `workdir`.
    step: how many it has taken.
    network: what `describe` was told.
    params, batch_stats: of the joint network, as they are evaluated.
  """

  directory: epath.Path
  workdir: epath.Path
  step: int
  network: dict[str, Any]
  params: dict[str, Any]
  batch_stats: dict[str, Any]


def describe(workdir: epath.Path, network: dict[str, Any]) -> None:
  """Writes what readers of checkpoints need to know.

  That is the trunk's name, width, fully_connected, style and normalization, and the target's
  classes.
  """
  artifacts.write_json(workdir / DESCRIPTION, network)


def load(path: str, *, style: str, **wanted: Any) -> Weights:
  """The trunk in the newest checkpoint of a run.

  Args:
    path: see `newest`.
    style: 'auto' is the checkpoint's own; any other overrules it.
    wanted: the name, width and fully_connected of the network that will take it.

  Raises:
    ValueError: no checkpoint, several, or one of another network.
  """
  found = newest(path, **wanted)
  return Weights(
    found.params['trunk'],
    _of_target(found.batch_stats.get('trunk', {})),
    found.network['style'] if style == 'auto' else style,
    found.network['normalization'],
    None,
  )


def newest(path: str, **wanted: Any) -> Trained:
  """The newest checkpoint of a run.

  Args:
    path: an arm of a work directory ('runs/dogs/arms/rounds'), its 'pretrain', or a work directory
      with one of these only.
    wanted: what its network has to be.

  Raises:
    ValueError: no checkpoint, several, or one that is damaged or of another network.
  """
  root = artifacts.absolute(path)
  # At most as deep as an arm of a work directory; stores know no '**'.
  found = sorted(
    {
      step.parent.parent
      for depth in ('', '*/', '*/*/')
      for step in root.glob(f'{depth}checkpoints/[0-9]*')
    }
  )
  if len(found) != 1:
    names = ', '.join(str(p) for p in found) or 'none'
    raise ValueError(f'{path}: give the folder of one training; with checkpoints there: {names}')
  directory = found[0]
  workdir = next((p for p in (directory, *directory.parents) if (p / DESCRIPTION).is_file()), None)
  if workdir is None:
    raise ValueError(f'{directory} lies in no work directory: {DESCRIPTION} is missing above it')
  network = json.loads((workdir / DESCRIPTION).read_text())
  for option, value in wanted.items():
    if network[option] != value:
      raise ValueError(
        f'{directory} holds a network with {option}={network[option]!r}, not {value!r}; '
        f'set model.{option}={network[option]}'
      )
  with ocp.CheckpointManager(directory / 'checkpoints') as manager:
    latest = manager.latest_step()
    args = ocp.args.Composite(state=ocp.args.StandardRestore())
    try:
      state = manager.restore(latest, args=args)['state']
    except Exception as error:  # Damage raises nearly anything.
      reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
      raise ValueError(
        f'checkpoint {directory / "checkpoints" / str(latest)} is damaged ({reason}); delete it, '
        'and the one before is used'
      ) from error
  return Trained(
    directory,
    workdir,
    int(state['step']),
    network,
    averaged(state['opt_state'], state['params']),
    state['batch_stats'],
  )


def _of_target(batch_stats: dict[str, Any]) -> dict[str, Any]:
  """Without what per-domain batch norm keeps of the source beside the target's statistics."""
  return {
    name: _of_target(value) if isinstance(value, dict) else value
    for name, value in batch_stats.items()
    if not name.startswith('source_')
  }
