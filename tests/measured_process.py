"""Read files in a process of its own, and measure what each takes."""

import json
import os
import subprocess
import sys

import pytest
from commands import ROOT

needs_linux = pytest.mark.skipif(
  not os.access('/proc/self/clear_refs', os.W_OK), reason='measures memory as in Linux'
)

# The limit only saves the machine that tests a reader that fails.
_HEAD = """
import json, pathlib, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
"""
_LOOP = """
def memory(name):
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000

for path in map(pathlib.Path, sys.argv[1:]):
  prepared, value, message = prepare(path), None, None
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  before, start = memory('VmRSS'), time.process_time()
  try:
    value = read(prepared)
  except ValueError as error:
    message = str(error)
  seconds, megabytes = time.process_time() - start, memory('VmHWM') - before
  result = {'value': value, 'message': message, 'megabytes': megabytes, 'seconds': seconds}
  print(json.dumps([path.name, result]), flush=True)
"""


def run(program, *arguments, **environment):
  """Return what a program prints."""
  environment = os.environ | {'PYTHONPATH': str(ROOT)} | environment
  command = [sys.executable, '-c', program, *map(str, arguments)]
  return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def read_all(reader, folder, attacks):
  """Write a file for each attack and read it; return the results by name.

  Args:
    reader: a program that defines `prepare(path)`, which is not measured, and `read(prepared)`,
      whose value is kept.
    folder: of the files.
    attacks: functions that return the content of a file of their name.

  Returns:
    For each name 'value', 'message' (of a ValueError, or None), 'megabytes' (the peak beyond what
    was taken before) and 'seconds' of a processor's core.
  """
  paths = [folder / attack.__name__ for attack in attacks]
  for path, attack in zip(paths, attacks, strict=True):
    path.write_bytes(attack())
  return dict(map(json.loads, run(_HEAD + reader + _LOOP, *paths).splitlines()))
