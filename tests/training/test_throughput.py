import heapq
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sjft_jax.training.throughput import ThroughputMeter, with_seconds

IMAGES = 6


class Clock:
  now = 0.0

  def __call__(self):
    return self.now


class Metrics:
  """Of a step that ends at a known time."""

  def __init__(self, clock, ends):
    self.clock, self.ends = clock, ends

  def block_until_ready(self):
    self.clock.now = self.ends


class Observer:
  """Waits in a time of its own, as a thread does."""

  def __init__(self, clock):
    self.clock = clock

  def submit(self, function, *arguments):
    now = self.clock.now
    function(*arguments)
    self.clock.now = now


def simulate(loading, stepping, loaders=2, buffer=4, count=400, compiling=0.0):
  """A loop whose batches take `loading` seconds in one of the loaders, and steps `stepping`.

  Returns the meter and the images per second that went through the loop.
  """
  clock = Clock()
  meter = ThroughputMeter(IMAGES, loaders, clock=clock, observer=Observer(clock))
  free = [0.0] * loaders  # When each loader can begin its next batch.
  taken = [0.0] * buffer  # When each place of the buffer was free.
  ended = 0.0

  def batches():
    for number in range(count):
      begins = max(heapq.heappop(free), taken[number % buffer])
      heapq.heappush(free, begins + loading)
      clock.now = max(clock.now, begins + loading)
      taken[number % buffer] = clock.now
      yield number, loading

  def step(state, batch):
    nonlocal ended
    # The call returns at once; the devices begin when they are done with the step before.
    ended = max(ended, clock.now) + stepping + (compiling if batch == 0 else 0)
    return state, Metrics(clock, ended)

  watched = meter.step(step)
  for number, batch in enumerate(meter.batches(batches())):
    assert watched('state', batch)[0] == 'state'
    if number % 10 == 9:  # The loop fetches the metrics.
      clock.now = max(clock.now, ended)
  return meter, IMAGES * count / ended


@given(loading=st.floats(0.01, 1), stepping=st.floats(0.01, 1), loaders=st.integers(1, 4))
def test_both_rates_are_found_and_the_lower_one_is_that_of_the_loop(loading, stepping, loaders):
  meter, through = simulate(loading, stepping, loaders)
  assert meter.step_seconds == pytest.approx(stepping)
  rates = meter.rates()
  assert rates['step_images_per_second'] == pytest.approx(IMAGES / stepping)
  assert rates['loader_images_per_second'] == pytest.approx(IMAGES * loaders / loading)
  assert min(rates.values()) == pytest.approx(through, rel=0.1)


def test_the_slower_stage_is_named():
  meter, _ = simulate(loading=0.3, stepping=0.1)
  assert meter.note == ''
  meter.rates()
  assert meter.note == 'loading is the slower stage'
  # In a loop that waits for its metrics every ten steps, batches are there when they are asked for.
  meter, _ = simulate(loading=0.1, stepping=0.3)
  meter.rates()
  assert meter.note == 'training is the slower stage'


def test_compiling_does_not_count():
  meter, _ = simulate(loading=0.01, stepping=0.1, compiling=1000.0)
  assert meter.rates()['step_images_per_second'] == pytest.approx(IMAGES / 0.1)


def test_rates_are_of_the_time_since_they_were_last_asked_for():
  clock = Clock()
  meter = ThroughputMeter(IMAGES, 2, clock=clock, observer=Observer(clock))
  ends = iter([1.0, 3.0, 5.0, 5.5])
  step = meter.step(lambda state, batch: (state, Metrics(clock, next(ends))))
  feed = meter.batches([('a', 4.0), ('b', 4.0), ('c', 4.0), ('d', 1.0)])

  def take():
    step('state', next(feed))
    clock.now += 0.1

  take()
  assert meter.rates() == {'loader_images_per_second': pytest.approx(IMAGES / 2)}
  assert meter.note == ''  # The first step tells nothing.
  take()
  take()
  assert meter.rates() == {
    'loader_images_per_second': pytest.approx(2 * IMAGES / 4),
    'step_images_per_second': pytest.approx(2 * IMAGES / 4),
  }
  take()
  assert meter.rates() == {
    'loader_images_per_second': pytest.approx(IMAGES / 0.5),
    'step_images_per_second': pytest.approx(IMAGES / 0.5),
  }
  assert meter.rates() == {}


def test_idle_devices_are_no_part_of_a_step():
  clock = Clock()
  meter = ThroughputMeter(IMAGES, 1, clock=clock, observer=Observer(clock))
  ends = iter([1.0, 102.0])
  step = meter.step(lambda state, batch: (state, Metrics(clock, next(ends))))
  step('state', 'batch')
  clock.now = 100.0  # A round's scoring.
  step('state', 'batch')
  assert meter.rates() == {'step_images_per_second': pytest.approx(IMAGES / 2.0)}


def test_real_steps_are_watched_in_a_thread_and_stay_what_they_were():
  devices = jax.local_device_count()
  observer = ThreadPoolExecutor(1)
  meter = ThroughputMeter(IMAGES, 2, observer=observer)

  def body(state, batch):
    return state + batch, {'target_loss': (jnp.sum(batch), jnp.int32(1))}

  step = meter.step(jax.pmap(body, donate_argnums=0))
  batches = map(with_seconds(lambda number: jnp.full((devices, 3), number, jnp.float32)), range(5))
  state = jnp.zeros((devices, 3))
  for batch in meter.batches(batches):
    state, metrics = step(state, batch)
  observer.shutdown()  # Waits for it.
  assert float(state[0, 0]) == 10
  assert float(metrics['target_loss'][0][0]) == 12
  rates = meter.rates()
  assert {*rates} == {'loader_images_per_second', 'step_images_per_second'}
  assert all(0 < rate < 1e9 for rate in rates.values())


def test_a_step_that_fails_ends_the_loop_not_the_watching():
  clock = Clock()
  with ThreadPoolExecutor(1) as observer:
    meter = ThroughputMeter(IMAGES, 2, clock=clock, observer=observer)

    class Failed:
      def block_until_ready(self):
        raise RuntimeError('out of memory')

    outcomes = iter([Metrics(clock, 1.0), Failed(), Metrics(clock, 3.0)])
    step = meter.step(lambda state, batch: (state, next(outcomes)))
    for _ in range(3):
      step('state', 'batch')
  assert {*meter.rates()} == {'step_images_per_second'}


def test_timed_loading_gives_the_batch_and_its_seconds(monkeypatch):
  times = iter([2.0, 5.0])
  monkeypatch.setattr('time.perf_counter', lambda: next(times))
  assert with_seconds(lambda step: step * 10)(3) == (30, 3.0)
