"""Hostile weight files take little memory and time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT
from models.weights.hostile_files import ATTACKS

# Reads a file in a process of its own, and shows its error, peak in MB beyond what the modules
# take, and seconds. The limit only saves the machine that tests a reader that fails.
READ = """
import json, pathlib, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
from sjft_jax.models.weights import formats

def peak():
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM')) / 1000

message, before, start = None, peak(), time.process_time()
try:
  formats.read(pathlib.Path(sys.argv[1]))
except ValueError as error:
  message = str(error)
seconds = time.process_time() - start
print(json.dumps({'message': message, 'megabytes': peak() - before, 'seconds': seconds}))
"""


def read_in_a_process(path, code=ROOT):
  """Return what `READ` shows of a file."""
  environment = {**os.environ, 'PYTHONPATH': str(code)}
  command = [sys.executable, '-c', READ, str(path)]
  process = subprocess.run(command, cwd=code, env=environment, capture_output=True, check=True)
  return json.loads(process.stdout)


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='measures memory as in Linux')
@pytest.mark.parametrize('write', ATTACKS, ids=lambda write: write.__name__)
def test_hostile_files_take_little_memory_and_time(tmp_path, write):
  path = tmp_path / 'weights'
  write(path)
  megabytes = path.stat().st_size / 1e6
  assert megabytes < 20
  result = read_in_a_process(path)
  # Three times 64 MiB, the file itself, and a copy.
  assert result['megabytes'] < 202 + 2 * megabytes
  assert result['seconds'] < 10
  if result['message'] is not None:
    assert result['message'].startswith(f'{path} is refused: ')
    assert 'MemoryError' not in result['message']
    assert len(result['message']) < 1000
