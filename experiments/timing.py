"""Time contenders that take turns in one process, so that other work on the machine slows all."""

import contextlib
import itertools
import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.progress import track

Work = Callable[[], Any]
# The name of the environment variable with the address at which `bench` gives turns.
TURNS = 'SJFT_BENCH_TURNS'


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
  """Have the machine to oneself among the processes that `experiments.bench` runs at once.

  Outside of them this does nothing. Neither takes effect inside another turn.
  """
  address = os.environ.get(TURNS)
  if not address:
    yield
    return
  with socket.socket(socket.AF_UNIX) as turn:
    turn.connect(address)
    turn.sendall(f'{os.getpgid(0)}\n'.encode())
    turn.recv(1)  # Comes with the turn, which the end of the connection gives back.
    yield


def seconds_per_call(work: Work, at_least: float = 0.0) -> float:
  """Return the mean seconds of a call of `work`, over as many calls as fill `at_least` seconds.

  A call ends when the JAX arrays that it returns are there.
  """
  start_time, seconds, calls = time.perf_counter(), 0.0, 0
  while seconds < at_least or not calls:
    jax.block_until_ready(work())
    calls += 1
    seconds = time.perf_counter() - start_time
  return seconds / calls


def race(
  contenders: Mapping[str, Work],
  repeats: int,
  *,
  warm: bool = False,
  measure: Callable[[Work], float] = seconds_per_call,
  first_is_exclusive: bool = False,
) -> dict[str, list[float]]:
  """Return the seconds of each contender in every turn, after a first turn that compiles.

  Args:
    contenders: work by name.
    repeats: turns of each.
    warm: whether each works once untimed just before every turn. Some machines take back within
      seconds the memory that a process frees, and the next one that needs it pays for that.
    measure: returns the seconds of one contender's turn.
    first_is_exclusive: whether the first turn needs the machine to itself too (see `exclusive`):
      for its memory, where it compiles nothing.
  """
  seconds: dict[str, list[float]] = {name: [] for name in contenders}
  turns = list(itertools.product(range(repeats + 1), contenders.items()))
  # Standard output is for the results.
  for turn, (name, work) in track(turns, 'turns', console=Console(stderr=True), transient=True):
    with exclusive() if turn or first_is_exclusive else contextlib.nullcontext():
      if warm:
        work()
      measured = measure(work)
    if turn:
      seconds[name].append(measured)
  return seconds


def speedup(rivals: Sequence[Sequence[float]], ours: Sequence[float]) -> float:
  """Return the median over the turns of the fastest rival's seconds over ours."""
  fastest = (min(turn) for turn in zip(*rivals, strict=True))
  return statistics.median(rival / own for rival, own in zip(fastest, ours, strict=True))


def print_result(result: Mapping[str, Any], *, as_json: bool) -> None:
  """Print figures by name, a line each, or all as one JSON object."""
  if as_json:
    print(json.dumps(result))
    return
  for name, value in result.items():
    print(f'{name:24}', value if not isinstance(value, float) else f'{value:.3g}')
