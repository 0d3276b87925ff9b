"""One process at a time writes to a work directory, whenever others pause, die or come back."""

import builtins
import http.server
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse

import fsspec
import numpy as np
import pytest
from etils import epath

from sjft_jax.runtime import artifacts
from sjft_jax.runtime import lock as lock_module
from sjft_jax.runtime.lock import LockLostError, lock


@pytest.fixture(autouse=True)
def short_settle_time(monkeypatch):
  monkeypatch.setattr(lock_module, '_SETTLE_S', 0.01)


@pytest.fixture
def sleeper():
  """A process that does nothing for a long time."""
  process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
  yield process
  process.kill()
  process.communicate()


def write_lock(path, **changes):
  """Write a lock file as another process would, by default one that is alive."""
  record = {
    'host': 'elsewhere',
    'pid': os.getpid(),
    'machine': lock_module._machine(),
    'began': lock_module._process_start_time(os.getpid()),
    'since': 'noon',
    'token': 'theirs',
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(record | changes))


def make_older(workdir, seconds):
  filesystem, path = fsspec.core.url_to_fs(os.fspath(workdir / 'lock.json'))
  if artifacts.is_remote(workdir):
    filesystem.store[path].modified -= np.timedelta64(seconds, 's').item()
  else:
    then = os.stat(path).st_mtime - seconds
    os.utime(path, (then, then))


def read_holder(workdir):
  return json.loads((workdir / 'lock.json').read_text())


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_lock_file_names_the_holder_and_is_removed_at_the_end(workdir, error):
  with lock(workdir):
    assert read_holder(workdir)['pid'] == os.getpid()
    assert read_holder(workdir)['host'] == os.uname().nodename
  assert not (workdir / 'lock.json').exists()
  with pytest.raises(error), lock(workdir):
    raise error
  assert not (workdir / 'lock.json').exists()


def test_nothing_but_the_lock_file_is_created(workdir):
  with lock(workdir):
    assert [path.name for path in workdir.iterdir()] == ['lock.json']
  write_lock(workdir / 'lock.json', began='1')
  with lock(workdir):
    assert [path.name for path in workdir.iterdir()] == ['lock.json']


def test_second_writer_is_refused_with_the_name_of_the_first(workdir):
  with (
    lock(workdir),
    pytest.raises(ValueError, match=rf'written to by process {os.getpid()} on \S+ \(since 2') as it,
    lock(workdir),
  ):
    pass
  assert 'another --workdir' in str(it.value)
  assert '\n' not in str(it.value)


def test_lock_of_a_killed_process_is_taken_over_at_once(workdir, sleeper, capsys):
  start_time = lock_module._process_start_time(sleeper.pid)
  write_lock(workdir / 'lock.json', pid=sleeper.pid, began=start_time)
  with pytest.raises(ValueError, match=f'process {sleeper.pid} on elsewhere'), lock(workdir):
    pass
  sleeper.kill()
  # Until it is a zombie: nobody has waited for it.
  while lock_module._process_start_time(sleeper.pid):
    time.sleep(0.01)
  with lock(workdir):
    assert read_holder(workdir)['pid'] == os.getpid()
  assert f'left by process {sleeper.pid} on elsewhere' in capsys.readouterr().out
  sleeper.wait()
  write_lock(workdir / 'lock.json', pid=sleeper.pid, began='123')
  with lock(workdir):
    pass


def test_lock_whose_process_number_was_reused_is_taken_over(workdir):
  write_lock(workdir / 'lock.json', began='1')
  with lock(workdir):
    assert read_holder(workdir)['token'] != 'theirs'


def test_lock_of_another_machine_is_taken_over_after_five_minutes(workdir, monkeypatch, capsys):
  # Whatever the time of day is here.
  monkeypatch.setattr(time, 'time', lambda: 1e6)
  write_lock(workdir / 'lock.json', machine='another')
  make_older(workdir, 200)
  with (
    pytest.raises(ValueError, match=r'elsewhere .* \(last seen 200 s ago\).* in 100 s$'),
    lock(workdir),
  ):
    pass
  make_older(workdir, 101)
  with lock(workdir):
    assert read_holder(workdir)['token'] != 'theirs'
  assert 'this run takes over' in capsys.readouterr().out


def test_incomplete_lock_file_is_taken_over(tmp_path):
  for content in ('', '{"pid": 1', '[]', '{}'):
    (tmp_path / 'lock.json').write_text(content)
    with lock(epath.Path(tmp_path)):
      assert read_holder(tmp_path)['pid'] == os.getpid()


def test_incomplete_lock_file_that_is_being_written_is_respected(disk, monkeypatch):
  disk.mkdir()
  (disk / 'lock.json').write_text('')
  monkeypatch.setattr(time, 'sleep', lambda _: write_lock(disk / 'lock.json'))
  with pytest.raises(ValueError, match='is being written to by'), lock(disk):
    pass
  assert read_holder(disk)['token'] == 'theirs'


