"""Log the metrics of a training while it runs: to JSON lines, TensorBoard, Weights & Biases."""

import contextlib
import importlib.util
import io
import json
import math
import os
import re
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

# A number is drawn as a curve, an array as a histogram, an image as it is.
Value = float | np.ndarray | Image.Image
_HISTOGRAM_BINS = 64


@dataclass(frozen=True, kw_only=True)
class LoggingOptions:
  """The section `logging` of the configuration.

  Attributes:
    every: steps between two lines, which hold the means of the steps since the line before.
    tensorboard: whether to write event files, if tensorboardX is installed.
    wandb: the project of Weights & Biases; '': none.
    selection_format: of the tables of selected images, one of `tables.FORMATS`.
    report: whether report.html is drawn after every round.
  """

  every: int
  tensorboard: bool
  wandb: str
  selection_format: str = 'auto'
  report: bool = True


class MetricWriter:
  """Log values by name, each entry at the number of steps taken by then.

  `log.jsonl` gets a line for every call of `log`: {"step": 20, name: value …}. A number is written
  as such (null if not finite), an array as {"count", "min", "mean", "max"} of its finite elements,
  an image as [width, height]. TensorBoard's event files lie beside it. Weights & Biases shows the
  training as one run, however often it is resumed.

  When a training goes on from a checkpoint, its log becomes what it would be without the
  interruption: lines beyond that step are cut off, TensorBoard hides its events beyond it, and
  values that are logged already at that step or before are not logged there again. So a caller may
  log what follows from a finished part of the training at every start.

  Args:
    directory: of this training, on a disk or in an object store.
    name: of the run in Weights & Biases.
    step: of the checkpoint that the training goes on from.
    options: where metrics go, and how often.
    is_writing: False: write nothing; for all but one of several processes.
    config: what Weights & Biases shows as the configuration of the run.

  Attributes:
    every: see `LoggingOptions`.

  Raises:
    ValueError: nobody is logged in to Weights & Biases.
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
      # The last to be written: what its lines hold is not logged again, to any writer.
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
    """Log values by name.

    Args:
      step: steps taken so far; never less than in the call before.
      values: numbers, arrays (also JAX's) and images.
    """
    new = {name: _to_host(v) for name, v in values.items() if (step, name) not in self._logged}
    if new:
      for writer in self._writers:
        writer.log(step, new)

  def flush(self) -> None:
    """Make the entries so far permanent; to be called before each checkpoint.

    Without this call a killed process loses nothing on a local disk, but in an object store, where
    each call writes whole files, all entries since the last one.
    """
    for writer in self._writers:
      writer.flush()


def check_wandb(project: str) -> None:
  """Check that Weights & Biases can be used; to be called before any work.

  Args:
    project: the option `logging.wandb`; nothing is checked if it is ''.

  Raises:
    ValueError: the package is not installed, or nobody is logged in.
  """
  if not project:
    return
  if not importlib.util.find_spec('wandb'):
    raise ValueError(
      f"logging.wandb={project!r} needs another package: pip install 'sjft_jax[wandb]'"
    )
  if os.environ.get('WANDB_MODE', 'online') == 'online':
    import wandb

    # Without a network the run is kept on the disk, see `_WandbRun`.
    with _explain_login(project), contextlib.suppress(wandb.errors.CommError):
      wandb.login()


@contextlib.contextmanager
def _explain_login(project: str) -> Iterator[None]:
  """Turn the error of a missing login into one that names the option and the remedy."""
  import wandb

  try:
    yield
  except wandb.errors.UsageError as error:
    raise ValueError(
      f'logging.wandb={project!r}: {error} (WANDB_MODE=offline keeps the run on the disk)'
    ) from error


def _to_host(value: Any) -> Value:
  """Convert a value to Python or numpy; keep the finite elements of an array."""
  if isinstance(value, Image.Image):
    return value
  array = np.asarray(value)
  return array[np.isfinite(array)] if array.ndim else array.item()


class _AppendOnlyFile:
  """A file that grows at its end.

  Object stores have no such files: there it is held in memory, and `flush` writes it whole.

  Args:
    path: of the file.
    content: what an existing file begins with; the rest of it is cut off.
  """

  def __init__(self, path: epath.Path, content: bytes = b''):
    self._path = path
    self._buffer = bytearray(content) if artifacts.is_remote(path) else None
    if self._buffer is None:
      self._file = path.open('ab')
      self._file.truncate(len(content))

  def write(self, data: bytes) -> None:
    if self._buffer is not None:
      self._buffer += data
    else:
      self._file.write(data)
      self._file.flush()

  def flush(self) -> None:
    if self._buffer is not None:
      self._path.write_bytes(bytes(self._buffer))
    else:
      os.fsync(self._file.fileno())

  def close(self, completed: bool) -> None:
    if self._buffer is not None:
      self.flush()
    else:
      self._file.close()


class _JsonLines(_AppendOnlyFile):
  """The file of JSON lines; those beyond `step` and damaged ones are dropped.

  Attributes:
    logged: the step and name of every value in the lines that stay.
  """

  def __init__(self, path: epath.Path, step: int):
    self.logged: set[tuple[int, str]] = set()
    content = path.read_bytes() if path.exists() else b''
    remaining, num_damaged = [], 0
    for line in content.splitlines(keepends=True):
      entry = parse_line(line)
      if entry is None:
        # That the last line of a killed training is incomplete is no damage.
        num_damaged += line.endswith((b'\n', b'\r'))
      elif entry['step'] <= step:
        self.logged.update((entry['step'], name) for name in entry)
        remaining.append(line)
    if num_damaged:
      console.say(f'  warning: {path} had damaged lines, {num_damaged}, which are dropped')
    kept = b''.join(remaining)
    if not content.startswith(kept):
      with artifacts.atomic_write(path) as file:
        file.write(kept)
    super().__init__(path, kept)

  def log(self, step: int, values: Mapping[str, Value]) -> None:
    line = {'step': step} | {name: self._summarize(value) for name, value in values.items()}
    self.write((json.dumps(line) + '\n').encode())

  def _summarize(self, value: Value) -> Any:
    if isinstance(value, Image.Image):
      return value.size
    if isinstance(value, np.ndarray):
      summary = {'min': value.min(), 'mean': value.mean(), 'max': value.max()} if value.size else {}
      return {'count': value.size} | {name: float(number) for name, number in summary.items()}
    return value if math.isfinite(value) else None


def parse_line(line: bytes) -> dict[str, Any] | None:
  """Return the entry of a line of log.jsonl, or None if it is damaged or incomplete."""
  with contextlib.suppress(ValueError):
    entry = artifacts.parse_json(line)
    is_entry = isinstance(entry, dict) and isinstance(entry.get('step'), int)
    if is_entry and line.endswith(b'\n'):
      return entry
  return None


class _TensorBoardEvents(_AppendOnlyFile):
  """One event file for each start; TensorBoard hides the events of older ones beyond `step`.

  The records are framed here, and not by tensorboardX. Its SummaryWriter works in a thread; when
  that has died of a full disk, the next calls wait for it without end. Its RecordWriter writes at
  once, but reaches two kinds of object stores only, each through a package of its own.
  """

  def __init__(self, directory: epath.Path, step: int):
    # Not at the top: this takes a second where PyTorch is installed, which tensorboardX loads too.
    from tensorboardX import record_writer, summary
    from tensorboardX.proto import event_pb2, summary_pb2

    self._checksum, self._summary = record_writer.masked_crc32c, summary
    self._event, self._proto = event_pb2, summary_pb2
    super().__init__(directory / f'events.out.tfevents.{time.time():.6f}')
    self._add_event(file_version='brain.Event:2')
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add_event(step=step + 1, session_log=start)

  def log(self, step: int, values: Mapping[str, Value]) -> None:
    parts = [self._convert(name, value) for name, value in values.items()]
    self._add_event(step=step, summary=self._proto.Summary(value=[part for part in parts if part]))

  def _convert(self, name: str, value: Value) -> Any:
    """Return a value's part of a summary; None for an array without finite elements."""
    if isinstance(value, Image.Image):
      encoded = io.BytesIO()
      value.save(encoded, 'PNG')
      image = self._proto.Summary.Image(
        width=value.width, height=value.height, encoded_image_string=encoded.getvalue()
      )
      return self._proto.Summary.Value(tag=name, image=image)
    if isinstance(value, np.ndarray):
      if not value.size:
        return None
      return self._summary.histogram(name, value, _HISTOGRAM_BINS).value[0]
    return self._proto.Summary.Value(tag=name, simple_value=value)

  def _add_event(self, **fields: Any) -> None:
    # A TFRecord: length, checksum of the length, data, checksum of the data.
    data = self._event.Event(wall_time=time.time(), **fields).SerializeToString()
    length = struct.pack('<Q', len(data))
    length_sum, data_sum = (struct.pack('<I', self._checksum(part)) for part in (length, data))
    self.write(length + length_sum + data + data_sum)


class _WandbRun:
  """A run of Weights & Biases; its id stays in the directory, so that the next start resumes it."""

  def __init__(
    self, directory: epath.Path, project: str, name: str, config: Mapping[str, Any] | None
  ):
    import wandb

    path = directory / 'wandb_id'
    run_id = path.read_bytes().decode(errors='replace') if path.exists() else ''
    if not re.fullmatch(r'[0-9a-f]{8}', run_id):
      if run_id:
        console.say(f'  warning: {path} is damaged; Weights & Biases gets a new run')
      run_id = secrets.token_hex(4)
      path.write_text(run_id)
    options: dict[str, Any] = {
      'project': project,
      'id': run_id,
      'resume': 'allow',
      'name': name,
      'config': config,
      'dir': None if artifacts.is_remote(directory) else os.fspath(directory),
      # Progress bars do not belong in a log, and a lost network must not keep a finished run from
      # ending.
      'settings': wandb.Settings(console='off', finish_timeout=60),
    }
    self._wandb = wandb
    try:
      with _explain_login(project):
        self._run = wandb.init(**options)
    except wandb.errors.CommError as error:
      # wandb does not go offline by itself when its server cannot be reached: it raises.
      console.say(f'  Weights & Biases cannot be reached, the run is kept on the disk: {error}')
      self._run = wandb.init(**options, mode='offline')
    self._first_step = self._run.step

  def log(self, step: int, values: Mapping[str, Value]) -> None:
    # Values of steps that were lost are logged already; wandb would refuse them with a warning.
    if step >= self._first_step:
      self._run.log({name: self._convert(value) for name, value in values.items()}, step=step)

  def _convert(self, value: Value) -> Any:
    if isinstance(value, Image.Image):
      return self._wandb.Image(value)
    if isinstance(value, np.ndarray):
      return self._wandb.Histogram(np_histogram=np.histogram(value, _HISTOGRAM_BINS))
    return value

  def flush(self) -> None:
    pass  # wandb sends its values by itself.

  def close(self, completed: bool) -> None:
    self._run.finish(exit_code=int(not completed))
