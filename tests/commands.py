"""Start the commands of the project as a person would, and end them."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
# Of whole runs, which mostly compile in tests: unoptimised programs take half the time, and those
# that are small are cached too. One device.
UNOPTIMIZED = '--xla_backend_optimization_level=0'
ENVIRONMENT = {'XLA_FLAGS': UNOPTIMIZED, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}


def start(
  command: list[str],
  stderr: int = subprocess.PIPE,
  stdout: int | IO = subprocess.PIPE,
  **environment: str,
) -> subprocess.Popen:
  """Start a command from the project's root, in `ENVIRONMENT` but for what is given."""
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env={**os.environ, **ENVIRONMENT, **environment},
    stdout=stdout,
    stderr=stderr,
    text=True,
  )


def free_port() -> int:
  """Return a TCP port that is not in use."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def refusal(process: subprocess.Popen) -> str:
  """Return the one line on stderr with which a command ends that cannot be carried out."""
  output, errors = process.communicate(timeout=300)
  assert process.returncode == 1
  assert not output
  assert errors.startswith('error: ')
  assert errors.count('\n') == 1
  return errors


def stop_one(
  processes: list[subprocess.Popen], *, asked: int, held: int, once: Callable[[], object]
) -> None:
  """Send SIGTERM to one process while another one is suspended, as soon as `once` returns true.

  Args:
    processes: all processes; none may end before.
    asked: the index of the one that gets the signal.
    held: the index of the one that is suspended for a second.
    once: is called again and again.
  """
  deadline = time.monotonic() + 300
  while not once():
    assert time.monotonic() < deadline
    assert all(process.poll() is None for process in processes)
    time.sleep(0.001)
  processes[held].send_signal(signal.SIGSTOP)
  processes[asked].send_signal(signal.SIGTERM)
  time.sleep(1)
  processes[held].send_signal(signal.SIGCONT)
