"""The trunk of an earlier run of this package."""

import json
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from sjft_jax import artifacts
from sjft_jax.models.weights.convert import Weights
from sjft_jax.training.optimizer import averaged

# In a work directory: which network its checkpoints are of.
DESCRIPTION = 'network.json'


def describe(workdir: epath.Path, network: dict[str, Any]) -> None:
  """Writes what `load` needs to know: name, width, fully_connected, style and normalization."""
  artifacts.write_json(workdir / DESCRIPTION, network)


def load(path: str, *, style: str, **wanted: Any) -> Weights:
  """The trunk in the newest checkpoint of a run.

  Args:
    path: an arm of a work directory ('runs/dogs/arms/rounds'), its 'pretrain', or a work directory
      with one of these only.
    style: 'auto' is the checkpoint's own; any other overrules it.
    wanted: the name, width and fully_connected of the network that will take it.

  Raises:
    ValueError: no checkpoint, several, or one of another network.
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
  descriptions = [p / DESCRIPTION for p in (directory, *directory.parents)]
  description = next((p for p in descriptions if p.is_file()), None)
  if description is None:
    raise ValueError(f'{directory} lies in no work directory: {DESCRIPTION} is missing above it')
  network = json.loads(description.read_text())
  for option, value in wanted.items():
    if network[option] != value:
      raise ValueError(
        f'{directory} holds a network with {option}={network[option]!r}, not {value!r}; '
        f'set model.{option}={network[option]}'
      )
  with ocp.CheckpointManager(directory / 'checkpoints') as manager:
    state = manager.restore(
      manager.latest_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore())
    )['state']
  return Weights(
    averaged(state['opt_state'], state['params'])['trunk'],
    _of_target(state['batch_stats'].get('trunk', {})),
    network['style'] if style == 'auto' else style,
    network['normalization'],
    None,
  )


def _of_target(batch_stats: dict[str, Any]) -> dict[str, Any]:
  """Without what per-domain batch norm keeps of the source beside the target's statistics."""
  return {
    name: _of_target(value) if isinstance(value, dict) else value
    for name, value in batch_stats.items()
    if not name.startswith('source_')
  }