def run_before_creation(monkeypatch, action):
  """Call `action` once, as if this process paused there: before it first creates a lock file.

  Whatever creates or overwrites it, on a disk by whichever way.
  """
  pending = [action]

  def pause(path):
    if os.path.basename(path).startswith('lock.json') and pending:
      pending.pop()()

  originals = builtins.open, os.open, os.link, os.replace

  def patched_open(path, mode='r', *args, **options):
    if isinstance(path, str) and set(mode) & set('wxa'):
      pause(path)
    return originals[0](path, mode, *args, **options)

  def patched_os_open(path, flags, *args, **options):
    if isinstance(path, str) and flags & os.O_CREAT:
      pause(path)
    return originals[1](path, flags, *args, **options)

  def patched_link(source, destination):
    pause(destination)
    originals[2](source, destination)

  def patched_replace(source, destination):
    pause(destination)
    originals[3](source, destination)

  monkeypatch.setattr(builtins, 'open', patched_open)
  monkeypatch.setattr(os, 'open', patched_os_open)
  if os.link.__module__ == 'posix':
    monkeypatch.setattr(os, 'link', patched_link)
  monkeypatch.setattr(os, 'replace', patched_replace)


@pytest.mark.parametrize('has_links', [True, False])
def test_lock_that_appears_between_look_and_creation_is_respected(
  disk, monkeypatch, request, has_links
):
  if not has_links:
    request.getfixturevalue('no_hard_links')
  run_before_creation(monkeypatch, lambda: write_lock(disk / 'lock.json', machine='another'))
  with (
    pytest.raises(ValueError, match='is being written to by process .* on elsewhere'),
    lock(disk),
  ):
    pass
  assert read_holder(disk)['token'] == 'theirs'


class Intruder(threading.Thread):
  """Another process that takes the lock and keeps it until it is released."""

  def __init__(self, workdir):
    super().__init__(daemon=True)
    self._workdir = workdir
    self.has_lock, self.may_end, self.is_intact = threading.Event(), threading.Event(), False

  def run(self):
    with lock(self._workdir):
      content = (self._workdir / 'lock.json').read_text()
      self.has_lock.set()
      self.may_end.wait(30)
      self.is_intact = (self._workdir / 'lock.json').read_text() == content

  def take(self):
    self.start()
    assert self.has_lock.wait(10)

  def release(self):
    self.may_end.set()
    self.join(30)


@pytest.mark.parametrize('is_released', [False, True])
@pytest.mark.parametrize('has_links', [True, False])
def test_stale_lock_is_taken_over_once_however_long_one_pauses(
  disk, monkeypatch, request, has_links, is_released
):
  """This process finds it, then another takes it over, before this one gets to."""
  monkeypatch.setattr(lock_module.time, 'sleep', lambda _: None)
  if not has_links:
    request.getfixturevalue('no_hard_links')
  write_lock(disk / 'lock.json', began='1')
  intruder = Intruder(disk)

  def pause():
    intruder.take()
    if is_released:
      intruder.release()

  def find_stale(self, path, record):
    reason = why_abandoned(self, path, record)
    if threading.current_thread() is not intruder:
      run_before_creation(monkeypatch, pause)
    return reason

  why_abandoned = lock_module._Lock._why_abandoned
  monkeypatch.setattr(lock_module._Lock, '_why_abandoned', find_stale)
  try:
    if is_released:
      with lock(disk):
        assert intruder.is_intact
    else:
      with pytest.raises(ValueError, match='is being written to by'), lock(disk):
        pass
  finally:
    intruder.release()
  assert intruder.is_intact
  assert list(disk.iterdir()) == []


def test_claim_of_a_live_process_is_respected_and_of_a_dead_one_taken_over(workdir):
  write_lock(workdir / 'lock.json', began='1')
  content = (workdir / 'lock.json').read_bytes()
  claim = workdir / f'lock.json.{artifacts.fingerprint(content.hex())}'
  write_lock(claim, host='claimant')
  with pytest.raises(ValueError, match='is being written to by .* on claimant'), lock(workdir):
    pass
  assert (workdir / 'lock.json').read_bytes() == content
  write_lock(claim, host='claimant', began='2')
  with lock(workdir):
    assert [path.name for path in workdir.iterdir()] == ['lock.json']
    assert read_holder(workdir)['token'] != 'theirs'


@pytest.mark.parametrize('is_stale', [False, True])
@pytest.mark.parametrize('files', ['hard links', 'no hard links', 'store'])
def test_one_of_many_that_come_at_once_gets_the_lock(request, monkeypatch, files, is_stale):
  workdir = request.getfixturevalue('store' if files == 'store' else 'disk')
  if files == 'no hard links':
    request.getfixturevalue('no_hard_links')
  monkeypatch.setattr(lock_module, '_SETTLE_S', 0.2)
  if is_stale:
    write_lock(workdir / 'lock.json', began='1')
  start, end, winners, errors = threading.Barrier(8), threading.Event(), [], []

  def compete():
    start.wait(30)
    try:
      with lock(workdir):
        winners.append(read_holder(workdir)['token'])
        end.wait(60)
    except ValueError as error:
      errors.append(str(error))

  threads = [threading.Thread(target=compete, daemon=True) for _ in range(8)]
  try:
    for thread in threads:
      thread.start()
    deadline = time.monotonic() + 30
    while sum(thread.is_alive() for thread in threads) > 1:
      assert time.monotonic() < deadline, (winners, errors)
      time.sleep(0.01)
  finally:
    end.set()
    for thread in threads:
      thread.join(30)
  assert len(winners) == 1
  assert len(errors) == 7
  assert all('is being written to by' in error for error in errors)


