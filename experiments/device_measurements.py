"""Measurements that depend on the device: each a function, which a module enters under its name.

Figures are printed as they are known, a JSON object a line, whose union is the result.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from sjft_jax.runtime import launch

MEASURE = flags.DEFINE_string('measure', None, 'What to measure; see the description.')
SIZE = flags.DEFINE_integer('size', 224, 'Pixels a side.')
OUTPUT = flags.DEFINE_string('output', None, 'Folder of a measurement that starts itself again.')

Figures = dict[str, Any]
MEASUREMENTS: dict[str, Callable[[], Iterator[Figures]]] = {}


def measurement(function: Callable[[], Iterator[Figures]]) -> Callable[[], Iterator[Figures]]:
  """Enter a generator of figures under its name."""
  MEASUREMENTS[function.__name__] = function
  return function


def make_command(measure: str, folder: Path) -> list[str]:
  """Return the command of another measurement of this program, which writes to a folder."""
  spec = sys.modules['__main__'].__spec__
  assert spec is not None
  command = [sys.executable, '-m', spec.name, *sys.argv[1:]]
  return [*command, f'--measure={measure}', f'--output={folder}']


def start_again(measure: str, folder: Path, **environment: str) -> subprocess.Popen:
  """Start another measurement of this program, with the same flags, that writes to a folder."""
  # Standard output is for this one's figures.
  command = make_command(measure, folder)
  return subprocess.Popen(command, stdout=sys.stderr, env=os.environ | environment)


def device_peak_mib() -> float | None:
  """Return the most memory that was allocated on the device so far, MiB; None for a CPU."""
  stats = jax.local_devices()[0].memory_stats()
  return stats['peak_bytes_in_use'] / 2**20 if stats else None


def main(_: object) -> None:
  logging.set_verbosity(logging.WARNING)
  if MEASURE.value not in MEASUREMENTS:
    sys.exit(f'error: --measure={MEASURE.value!r} must be one of {", ".join(MEASUREMENTS)}')
  for figures in MEASUREMENTS[MEASURE.value]():
    print(json.dumps(figures), flush=True)


def run() -> None:
  """Run the measurement that the command line names."""
  launch.reexec_with_huge_pages()
  app.run(main)
