"""What a training tells of itself while it goes on: JSON lines, TensorBoard, Weights & Biases."""

import contextlib
import importlib.util
import io
import json
import math
import os
import secrets
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from sjft_jax.runtime import artifacts, console

# A number is drawn as a curve, an array as a histogram, a picture as such.
Value = float | np.ndarray | Image.Image
_BINS = 64


@dataclass(frozen=True, kw_only=True)
class LoggingOptions:
  """The section `logging` of the configuration.

  Attributes:
    every: steps from one line, the means since the last, to the next.
    tensorboard: write event files, if tensorboardX is installed.
    wandb: a project of Weights & Biases; '': none.
    selection_format: of the tables of selected images (see `tables.FORMATS`).
  """

  every: int
  tensorboard: bool
  wandb: str
  selection_format: str = 'auto'


class MetricWriter:
  """The journal of one training, each entry at the number of steps taken by then.

  `log.jsonl` has a line for every call of `log`: {"step": 20, name: value …}. A number stands there
  as such (null if not finite), an array as {"count", "min", "mean", "max"} of its finite elements,
  a picture as [width, height]. TensorBoard's event files lie beside it. Weights & Biases shows the
  training as one run, however often it is resumed.

  When a training goes on from a checkpoint, its journal is as if it had never been stopped: lines
  beyond that step go, TensorBoard hides its events beyond it, and what stands at that step or an
  earlier one is not logged there again. So what follows from a finished part of the training can
  be logged at every start.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    *,
    name: str,
    step: int,
    options: LoggingOptions,
    is_writing: bool = True,
    config: Mapping[str, Any] | None = None,
  ):
    """
    Args:
      directory: of this training, also in an object store.
      name: of the run in Weights & Biases.
      step: of the checkpoint that the training goes on from.
      options: where metrics go, and how often.
      is_writing: False: nothing is written, for all but one of several processes.
      config: what Weights & Biases shows as the run's configuration.

    Raises:
      ValueError: nobody is logged in to Weights & Biases.
    """
    self.every = options.every
    self._logged: set[tuple[int, str]] = set()
    self._writers: list[_JsonLines | _TensorBoardEvents | _WandbRun] = []
    if is_writing:
      directory = epath.Path(directory)
      directory.mkdir(parents=True, exist_ok=True)
      if options.wandb:
        self._writers.append(_WandbRun(directory, options.wandb, name, config))
      if options.tensorboard and importlib.util.find_spec('tensorboardX'):
        self._writers.append(_TensorBoardEvents(directory, step))
      # Last: what stands in its lines is not logged again.
      lines = _JsonLines(directory / 'log.jsonl', step)
      self._writers.append(lines)
      self._logged = lines.logged

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    with contextlib.ExitStack() as stack:
      for writer in self._writers:
        stack.callback(writer.close, completed=kind is None)

  def log(self, step: int, values: Mapping[str, Any]) -> None:
    """Values by name after `step` steps, which never falls; arrays may be JAX's."""
    told = {name: _to_host(v) for name, v in values.items() if (step, name) not in self._logged}
    if told:
      for writer in self._writers:
        writer.log(step, told)

  def flush(self) -> None:
    """Makes the entries so far last; to be called before each checkpoint.

    Without, a killed process loses nothing on a local disk, and all since the last call in an
    object store, where each call writes whole files.
    """
    for writer in self._writers:
      writer.flush()


def check_wandb(wandb: str) -> None:
  """That Weights & Biases can be used, if it is to be: asked before any work.

  Raises:
    ValueError: the package is not installed, or nobody is logged in.
  """
  if not wandb:
    return
  if not importlib.util.find_spec('wandb'):
    raise ValueError(
      f"logging.wandb={wandb!r} needs another package: pip install 'sjft_jax[wandb]'"
    )
  if os.environ.get('WANDB_MODE', 'online') == 'online':
    import wandb as client

    with _logged_in(wandb), contextlib.suppress(client.errors.CommError):
      client.login()


@contextlib.contextmanager
def _logged_in(project: str) -> Iterator[None]:
  import wandb

  try:
    yield
  except wandb.errors.UsageError as error:
    raise ValueError(
      f'logging.wandb={project!r}: {error} (WANDB_MODE=offline keeps the run on the disk)'
    ) from error


def _to_host(value: Any) -> Value:
  if isinstance(value, Image.Image):
    return value
  array = np.asarray(value)
  return array[np.isfinite(array)] if array.ndim else array.item()


class _AppendOnlyFile:
  """A file that grows at its end.

  Object stores have none such: there it is kept in memory, and `flush` writes it whole.
  """

  def __init__(self, path: epath.Path, kept: bytes = b''):
    """`kept` is how the file begins already; the rest of it goes."""
    self._path = path
    self._whole = bytearray(kept) if artifacts.is_remote(path) else None
    if self._whole is None:
      self._file = path.open('ab')
      self._file.truncate(len(kept))

  def write(self, data: bytes) -> None:
    if self._whole is not None:
      self._whole += data
    else:
      self._file.write(data)
      self._file.flush()

  def flush(self) -> None:
    if self._whole is not None:
      self._path.write_bytes(bytes(self._whole))
    else:
      os.fsync(self._file.fileno())

  def close(self, completed: bool) -> None:
    if self._whole is not None:
      self.flush()
    else:
      self._file.close()