def test_creation_whose_answer_was_lost_counts(disk, monkeypatch):
  """As on NFS: the server has done it, and the client that asks again is told that it exists."""
  link = os.link

  def link_twice(source, destination):
    link(source, destination)
    link(source, destination)

  monkeypatch.setattr(os, 'link', link_twice)
  with lock(disk):
    assert read_holder(disk)['pid'] == os.getpid()


def test_lock_file_that_is_a_link_is_an_error(disk, tmp_path):
  disk.mkdir()
  os.symlink(tmp_path / 'nowhere', disk / 'lock.json')
  with pytest.raises(OSError, match=r'lock\.json'), lock(disk):
    pass
  assert not (tmp_path / 'nowhere').exists()


@pytest.mark.reference
def test_store_itself_decides_on_exclusive_creation():
  """Gcsfs asks Google Cloud Storage to create an object only where there is none."""
  # Its subclass, gcsfs.GCSFileSystem, would first ask Google which kind of bucket this is.
  gcsfs = pytest.importorskip('gcsfs.core')
  objects = {}

  class Storage(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
      content = self.rfile.read(int(self.headers['Content-Length']))
      is_refused = query.get('ifGenerationMatch') == ['0'] and 'object' in objects
      if not is_refused:
        objects['object'] = content
      reply = b'{"name": "run/lock.json", "size": "1"}'
      self.send_response(412 if is_refused else 200)
      self.send_header('Content-Type', 'application/json')
      self.send_header('Content-Length', str(len(reply)))
      self.end_headers()
      self.wfile.write(reply)

    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(('localhost', 0), Storage)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    address = f'http://localhost:{server.server_port}'
    files = gcsfs.GCSFileSystem(token='anon', endpoint_url=address, skip_instance_cache=True)
    files.pipe_file('bucket/run/lock.json', b'first', mode='create')
    with pytest.raises(FileExistsError):
      files.pipe_file('bucket/run/lock.json', b'second', mode='create')
    assert b'first' in objects['object']
    files.pipe_file('bucket/run/lock.json', b'third')
    assert b'third' in objects['object']
  finally:
    server.shutdown()
    server.server_close()


def test_nothing_is_written_after_another_process_took_over(workdir, monkeypatch):
  # Time flies, so that a store is asked every time, too.
  monkeypatch.setattr(time, 'time', itertools.count(0, 100).__next__)

  def write():
    artifacts.write_json(workdir / 'before.json', {})
    write_lock(workdir / 'lock.json')
    artifacts.write_json(workdir / 'after.json', {})

  with (
    pytest.raises(LockLostError, match='by process .* on elsewhere'),
    lock(workdir),
  ):
    write()
  assert (workdir / 'before.json').exists()
  assert not (workdir / 'after.json').exists()
  assert read_holder(workdir)['token'] == 'theirs'


def test_directory_that_vanished_is_not_created_again(disk):
  def write():
    shutil.rmtree(disk)
    artifacts.write_json(disk / 'deep' / 'after.json', {})

  def fail():
    shutil.rmtree(disk)
    raise FileNotFoundError('a part of a checkpoint')  # Which the loss explains.

  for work in (write, fail):
    with (
      pytest.raises(LockLostError, match=r'run/lock\.json vanished'),
      lock(disk),
    ):
      work()
    assert not disk.exists()


def test_lock_is_renewed(workdir, monkeypatch):
  monkeypatch.setattr(lock_module, '_HEARTBEAT_S', 0.01)
  with lock(workdir):
    make_older(workdir, 1000)
    before = modification_time(workdir)
    deadline = time.monotonic() + 30
    while modification_time(workdir) < before + np.timedelta64(900, 's').item():
      assert time.monotonic() < deadline
      time.sleep(0.01)


def modification_time(workdir):
  filesystem, path = fsspec.core.url_to_fs(os.fspath(workdir / 'lock.json'))
  return filesystem.modified(path)


def test_loss_is_reported_as_soon_as_it_is_seen(disk, monkeypatch, capsys):
  monkeypatch.setattr(lock_module, '_HEARTBEAT_S', 0.01)
  with lock(disk):
    write_lock(disk / 'lock.json')
    deadline, output = time.monotonic() + 30, ''
    while 'is being written to by' not in output:
      assert time.monotonic() < deadline
      time.sleep(0.01)
      output += capsys.readouterr().out
