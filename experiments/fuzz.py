"""Damage small valid files at random, and count what the parsers make of them.

  python -m experiments.fuzz [--parser=all] [--minutes=10] [--seed=0] [--findings=DIR] [--json]

Each parser reads files that come from strangers: weights, images, lists, archives, records of TFDS,
checkpoints, the JSON files of work directories and exports. A valid file is changed in one to eight
places: bits, numbers, parts that are cut out, repeated or come from another file; JSON in its
values, too. Where a checksum would reveal that, it is computed anew for half of the inputs.

A process of its own reads one input after another. It must return, or raise ValueError with a text
that names the file (commands cut long texts and escape control characters), within 10 seconds of a
processor's core and 512 MB beyond what it had. It may write only to its own folder, start no
program and open no connection. All else is a finding, and so is a crash: the input is kept in the
folder --findings with what happened, and the exit status is 1.

An input is a pure function of parser, seed and number. With --findings=DIR a later call goes on
with the numbers that follow, and the counts add up.
"""

import dataclasses
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from experiments.fuzz_mutations import mutate
from experiments.fuzz_parsers import PARSERS

MAX_SECONDS, MAX_MEGABYTES = 10, 512
# A parser that hangs is ended, on a busy machine too.
_PATIENCE_S = 30
_TURN_S = 30


# --- the process that reads ----------------------------------------------------------------------


class _Input:
  """The inputs of a parser, in a folder that is there."""

  def __init__(self, name: str, folder: Path):
    self._name, self._parser, self._folder = name, PARSERS[name], folder
    (folder / 'seeds').mkdir()
    self._parser.seeds(folder / 'seeds')
    self._seeds = sorted((folder / 'seeds').iterdir())
    self._contents = [
      file.read_bytes() for file in sorted((folder / 'seeds').rglob('*')) if file.is_file()
    ]

  def read_seeds(self) -> None:
    for seed in self._seeds:
      self._parser.read(self._place(seed))

  def _place(self, path: Path) -> Path:
    """Copy a valid file, or a folder, to where inputs are."""
    out = self._folder / f'input{path.suffix}'
    if path.is_dir():
      shutil.rmtree(out, ignore_errors=True)
      shutil.copytree(path, out)
    else:
      shutil.copy(path, out)
    return out

  def write(self, seed: int, number: int) -> tuple[Path, Path]:
    """Return the path to be read and, of a folder, the file there that is changed."""
    rng = np.random.default_rng([seed, zlib.crc32(self._name.encode()), number])
    path = self._seeds[int(rng.integers(len(self._seeds)))]
    file = path
    if path.is_dir():
      files = sorted(file for file in path.glob(self._parser.names) if file.is_file())
      file = files[int(rng.integers(len(files)))]
    content = mutate(file.read_bytes(), self._contents, rng)
    if self._parser.finish and rng.random() < 0.5:
      content = self._parser.finish(content)
    out = self._place(path)
    changed = out / file.relative_to(path)
    changed.write_bytes(content)
    return out, changed

  def read(self, path: Path) -> str:
    """Read an input; return 'accepted' or 'refused'.

    Raises:
      Exception: anything that is a finding.
    """
    try:
      self._parser.read(path)
    except ValueError as error:
      text = str(error)
      if isinstance(error, UnicodeError | json.JSONDecodeError):
        raise RuntimeError('an error of the library') from error
      if self._parser.name not in text:
        raise RuntimeError(f'a message that names no file: {text!r}') from error
      return 'refused'
    return 'accepted'


def _forbid(folder: Path) -> None:
  """Let this process write to no other folder, start no program and open no connection."""
  allowed = (str(folder), '/dev/', '/proc/self/')
  forbidden = ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'socket.connect')

  def check(event: str, arguments: tuple[Any, ...]) -> None:
    if event in forbidden:
      raise RuntimeError(f'{event}{arguments!r} is not for a parser')
    if event == 'open' and isinstance(arguments[0], str) and isinstance(arguments[2], int):
      writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
      if writes and not os.path.abspath(arguments[0]).startswith(allowed):
        raise RuntimeError(f'{arguments[0]} is written')

  sys.addaudithook(check)


def _memory(name: str) -> float:
  lines = Path('/proc/self/status').read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000


def _read_all(name: str, seed: int, number: int, folder: str, pipe: Any) -> None:
  """Read the inputs of a parser from a number on, without end, and send what comes of each."""
  os.chdir(folder)
  os.environ.update(HOME=folder, XDG_CACHE_HOME=folder, TMPDIR=folder, CUDA_VISIBLE_DEVICES='')
  tempfile.tempdir = folder
  inputs = _Input(name, Path(folder))
  inputs.read_seeds()
  output = os.open(os.devnull, os.O_WRONLY)  # Libraries print what they think of such files.
  for stream in (1, 2):
    os.dup2(output, stream)
  limit = int(_memory('VmSize') * 1e6) + 8 * 2**30
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  _forbid(Path(folder))
  before, peak = 0.0, 64.1
  while True:
    path, file = inputs.write(seed, number)
    pipe.send(('begins', str(file)))
    if peak > before + 64:  # To measure anew takes milliseconds.
      Path('/proc/self/clear_refs').write_text('5')
      before = peak = _memory('VmRSS')
    start, reason = time.process_time(), ''
    try:
      outcome = inputs.read(path)
    except BaseException as error:
      outcome, reason = type(error).__name__, traceback.format_exc()
    seconds, peak = time.process_time() - start, _memory('VmHWM')
    megabytes = peak - before
    if outcome in ('accepted', 'refused'):
      if seconds > MAX_SECONDS:
        outcome, reason = 'slow', f'{seconds:.1f} s'
      elif megabytes > MAX_MEGABYTES:
        outcome, reason = 'large', f'{megabytes:.0f} MB'
    pipe.send(('ends', outcome, reason, seconds, megabytes))
    number += 1


