"""Stop a run at random moments, again and again, and compare it with one that was left alone.

  python -m experiments.fault_injection [--kills=50] [--seed=0] [--json] [--keep=DIR]

The run is small and has everything: weights are downloaded (from a slow server of this program's
own), images screened, described and ranked, a trunk is pretrained, three arms are trained, scored
and reported, with a checkpoint every two steps and a partial ranking every batch. It is run twice
undisturbed, with an empty and with a filled cache of compiled programs, to learn when each stage
starts. Then the same command is started in one work directory after another until it finishes;
every attempt but the last is stopped at a random moment of a stage that was drawn beforehand, each
stage as often as the others. In every fourth work directory the caches are empty at first.

Besides `kills` times SIGKILL, every work directory sees one SIGTERM or Ctrl-C, which must end the
process with status 143 or 130; and, between two attempts, damage: a file of the newest checkpoint
that is still needed (where the cache was empty: a compiled program) is truncated, has a bit
flipped, or is deleted.

The end must equal the undisturbed run's bit by bit: the newest checkpoint of every training
(parameters, batch statistics, optimizer), rankings, hardness, neighbour counts, probabilities,
results, selections, lists and logs; only times may differ. If anything else does, or an attempt
ends in another way, the exit status is 1.
"""

import functools
import hashlib
import http.server
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from absl import app, flags, logging

from experiments.class_folders import write_class_folders
from sjft_jax.models import trunk
from sjft_jax.models.weights.layouts import layouts

KILLS = flags.DEFINE_integer('kills', 50, 'How often a process is killed with SIGKILL.')
SEED = flags.DEFINE_integer('seed', 0, 'Seed of the moments and the damage.')
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object and nothing else.')
KEEP = flags.DEFINE_string('keep', None, 'A new folder that keeps everything.')

