"""Threads take the place of processes, and a dictionary that of the coordination service."""

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
def short_poll_interval():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(consensus, '_POLL_INTERVAL_S', 0.001)
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

  def try_get(self, key):
    return self._values.get(key)

  def get(self, key, timeout_s):
    with self._changed:
      if not self._changed.wait_for(lambda: key in self._values, timeout_s):
        raise RuntimeError('DEADLINE_EXCEEDED')
      return self._values[key]


class Barriers:
  """Barriers by name, which one process can leave; Python's own barriers then break for all."""

  def __init__(self, number):
    self._number, self._arrived, self._changed = number, Counter(), threading.Condition()

  def wait(self, name, may_leave=lambda: False):
    with self._changed:
      self._arrived[name] += 1
      self._changed.notify_all()
      while self._arrived[name] < self._number and not may_leave():
        assert self._changed.wait(5), f'{name} waits forever'

  def wake(self):
    with self._changed:
      self._changed.notify_all()


class Process(threading.Thread):
  """Work alone, a barrier, steps in lockstep; again for every section."""

  def __init__(self, number, num_processes, store, barriers, sections, seed, requests_after):
    super().__init__()
    self._barriers = barriers
    self._sections, self._random = sections, random.Random(seed)
    self._requests_after, self._num_works = requests_after, 0
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
    self._barriers.wake()

  def _work(self):
    time.sleep(self._random.choice([0, 0, 0.0005, 0.002]))
    if self._num_works == self._requests_after:
      self.consensus.request_stop('SIGTERM')
    self._num_works += 1

  def run(self):
    try:
      self.stopped_at = self._run()
    except AssertionError as error:
      self.error = error

  def _run(self):
    for section, steps in enumerate(self._sections):
      for _ in range(self._random.randrange(3)):
        self._work()
        if self._released.is_set():
          return 'outside'
      self._barriers.wait(('entry', section), self._released.is_set)
      if self._released.is_set():
        return 'outside'
      if self.consensus.sync_point(is_inside=True):
        return 'outside'
      self._is_inside = True
      for step in range(steps):
        if self.consensus.sync_point(is_inside=True):
          return section, step
        self._work()
        if step:  # The step before is complete; this one is handed over.
          self._barriers.wait((section, step - 1))
      for step in range(steps)[-1:]:
        self._barriers.wait((section, step))
      is_last = self.consensus.sync_point(is_inside=False)
      self._is_inside = False
      if is_last:
        return section, steps
    return 'finished'


# Without shrinking: threads do not repeat themselves.
@settings(max_examples=150, phases=(Phase.explicit, Phase.generate))
@given(st.data())
def test_all_processes_stop_at_one_step_or_where_they_are(data):
  number = data.draw(st.integers(2, 4), 'processes')
  sections = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=3), 'steps')
  requests = data.draw(
    st.lists(st.integers(0, 25) | st.none(), min_size=number, max_size=number), 'requests after'
  )
  seed = data.draw(st.integers(0, 999), 'seed')
  store, barriers = Store(), Barriers(number)
  processes = [
    Process(i, number, store, barriers, sections, 10 * seed + i, requests[i]) for i in range(number)
  ]
  for process in processes:
    process.start()
  for process in processes:
    process.join(20)
    process.consensus.close()
  assert [process.error for process in processes] == [None] * number
  places = [process.stopped_at for process in processes]
  within = {place for place in places if place not in ('outside', 'finished')}
  within -= {(section, steps) for section, steps in within if sections[section] == steps}
  assert len(within) <= 1
  if within:  # At a step, so all of them.
    assert set(places) == within
  if all(count is None for count in requests):
    assert set(places) == {'finished'}


def test_process_that_does_not_answer_holds_up_no_other(monkeypatch):
  monkeypatch.setattr(consensus, 'TIMEOUT_S', 0.05)
  released = threading.Event()
  store = Store()
  one = StopConsensus(store, 0, 2, release=lambda _: released.set(), abandon=print)
  assert one.sync_point(is_inside=True) is None
  one.request_stop('SIGINT')
  assert one.sync_point(is_inside=True) == 'SIGINT'
  assert released.wait(5)


def test_failure_is_reported_to_the_other_processes_only():
  store, reported = Store(), []
  first = StopConsensus(
    store, 0, 2, release=print, abandon=lambda error: (reported.append(error), first.leave())
  )
  second = StopConsensus(store, 1, 2, release=print, abandon=reported.append)
  second.leave('the disk is full')  # It returns once all have read it.
  assert reported == ['process 1: the disk is full']


def test_process_0_leaves_last():
  store = Store()
  first, second = (StopConsensus(store, i, 2, release=print, abandon=print) for i in range(2))
  leaving = threading.Thread(target=first.leave)
  leaving.start()
  leaving.join(0.1)
  assert leaving.is_alive()
  second.leave()
  leaving.join(5)
  assert not leaving.is_alive()