class _JsonLines(_AppendOnlyFile):
  """JSON lines; those beyond `step` go, and so does what is no whole line."""

  def __init__(self, path: epath.Path, step: int):
    self.logged: set[tuple[int, str]] = set()
    lines = path.read_bytes() if path.exists() else b''
    kept = 0
    for line in lines.splitlines(keepends=True):
      try:
        entry = json.loads(line)
      except ValueError:
        break
      if not line.endswith(b'\n') or entry['step'] > step:
        break
      self.logged.update((entry['step'], name) for name in entry)
      kept += len(line)
    super().__init__(path, lines[:kept])

  def log(self, step: int, values: Mapping[str, Value]) -> None:
    line = {'step': step} | {name: self._json(value) for name, value in values.items()}
    self.write((json.dumps(line) + '\n').encode())

  def _json(self, value: Value) -> Any:
    if isinstance(value, Image.Image):
      return value.size
    if isinstance(value, np.ndarray):
      known = {'min': value.min(), 'mean': value.mean(), 'max': value.max()} if value.size else {}
      return {'count': value.size} | {name: float(number) for name, number in known.items()}
    return value if math.isfinite(value) else None


class _TensorBoardEvents(_AppendOnlyFile):
  """One event file for each start; TensorBoard hides older ones' events beyond `step`.

  tensorboardX's own writer works in a thread; when that has died of a full disk, the next calls
  wait for it without end.
  """

  def __init__(self, directory: epath.Path, step: int):
    # Loaded when it is used: it takes a second where PyTorch is installed, which it loads too.
    from tensorboardX import record_writer, summary
    from tensorboardX.proto import event_pb2, summary_pb2

    self._checksum, self._summary = record_writer.masked_crc32c, summary
    self._event, self._proto = event_pb2, summary_pb2
    super().__init__(directory / f'events.out.tfevents.{time.time():.6f}')
    self._add(file_version='brain.Event:2')
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(step=step + 1, session_log=start)

  def log(self, step: int, values: Mapping[str, Value]) -> None:
    parts = (self._part(name, value) for name, value in values.items())
    self._add(step=step, summary=self._proto.Summary(value=[part for part in parts if part]))

  def _part(self, name: str, value: Value) -> Any:
    """This value's part of a summary; None for an array without finite elements."""
    if isinstance(value, Image.Image):
      encoded = io.BytesIO()
      value.save(encoded, 'PNG')
      image = self._proto.Summary.Image(
        width=value.width, height=value.height, encoded_image_string=encoded.getvalue()
      )
      return self._proto.Summary.Value(tag=name, image=image)
    if isinstance(value, np.ndarray):
      return self._summary.histogram(name, value, _BINS).value[0] if value.size else None
    return self._proto.Summary.Value(tag=name, simple_value=value)

  def _add(self, **what: Any) -> None:
    # A TFRecord: length, checksum of the length, data, checksum of the data.
    data = self._event.Event(wall_time=time.time(), **what).SerializeToString()
    length = struct.pack('<Q', len(data))
    sums = (struct.pack('<I', self._checksum(part)) for part in (length, data))
    self.write(length + next(sums) + data + next(sums))


class _WandbRun:
  """A run of Weights & Biases; its id is kept in the directory, for the next start to go on."""

  def __init__(
    self, directory: epath.Path, project: str, name: str, config: Mapping[str, Any] | None
  ):
    import wandb

    path = directory / 'wandb_id'
    run_id = path.read_text() if path.exists() else ''
    if not run_id:
      run_id = secrets.token_hex(4)
      path.write_text(run_id)
    options: dict[str, Any] = {
      'project': project,
      'id': run_id,
      'resume': 'allow',
      'name': name,
      'config': config,
      'dir': None if artifacts.is_remote(directory) else os.fspath(directory),
      # Progress bars are no log; and a lost network must not keep a finished run from ending.
      'settings': wandb.Settings(console='off', finish_timeout=60),
    }
    self._wandb = wandb
    try:
      with _logged_in(project):
        self._run = wandb.init(**options)
    except wandb.errors.CommError as error:
      console.say(f'  Weights & Biases cannot be reached, the run is kept on the disk: {error}')
      self._run = wandb.init(**options, mode='offline')
    self._start = self._run.step

  def log(self, step: int, values: Mapping[str, Value]) -> None:
    # What it has been told of lost steps stands there, and would be refused with a warning.
    if step >= self._start:
      self._run.log({name: self._shown(value) for name, value in values.items()}, step=step)

  def _shown(self, value: Value) -> Any:
    if isinstance(value, Image.Image):
      return self._wandb.Image(value)
    if isinstance(value, np.ndarray):
      return self._wandb.Histogram(np_histogram=np.histogram(value, _BINS))
    return value

  def flush(self) -> None:
    pass  # It sends what it gets by itself.

  def close(self, completed: bool) -> None:
    self._run.finish(exit_code=int(not completed))