ROOT = Path(__file__).parents[1]
NETWORK = {'name': 'resnet18v1', 'width': 1 / 16}
OPTIONS = """
bank.layers=('conv1',) descriptors.resize=40 descriptors.crop=36 descriptors.num_bins=8
descriptors.batch_size=8 descriptors.checkpoint_minutes=1e-6
selection.num_neighbors=3 selection.rounds=2
model.name=resnet18v1 model.width=0.0625 model.pretrained=local/net pretrain.steps=5
images.resize=36 images.crop=32
training.steps=8 training.batch_size=4 training.accumulation=1 training.checkpoint_every=2
evaluation.batch_size=8 evaluation.views=('center',) arms=('none','constant','rounds')
"""
ARMS, ROUNDS = ('none', 'constant', 'rounds'), 2
# The command of the README, with one more published network: its address and checksum come first.
PROGRAM = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # Where this runs in the background too.
from sjft_jax.models.weights import published
published.PUBLISHED['local/net'] = published.PublishedWeights(*sys.argv[1:3])
del sys.argv[1:3]
runpy.run_module('sjft_jax.main', run_name='__main__', alter_sys=True)
"""
# A stage starts when the output has a line that begins so, or when a file appears.
STAGES_BY_LINE = {
  'Looking at every image': 'screening',
  'Ranking the source': 'describing',
  '  histograms of target': 'ranking',
  'Pretraining': 'compiling',
  '  round ': 'compiling',
  '  scoring target/train': 'scoring',
  '  scoring target/test': 'round.npz',
}
STAGES_BY_FILE = {
  'cache/sjft_jax/weights/.*': 'download',
  'cache/sjft_jax/weights/[!.]*': 'initialisation',
  'run/ranking.partial.npz': 'ranking, begun',
  'run/pretrain/checkpoints/*tmp*': 'checkpoint',
  'run/arms/*/checkpoints/*tmp*': 'checkpoint',
  'run/pretrain/checkpoints/*': 'step',
  'run/arms/*/checkpoints/*': 'step',
  'run/arms/rounds/rounds/2/round.npz': 'results',
}
STATUS_BY_SIGNAL = {signal.SIGTERM: 143, signal.SIGINT: 130}
# Folders of checkpoints: of a training, and of the network that a round ends with.
_CHECKPOINT_FOLDERS = {'checkpoints', 'network'}
_KILLS_PER_WORKDIR = 5
_TIME_KEYS = re.compile('second|time|device|checksum')


class StageStart(NamedTuple):
  """The start of a stage of a run.

  Attributes:
    stage: what starts; the same stage may come several times.
    name: what starts, and which time.
    seconds: since the process started.
  """

  stage: str
  name: str
  seconds: float


class Interruption(NamedTuple):
  """A signal that stops a run.

  Attributes:
    position: of the stage among the undisturbed run's; where it does not start, the next that does.
    share: of the stage's time that passes before the signal.
    signal: SIGKILL or one that the run handles.
  """

  position: int
  share: float
  signal: signal.Signals


class Attempt(NamedTuple):
  """One process of a run.

  Attributes:
    stages: that it started.
    output: what it printed.
    signal: that it was sent, or None if it ended by itself.
    status: of its exit.
    seconds: from the signal to its end.
    is_saving: whether a checkpoint was being written when it ended.
    damage: what was damaged before it started.
  """

  stages: list[StageStart]
  output: str
  signal: signal.Signals | None
  status: int
  seconds: float
  is_saving: bool
  damage: str


class Run:
  """A command that is started again and again, with a work directory and a cache of its own.

  Args:
    folder: of the work directory, the cache and the outputs.
    command: without the work directory.
    programs: folder of compiled programs to share; None: there are none at first.
  """

  def __init__(self, folder: Path, command: list[str], programs: Path | None = None):
    self.folder, self.workdir = folder, folder / 'run'
    self.command = [*command, f'--workdir={self.workdir}']
    self.attempts: list[Attempt] = []
    self.programs = folder / 'cache' / 'sjft_jax' / 'xla'
    self.programs.parent.mkdir(parents=True)
    if programs:
      self.programs.symlink_to(programs)

  def start(
    self,
    interruption: Interruption | None = None,
    stages: Sequence[StageStart] = (),
    damage: str = '',
  ) -> Attempt:
    """Start the command and wait for its end.

    Args:
      interruption: stops it, if it is still running then.
      stages: of the undisturbed run.
      damage: is recorded.
    """
    output = self.folder / f'{len(self.attempts) + 1}.txt'
    positions = {stage.name: position for position, stage in enumerate(stages)}
    seen: list[StageStart] = []
    signal_time, sent = math.inf, None
    with output.open('w') as file:
      process = subprocess.Popen(
        self.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=self._environment()
      )
    try:
      for stage in self._watch(process, output):
        if stage:
          seen.append(stage)
          position = positions.get(stage.name, -1)
          if interruption and signal_time == math.inf and position >= interruption.position:
            this, following = stages[interruption.position : interruption.position + 2]
            duration = following.seconds - this.seconds
            signal_time = time.monotonic() + interruption.share * duration
        if interruption and time.monotonic() >= signal_time:
          sent = interruption.signal
          process.send_signal(sent)
          break
      wait_time = time.monotonic()
      status = process.wait(timeout=300)
      seconds = time.monotonic() - wait_time
    finally:
      process.kill()
    if not status and sent == signal.SIGKILL:
      sent = None  # It came too late.
    is_saving = any(self.workdir.rglob('checkpoints/*tmp*'))
    attempt = Attempt(seen, output.read_text(), sent, status, seconds, is_saving, damage)
    self.attempts.append(attempt)
    return attempt

  def _environment(self) -> dict[str, str]:
    return {
      **os.environ,
      'XLA_FLAGS': '',  # One device.
      'XDG_CACHE_HOME': str(self.folder / 'cache'),
      # Small programs are cached too, and found under any path: else attempts mostly compile.
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES': 'none',
    }

  def _watch(self, process: subprocess.Popen[bytes], output: Path) -> Iterator[StageStart | None]:
    """Yield stages as they are seen, and None now and then, until the process ends."""
    start_time, section, has_ended = time.monotonic(), 'start', False
    known = {path for pattern in STAGES_BY_FILE for path in self.folder.glob(pattern)}
    yield StageStart('imports', 'imports', 0.0)
    with output.open() as lines:
      while not has_ended:
        has_ended = process.poll() is not None
        new = []
        for line in lines:
          if line.startswith(('Pretraining', 'Arm ')):
            section = line[:5]
          elif line.startswith('  round '):
            section = section[:5] + line[2:9]
          if 'done before' not in line:
            stages = (s for start, s in STAGES_BY_LINE.items() if line.startswith(start))
            new += [(stage, f'{section}: {stage}') for stage in stages]
        for pattern, stage in STAGES_BY_FILE.items():
          for path in set(self.folder.glob(pattern)) - known:
            known.add(path)
            # While Orbax writes step 4, its folder is called 4.orbax-checkpoint-tmp.
            folder, name = path.parent.relative_to(self.folder), path.name.partition('.')[0]
            new.append((stage, f'{folder}/{name}: {stage}'))
        yield from (StageStart(*start, time.monotonic() - start_time) for start in new)
        yield None
        time.sleep(0.005)
    yield StageStart('end', 'end', time.monotonic() - start_time)


def plan_interruptions(
  stages: Sequence[StageStart], kills: int, rng: np.random.Generator
) -> list[list[Interruption]]:
  """Draw the interruptions of each of several work directories, in order.

  In all, `kills` are by SIGKILL, as many in each kind of stage; one in each directory, anywhere, is
  by another signal.
  """
  positions: dict[str, list[int]] = {}
  for position, start in enumerate(stages[:-1]):
    positions.setdefault(start.stage, []).append(position)
  kinds = list(positions.values())
  drawn = [
    Interruption(int(rng.choice(kinds[i % len(kinds)])), rng.random(), signal.SIGKILL)
    for i in range(kills)
  ]
  workdirs = -(-kills // _KILLS_PER_WORKDIR)
  handled = [list(STATUS_BY_SIGNAL)[i % len(STATUS_BY_SIGNAL)] for i in range(workdirs)]
  drawn += [Interruption(int(rng.integers(len(stages) - 1)), rng.random(), s) for s in handled]
  # A work directory gets every so many, so the last ones are spread over all.
  return [sorted(drawn[i::workdirs]) for i in range(workdirs)]


def run_to_the_end(
  run: Run,
  interruptions: Sequence[Interruption],
  stages: Sequence[StageStart],
  rng: np.random.Generator,
) -> None:
  """Start a run for every interruption, with damage before one of these, and then to its end."""
  # The first attempt that may find damage: the first one that finds something to be damaged does.
  damaged_from = int(rng.integers(1, len(interruptions) + 1))
  for number, interruption in enumerate([*interruptions, None]):
    damage = damage_file(run, rng) if number >= damaged_from else ''
    damaged_from = len(interruptions) + 1 if damage else damaged_from
    if run.start(interruption, stages, damage).signal is None:
      break


def damage_file(run: Run, rng: np.random.Generator) -> str:
  """Damage a file that the next attempt needs, if there is one; return how, and which."""
  if (run.workdir / 'results.json').exists():
    return ''
  folders = [run.programs]
  if run.programs.is_symlink():  # Other runs need them too.
    trainings = ['pretrain']
    for arm in ARMS:
      if not (run.workdir / f'arms/{arm}/rounds/{ROUNDS}/round.npz').exists():
        trainings.append(f'arms/{arm}')
    checkpoints = (newest_checkpoint(run.workdir / name / 'checkpoints') for name in trainings)
    by_time = sorted(filter(None, checkpoints), key=lambda step: step.stat().st_mtime)
    folders = by_time[-1:]
  files = sorted(path for folder in folders for path in folder.rglob('*') if path.is_file())
  sizes = np.array([path.stat().st_size for path in files])
  if not sizes.any():
    return ''
  file = files[rng.choice(len(files), p=sizes / sizes.sum())]  # Each byte is as likely.
  kind = str(rng.choice(['truncated', 'a bit flipped', 'deleted']))
  content = bytearray(file.read_bytes())
  offset = int(rng.integers(len(content)))
  content[offset] ^= 1 << int(rng.integers(8))
  file.write_bytes(content[:offset] if kind == 'truncated' else content)
  if kind == 'deleted':
    file.unlink()
  return f'{kind}: {file.relative_to(run.folder)}'


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


def find_problems(run: Run, expected: dict[str, str]) -> list[str]:
  """List the attempts that should have ended otherwise, and how the end differs."""
  problems = []
  for number, attempt in enumerate(run.attempts, 1):
    stage = attempt.stages[-1].stage
    # During imports the signal ends Python itself; after the results there is nothing to save.
    unhandled = {'imports': {-15, -2, 1}, 'results': {-15, -2, 0}}.get(stage, set())
    status = STATUS_BY_SIGNAL.get(attempt.signal, -9) if attempt.signal else 0
    if attempt.status not in {status, *(unhandled if attempt.signal in STATUS_BY_SIGNAL else ())}:
      last = ''.join(attempt.output.splitlines()[-1:])
      problems.append(
        f'attempt {number} ended in {stage} with {attempt.status}, not {status}: {last}'
      )
    is_handled = attempt.signal in STATUS_BY_SIGNAL
    if is_handled and stage in ('step', 'checkpoint') and attempt.is_saving:
      problems.append(f'attempt {number} was stopped in {stage} and exited before it had saved')
  if not run.attempts[-1].status:
    problems += [f'{name} differs' for name in find_differences(run.workdir, expected)]
  return problems


def write_weights(path: Path) -> None:
  """Write a network of random weights with torchvision's names."""
  body = trunk.build_trunk(**NETWORK, style='torch', fully_connected=True)
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(body.init, jax.random.key(0), image)
  names = layouts(NETWORK['name'], 'torch')[0].names
  kinds = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
  rng = np.random.default_rng(0)
  tensors = {'fc.weight': rng.normal(0, 1, (5_000, 32))}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(variables):
    _, *layer, kind = (key.key for key in keys)
    shape = [leaf.shape[axis] for axis in (3, 2, 0, 1)] if kind == 'kernel' else leaf.shape
    values = rng.uniform(0.5, 1.5, shape) if kind in ('scale', 'var') else rng.normal(0, 0.1, shape)
    tensors[f'{names["/".join(layer)]}.{kinds.get(kind, kind)}'] = values
  tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
  safetensors.numpy.save_file(tensors, path)


