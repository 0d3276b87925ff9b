"""Ends a run at random moments, again and again, and compares it with one that was left alone.

  python -m experiments.fault_injection [--kills=50] [--seed=0] [--json] [--keep=DIR]

The run is small and has everything: weights are downloaded (from a slow server of this program's
own), images screened, described and ranked, a trunk is pretrained, three arms are trained, scored
and reported, with a checkpoint every two steps and a partial ranking every batch. It is run twice
undisturbed, with an empty and with a filled cache of compiled programs, which tells when each stage
begins. Then the same command is started in one work directory after another until it ends; every
life but the last is ended at a random moment of a stage that was drawn beforehand, each stage as
often as the others. In every fourth work directory the caches are empty at first.

Besides `kills` deaths by SIGKILL, every work directory sees one SIGTERM or Ctrl-C, which must end
the process with status 143 or 130; and, between two lives, damage: a file of the newest checkpoint
that is still needed (where the cache was empty: a compiled program) is cut short, has a bit turned
over, or is deleted.

The end must equal the undisturbed run's bit by bit: the newest checkpoint of every training
(parameters, batch statistics, optimizer), rankings, hardness, neighbour counts, probabilities,
results, selections, lists and logs; only times may differ. If anything else does, or a life ends in
another way, the exit status is 1.
"""

import functools
import hashlib
import http.server
import json
import math
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

from sjft_jax.models import trunk
from sjft_jax.models.weights.layouts import layouts
from tests import commands, small_run

KILLS = flags.DEFINE_integer('kills', 50, 'Deaths by SIGKILL.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the moments and the damage.')
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object and nothing else.')
KEEP = flags.DEFINE_string('keep', None, 'A new folder, where everything stays.')

