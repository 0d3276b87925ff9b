"""Orbax checkpoints of a training run: the newest two, and how far the run had come."""

import hashlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from sjft_jax.runtime import artifacts, console
from sjft_jax.runtime.errors import disk_error


class OtherRunError(ValueError):
  """A checkpoint is of another run."""


class Checkpoints:
  """Checkpoints in one directory, numbered by step, written in the background.

  A checkpoint holds a tree of arrays and, beside it, `extra`, a small JSON object for what is
  no array (the seconds spent so far).
  """

  def __init__(self, directory: epath.PathLike, fingerprint: str):
    """`fingerprint`: fingerprint of everything that decides the run."""
    self._directory, self._fingerprint = artifacts.absolute_path(directory), fingerprint
    self._damaged: Sequence[int] = ()
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=2, create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True
      ),
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self._manager.close()  # Waits for the write that is under way.

  def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
    """Saves unless that step is saved already; returns before the write has ended."""
    artifacts.check_writable(self._directory / str(step))
    for damaged in self._damaged:
      self._manager.delete(damaged)
    self._damaged = ()
    if step in self.steps():
      return
    content = {
      'extra': extra,
      'fingerprint': self._fingerprint,
      'leaves': _leaves(state),
      'sha256': _digest(state),
    }
    sealed = content | {'seal': artifacts.fingerprint(content)}
    self._manager.save(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(sealed)),
    )

  def steps(self) -> list[int]:
    """Of all checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def wait(self) -> None:
    """Until everything saved is on the disk."""
    self._manager.wait_until_finished()

  def load_newest(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """The newest undamaged state and its `extra`, or None.

    Damaged ones are named, and deleted as soon as another is saved.

    Args:
      like: gives the tree, shapes and types.

    Raises:
      OtherRunError: it was made from other data or options, or is of another network.
      OSError: the disk cannot be read.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    for step in reversed(self.steps()):
      try:
        sealed = self._restore(step, extra=ocp.args.JsonRestore())['extra']
        if sealed.pop('seal') != artifacts.fingerprint(sealed):
          raise ValueError('its JSON has another checksum')
        if (sealed['fingerprint'], sealed['leaves']) != (self._fingerprint, _leaves(like)):
          raise OtherRunError(
            f'{self._directory} was made from other data or another version of the program; use a '
            'new --workdir, or delete this one'
          )
        state = self._restore(step, state=ocp.args.StandardRestore(abstract))['state']
        if sealed['sha256'] != _digest(state):
          raise ValueError('its arrays have another checksum')
        return state, sealed['extra']
      except OtherRunError:
        raise
      except Exception as error:  # Damage raises nearly anything.
        if disk_error(error):
          raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        console.say(
          f'  warning: checkpoint {self._directory / str(step)} is damaged ({reason}); the one '
          'before is used'
        )
        self._damaged = *self._damaged, step
    return None

  def _restore(self, step: int, **args: Any) -> Any:
    return self._manager.restore(step, args=ocp.args.Composite(**args))


def _leaves(state: Any) -> str:
  """Fingerprint of the names, types and shapes of all arrays."""
  return artifacts.fingerprint(
    [
      [jax.tree_util.keystr(path), str(leaf.dtype), list(leaf.shape)]
      for path, leaf in jax.tree.leaves_with_path(state)
    ]
  )


def _digest(state: Any) -> str:
  """Of all bits; the files of arrays do not tell of a changed one."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(state):
    digest.update(np.ascontiguousarray(leaf).data.cast('B'))
  return digest.hexdigest()
