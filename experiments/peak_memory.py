"""How much memory a piece of work takes, in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path


def of_process(module, flags):
  """What `python -m module --flags` prints: the MiB that `since_forgotten` gave it."""
  options = [f'--{name}={value}' for name, value in flags.items()]
  command = [sys.executable, '-m', module, *options]
  return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def forget():
  """From now on counts what is still held, and what comes."""
  Path('/proc/self/clear_refs').write_text('5')


def since_forgotten():
  """Most resident memory of this process, MiB; of all its life if nothing was forgotten."""
  # Not ru_maxrss, which a process inherits from the one that started it.
  (peak,) = re.findall(r'VmHWM:\s*(\d+) kB', Path('/proc/self/status').read_text())
  return int(peak) / 1024