NETWORK = {'name': 'resnet18v1', 'width': 1 / 16}
OPTIONS = """
bank.layers=('conv1',) descriptors.resize=40 descriptors.crop=36 descriptors.num_bins=8
descriptors.batch_size=8 descriptors.checkpoint_minutes=1e-6
selection.num_neighbors=3 selection.rounds=2
model.name=resnet18v1 model.width=0.0625 model.pretrained=local/net pretrain.steps=5
images.resize=36 images.crop=32
training.steps=16 training.batch_size=4 training.accumulation=1 training.checkpoint_every=2
evaluation.batch_size=8 evaluation.views=('center',) arms=('none','selected','rounds')
"""
LAST_ROUNDS = {'none': 1, 'selected': 1, 'rounds': 2}
# A person's command, but one more network is published: its address and checksum come first.
PROGRAM = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # Where this runs in the background too.
from sjft_jax.models.weights import published
published.PUBLISHED['local/net'] = published.PublishedWeights(*sys.argv[1:3])
del sys.argv[1:3]
runpy.run_module('sjft_jax.main', run_name='__main__', alter_sys=True)
"""
# What begins a stage: a line of the output, or a file.
LINES = {
  'Looking at every image': 'screening',
  'Ranking the source': 'describing',
  '  histograms of target': 'ranking',
  'Pretraining': 'compiling',
  '  round ': 'compiling',
  '  scoring target/train': 'scoring',
  '  scoring target/test': 'round.npz',
}
FILES = {
  'cache/sjft_jax/weights/.*': 'download',
  'cache/sjft_jax/weights/[!.]*': 'initialisation',
  'run/ranking.partial.npz': 'ranking, begun',
  'run/pretrain/checkpoints/*tmp*': 'checkpoint',
  'run/arms/*/checkpoints/*tmp*': 'checkpoint',
  'run/pretrain/checkpoints/*': 'step',
  'run/arms/*/checkpoints/*': 'step',
  'run/arms/rounds/rounds/2/round.npz': 'results',
}
STOPS = {signal.SIGTERM: 143, signal.SIGINT: 130}
_KILLS_EACH = 5  # In a work directory.
_TIMES = re.compile('second|time|device')


class Mark(NamedTuple):
  """A stage has begun, so many seconds after the start; the name tells which time in a run."""

  stage: str
  name: str
  seconds: float


class Moment(NamedTuple):
  """After a mark of the undisturbed run, or a later one, by a share of the time to the next."""

  place: int
  share: float
  signal: signal.Signals


class Life(NamedTuple):
  """One process. It ended by itself, or `seconds` after a signal, with this status."""

  marks: list[Mark]
  output: str
  signal: signal.Signals | None
  status: int
  seconds: float
  is_saving: bool  # When it ended, a checkpoint was being written.
  damage: str  # Done before it began.


class Run:
  """A command that is started again and again, with a work directory and a cache of its own.

  `programs` are compiled ones to share, else there are none at first.
  """

  def __init__(self, folder: Path, command: list[str], programs: Path | None = None):
    self.folder, self.workdir = folder, folder / 'run'
    self.command = [*command, f'--workdir={self.workdir}']
    self.lives: list[Life] = []
    self.programs = folder / 'cache' / 'sjft_jax' / 'xla'
    self.programs.parent.mkdir(parents=True)
    if programs:
      self.programs.symlink_to(programs)

  def live(
    self, moment: Moment | None = None, marks: Sequence[Mark] = (), damage: str = ''
  ) -> Life:
    """Starts the command and waits for its end, which comes at the moment at the latest."""
    output = self.folder / f'{len(self.lives) + 1}.txt'
    places = {mark.name: place for place, mark in enumerate(marks)}
    seen: list[Mark] = []
    due, sent = math.inf, None
    with output.open('w') as file:
      process = commands.start(
        self.command,
        stdout=file,
        stderr=subprocess.STDOUT,
        XDG_CACHE_HOME=str(self.folder / 'cache'),
        # Lest lives be mostly compiling: small programs are kept too, and found under any path.
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
        JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES='none',
      )
    try:
      for mark in self._watch(process, output):
        if mark:
          seen.append(mark)
          if moment and due == math.inf and places.get(mark.name, -1) >= moment.place:
            here, following = marks[moment.place : moment.place + 2]
            due = time.monotonic() + moment.share * (following.seconds - here.seconds)
        if moment and time.monotonic() >= due:
          sent = moment.signal
          process.send_signal(sent)
          break
      left = time.monotonic()
      status = process.wait(timeout=300)
      seconds = time.monotonic() - left
    finally:
      process.kill()
    if not status and sent == signal.SIGKILL:
      sent = None  # It came too late.
    is_saving = any(self.workdir.rglob('checkpoints/*tmp*'))
    self.lives.append(Life(seen, output.read_text(), sent, status, seconds, is_saving, damage))
    return self.lives[-1]

  def _watch(self, process: subprocess.Popen, output: Path) -> Iterator[Mark | None]:
    """Marks as they are seen, and None now and then, until the process ends."""
    begun, section, has_ended = time.monotonic(), 'start', False
    known = {path for pattern in FILES for path in self.folder.glob(pattern)}
    yield Mark('imports', 'imports', 0.0)
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
            stages = (stage for start, stage in LINES.items() if line.startswith(start))
            new += [(stage, f'{section}: {stage}') for stage in stages]
        for pattern, stage in FILES.items():
          for path in set(self.folder.glob(pattern)) - known:
            known.add(path)
            # While Orbax writes step 4, its folder is called 4.orbax-checkpoint-tmp.
            place, name = path.parent.relative_to(self.folder), path.name.partition('.')[0]
            new.append((stage, f'{place}/{name}: {stage}'))
        yield from (Mark(*mark, time.monotonic() - begun) for mark in new)
        yield None
        time.sleep(0.005)
    yield Mark('end', 'end', time.monotonic() - begun)


def moments(marks: list[Mark], kills: int, rng: np.random.Generator) -> list[list[Moment]]:
  """The moments for each of several work directories, in order.

  In all, `kills` are by SIGKILL, in each kind of stage as many; one in each directory, anywhere,
  is by another signal.
  """
  places: dict[str, list[int]] = {}
  for place, mark in enumerate(marks[:-1]):
    places.setdefault(mark.stage, []).append(place)
  stages = list(places.values())
  drawn = [
    Moment(int(rng.choice(stages[i % len(stages)])), rng.random(), signal.SIGKILL)
    for i in range(kills)
  ]
  number = -(-kills // _KILLS_EACH)
  others = [list(STOPS)[i % len(STOPS)] for i in range(number)]
  drawn += [Moment(int(rng.integers(len(marks) - 1)), rng.random(), other) for other in others]
  # One work directory gets every so many, so the last ones are spread over all.
  return [sorted(drawn[i::number]) for i in range(number)]


def torment(run: Run, ends: list[Moment], marks: list[Mark], rng: np.random.Generator) -> None:
  """Lives that end at these moments, with damage before one of them, then one to the end."""
  unharmed = int(rng.integers(1, len(ends) + 1))
  for number, moment in enumerate([*ends, None]):
    damage = injure(run, rng) if number >= unharmed else ''
    unharmed = len(ends) + 1 if damage else unharmed
    if run.live(moment, marks, damage).signal is None:
      break


def injure(run: Run, rng: np.random.Generator) -> str:
  """Damages a file that the next life needs, if there is one; tells how, and which."""
  if (run.workdir / 'results.json').exists():
    return ''
  folders = [run.programs]
  if run.programs.is_symlink():  # Others need them too.
    needed = ['pretrain']
    for arm, last in LAST_ROUNDS.items():
      if not (run.workdir / f'arms/{arm}/rounds/{last}/round.npz').exists():
        needed.append(f'arms/{arm}')
    folders = [step for name in needed if (step := newest(run.workdir / name / 'checkpoints'))]
    folders = sorted(folders, key=lambda step: step.stat().st_mtime)[-1:]
  files = sorted(path for folder in folders for path in folder.rglob('*') if path.is_file())
  sizes = np.array([path.stat().st_size for path in files])
  if not sizes.any():
    return ''
  file = files[rng.choice(len(files), p=sizes / sizes.sum())]  # Disks do not know files either.
  how = str(rng.choice(['cut short', 'a bit turned over', 'deleted']))
  content = bytearray(file.read_bytes())
  place = int(rng.integers(len(content)))
  content[place] ^= 1 << int(rng.integers(8))
  file.write_bytes(content[:place] if how == 'cut short' else content)
  if how == 'deleted':
    file.unlink()
  return f'{how}: {file.relative_to(run.folder)}'


def newest(checkpoints: Path) -> Path | None:
  """The newest whole checkpoint."""
  steps = (path for path in checkpoints.glob('*') if path.name.isdigit())
  return max(steps, key=lambda path: int(path.name), default=None)


def contents(workdir: Path) -> dict[str, str]:
  """Digests, by name, of what a run has left; of times there are none."""
  found: dict[str, Any] = {}
  for path in sorted(workdir.rglob('*')):
    name = str(path.relative_to(workdir))
    if path.name == 'checkpoints' and (step := newest(path)):
      with ocp.CheckpointManager(path.absolute()) as manager:
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore())
        state = manager.restore(int(step.name), args=arguments)['state']
      for keys, leaf in jax.tree_util.tree_leaves_with_path(state):
        found[f'{name}/{step.name}{jax.tree_util.keystr(keys)}'] = np.asarray(leaf)
    elif path.is_dir() or 'checkpoints' in path.parts:
      continue
    elif path.suffix == '.npz':
      with np.load(path) as arrays:
        found |= {f'{name}/{key}': arrays[key] for key in arrays if not _TIMES.search(key)}
    elif path.suffix in ('.json', '.jsonl'):
      lines = [path.read_text()] if path.suffix == '.json' else path.read_text().splitlines()
      found[name] = [_timeless(json.loads(line)) for line in lines]
    elif not path.name.startswith(('.', 'events.out.tfevents')):
      found[name] = path.read_bytes()
  # Packages may be installed in between.
  return {name: _digest(value) for name, value in found.items() if name != 'versions.json'}


def _timeless(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _timeless(part) for key, part in value.items() if not _TIMES.search(key)}
  return [_timeless(part) for part in value] if isinstance(value, list) else value


def _digest(value: Any) -> str:
  if isinstance(value, np.ndarray):
    value = f'{value.dtype} {value.shape} '.encode() + value.tobytes()
  elif not isinstance(value, bytes):
    value = json.dumps(value).encode()
  return hashlib.sha256(value).hexdigest()


def differences(workdir: Path, expected: dict[str, str]) -> list[str]:
  """What of a work directory is not as it was in another, whose `contents` are given."""
  found = contents(workdir)
  names = sorted(found.keys() | expected.keys())
  return [name for name in names if found.get(name) != expected.get(name)]


def faults(run: Run, expected: dict[str, str]) -> list[str]:
  """Lives that should have ended otherwise, and how the end differs."""
  found = []
  for number, life in enumerate(run.lives, 1):
    stage = life.marks[-1].stage
    # During imports it is Python that is stopped; after the results there is nothing to save.
    elsewhere = {'imports': {-15, -2, 1}, 'results': {-15, -2, 0}}.get(stage, set())
    status = STOPS.get(life.signal, -9) if life.signal else 0
    if life.status not in {status, *(elsewhere if life.signal in STOPS else ())}:
      last = ''.join(life.output.splitlines()[-1:])
      found.append(f'life {number} ended in {stage} with {life.status}, not {status}: {last}')
    if life.signal in STOPS and stage in ('step', 'checkpoint') and life.is_saving:
      found.append(f'life {number} was asked to stop in {stage} and left before it had saved')
  if not run.lives[-1].status:
    found += [f'{name} differs' for name in differences(run.workdir, expected)]
  return found


def write_weights(path: Path) -> None:
  """A network of random weights, as torchvision would name them."""
  body = trunk.build_trunk(**NETWORK, style='torch', fully_connected=True)
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(body.init, jax.random.key(0), image)
  names = layouts(NETWORK['name'], 'torch')[0].names
  theirs = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
  rng = np.random.default_rng(0)
  tensors = {'fc.weight': rng.normal(0, 1, (5_000, 32))}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(variables):
    _, *layer, kind = (key.key for key in keys)
    shape = [leaf.shape[axis] for axis in (3, 2, 0, 1)] if kind == 'kernel' else leaf.shape
    values = rng.uniform(0.5, 1.5, shape) if kind in ('scale', 'var') else rng.normal(0, 0.1, shape)
    tensors[f'{names["/".join(layer)]}.{theirs.get(kind, kind)}'] = values
  tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
  safetensors.numpy.save_file(tensors, path)


@contextmanager
def served(file: Path) -> Iterator[str]:
  """The address of a file, at a server that takes a second to send it."""
  content = file.read_bytes()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.send_response(200)
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      with suppress(OSError):  # Whom it was for has been killed.
        for start in range(0, len(content), 1 + len(content) // 50):
          self.wfile.write(content[start : start + 1 + len(content) // 50])
          time.sleep(0.02)

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever, args=(0.1,)).start()
    try:
      yield f'http://127.0.0.1:{server.server_port}/{file.name}'
    finally:
      server.shutdown()


@contextmanager
def prepared(folder: Path, *changes: str) -> Iterator[list[str]]:
  """The command, less the work directory, on inputs that are written to the folder.

  `changes` are other options than `OPTIONS`.
  """
  weights = folder / 'net.safetensors'
  write_weights(weights)
  small_run.write_folder(folder / 'target' / 'train', 3, 4, seed=0)
  small_run.write_folder(folder / 'target' / 'test', 3, 3, seed=1)
  small_run.write_folder(folder / 'source' / 'train', 6, 40, seed=2)
  checksum = f'sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}'
  paths = [f'{domain}.path={folder / domain}' for domain in ('target', 'source')]
  options = dict(option.split('=', 1) for option in (*OPTIONS.split(), *paths, *changes))
  with served(weights) as address:
    command = [sys.executable, '-c', PROGRAM, address, checksum, '--config=configs/folder.py']
    yield command + [f'--config.{name}={value}' for name, value in options.items()]


def inject(folder: Path, kills: int, seed: int) -> Iterator[tuple[Run, list[str]]]:
  """Runs, an undisturbed one first, each with what is wrong with it."""
  with prepared(folder) as command, ThreadPoolExecutor(2) as pool:
    first = Run(folder / 'undisturbed', command)
    if first.live().status:
      raise RuntimeError(f'undisturbed, it fails:\n{first.lives[0].output}')
    expected = contents(first.workdir)
    again = Run(folder / 'undisturbed again', command, first.programs)
    marks = again.live().marks
    yield again, faults(again, expected)

    def tormented(number: int, ends: list[Moment]) -> Run:
      run = Run(folder / f'{number}', command, first.programs if number % 4 else None)
      torment(run, ends, marks, np.random.default_rng([seed, number]))
      return run

    rng, started, missing = np.random.default_rng(seed), 0, kills
    while missing > 0:  # A process can end just before it is killed.
      plan = moments(marks, missing, rng)
      for run in pool.map(tormented, range(started + 1, started + 1 + len(plan)), plan):
        yield run, faults(run, expected)
        missing -= sum(life.signal == signal.SIGKILL for life in run.lives)
      started += len(plan)


def main(argv):
  del argv
  logging.set_verbosity(logging.ERROR)
  say = (lambda _: None) if JSON.value else functools.partial(print, flush=True)
  stages: dict[str, Counter[str]] = {}
  slowest: dict[str, float] = {}
  damaged, wrong = [], {}
  with tempfile.TemporaryDirectory() as scratch:
    folder = Path(KEEP.value or scratch).absolute()
    folder.mkdir(exist_ok=not KEEP.value)
    for run, found in inject(folder, KILLS.value, SEED.value):
      told = any(re.search('is damaged|Error reading', life.output) for life in run.lives)
      noticed = 'noticed' if told else 'not noticed'
      damage = [f'{life.damage}, {noticed}' for life in run.lives if life.damage]
      say(f'{run.folder.name}: {"" if found else "as if undisturbed"}')
      for line in damage + found:
        say(f'  {line}')
      damaged += damage
      wrong |= {run.folder.name: found} if found else {}
      for life in run.lives:
        if life.signal:
          name = life.signal.name
          stages.setdefault(life.marks[-1].stage, Counter())[name] += 1
          stages[life.marks[-1].stage]['different' if found else 'equal'] += 1
          slowest[name] = max(slowest.get(name, 0), life.seconds)
  if JSON.value:
    result = {'stages': stages, 'slowest_end': slowest, 'damaged': damaged, 'wrong': wrong}
    print(json.dumps({'seed': SEED.value, **result}))
  else:
    stages['all'] = sum(stages.values(), Counter())
    columns = ('SIGKILL', 'SIGTERM', 'SIGINT', 'equal', 'different')
    print(f'{"":16}', *(f'{column:>9}' for column in columns))
    for stage, counts in stages.items():
      print(f'{stage:16}', *(f'{counts[column]:9}' for column in columns))
    print(', '.join(f'{name}: ended after {t:.1f} s at most' for name, t in slowest.items()))
  sys.exit(bool(wrong))


if __name__ == '__main__':
  app.run(main)
