"""Threads in the place of processes, a dictionary in that of the coordination service."""

import random
import threading
import time
from collections import Counter

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sjft_jax.runtime import consensus
from sjft_jax.runtime.consensus import StopConsensus


@pytest.fixture(autouse=True, scope='module')
def in_a_hurry():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(consensus, '_INTERVAL', 0.001)
    yield


class Store:
  def __init__(self):
    self._values, self._changed = {}, threading.Condition()

  def set(self, key, value):
    with self._changed:
      if key in self._values:
        raise RuntimeError('ALREADY_EXISTS')
      self._values[key] = value
      self._changed.notify_all()

  def find(self, key):
    return self._values.get(key)

  def get(self, key, seconds):
    with self._changed:
      if not self._changed.wait_for(lambda: key in self._values, seconds):
        raise RuntimeError('DEADLINE_EXCEEDED')
      return self._values[key]


class Together:
  """What no process gets past before all are there; Python's own barriers break for all."""

  def __init__(self, number):
    self._number, self._arrived, self._changed = number, Counter(), threading.Condition()

  def wait(self, name, is_over=lambda: False):
    with self._changed:
      self._arrived[name] += 1
      self._changed.notify_all()
      while self._arrived[name] < self._number and not is_over():
        assert self._changed.wait(5), f'{name} waits for ever'

  def look(self):
    with self._changed:
      self._changed.notify_all()


class Process(threading.Thread):
  """Outside work, a meeting, steps together; again for every stretch."""

  def __init__(self, number, num_processes, store, together, stretches, seed, asks_after):
    super().__init__()
    self._number, self._together = number, together
    self._stretches, self._random = stretches, random.Random(seed)
    self._asks_after, self._done = asks_after, 0
    self._released = threading.Event()
    self._is_inside = False
    self.consensus = StopConsensus(
      store, number, num_processes, release=self._release, abandon=self._release
    )
    self.stopped_at = None
    self.error = None

  def _release(self, reason):
    if self._is_inside:
      self.error = f'{reason} releases a process that others need'
    self._released.set()
    self._together.look()

  def _work(self):
    time.sleep(self._random.choice([0, 0, 0.0005, 0.002]))
    if self._done == self._asks_after:
      self.consensus.ask('SIGTERM')
    self._done += 1

  def run(self):
    try:
      self.stopped_at = self._run()
    except AssertionError as error:
      self.error = error

  def _run(self):
    for stretch, steps in enumerate(self._stretches):
      for _ in range(self._random.randrange(3)):
        self._work()
        if self._released.is_set():
          return 'outside'
      self._together.wait(('meeting', stretch), self._released.is_set)
      if self._released.is_set():
        return 'outside'
      if self.consensus.passes(into=True):
        return 'outside'
      self._is_inside = True
      for step in range(steps):
        if self.consensus.passes(into=True):
          return stretch, step
        self._work()
        if step:  # The step before is complete; this one is handed over.
          self._together.wait((stretch, step - 1))
      for step in range(steps)[-1:]:
        self._together.wait((stretch, step))
      is_last = self.consensus.passes(into=False)
      self._is_inside = False
      if is_last:
        return stretch, steps
    return 'finished'


# Without shrinking: threads do not repeat themselves.
@settings(max_examples=150, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(st.data())
def test_all_stop_at_one_step_or_where_they_are(data):
  number = data.draw(st.integers(2, 4), 'processes')
  stretches = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=3), 'steps')
  asked = data.draw(
    st.lists(st.integers(0, 25) | st.none(), min_size=number, max_size=number), 'asks after'
  )
  seed = data.draw(st.integers(0, 999), 'seed')
  store, together = Store(), Together(number)
  processes = [
    Process(i, number, store, together, stretches, 10 * seed + i, asked[i]) for i in range(number)
  ]
  for process in processes:
    process.start()
  for process in processes:
    process.join(20)
    process.consensus.close()
  assert [process.error for process in processes] == [None] * number
  places = [process.stopped_at for process in processes]
  within = {place for place in places if place not in ('outside', 'finished')}
  within -= {(stretch, steps) for stretch, steps in within if stretches[stretch] == steps}
  assert len(within) <= 1
  if within:  # At a step, so all of them.
    assert set(places) == within
  if all(count is None for count in asked):
    assert set(places) == {'finished'}


def test_one_that_does_not_answer_keeps_nobody(monkeypatch):
  monkeypatch.setattr(consensus, 'PATIENCE', 0.05)
  released = threading.Event()
  store = Store()
  one = StopConsensus(store, 0, 2, release=lambda _: released.set(), abandon=print)
  assert one.passes(into=True) is None
  one.ask('SIGINT')
  assert one.passes(into=True) == 'SIGINT'
  assert released.wait(5)


def test_a_failure_is_told_to_the_others_alone():
  store, told = Store(), []
  first = StopConsensus(
    store, 0, 2, release=print, abandon=lambda error: (told.append(error), first.leave())
  )
  second = StopConsensus(store, 1, 2, release=print, abandon=told.append)
  second.leave('the disk is full')  # Until all have heard it.
  assert told == ['process 1: the disk is full']


def test_the_first_leaves_last():
  store = Store()
  first, second = (StopConsensus(store, i, 2, release=print, abandon=print) for i in range(2))
  leaving = threading.Thread(target=first.leave)
  leaving.start()
  leaving.join(0.1)
  assert leaving.is_alive()
  second.leave()
  leaving.join(5)
  assert not leaving.is_alive()
