"""Measure for a moment how long work takes, apart from its start and its compilation."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax

from sjft_jax.runtime import console

# A dozen measurements and what they compile have to fit into a plan of 20 seconds.
_SECONDS = 0.15
# Work that takes so long is done once: a second time would only make the plan later.
_LONG = 5.0


class Cost(NamedTuple):
  """The seconds that some work takes: once at its start, and for each item."""

  start: float
  each: float

  def seconds(self, items: float) -> float:
    """Return the seconds for so many items, begun once."""
    return self.start + self.each * items


@dataclass
class Stopwatch:
  """Measures work, and adds up what its first calls take longer than later ones: they compile.

  Attributes:
    compile_seconds: of all first calls so far.
  """

  compile_seconds: float = 0.0
  _xla_seconds: float = 0.0

  def __post_init__(self) -> None:
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
      self._xla_seconds += duration_secs

  def measure(
    self, name: str, work: Callable[[int], object], most: int, seconds: float = _SECONDS
  ) -> Cost:
    """Measure work of which any number of items can be done.

    Args:
      name: of the work, for the console.
      work: does so many items.
      most: items that the run has; no more are done at once.
      seconds: that the items after the first one take in a measurement that is long enough.
    """
    console.say(f'  {name}')
    with console.quiet():
      xla_seconds = self._xla_seconds
      first = _seconds(work, 1)
      once = first - (self._xla_seconds - xla_seconds)
      if once < _LONG:
        once = _seconds(work, 1)
      self.compile_seconds += max(first - once, 0)
      items, last, each = 1, once, once
      # What the start takes shows with more items, and hardly matters where one takes long.
      while items < most and once < 4 * seconds and last - once < seconds:
        # More than seems enough: short of it, everything would be done again.
        enough = math.ceil(1.6 * seconds / max(each, 1e-9)) + 1
        items = min(most, 20 * items, max(enough, items + 1))
        last = _seconds(work, items)
        each = max((last - once) / (items - 1), 0.1 * last / items)
    if items == 1:
      return Cost(0.0, once)
    return Cost(max(last - items * each, 0.0), each)


def _seconds(work: Callable[[int], object], items: int) -> float:
  start_time = time.perf_counter()
  work(items)
  return time.perf_counter() - start_time
