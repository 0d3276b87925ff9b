"""Trace some steps of a training with JAX's profiler, for its trace viewer."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from sjft_jax.runtime import artifacts, console, distributed

# Steps before the trace begins: the first one compiles, and the loader fills its buffer.
WARMUP = 3

_Step = Callable[[Any, Any], tuple[Any, Any]]


class StepProfile:
  """Traces so many steps of the first training that it watches, after `WARMUP` others.

  Args:
    directory: where the trace is written; as TensorBoard expects it, in plugins/profile/<time>/.
    steps: how many steps to trace; 0: none.
    available: steps that the shortest training has.

  Raises:
    ValueError: the training has fewer steps, or the directory is no path.
  """

  def __init__(self, directory: epath.Path, steps: int, *, available: int):
    if steps and steps + WARMUP > available:
      raise ValueError(
        f'profile_steps={steps} and the {WARMUP} steps before it exceed the {available} steps of a '
        f'round; use {max(available - WARMUP, 0)} or less, or raise training.steps'
      )
    if steps and artifacts.is_remote(directory):
      raise ValueError(f'{directory} is no path; a profile is written to a disk: give a --workdir')
    self._directory, self._steps = artifacts.absolute_path(directory), steps
    self._is_done = not steps or not distributed.is_primary_process()

  def report_missing(self) -> None:
    """Print a line if steps were to be traced and none was."""
    if not self._is_done:
      console.say(
        f'  no step is traced: no round that was left to train had more than {WARMUP} steps to go; '
        'a new --workdir has'
      )

  @contextlib.contextmanager
  def __call__(self, train_step: _Step) -> Iterator[_Step]:
    """Return the step, traced while this is open; a trace is written once."""
    if self._is_done:
      yield train_step
      return
    count, is_tracing = 0, False

    def stop() -> None:
      nonlocal is_tracing
      jax.profiler.stop_trace()
      is_tracing, self._is_done = False, True
      traces = sorted(artifacts.glob(self._directory, 'plugins/profile/*/*.trace.json.gz'))
      console.say(
        f'  {count - WARMUP:,} steps are traced in {traces[-1] if traces else self._directory}: '
        'open that file at https://ui.perfetto.dev'
      )

    def traced_step(state: Any, batch: Any) -> tuple[Any, Any]:
      nonlocal count, is_tracing
      if count == WARMUP and not self._is_done:
        jax.block_until_ready(state)
        artifacts.check_writable(self._directory)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # A line for every Python call would slow the loader down.
        jax.profiler.start_trace(self._directory, profiler_options=options)
        is_tracing = True
      with jax.profiler.StepTraceAnnotation('train', step_num=count):
        result = train_step(state, batch)
      count += 1
      if is_tracing and count == WARMUP + self._steps:
        jax.block_until_ready(result)
        stop()
      return result

    try:
      yield traced_step
    finally:
      if is_tracing:  # The training was stopped, or had fewer steps left.
        stop()
