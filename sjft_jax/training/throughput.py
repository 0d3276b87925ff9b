"""How many images a second are loaded and are trained on, each as if the other took no time."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

import jax

Batch = TypeVar('Batch')
State = TypeVar('State')
Metrics = TypeVar('Metrics')


def with_seconds(load: Callable[[int], Batch]) -> Callable[[int], tuple[Batch, float]]:
  """`load`, which also tells the seconds that it took, in whichever thread or process that was."""

  def loading(step: int) -> tuple[Batch, float]:
    begun = time.perf_counter()
    batch = load(step)
    return batch, time.perf_counter() - begun

  return loading


class ThroughputMeter:
  """Watches the batches and the steps of a loop and holds up neither.

  Waiting times tell little: batches are loaded ahead, and a call of the step returns when the work
  has only begun. What is measured instead:

  - Loading: the seconds that each batch took its loader. Divided by the number of loaders, this is
    what a batch takes when all of them are at work. So they are when loading is the slower stage:
    the rate is the true one then. Else it is an estimate from loaders that idle now and then; all
    at work might slow each other down.
  - A step: from when it was handed over, or the step before ended if that was later, until its
    metrics are there. That is the devices' work, and the transfer of the batch where it does not
    hide behind the step before. The first step, which may compile, does not count.
  """

  def __init__(
    self,
    images: int,
    loaders: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    observer: Executor | None = None,
  ):
    """
    Args:
      images: in a batch; of one process, if there are several.
      loaders: batches that can be loaded at once: threads or processes, or the depth of the buffer
        that they fill if that is less.
      clock: tells the time in seconds.
      observer: runs what waits for the steps to end, in their order.
    """
    self._images, self._loaders, self._clock = images, loaders, clock
    self._observer = observer or ThreadPoolExecutor(1, 'meter')
    # How many, in how many seconds; a pair is replaced as one, for it is read in another thread.
    self._loaded, self._trained = (0, 0.0), (0, 0.0)
    self._before = {'loader': self._loaded, 'step': self._trained}
    self._ended: float | None = None
    self.step_seconds = 0.0  # What the newest step took; the first one does not count.
    self.note = ''  # Which stage is the slower one, once that is known.

  def batches(self, batches: Iterable[tuple[Batch, float]]) -> Iterator[Batch]:
    """The batches of `with_seconds` loading, without their times."""
    for batch, seconds in batches:
      count, total = self._loaded
      self._loaded = count + 1, total + seconds / self._loaders
      yield batch

  def step(
    self, step: Callable[[State, Batch], tuple[State, Metrics]]
  ) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """`step`, watched; its metrics must not be donated to another computation."""

    def watched(state: State, batch: Batch) -> tuple[State, Metrics]:
      begun = self._clock()
      state, metrics = step(state, batch)
      self._observer.submit(self._observe, begun, metrics)
      return state, metrics

    return watched

  def _observe(self, begun: float, metrics: Any) -> None:
    jax.block_until_ready(metrics)
    ended, before = self._clock(), self._ended
    self._ended = ended
    if before is not None:
      self.step_seconds = ended - max(begun, before)
      count, total = self._trained
      self._trained = count + 1, total + self.step_seconds

  def rates(self) -> dict[str, float]:
    """Images per second since the last call, of the stages that ended anything since."""
    now = {'loader': self._loaded, 'step': self._trained}
    rates = {}
    for stage, (count, seconds) in now.items():
      count_before, seconds_before = self._before[stage]
      if count > count_before:
        spent = max(seconds - seconds_before, 1e-9)
        rates[f'{stage}_images_per_second'] = self._images * (count - count_before) / spent
    self._before = now
    if len(rates) == 2:
      loader, step = rates.values()
      self.note = f'{"loading" if loader < step else "training"} is the slower stage'
    return rates
