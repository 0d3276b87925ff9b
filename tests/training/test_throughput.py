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
  """Metrics of a step that ends at a known time."""

  def __init__(self, clock, end):
    self.clock, self.end = clock, end

  def block_until_ready(self):
    self.clock.now = self.end


class Observer:
  """An executor that waits in a time of its own, as a thread does."""

  def __init__(self, clock):
    self.clock = clock

  def submit(self, function, *arguments):
    now = self.clock.now
    function(*arguments)
    self.clock.now = now


def simulate(load_seconds, step_seconds, loaders=2, buffer=4, count=400, compile_seconds=0.0):
  """Run a loop; return its meter and the images per second that went through it."""
  clock = Clock()
  meter = ThroughputMeter(IMAGES, loaders, clock=clock, observer=Observer(clock))
  loader_free = [0.0] * loaders  # When each loader can begin its next batch.
  slot_free = [0.0] * buffer  # When each slot of the buffer was emptied.
  step_end = 0.0

  def batches():
    for number in range(count):
      start = max(heapq.heappop(loader_free), slot_free[number % buffer])
      heapq.heappush(loader_free, start + load_seconds)
      clock.now = max(clock.now, start + load_seconds)
      slot_free[number % buffer] = clock.now
      yield number, load_seconds

  def step(state, batch):
    nonlocal step_end
    # The call returns at once; the devices begin when the step before has ended.
    step_end = max(step_end, clock.now) + step_seconds + (compile_seconds if batch == 0 else 0)
    return state, Metrics(clock, step_end)

  watched_step = meter.watch_step(step)
  for number, batch in enumerate(meter.watch_batches(batches())):
    assert watched_step('state', batch)[0] == 'state'
    if number % 10 == 9:  # The loop fetches the metrics.
      clock.now = max(clock.now, step_end)
  return meter, IMAGES * count / step_end


@given(load_seconds=st.floats(0.01, 1), step_seconds=st.floats(0.01, 1), loaders=st.integers(1, 4))
def test_rates_are_those_of_the_stages_and_the_lower_one_is_that_of_the_loop(
  load_seconds, step_seconds, loaders
):
  meter, loop_rate = simulate(load_seconds, step_seconds, loaders)
  assert meter.step_seconds == pytest.approx(step_seconds)
  rates = meter.rates()
  assert rates['step_images_per_second'] == pytest.approx(IMAGES / step_seconds)
  assert rates['loader_images_per_second'] == pytest.approx(IMAGES * loaders / load_seconds)
  assert min(rates.values()) == pytest.approx(loop_rate, rel=0.1)


def test_note_names_the_slower_stage():
  meter, _ = simulate(load_seconds=0.3, step_seconds=0.1)
  assert meter.note == ''
  meter.rates()
  assert meter.note == 'loading is the slower stage'
  # In a loop that waits for its metrics every ten steps, batches are loaded before they are needed.
  meter, _ = simulate(load_seconds=0.1, step_seconds=0.3)
  meter.rates()
  assert meter.note == 'training is the slower stage'


def test_rates_leave_out_the_step_that_compiles():
  meter, _ = simulate(load_seconds=0.01, step_seconds=0.1, compile_seconds=1000.0)
  assert meter.rates()['step_images_per_second'] == pytest.approx(IMAGES / 0.1)


def test_rates_cover_the_time_since_the_last_call():
  clock = Clock()
  meter = ThroughputMeter(IMAGES, 2, clock=clock, observer=Observer(clock))
  ends = iter([1.0, 3.0, 5.0, 5.5])
  step = meter.watch_step(lambda state, batch: (state, Metrics(clock, next(ends))))
  batches = meter.watch_batches([('a', 4.0), ('b', 4.0), ('c', 4.0), ('d', 1.0)])

  def take_step():
    step('state', next(batches))
    clock.now += 0.1

  take_step()
  assert meter.rates() == {'loader_images_per_second': pytest.approx(IMAGES / 2)}
  assert meter.note == ''  # The first step does not count.
  take_step()
  take_step()
  assert meter.rates() == {
    'loader_images_per_second': pytest.approx(2 * IMAGES / 4),
    'step_images_per_second': pytest.approx(2 * IMAGES / 4),
  }
  take_step()
  assert meter.rates() == {
    'loader_images_per_second': pytest.approx(IMAGES / 0.5),
    'step_images_per_second': pytest.approx(IMAGES / 0.5),
  }
  assert meter.rates() == {}


def test_rates_leave_out_the_time_in_which_devices_idle():
  clock = Clock()
  meter = ThroughputMeter(IMAGES, 1, clock=clock, observer=Observer(clock))
  ends = iter([1.0, 102.0])
  step = meter.watch_step(lambda state, batch: (state, Metrics(clock, next(ends))))
  step('state', 'batch')
  clock.now = 100.0  # After the scoring of a round.
  step('state', 'batch')
  assert meter.rates() == {'step_images_per_second': pytest.approx(IMAGES / 2.0)}


def test_real_steps_are_measured_in_a_thread_with_the_same_results():
  devices = jax.local_device_count()
  observer = ThreadPoolExecutor(1)
  meter = ThroughputMeter(IMAGES, 2, observer=observer)

  def body(state, batch):
    return state + batch, {'target_loss': (jnp.sum(batch), jnp.int32(1))}

  step = meter.watch_step(jax.pmap(body, donate_argnums=0))
  batches = map(with_seconds(lambda number: jnp.full((devices, 3), number, jnp.float32)), range(5))
  state = jnp.zeros((devices, 3))
  for batch in meter.watch_batches(batches):
    state, metrics = step(state, batch)
  observer.shutdown()  # Wait for it.
  assert float(state[0, 0]) == 10
  assert float(metrics['target_loss'][0][0]) == 12
  rates = meter.rates()
  assert {*rates} == {'loader_images_per_second', 'step_images_per_second'}
  assert all(0 < rate < 1e9 for rate in rates.values())


def test_failed_step_does_not_end_the_measuring():
  clock = Clock()
  with ThreadPoolExecutor(1) as observer:
    meter = ThroughputMeter(IMAGES, 2, clock=clock, observer=observer)

    class Failed:
      def block_until_ready(self):
        raise RuntimeError('out of memory')

    outcomes = iter([Metrics(clock, 1.0), Failed(), Metrics(clock, 3.0)])
    step = meter.watch_step(lambda state, batch: (state, next(outcomes)))
    for _ in range(3):
      step('state', 'batch')
  assert {*meter.rates()} == {'step_images_per_second'}


def test_with_seconds_returns_the_batch_and_its_seconds(monkeypatch):
  times = iter([2.0, 5.0])
  monkeypatch.setattr('time.perf_counter', lambda: next(times))
  assert with_seconds(lambda step: step * 10)(3) == (30, 3.0)
