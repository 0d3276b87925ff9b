"""Contenders that take turns in one process, so that what else the machine does slows all alike."""

import json
import statistics
import time

from sjft_jax.runtime import console


def seconds(work, at_least=0):
  """Of one time, in the mean of as many as fill `at_least` seconds."""
  begun, took, count = time.perf_counter(), 0.0, 0
  while took < at_least or not count:
    work()
    count += 1
    took = time.perf_counter() - begun
  return took / count


def in_turns(contenders, repeats, *, warm=False, at_least=0):
  """Seconds of each in every turn, after a first one that compiles.

  `warm`: just before every turn it works once more and is not timed. What a process frees, some
  machines take back within seconds; whoever wants it next pays for that.
  `at_least`: of seconds that every turn takes.
  """
  times = {name: [] for name in contenders}
  with console.progress('turns', (repeats + 1) * len(contenders)) as advance:
    for turn in range(repeats + 1):
      for name, work in contenders.items():
        if warm:
          work()
        took = seconds(work, at_least)
        if turn:
          times[name].append(took)
        advance(1, name)
  return times


def ratio(rivals, ours):
  """Median over the turns of the fastest rival's time over ours."""
  fastest = (min(turn) for turn in zip(*rivals, strict=True))
  return statistics.median(rival / own for rival, own in zip(fastest, ours, strict=True))


def show(result, as_json):
  """Prints figures by name, a line each, or all as one JSON object."""
  if as_json:
    print(json.dumps(result))
    return
  for name, value in result.items():
    print(f'{name:24}', value if not isinstance(value, float) else f'{value:.3g}')