@contextmanager
def serve_slowly(file: Path) -> Iterator[str]:
  """Yield the address of a file, at a server that takes a second to send it."""
  content = file.read_bytes()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
      self.send_response(200)
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      with suppress(OSError):  # The receiver has been killed.
        for start in range(0, len(content), 1 + len(content) // 50):
          self.wfile.write(content[start : start + 1 + len(content) // 50])
          time.sleep(0.02)

    def log_message(self, *_: object) -> None:
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever, args=(0.1,)).start()
    try:
      yield f'http://127.0.0.1:{server.server_port}/{file.name}'
    finally:
      server.shutdown()


@contextmanager
def prepare_command(folder: Path, *changes: str) -> Iterator[list[str]]:
  """Yield the command without the work directory; its inputs are written to the folder.

  Args:
    folder: is there already.
    changes: options that differ from `OPTIONS`.
  """
  weights = folder / 'net.safetensors'
  write_weights(weights)
  write_images = functools.partial(write_class_folders, height=40, width=44, suffix='.png')
  write_images(folder / 'target' / 'train', 3, 4, seed=0)
  write_images(folder / 'target' / 'test', 3, 3, seed=1)
  write_images(folder / 'source' / 'train', 6, 40, seed=2)
  checksum = f'sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}'
  paths = [f'{domain}.path={folder / domain}' for domain in ('target', 'source')]
  options = dict(option.split('=', 1) for option in (*OPTIONS.split(), *paths, *changes))
  with serve_slowly(weights) as address:
    command = [sys.executable, '-c', PROGRAM, address, checksum, '--config=configs/folder.py']
    yield command + [f'--config.{name}={value}' for name, value in options.items()]


def inject_faults(folder: Path, kills: int, seed: int) -> Iterator[tuple[Run, list[str]]]:
  """Yield runs, an undisturbed one first, each with its problems.

  Raises:
    RuntimeError: the undisturbed run fails.
  """
  with prepare_command(folder) as command, ThreadPoolExecutor(2) as pool:
    first = Run(folder / 'undisturbed', command)
    if first.start().status:
      raise RuntimeError(f'the undisturbed run fails:\n{first.attempts[0].output}')
    expected = digest_artifacts(first.workdir)
    second = Run(folder / 'undisturbed again', command, first.programs)
    stages = second.start().stages
    yield second, find_problems(second, expected)

    def run_interrupted(number: int, interruptions: list[Interruption]) -> Run:
      run = Run(folder / f'{number}', command, first.programs if number % 4 else None)
      run_to_the_end(run, interruptions, stages, np.random.default_rng([seed, number]))
      return run

    rng, workdirs, missing = np.random.default_rng(seed), 0, kills
    while missing > 0:  # A process can end just before it is killed.
      plan = plan_interruptions(stages, missing, rng)
      for run in pool.map(run_interrupted, range(workdirs + 1, workdirs + 1 + len(plan)), plan):
        yield run, find_problems(run, expected)
        missing -= sum(attempt.signal == signal.SIGKILL for attempt in run.attempts)
      workdirs += len(plan)


def print_counts(stages: dict[str, Counter[str]], slowest: dict[str, float]) -> None:
  """Print how often each stage was stopped by which signal, and how it ended."""
  columns = ('SIGKILL', 'SIGTERM', 'SIGINT', 'equal', 'different')
  print(f'{"":16}', *(f'{column:>9}' for column in columns))
  for stage, counts in [*stages.items(), ('all', sum(stages.values(), Counter()))]:
    print(f'{stage:16}', *(f'{counts[column]:9}' for column in columns))
  print(', '.join(f'{name}: ended after {t:.1f} s at most' for name, t in slowest.items()))


def main(_: object) -> None:
  logging.set_verbosity(logging.ERROR)
  say = (lambda _: None) if JSON.value else functools.partial(print, flush=True)
  stages: dict[str, Counter[str]] = {}
  slowest: dict[str, float] = {}
  damaged: list[str] = []
  wrong: dict[str, list[str]] = {}
  with tempfile.TemporaryDirectory() as scratch:
    folder = Path(KEEP.value or scratch).absolute()
    folder.mkdir(exist_ok=not KEEP.value)
    for run, problems in inject_faults(folder, KILLS.value, SEED.value):
      outputs = [attempt.output for attempt in run.attempts]
      is_noticed = any(re.search('is damaged|Error reading', output) for output in outputs)
      noticed = 'noticed' if is_noticed else 'not noticed'
      damage = [f'{attempt.damage}, {noticed}' for attempt in run.attempts if attempt.damage]
      say(f'{run.folder.name}: {"" if problems else "as if undisturbed"}')
      for line in damage + problems:
        say(f'  {line}')
      damaged += damage
      if problems:
        wrong[run.folder.name] = problems
      for attempt in run.attempts:
        if attempt.signal:
          name, stage = attempt.signal.name, attempt.stages[-1].stage
          counts = stages.setdefault(stage, Counter())
          counts.update([name, 'different' if problems else 'equal'])
          slowest[name] = max(slowest.get(name, 0), attempt.seconds)
  if JSON.value:
    result = {'stages': stages, 'slowest_end': slowest, 'damaged': damaged, 'wrong': wrong}
    print(json.dumps({'seed': SEED.value, **result}))
  else:
    print_counts(stages, slowest)
  sys.exit(bool(wrong))


if __name__ == '__main__':
  app.run(main)
