"""Turns of work that takes much memory."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sjft_jax.runtime import artifacts, host_memory

GIB = 2**30


@pytest.fixture(autouse=True)
def host(tmp_path, monkeypatch):
  """Have 4 GiB free, two workers, and a lock of these tests."""
  monkeypatch.setattr(host_memory, 'free_host_bytes', lambda: 4 * GIB)
  monkeypatch.setattr(host_memory, '_num_workers', 2)
  monkeypatch.setattr(artifacts, 'private_temporary_dir', lambda: tmp_path)
  return tmp_path


def most_at_once(num_bytes, work=8):
  """Return how many threads do work of a size at the same time, at most."""
  running, most, lock = 0, 0, threading.Lock()

  def run(_):
    nonlocal running, most
    with host_memory.turn(num_bytes):
      with lock:
        running += 1
        most = max(most, running)
      time.sleep(0.05)
      with lock:
        running -= 1

  with ThreadPoolExecutor(work) as pool:
    list(pool.map(run, range(work)))
  return most


def test_work_that_all_workers_can_do_in_half_the_memory_starts_at_once(host):
  assert most_at_once(GIB) > 1
  assert not list(host.iterdir())


def test_larger_work_is_done_one_after_another():
  assert most_at_once(GIB + 1) == 1


def test_more_workers_have_smaller_shares():
  host_memory.share_with(3)
  assert most_at_once(GIB) == 1


HOLD = """
import fcntl, sys
file = open(sys.argv[1], 'ab')
fcntl.flock(file, fcntl.LOCK_EX)
print('held', flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_process(host):
  """Start a process that has the turn until its standard input is closed."""
  command = [sys.executable, '-c', HOLD, host / 'memory.lock']
  with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
    assert process.stdout.readline() == b'held\n'
    yield process


def test_another_processs_turn_is_waited_for(other_process):
  timer = threading.Timer(0.3, other_process.kill)
  timer.start()
  with host_memory.turn(3 * GIB):
    assert not timer.is_alive()


def test_a_process_that_keeps_its_turn_stops_nobody_for_ever(other_process, monkeypatch):
  monkeypatch.setattr(host_memory, '_PATIENCE_S', 0.1)
  with host_memory.turn(3 * GIB):
    assert other_process.poll() is None


def test_more_is_taken_within_a_turn():
  with host_memory.turn(2 * GIB), host_memory.turn(3 * GIB):
    pass
  assert most_at_once(2 * GIB, 2) == 1


def test_memory_that_becomes_free_is_waited_for(monkeypatch):
  free = iter([GIB, GIB, GIB, 3 * GIB])
  monkeypatch.setattr(host_memory, 'free_host_bytes', lambda: next(free))
  with host_memory.turn(2 * GIB):
    assert not list(free)


def test_memory_that_does_not_become_free_is_an_error_and_ends_the_turn(monkeypatch):
  monkeypatch.setattr(host_memory, '_PATIENCE_S', 0)
  with (
    pytest.raises(host_memory.OutOfMemoryError, match='takes 5 GiB of memory, where 4 GiB are'),
    host_memory.turn(5 * GIB),
  ):
    pytest.fail('started')
  with host_memory.turn(3 * GIB):
    pass


def test_a_lock_that_cannot_be_made_is_no_error(monkeypatch):
  monkeypatch.setattr(artifacts, 'private_temporary_dir', lambda: Path('/nowhere'))
  with host_memory.turn(3 * GIB):
    pass


@pytest.mark.parametrize(
  ('count', 'text'),
  [
    (3.25 * GIB, '3.25 GiB'),
    (999.4 * 2**20, '999 MiB'),
    (1010 * 2**20, '1010 MiB'),
    (1023, '1023 bytes'),
    (5000 * 2**40, '5000 TiB'),
    (0, 'enough'),
  ],
)
def test_bytes_are_shown_without_an_exponent(count, text):
  assert host_memory.format_bytes(count) == text
