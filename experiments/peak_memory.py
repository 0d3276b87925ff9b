"""Measure how much memory a piece of work takes, in a process of its own."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run_process(module: str, flags: Mapping[str, Any]) -> float:
  """Run `python -m module --name=value …`, which prints its `peak_mib`, and return that."""
  options = [f'--{name}={value}' for name, value in flags.items()]
  command = [sys.executable, '-m', module, *options]
  return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def reset_peak() -> None:
  """Count from now on what this process still holds and what it allocates."""
  Path('/proc/self/clear_refs').write_text('5')


def peak_mib() -> float:
  """Return the most resident memory of this process, MiB, since `reset_peak` or its start."""
  # Not ru_maxrss, which a process inherits from the one that started it.
  (peak,) = re.findall(r'VmHWM:\s*(\d+) kB', Path('/proc/self/status').read_text())
  return int(peak) / 1024
