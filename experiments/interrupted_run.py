"""A run that is stopped at drawn moments and damaged in between, until it ends by itself."""

import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.artifact_digests import newest_checkpoint
from experiments.small_full_run import ARMS, ROUNDS

ROOT = Path(__file__).parents[1]
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
_KILLS_PER_WORKDIR = 5


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
