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
import json
import re
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import app, flags, logging

from experiments.artifact_digests import digest_artifacts, find_differences
from experiments.interrupted_run import (
  STATUS_BY_SIGNAL,
  Interruption,
  Run,
  plan_interruptions,
  run_to_the_end,
)
from experiments.small_full_run import prepare_command

KILLS = flags.DEFINE_integer('kills', 50, 'How often a process is killed with SIGKILL.')
SEED = flags.DEFINE_integer('seed', 0, 'Seed of the moments and the damage.')
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object and nothing else.')
KEEP = flags.DEFINE_string('keep', None, 'A new folder that keeps everything.')


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
