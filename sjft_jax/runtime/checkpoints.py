"""Orbax checkpoints of a training run: the newest two, verified by checksums."""

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from sjft_jax.runtime import artifacts, console
from sjft_jax.runtime.errors import system_error
from sjft_jax.runtime.memory import format_bytes, tree_bytes

# Readers who do not know what a checkpoint should hold take this many times its size on the disk,
# or this many bytes: parameters, momentum and a moving average are hardly compressed.
_FACTOR = 3
_MIN_BYTES = 64 * 2**20
# Orbax takes half a millisecond and ten kilobytes for each array that a description names, and more
# stack for each level. The state of a ResNet-152 is described by 0.5 MB, with ten levels.
_MAX_DESCRIPTION, _MAX_DEPTH = 2**21, 64

_Result = TypeVar('_Result')


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
    self._arrays = _ArrayHandler()
    self._manager = _open(
      self._directory,
      self._arrays,
      max_to_keep=2,
      create=True,
      cleanup_tmp_directories=True,
      enable_async_checkpointing=True,
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
    metadata = artifacts.seal(
      {
        'extra': extra,
        'fingerprint': self._fingerprint,
        'leaves': _fingerprint_leaves(state),
        'sha256': _sha256(state),
      }
    )
    self._manager.save(
      step,
      args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), extra=ocp.args.JsonSave(metadata)),
    )

  def steps(self) -> list[int]:
    """Return the steps of all checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def wait(self) -> None:
    """Wait until every checkpoint is on the disk."""
    self._manager.wait_until_finished()

  def load_newest(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """Load the newest undamaged state and its `extra`; return None if there is none.

    It waits for the write that is under way. Damaged checkpoints are named on the console, and
    deleted when the next one is saved.

    Args:
      like: a tree with the names, shapes and types of the state.

    Raises:
      OtherRunError: it was made from other data or options, or is of another network.
      OSError: the disk cannot be read.
    """
    self.wait()  # Half a checkpoint would be taken for a damaged one.
    self._arrays.max_bytes = max(tree_bytes(like), _MIN_BYTES)
    steps = self.steps()
    while steps:
      step = steps.pop()
      try:
        metadata = _restore_metadata(self._manager, step)
        expected = self._fingerprint, _fingerprint_leaves(like)
        if (metadata['fingerprint'], metadata['leaves']) != expected:
          raise OtherRunError(
            f'{self._directory} was made from other data or another version of the program or its '
            'packages; use a new --workdir, or delete this one'
          )
        return _restore_state(self._manager, step, metadata, like), metadata['extra']
      except (OtherRunError, MemoryError):
        raise
      except Exception as error:  # Damage raises nearly anything.
        if system_error(error):
          raise
        before = 'the one before is used' if steps else 'there is none before it'
        console.say(f'  warning: {_describe_damage(self._directory, step, error)}; {before}')
        self._damaged = *self._damaged, step
    return None


def load_newest(directory: epath.PathLike, remedy: str = 'save it again') -> tuple[int, Any]:
  """Return the step and the state of the newest checkpoint in a directory; write nothing there.

  The state is a tree of dicts and lists.

  Args:
    directory: of the checkpoints.
    remedy: what to do where the only checkpoint is damaged.

  Raises:
    ValueError: there is none, or it is damaged.
    OSError: the disk cannot be read.
  """
  directory = artifacts.absolute_path(directory)
  # With read_only=True Orbax would log three warnings that it is so; this writes nothing either.
  options = {'create': False, 'enable_async_checkpointing': False}
  with _open(directory, _ArrayHandler(), **options) as manager:
    steps = sorted(manager.all_steps())
    if not steps:
      raise ValueError(f'{directory} holds no complete checkpoint')
    step = steps[-1]
    try:
      return step, _restore_state(manager, step, _restore_metadata(manager, step))
    except Exception as error:  # Damage raises nearly anything.
      if system_error(error) or isinstance(error, MemoryError):
        raise
      if len(steps) > 1:
        # A run that is finished is not trained again: the network stays one of fewer steps.
        remedy = (
          f'delete it to use the one before, of step {steps[-2]:,}; to have that of step {step:,} '
          f'again, {remedy}'
        )
      raise ValueError(f'{_describe_damage(directory, step, error)}; {remedy}') from error


class _ArrayHandler(ocp.type_handlers.NumpyHandler):
  """Read the arrays of a checkpoint: all to their end, and no more bytes than there may be.

  Orbax raises the first error while other reads are pending, and closes their event loop; each of
  them then prints a traceback. And it allocates whatever the file of an array declares.

  Attributes:
    max_bytes: of all arrays together; None: a small multiple of what their files have.
  """

  _array_metadata_store = None  # Orbax looks for it where jax.Array is registered.

  def __init__(self) -> None:
    super().__init__()
    self.max_bytes: int | None = None

  async def deserialize(self, infos: Sequence[Any], args: Any = None) -> Sequence[np.ndarray]:
    """Read the arrays that `infos` describe."""
    max_bytes = self.max_bytes
    if max_bytes is None:
      max_bytes = _FACTOR * max(_size(infos[0].parent_dir) if infos else 0, _MIN_BYTES)
    headers = await _gather(self.metadata([info]) for info in infos)
    num_bytes = sum(_declared_bytes(header) for (header,) in headers)
    if num_bytes > max_bytes:
      raise ValueError(
        f'its arrays declare {format_bytes(num_bytes)}, and {format_bytes(max_bytes)} may be read'
      )
    read, args = super().deserialize, args or [None] * len(infos)
    arrays = await _gather(
      read([info], None if arg is None else [arg]) for info, arg in zip(infos, args, strict=True)
    )
    return [array for (array,) in arrays]


async def _gather(operations: Iterable[Awaitable[_Result]]) -> list[_Result]:
  """Wait for all operations; raise the first error not before all have ended."""
  results = await asyncio.gather(*operations, return_exceptions=True)
  for result in results:
    if isinstance(result, BaseException):
      raise result
  return results  # type: ignore[return-value]


def _declared_bytes(header: Any) -> int:
  """Return the bytes of an array, or of one of its chunks if that is larger."""
  shapes = header.shape, header.storage.chunk_shape or ()
  return max(math.prod(shape) for shape in shapes) * header.dtype.itemsize


def _size(folder: epath.Path) -> int:
  """Return the bytes of all files below a folder."""
  return sum(
    _size(path) if path.is_dir() else artifacts.file_size(path) for path in folder.iterdir()
  )


def _open(directory: epath.Path, arrays: _ArrayHandler, **options: Any) -> Any:
  """Open a directory of checkpoints, whose arrays the handler reads; they have no other types.

  Raises:
    ValueError: a description of a checkpoint is damaged.
  """
  # Without one for jax.Array, of which there are none, Orbax warns.
  registry = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, arrays), (jax.Array, arrays)
  )
  try:
    return ocp.CheckpointManager(
      directory,
      options=ocp.CheckpointManagerOptions(**options),
      item_handlers={
        'state': ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        'extra': ocp.JsonCheckpointHandler(),
      },
    )
  except (ValueError, TypeError, KeyError, AttributeError) as error:  # Of a forged description.
    reason = (str(error).splitlines() or [''])[0][:200]
    raise ValueError(
      f'{directory} holds a checkpoint whose _CHECKPOINT_METADATA is damaged ({reason}); delete it'
    ) from error


def _restore_metadata(manager: Any, step: int) -> dict[str, Any]:
  """Return what `Checkpoints.save` has written beside the arrays.

  Raises:
    ValueError: its checksum is another.
  """
  _check_size(manager.directory / str(step) / 'extra' / 'metadata')
  restored = manager.restore(step, args=ocp.args.Composite(extra=ocp.args.JsonRestore()))
  return artifacts.unseal(restored['extra'])


def _restore_state(manager: Any, step: int, metadata: dict[str, Any], like: Any = None) -> Any:
  """Return the tree of arrays, in the structure of `like` if that is given.

  Raises:
    ValueError: its checksum is another, or it has too many or too deeply nested arrays.
  """
  _check_tree(manager.directory / str(step) / 'state' / '_METADATA')
  args = None if like is None else jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), like)
  restore = ocp.args.PyTreeRestore(like, args)
  state = manager.restore(step, args=ocp.args.Composite(state=restore))['state']
  if metadata['sha256'] != _sha256(state):
    raise ValueError('its arrays have another checksum')
  return state


def _check_size(path: epath.Path) -> None:
  if (size := artifacts.file_size(path)) > _MAX_DESCRIPTION:
    raise ValueError(f'its {path.name} has {size:,} bytes, the limit is {_MAX_DESCRIPTION:,}')


def _check_tree(path: epath.Path) -> None:
  """Check how large the tree of arrays is that a description names.

  Raises:
    ValueError: it is too large.
  """
  _check_size(path)
  arrays = artifacts.parse_json(path.read_bytes())['tree_metadata'].values()
  if any(len(array['key_metadata']) > _MAX_DEPTH for array in arrays):
    raise ValueError(f'its arrays are nested more than {_MAX_DEPTH} deep')


def _describe_damage(directory: epath.Path, step: int, error: Exception) -> str:
  reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
  return f'checkpoint {directory / str(step)} is damaged ({reason})'


def _fingerprint_leaves(state: Any) -> str:
  """Return a fingerprint of the names, types and shapes of all arrays."""
  return artifacts.fingerprint(
    [
      [jax.tree_util.keystr(path), str(leaf.dtype), list(leaf.shape)]
      for path, leaf in jax.tree.leaves_with_path(state)
    ]
  )


def _sha256(state: Any) -> str:
  """Return a checksum of all bits: the array files themselves do not reveal a changed one.

  It does not depend on the order of the arrays: read as dicts, a state has another one.
  """
  digests = []
  for leaf in jax.tree.leaves(state):
    digest = hashlib.sha256(f'{leaf.dtype} {leaf.shape} '.encode())
    digest.update(np.ascontiguousarray(leaf).data.cast('B'))
    digests.append(digest.digest())
  return hashlib.sha256(b''.join(sorted(digests))).hexdigest()
