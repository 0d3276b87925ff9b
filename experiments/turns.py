"""Run processes side by side, such that each has the machine to itself while it times.

A process prints what it finds as JSON objects, one a line. Where it times, it asks for a turn
(`timing.exclusive`): all others are stopped by SIGSTOP until it gives the turn back. So compilers
work side by side, and no figure shows the work of another process.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from experiments.timing import TURNS

_POLL_S = 0.02
# Before the end nobody waits for the rest of a group any more.
_LATE_SHARE = 0.25
_ERROR_LINES = 12


class Task(NamedTuple):
  """A process to run.

  Attributes:
    name: of its results.
    command: what is started.
    group: tasks of one group get turns once all of them are ready, one after the other.
    environment: variables on top of this process's own.
  """

  name: str
  command: Sequence[str]
  group: str = ''
  environment: Mapping[str, str] = {}


@dataclass
class _Job:
  """A task that is being run."""

  task: Task
  process: subprocess.Popen[bytes]
  output: Path
  errors: Path
  start_time: float
  turns: int = 0
  turn_seconds: float = 0.0
  offset: int = 0
  figures: dict[str, Any] = field(default_factory=dict)

  def signal(self, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.process.pid, number)

  def read(self) -> bool:
    """Read the figures that are new; return whether there were any."""
    with self.output.open('rb') as stream:
      stream.seek(self.offset)
      lines = stream.read().splitlines(keepends=True)
    is_new = False
    for line in lines:
      if not line.endswith(b'\n'):
        break
      self.offset += len(line)
      with contextlib.suppress(ValueError):
        figures = json.loads(line)
        if isinstance(figures, dict):
          self.figures |= figures
          is_new = True
    return is_new

  def record(self, status: str) -> dict[str, Any]:
    """Return the results and what became of the process."""
    record = {
      'status': status,
      'seconds': time.monotonic() - self.start_time,
      'turns': self.turns,
      'turn_seconds': self.turn_seconds,
      'command': ' '.join(self.task.command),
      'figures': dict(self.figures),
    }
    if status not in ('running', 'done'):
      record['error'] = self.errors.read_text(errors='replace').splitlines()[-_ERROR_LINES:]
    return record


def run_tasks(
  tasks: Sequence[Task],
  *,
  side_by_side: int,
  limit: float,
  turn_limit: float,
  report: Callable[[str, dict[str, Any]], None],
) -> None:
  """Run tasks, the first ones first; a task that fails does not stop the others.

  Args:
    tasks: in the order of their importance: of those that are ready, the first gets the turn.
    side_by_side: the most processes at once.
    limit: seconds, after which all that still run are killed.
    turn_limit: seconds, after which a process that holds the turn is killed.
    report: is called with a task's name and what is known of it, whenever that changes.
  """
  with tempfile.TemporaryDirectory() as scratch, socket.socket(socket.AF_UNIX) as server:
    server.bind(f'{scratch}/turns')
    server.listen(128)
    server.setblocking(False)
    runner = _Runner(Path(scratch), server, turn_limit, report)
    end_time = time.monotonic() + limit
    waiting = list(tasks)
    try:
      while (waiting or runner.jobs) and time.monotonic() < end_time:
        while waiting and len(runner.jobs) < side_by_side:
          runner.start(waiting.pop(0))
        runner.poll(is_late=end_time - time.monotonic() < _LATE_SHARE * limit)
        time.sleep(_POLL_S)
    finally:
      runner.kill_all('stopped at the limit')
    for task in waiting:
      report(task.name, {'status': 'not started before the limit', 'figures': {}})


class _Runner:
  def __init__(
    self,
    folder: Path,
    server: socket.socket,
    turn_limit: float,
    report: Callable[[str, dict[str, Any]], None],
  ):
    self.jobs: list[_Job] = []
    self._folder, self._server = folder, server
    self._turn_limit, self._report = turn_limit, report
    self._requests: list[tuple[_Job, socket.socket]] = []
    self._turn: tuple[_Job, socket.socket, float] | None = None

  def start(self, task: Task) -> None:
    output, errors = (self._folder / f'{task.name}.{kind}' for kind in ('out', 'err'))
    with output.open('wb') as stdout, errors.open('wb') as stderr:
      process = subprocess.Popen(
        task.command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **task.environment, TURNS: self._server.getsockname()},
        start_new_session=True,
      )
    job = _Job(task, process, output, errors, time.monotonic())
    if self._turn:
      job.signal(signal.SIGSTOP)
    self.jobs.append(job)
    self._report(task.name, job.record('running'))

  def poll(self, *, is_late: bool) -> None:
    """Notice what has happened and hand on the turn."""
    for job in list(self.jobs):
      if job.read():
        self._report(job.task.name, job.record('running'))
      if (status := job.process.poll()) is not None:
        self._end(job, 'done' if status == 0 else f'failed with status {status}')
    with contextlib.suppress(BlockingIOError):
      while True:
        self._accept(self._server.accept()[0])
    if self._turn:
      self._end_turn_if_over()
    if not self._turn and (request := self._choose(is_late)):
      self._give_turn(*request)

  def kill_all(self, status: str) -> None:
    for job in list(self.jobs):
      job.signal(signal.SIGKILL)
      job.process.wait()
      self._end(job, status)

  def _end(self, job: _Job, status: str) -> None:
    job.read()
    self.jobs.remove(job)
    job.signal(signal.SIGKILL)  # What it has left behind.
    self._report(job.task.name, job.record(status))

  def _accept(self, connection: socket.socket) -> None:
    connection.settimeout(5)
    group = int(connection.makefile().readline() or 0)
    connection.setblocking(False)
    for job in self.jobs:
      if job.process.pid == group:
        self._requests.append((job, connection))
        return
    connection.close()

  def _choose(self, is_late: bool) -> tuple[_Job, socket.socket] | None:
    """Return the request whose turn it is."""
    self._requests = [(job, c) for job, c in self._requests if job in self.jobs]
    asking = {id(job) for job, _ in self._requests}
    for first in self.jobs:  # In the order of their importance.
      group = [job for job in self.jobs if job is first or job.task.group == first.task.group != '']
      ready = [job for job in group if id(job) in asking]
      if ready and (is_late or all(job.turns or job in ready for job in group)):
        return min(
          (request for request in self._requests if request[0] in ready), key=lambda r: r[0].turns
        )
    return None

  def _give_turn(self, job: _Job, connection: socket.socket) -> None:
    self._requests.remove((job, connection))
    for other in self.jobs:
      if other is not job:
        other.signal(signal.SIGSTOP)
    self._turn = job, connection, time.monotonic()
    job.turns += 1
    with contextlib.suppress(OSError):
      connection.sendall(b'.')

  def _end_turn_if_over(self) -> None:
    assert self._turn
    job, connection, start_time = self._turn
    seconds = time.monotonic() - start_time
    try:
      is_over = not connection.recv(1)
    except BlockingIOError:
      is_over = False
    except OSError:
      is_over = True
    if not is_over and seconds < self._turn_limit and job in self.jobs:
      return
    if not is_over and job in self.jobs:
      job.signal(signal.SIGKILL)
      job.process.wait()
      self._end(job, f'killed after {seconds:.0f} s in a turn')
    connection.close()
    job.turn_seconds += seconds
    self._turn = None
    for other in self.jobs:
      other.signal(signal.SIGCONT)
