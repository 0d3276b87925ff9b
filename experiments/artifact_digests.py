"""Compare what two runs have left, bit by bit: digests of all artifacts, but for times."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

# Folders of checkpoints: of a training, and of the network that a round ends with.
_CHECKPOINT_FOLDERS = {'checkpoints', 'network'}
_TIME_KEYS = re.compile('second|time|device|checksum')


def newest_checkpoint(checkpoints: Path) -> Path | None:
  """Return the newest complete checkpoint, if there is one."""
  steps = (path for path in checkpoints.glob('*') if path.name.isdigit())
  return max(steps, key=lambda path: int(path.name), default=None)


def digest_artifacts(workdir: Path) -> dict[str, str]:
  """Return digests, by name, of what a run has left, but for times."""
  values: dict[str, Any] = {}
  for path in sorted(workdir.rglob('*')):
    name = str(path.relative_to(workdir))
    if path.name in _CHECKPOINT_FOLDERS and (step := newest_checkpoint(path)):
      with ocp.CheckpointManager(path.absolute()) as manager:
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore())
        state = manager.restore(int(step.name), args=arguments)['state']
      for keys, leaf in jax.tree_util.tree_leaves_with_path(state):
        values[f'{name}/{step.name}{jax.tree_util.keystr(keys)}'] = np.asarray(leaf)
    elif path.is_dir() or _CHECKPOINT_FOLDERS & set(path.parts):
      continue
    elif path.suffix == '.npz':
      with np.load(path) as arrays:
        values |= {f'{name}/{key}': arrays[key] for key in arrays if not _TIME_KEYS.search(key)}
    elif path.suffix in ('.json', '.jsonl'):
      lines = [path.read_text()] if path.suffix == '.json' else path.read_text().splitlines()
      values[name] = [_without_times(json.loads(line)) for line in lines]
    elif not path.name.startswith(('.', 'events.out.tfevents')):
      values[name] = path.read_bytes()
  # Packages may be installed in between; the report shows what the other files hold, and times.
  compared = values.keys() - {'versions.json', 'report.html'}
  return {name: _digest(values[name]) for name in sorted(compared)}


def _without_times(value: Any) -> Any:
  if isinstance(value, dict):
    items = value.items()
    return {key: _without_times(part) for key, part in items if not _TIME_KEYS.search(key)}
  return [_without_times(part) for part in value] if isinstance(value, list) else value


def _digest(value: Any) -> str:
  if isinstance(value, np.ndarray):
    value = f'{value.dtype} {value.shape} '.encode() + value.tobytes()
  elif not isinstance(value, bytes):
    value = json.dumps(value).encode()
  return hashlib.sha256(value).hexdigest()


def find_differences(workdir: Path, expected: dict[str, str]) -> list[str]:
  """Name the artifacts that are not as in another work directory, of the digests `expected`."""
  digests = digest_artifacts(workdir)
  names = sorted(digests.keys() | expected.keys())
  return [name for name in names if digests.get(name) != expected.get(name)]
