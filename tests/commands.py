"""The commands of the project, started as a person would."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(command: list[str], stderr: int = subprocess.PIPE) -> subprocess.Popen:
  """From the project's root, on one device."""
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': ''},
    stdout=subprocess.PIPE,
    stderr=stderr,
    text=True,
  )
