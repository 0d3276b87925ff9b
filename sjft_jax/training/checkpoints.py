"""Orbax checkpoints of a training run: the newest two, and how far the run had come."""

from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
  """Checkpoints in one directory, numbered by step, written in the background.

  A checkpoint holds a tree of arrays and, beside it, `progress`: a small JSON object, for what is
  no array (seconds spent so far).
  """

  def __init__(self, directory: Path):
    self._manager = ocp.CheckpointManager(
      directory.absolute(),
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

  def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
    """Saves unless that step is saved already; returns before the write has ended."""
    if step == self._manager.latest_step():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
      ),
    )

  def wait(self) -> None:
    """Until everything saved is on the disk."""
    self._manager.wait_until_finished()

  def newest(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """The newest state and its progress, or None. `like` gives the tree, shapes and types.

    Raises:
      ValueError: the checkpoint's tree or shapes are not those of `like`.
    """
    step = self._manager.latest_step()
    if step is None:
      return None
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
      ),
    )
    return restored['state'], restored['progress']
