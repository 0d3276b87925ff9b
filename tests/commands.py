"""The commands of the project, started as a person would."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]


def start(
  command: list[str],
  stderr: int = subprocess.PIPE,
  stdout: int | IO = subprocess.PIPE,
  **environment: str,
) -> subprocess.Popen:
  """From the project's root, on one device; small programs are kept compiled too."""
  defaults = {'XLA_FLAGS': '', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env={**os.environ, **defaults, **environment},
    stdout=stdout,
    stderr=stderr,
    text=True,
  )


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def refusal(process: subprocess.Popen) -> str:
  """The one line that a command ends with which cannot be obeyed."""
  output, errors = process.communicate(timeout=300)
  assert process.returncode == 1
  assert not output
  assert errors.startswith('error: ')
  assert errors.count('\n') == 1
  return errors


def stop_one(
  processes: list[subprocess.Popen], *, asked: int, held: int, once: Callable[[], object]
) -> None:
  """SIGTERM to one of them, while another one stands still; as soon as `once` holds."""
  deadline = time.monotonic() + 300
  while not once():
    assert time.monotonic() < deadline
    assert all(process.poll() is None for process in processes)
    time.sleep(0.001)
  processes[held].send_signal(signal.SIGSTOP)
  processes[asked].send_signal(signal.SIGTERM)
  time.sleep(1)
  processes[held].send_signal(signal.SIGCONT)
