"""Orbax checkpoints of a training run: the newest two, verified by checksums."""

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
  """A checkpoint belongs to another run."""


class Checkpoints:
  """The checkpoints in one directory, numbered by step, written in the background.

  A checkpoint holds a tree of arrays and, beside it, `extra`, a small JSON object for what is not
  an array (such as the seconds spent so far).

  Args:
    directory: on a disk or in an object store; it is created.
    fingerprint: of everything that decides the run.
  """

  def __init__(self, directory: epath.PathLike, fingerprint: str):
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
    self._manager.close()  # It waits for the write that is under way.

  def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
    """Save a checkpoint, unless that step is saved already; return before it is written.

    Args:
      step: its number.
      state: a tree of numpy arrays, which must not change until `wait` returns.
      extra: values for JSON.
    """
    artifacts.check_writable(self._directory / str(step))
    for damaged in self._damaged:
      self._manager.delete(damaged)
    self._damaged = ()
    if step in self.steps():
      return
    metadata: dict[str, Any] = {
      'extra': extra,
      'fingerprint': self._fingerprint,
      'leaves': _fingerprint_leaves(state),
      'sha256': _sha256(state),
    }
    metadata['seal'] = artifacts.fingerprint(metadata)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(metadata)
      ),
    )

  def steps(self) -> list[int]:
    """Return the steps of all checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def wait(self) -> None:
    """Wait until every checkpoint is on the disk."""
    self._manager.wait_until_finished()

  def load_newest(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """Load the newest undamaged state and its `extra`; return None if there is none.

    Damaged checkpoints are named on the console, and deleted when the next one is saved.

    Args:
      like: a tree with the names, shapes and types of the state.

    Raises:
      OtherRunError: it was made from other data or options, or is of another network.
      OSError: the disk cannot be read.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    for step in reversed(self.steps()):
      try:
        metadata = self._restore(step, extra=ocp.args.JsonRestore())['extra']
        if metadata.pop('seal') != artifacts.fingerprint(metadata):
          raise ValueError('its JSON has another checksum')
        expected = self._fingerprint, _fingerprint_leaves(like)
        if (metadata['fingerprint'], metadata['leaves']) != expected:
          raise OtherRunError(
            f'{self._directory} was made from other data or another version of the program or its '
            'packages; use a new --workdir, or delete this one'
          )
        state = self._restore(step, state=ocp.args.StandardRestore(abstract))['state']
        if metadata['sha256'] != _sha256(state):
          raise ValueError('its arrays have another checksum')
        return state, metadata['extra']
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


def _fingerprint_leaves(state: Any) -> str:
  """Return a fingerprint of the names, types and shapes of all arrays."""
  return artifacts.fingerprint(
    [
      [jax.tree_util.keystr(path), str(leaf.dtype), list(leaf.shape)]
      for path, leaf in jax.tree.leaves_with_path(state)
    ]
  )


def _sha256(state: Any) -> str:
  """Return a checksum of all bits: the array files themselves do not reveal a changed one."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(state):
    digest.update(np.ascontiguousarray(leaf).data.cast('B'))
  return digest.hexdigest()
