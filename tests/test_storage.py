"""Whole runs on a disk that fills up and in an object store."""

import contextlib
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time

import commands
import pytest
from etils import epath
from small_run import command, interrupt_at, make_config

from sjft_jax import pipeline


@pytest.fixture(scope='module')
def undisturbed(small_data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  process = commands.start(command(small_data, workdir), subprocess.STDOUT)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  return workdir


def scores(workdir):
  results = json.loads((workdir / 'results.json').read_text())
  for arm in results['arms'].values():
    for round_ in arm['rounds']:
      del round_['seconds']
  return results['table'], results['arms']


@pytest.mark.slow
def test_once_a_full_disk_has_room_again_the_run_goes_on(small_data, undisturbed, tmp_path):
  disk = tmp_path / 'disk'
  disk.mkdir()
  # In a namespace of its own anybody may mount a file system, which ends with the namespace.
  inside = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c']
  mount = f'mount -t tmpfs -o size=12k tmpfs {disk}'
  if (
    not shutil.which('unshare')
    or subprocess.run([*inside, mount], stderr=subprocess.PIPE).returncode
  ):
    pytest.skip('no file system can be mounted here')
  run = shlex.join(command(small_data, disk / 'run'))
  grow = f'mount -o remount,size={{}} {disk}'
  # The disk has room for the lock, then for all but checkpoints, then for everything.
  script = [mount, run, grow.format('12m'), run, grow.format('1g'), run]
  keep = f'cp {disk}/run/results.json {tmp_path}'
  process = commands.start([*inside, '; '.join([*script, keep])])
  output, errors = process.communicate(timeout=300)
  small, checkpoint = errors.splitlines()
  message = (
    rf'error: the disk is full at {disk}/run/.*; make room and run the same command: it goes on'
  )
  assert re.fullmatch(message, small)
  assert re.fullmatch(message, checkpoint)
  assert '/pretrain/checkpoints/2' in checkpoint
  assert 'done before' in output
  assert scores(tmp_path) == scores(undisturbed)


@pytest.fixture
def bucket(monkeypatch):
  """Return an empty bucket in an emulator of Google Cloud Storage on this machine."""
  pytest.importorskip('gcsfs')
  emulator = pytest.importorskip('storage_emulator').__file__
  port = commands.free_port()
  for name in ('STORAGE_EMULATOR_HOST', 'TENSORSTORE_GCS_HTTP_URL'):
    monkeypatch.setenv(name, f'http://localhost:{port}')
  monkeypatch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'any')
  monkeypatch.setenv('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')  # It would ask Google.
  serve = ['start', f'--port={port}', '--in-memory', '--default-bucket=bucket']
  process = subprocess.Popen(
    [sys.executable, emulator, *serve],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  deadline = time.monotonic() + 60
  while True:
    with contextlib.suppress(OSError):
      socket.create_connection(('localhost', port)).close()
      break
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.1)
  yield 'gs://bucket'
  process.kill()
  process.wait()


@pytest.mark.reference
def test_a_run_in_an_object_store_resumes_and_gives_what_it_gives_on_a_disk(
  small_data, tmp_path, bucket, monkeypatch
):
  options = {'pretrain.steps': 2, 'training.steps': 4, 'selection.rounds': 2, 'arms': ('rounds',)}

  def run(workdir):
    return pipeline.run(make_config(small_data, **options), workdir)

  with monkeypatch.context() as patch:
    interrupt_at(patch, 'say', 'round 2 of 2')
    with pytest.raises(KeyboardInterrupt):
      run(f'{bucket}/run')
  remote = epath.Path(f'{bucket}/run')
  assert not (remote / 'lock.json').exists()
  assert (remote / 'arms' / 'rounds' / 'rounds' / '1' / 'round.npz').exists()
  remote_results, local_results = run(remote), run(tmp_path / 'run')
  assert run(remote) == remote_results  # Nothing is repeated.
  for results in (remote_results, local_results):
    del results['seconds'], results['arms']['rounds']['rounds'][0]['seconds']
    del results['arms']['rounds']['rounds'][1]['seconds']
  assert remote_results == local_results
  # Another run can start from it.
  changes = {'model.pretrained': f'{remote}/pretrain', 'pretrain.steps': 0, 'arms': ('none',)}
  pipeline.run(make_config(small_data, **options | changes), tmp_path / 'again')
