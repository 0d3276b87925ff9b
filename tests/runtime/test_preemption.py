import os
import signal
import subprocess
import sys
import time

import commands
import pytest

from sjft_jax.runtime import preemption

WORKER = """
import multiprocessing, os, sys, time
from sjft_jax.runtime import preemption

def work(number):
  preemption.init_worker(0, 1)
  number.value = os.getpid()
  time.sleep(60)

if __name__ == '__main__':
  context = multiprocessing.get_context('spawn')
  number = context.Value('i', 0)
  context.Process(target=work, args=(number,), daemon=True).start()
  while not number.value:
    time.sleep(0.01)
  print(number.value, flush=True)
  time.sleep(60)
"""


@pytest.fixture
def handlers(monkeypatch):
  """Handlers of this process for the time of a test."""
  numbers = signal.SIGINT, signal.SIGTERM
  before = [signal.getsignal(number) for number in numbers]
  for number in numbers:  # The tests may be a shell's background job, which ignores Ctrl-C.
    signal.signal(number, signal.SIG_DFL)
  monkeypatch.setattr(preemption, '_is_requested', False)
  monkeypatch.setattr(preemption, '_stop_signal', None)
  monkeypatch.setattr(preemption, '_exit_after_timeout', lambda number: None)
  preemption.install_handlers()
  yield
  for number, handler in zip(numbers, before, strict=True):
    signal.signal(number, handler)


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_is_raised_at_once_or_deferred_to_the_end(handlers, monkeypatch, number, status):
  # To this thread: the system may give a signal for the process to another one, a moment later.
  with pytest.raises(preemption.Stopped) as stopped:
    signal.raise_signal(number)
  assert stopped.value.status == status
  monkeypatch.setattr(preemption, '_is_requested', False)
  monkeypatch.setattr(preemption, '_stop_signal', None)
  answers = []

  def work():
    with preemption.defer_signals():
      answers.append(preemption.should_stop())
      signal.raise_signal(number)
      answers.append(preemption.should_stop())

  with pytest.raises(preemption.Stopped):
    work()
  assert answers == [False, True]


def is_running(pid):
  status = subprocess.run(['ps', '-o', 'stat=', '-p', str(pid)], capture_output=True, text=True)
  return status.stdout.strip()[:1] not in ('', 'Z')


def test_worker_ends_with_its_parent_and_not_before(tmp_path):
  program = tmp_path / 'program.py'
  program.write_text(WORKER)
  with commands.start([sys.executable, str(program)], PYTHONPATH=str(commands.ROOT)) as parent:
    worker = int(parent.stdout.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
      os.kill(worker, number)
    time.sleep(0.5)
    assert is_running(worker)
    parent.kill()
    deadline = time.monotonic() + 30
    while is_running(worker):
      assert time.monotonic() < deadline
      time.sleep(0.05)