# --- the process that counts ---------------------------------------------------------------------


@dataclasses.dataclass
class Tally:
  """What came of the inputs of a parser with a seed so far.

  Attributes:
    inputs: how many there were.
    outcomes: how often each outcome.
    seconds: of all inputs together, on the clock.
    slowest, largest: most seconds of a core and megabytes of an input that is no finding.
  """

  inputs: int = 0
  outcomes: dict[str, int] = dataclasses.field(
    default_factory=lambda: {'accepted': 0, 'refused': 0}
  )
  seconds: float = 0
  slowest: float = 0
  largest: float = 0

  @property
  def findings(self) -> int:
    return self.inputs - self.outcomes['accepted'] - self.outcomes['refused']


def fuzz(name: str, seed: int, seconds: float, tally: Tally, findings: Path) -> None:
  """Read inputs for some time, from the number on that `tally` has come to, and add them to it."""
  context = multiprocessing.get_context('spawn')
  deadline = time.monotonic() + seconds
  is_first = True
  while is_first or time.monotonic() < deadline:
    is_first = False
    with tempfile.TemporaryDirectory() as folder:
      pipe, other = context.Pipe()
      process = context.Process(
        target=_read_all, args=(name, seed, tally.inputs, folder, other), daemon=True
      )
      process.start()
      other.close()
      try:
        _count(pipe, deadline, name, seed, tally, findings)
      finally:
        process.kill()
        process.join()


def _count(pipe: Any, deadline: float, name: str, seed: int, tally: Tally, findings: Path) -> None:
  """Count what a process sends until the deadline, or until it hangs or dies."""
  file = None
  start = time.monotonic()
  while True:
    try:
      is_there = any(pipe.poll(_PATIENCE_S) for _ in range(2))  # It may have been suspended.
      message = pipe.recv() if is_there else ('ends', 'hangs', '', 0.0, 0.0)
    except EOFError:
      message = ('ends', 'crash', '', 0.0, 0.0)
    if message[0] == 'begins':
      file = Path(message[1])
      if time.monotonic() > deadline:
        break
      continue
    if file is None:
      raise RuntimeError(f'the valid files of {name} cannot be read')
    _, outcome, reason, took, megabytes = message
    now = time.monotonic()
    tally.seconds, start = tally.seconds + now - start, now
    tally.outcomes[outcome] = tally.outcomes.get(outcome, 0) + 1
    if outcome in ('accepted', 'refused'):
      tally.slowest, tally.largest = max(tally.slowest, took), max(tally.largest, megabytes)
    else:
      findings.mkdir(parents=True, exist_ok=True)
      place = findings / f'{name}-{seed}-{tally.inputs}-{outcome}-{file.name}'
      place.write_bytes(file.read_bytes() if file.exists() else b'')
      place.with_name(f'{place.name}.txt').write_text(f'{file}\n{reason}')
    tally.inputs += 1
    if outcome in ('hangs', 'crash'):
      break


def _load(path: Path) -> dict[str, Tally]:
  if not path.exists():
    return {}
  return {key: Tally(**value) for key, value in json.loads(path.read_text()).items()}


def _save(path: Path, tallies: dict[str, Tally]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'{path.name}.new')
  temporary.write_text(json.dumps({k: dataclasses.asdict(v) for k, v in tallies.items()}, indent=1))
  temporary.replace(path)


def _print_table(tallies: dict[str, Tally]) -> None:
  columns = ('minutes', 'inputs', 'refused', 'accepted', 'findings', 'slowest, s', 'largest, MB')
  print(f'{"":18}', *(f'{column:>11}' for column in columns))
  for key, t in sorted(tallies.items()):
    counts = (t.inputs, t.outcomes['refused'], t.outcomes['accepted'], t.findings)
    cells = [f'{t.seconds / 60:11.1f}', *(f'{count:11,}' for count in counts)]
    print(f'{key:18}', *cells, f'{t.slowest:11.2f}', f'{t.largest:11.0f}')


def main(_: object) -> None:
  options = flags.FLAGS
  names = [*PARSERS] if options.parser == 'all' else options.parser.split(',')
  with tempfile.TemporaryDirectory() as scratch:
    findings = Path(options.findings or scratch).absolute()
    tallies = _load(findings / 'tallies.json')
    left = 60 * options.minutes
    turn = min(_TURN_S, left / len(names))
    while left > 0:  # By turns, so that one that ends early has fuzzed all alike.
      for name in names:
        tally = tallies.setdefault(f'{name} {options.seed}', Tally())
        fuzz(name, options.seed, turn, tally, findings)
        _save(findings / 'tallies.json', tallies)
        left -= turn
        if left <= 0:
          break
    if options.json:
      print(json.dumps({key: dataclasses.asdict(tally) for key, tally in tallies.items()}))
    else:
      _print_table(tallies)
    sys.exit(any(tally.findings for tally in tallies.values()))


if __name__ == '__main__':
  # Not above: a test imports this module beside commands that have flags of the same names.
  flags.DEFINE_string('parser', 'all', f'{", ".join(PARSERS)}; several with commas; all.')
  flags.DEFINE_float('minutes', 10, 'For all parsers together, which take turns.')
  flags.DEFINE_integer('seed', 0, 'Of the inputs.', lower_bound=0)
  flags.DEFINE_string('findings', None, 'A folder that keeps findings and counts.')
  flags.DEFINE_bool('json', False, 'Print one JSON object and nothing else.')
  app.run(main)
