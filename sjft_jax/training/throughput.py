"""The throughput of the loader and of the training step, measured separately."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import jax

Batch = TypeVar('Batch')
State = TypeVar('State')
Metrics = TypeVar('Metrics')


def with_seconds(load: Callable[[int], Batch]) -> Callable[[int], tuple[Batch, float]]:
  """Return `load` with the seconds that it took added to its result.

  They are measured where `load` is called, be it in another thread or process.
  """

  def load_with_seconds(step: int) -> tuple[Batch, float]:
    start = time.perf_counter()
    batch = load(step)
    return batch, time.perf_counter() - start

  return load_with_seconds


@dataclass(frozen=True)
class _Total:
  """How many batches or steps have ended, and the seconds that they took."""

  count: int = 0
  seconds: float = 0.0

  def add(self, seconds: float) -> '_Total':
    return _Total(self.count + 1, self.seconds + seconds)


class ThroughputMeter:
  """Measure the batches and the steps of a loop without holding up either.

  Waiting times say little: batches are loaded ahead, and a call of the step returns when the
  devices have only begun. What is measured instead:

  - Loading: the seconds that each batch took its loader, divided by the number of loaders: the time
    per batch when all of them are busy. When loading is the slower stage they are, and the rate is
    the true one. Otherwise it is an estimate from loaders that idle now and then; all of them at
    once might slow each other down.
  - A step: from when it was handed to the devices, or the end of the step before if that was later,
    until its metrics are ready. That is the devices' work, and the transfer of the batch where it
    does not hide behind the step before. The first step, which may compile, does not count.

  Args:
    images: images in a batch; those of one process, if there are several.
    loaders: batches that can be loaded at once: threads or processes, or the depth of the buffer
      that they fill if that is less.
    clock: returns the time in seconds.
    observer: waits for the steps to end, in their order.

  Attributes:
    step_seconds: time of the newest step; 0 before the second.
    note: which stage is the slower one; '' while that is not known.
  """

  def __init__(
    self,
    images: int,
    loaders: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    observer: Executor | None = None,
  ):
    self._images, self._loaders, self._clock = images, loaders, clock
    self._observer = observer or ThreadPoolExecutor(1, 'meter')
    # A total is replaced, never changed: `rates` reads it in another thread.
    self._loaded, self._trained = _Total(), _Total()
    self._reported = {'loader': self._loaded, 'step': self._trained}
    self._last_end: float | None = None
    self.step_seconds = 0.0
    self.note = ''

  def watch_batches(self, batches: Iterable[tuple[Batch, float]]) -> Iterator[Batch]:
    """Yield the batches of a loader `with_seconds`, without their times."""
    for batch, seconds in batches:
      self._loaded = self._loaded.add(seconds / self._loaders)
      yield batch

  def watch_step(
    self, step: Callable[[State, Batch], tuple[State, Metrics]]
  ) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """Return `step`, measured; its metrics must not be donated to another computation."""

    def watched_step(state: State, batch: Batch) -> tuple[State, Metrics]:
      start = self._clock()
      state, metrics = step(state, batch)
      self._observer.submit(self._wait_for, metrics, start)
      return state, metrics

    return watched_step

  def _wait_for(self, metrics: Any, start: float) -> None:
    jax.block_until_ready(metrics)
    end, last_end = self._clock(), self._last_end
    self._last_end = end
    if last_end is not None:
      self.step_seconds = end - max(start, last_end)
      self._trained = self._trained.add(self.step_seconds)

  def rates(self) -> dict[str, float]:
    """Return the images per second since the last call, of each stage that ended anything since."""
    totals = {'loader': self._loaded, 'step': self._trained}
    rates = {}
    for stage, total in totals.items():
      count = total.count - self._reported[stage].count
      if count:
        seconds = max(total.seconds - self._reported[stage].seconds, 1e-9)
        rates[f'{stage}_images_per_second'] = self._images * count / seconds
    self._reported = totals
    if len(rates) == 2:
      loader, step = rates.values()
      self.note = f'{"loading" if loader < step else "training"} is the slower stage'
    return rates
