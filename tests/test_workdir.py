import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from sjft_jax import config, workdir
from sjft_jax.runtime import artifacts


class Store(MemoryFileSystem):
  """Google Cloud Storage, as far as a test needs it: in memory."""

  protocol = ('gs', 'gcs')

  @classmethod
  def _strip_protocol(cls, path):
    return '/' + path.partition('://')[2].strip('/') if '://' in path else path.rstrip('/')


@pytest.fixture(params=['disk', 'store'])
def place(request, tmp_path, monkeypatch):
  """A work directory that is not there yet."""
  monkeypatch.setattr(workdir, '_SETTLED', 0.01)
  if request.param == 'disk':
    return epath.Path(tmp_path / 'run')
  for name in Store.protocol:
    monkeypatch.setitem(_registry, name, Store)
  monkeypatch.setattr(epath.backend.fsspec_backend, '_get_filesystem', lambda name: Store())
  monkeypatch.setattr(Store, 'store', {}, raising=False)
  monkeypatch.setattr(Store, 'pseudo_dirs', [''], raising=False)
  return epath.Path('gs://bucket/run')


@pytest.fixture
def sleeper():
  """A process that does nothing for a long time."""
  process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
  yield process
  process.kill()
  process.communicate()


def leave(place, **changes):
  """A lock as another process would have left it."""
  record = {
    'host': 'elsewhere',
    'pid': os.getpid(),
    'machine': workdir._machine(),
    'began': workdir._process_start_time(os.getpid()),
    'since': 'noon',
    'token': 'theirs',
  }
  place.mkdir(parents=True, exist_ok=True)
  (place / 'lock.json').write_text(json.dumps(record | changes))


def grow_old(place, seconds):
  if artifacts.is_remote(place):
    file = Store.store[Store._strip_protocol(os.fspath(place / 'lock.json'))]
    file.modified -= np.timedelta64(seconds, 's').item()
  else:
    then = os.stat(place / 'lock.json').st_mtime - seconds
    os.utime(place / 'lock.json', (then, then))


def holder(place):
  return json.loads((place / 'lock.json').read_text())


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_the_lock_names_its_holder_and_ends_with_it(place, error):
  with workdir.lock(place):
    assert holder(place)['pid'] == os.getpid()
    assert holder(place)['host'] == os.uname().nodename
  assert not (place / 'lock.json').exists()
  with pytest.raises(error), workdir.lock(place):
    raise error
  assert not (place / 'lock.json').exists()


def test_a_second_writer_is_refused_with_the_name_of_the_first(place):
  with (
    workdir.lock(place),
    pytest.raises(ValueError, match=rf'written to by process {os.getpid()} on \S+ \(since 2') as it,
    workdir.lock(place),
  ):
    pass
  assert 'another --workdir' in str(it.value)
  assert '\n' not in str(it.value)


def test_a_killed_process_loses_its_lock_at_once(place, sleeper, capsys):
  leave(place, pid=sleeper.pid, began=workdir._process_start_time(sleeper.pid))
  with pytest.raises(ValueError, match=f'process {sleeper.pid} on elsewhere'), workdir.lock(place):
    pass
  sleeper.kill()
  while workdir._process_start_time(sleeper.pid):  # Until it is a zombie: nobody has waited for it.
    time.sleep(0.01)
  with workdir.lock(place):
    assert holder(place)['pid'] == os.getpid()
  assert f'left by process {sleeper.pid} on elsewhere' in capsys.readouterr().out
  sleeper.wait()
  leave(place, pid=sleeper.pid, began='123')
  with workdir.lock(place):
    pass


def test_a_process_that_got_the_number_of_a_dead_one_holds_nothing(place):
  leave(place, began='1')
  with workdir.lock(place):
    assert holder(place)['token'] != 'theirs'


def test_another_machine_holds_its_lock_until_it_is_five_minutes_old(place, monkeypatch, capsys):
  # Whatever the time of day is here.
  monkeypatch.setattr(time, 'time', lambda: 1e6)
  leave(place, machine='another')
  grow_old(place, 200)
  with (
    pytest.raises(ValueError, match=r'elsewhere .* \(last seen 200 s ago\).* in 100 s$'),
    workdir.lock(place),
  ):
    pass
  grow_old(place, 101)
  with workdir.lock(place):
    assert holder(place)['token'] != 'theirs'
  assert 'this run takes over' in capsys.readouterr().out


def test_a_lock_that_was_not_written_to_its_end_is_nobodys(tmp_path):
  for content in ('', '{"pid": 1', '[]', '{}'):
    (tmp_path / 'lock.json').write_text(content)
    with workdir.lock(epath.Path(tmp_path)):
      assert holder(tmp_path)['pid'] == os.getpid()


@pytest.mark.parametrize('left', [False, True])
@pytest.mark.parametrize('alone', [True, False])
def test_of_many_that_come_at_once_one_gets_it(tmp_path, monkeypatch, left, alone):
  place = epath.Path(tmp_path)
  if not alone:  # As where directories cannot be locked.
    monkeypatch.setattr(workdir.fcntl, 'flock', lambda *_: (_ for _ in ()).throw(OSError()))
  monkeypatch.setattr(workdir, '_SETTLED', 0.2)
  if left:
    leave(place, began='1')
  together, over, won = threading.Barrier(8), threading.Event(), []

  def compete():
    together.wait()
    try:
      with workdir.lock(place):
        won.append(holder(place)['token'])
        over.wait()
    except ValueError:
      pass

  threads = [threading.Thread(target=compete) for _ in range(8)]
  for thread in threads:
    thread.start()
  deadline = time.monotonic() + 30
  while sum(thread.is_alive() for thread in threads) > 1:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  over.set()
  for thread in threads:
    thread.join()
  assert len(won) == 1


def test_nothing_is_written_once_somebody_else_has_the_lock(place, monkeypatch):
  # Time flies, so that a store is asked every time, too.
  monkeypatch.setattr(time, 'time', itertools.count(0, 100).__next__)

  def write():
    artifacts.write_json(place / 'before.json', 1)
    leave(place)
    artifacts.write_json(place / 'after.json', 1)

  with (
    pytest.raises(workdir.LockLostError, match='by process .* on elsewhere'),
    workdir.lock(place),
  ):
    write()
  assert (place / 'before.json').exists()
  assert not (place / 'after.json').exists()
  assert holder(place)['token'] == 'theirs'


def test_a_directory_that_vanished_is_not_made_again(tmp_path):
  place = epath.Path(tmp_path / 'run')

  def write():
    shutil.rmtree(place)
    artifacts.write_json(place / 'deep' / 'after.json', 1)

  def fail():
    shutil.rmtree(place)
    raise FileNotFoundError('a part of a checkpoint')  # Which the loss explains.

  for work in (write, fail):
    with (
      pytest.raises(workdir.LockLostError, match=r'run/lock\.json vanished'),
      workdir.lock(place),
    ):
      work()
    assert not place.exists()


def test_the_lock_is_renewed(place, monkeypatch):
  monkeypatch.setattr(workdir, '_BEAT', 0.01)
  with workdir.lock(place):
    grow_old(place, 1000)
    before = modified(place)
    deadline = time.monotonic() + 30
    while modified(place) < before + np.timedelta64(900, 's').item():
      assert time.monotonic() < deadline
      time.sleep(0.01)


def modified(place):
  store, path = fsspec.core.url_to_fs(os.fspath(place / 'lock.json'))
  return store.modified(path)


def test_a_loss_is_told_as_soon_as_it_is_seen(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(workdir, '_BEAT', 0.01)
  place = epath.Path(tmp_path)
  with workdir.lock(place):
    leave(place)
    deadline, told = time.monotonic() + 30, ''
    while 'is being written to by' not in told:
      assert time.monotonic() < deadline
      time.sleep(0.01)
      told += capsys.readouterr().out


def test_arrays_go_to_a_store_and_back(place):
  path = place / 'deep' / 'a.npz'
  assert artifacts.load(path, 'x') is None
  artifacts.save(path, 'x', numbers=np.arange(5))
  np.testing.assert_array_equal(artifacts.load(path, 'x')['numbers'], np.arange(5))

  def write():
    with artifacts.atomic_write(path) as file:
      file.write(b'half')
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write()
  assert artifacts.load(path, 'x') is not None


def test_a_store_that_cannot_be_used_is_a_line_with_the_remedy(monkeypatch):
  assert workdir.resolve('runs/a') == epath.Path('runs/a')
  with pytest.raises(ValueError, match='s3://b/run: .*gs://bucket/path.*mount a s3:// bucket'):
    workdir.resolve('s3://b/run')
  monkeypatch.setattr(workdir.util, 'find_spec', lambda _: None)
  with pytest.raises(ValueError, match=r"gs://b/run needs .* pip install 'sjft_jax\[gcs\]'"):
    workdir.resolve('gs://b/run')


def changed(**options):
  c = config.default()
  for name, value in options.items():
    section, _, option = name.partition('__')
    c[section][option] = value
  return c


def test_harmless_options_exist():
  known = workdir._options(config.default())
  for pattern in workdir.NON_RESULT_OPTIONS:
    if pattern != 'logging.*' or 'logging' in config.default():
      assert any(workdir.fnmatchcase(option, pattern) for option in known)
  assert not workdir.changes_no_result('evaluation.batch_size')  # Its last bits depend on it.
  assert workdir.changes_no_result('overrides.none.training.workers')
  assert not workdir.changes_no_result('overrides.none.training.steps')


def test_only_what_decides_results_is_in_the_fingerprint():
  usual = workdir.result_options(config.default())
  assert workdir.result_options(changed(training__workers=3, descriptors__workers=2)) == usual
  other = changed(training__steps=7, training__workers=3)
  assert workdir.result_options(other) == usual | {'training.steps': 7}
  other = changed(descriptors__num_bins=7, descriptors__workers=3, training__steps=7)
  assert workdir.result_options(other, 'bank', 'descriptors') == {'descriptors.num_bins': 7}


def test_what_an_arm_overrides_is_in_the_fingerprint():
  c = config.default()
  del c.overrides.none['loss']
  assert workdir.result_options(c) != workdir.result_options(config.default())
  assert 'overrides.none.selection.method' in workdir.result_options(config.default())


def test_other_options_are_refused_by_name_and_harmless_ones_accepted_on_demand(tmp_path):
  place = epath.Path(tmp_path)
  workdir.check_unchanged(changed(training__steps=3), place)  # Nothing is there yet.
  workdir.save_config(config.default(), place)
  workdir.check_unchanged(config.default(), place)

  harmless = changed(training__workers=4)
  with pytest.raises(
    ValueError, match=r'training\.workers was 0, now 4\), all harmless: add --res'
  ):
    workdir.check_unchanged(harmless, place)
  workdir.check_unchanged(harmless, place, resume_with_changes=True)

  harmful = changed(training__workers=4, solver__learning_rate=0.5)
  for accept in (False, True):
    with pytest.raises(ValueError, match=r'\(solver\.learning_rate was 0\.01, now 0\.5\)') as error:
      workdir.check_unchanged(harmful, place, resume_with_changes=accept)
    assert 'accepts only the harmless training.workers was 0, now 4' in str(error.value)

  c = config.default()
  del c.overrides.none['loss']
  with pytest.raises(ValueError, match=r'overrides\.none\.loss\.target_weight was 1\.0, now None'):
    workdir.check_unchanged(c, place)


def test_earlier_options_are_kept(tmp_path):
  place = epath.Path(tmp_path)
  for workers in (0, 0, 3, 5, 5):
    workdir.save_config(changed(training__workers=workers), place)
  found = {
    path.name: json.loads(path.read_text())['training']['workers']
    for path in place.glob('config*.json')
  }
  assert found == {'config.1.json': 0, 'config.2.json': 3, 'config.json': 5}
  assert json.loads((place / 'versions.json').read_text())['jax']


def test_an_option_that_a_work_directory_does_not_know_had_its_default(tmp_path):
  place = epath.Path(tmp_path)
  workdir.save_config(config.default(), place)
  options = json.loads((place / 'config.json').read_text())
  del options['training']['steps']
  (place / 'config.json').write_text(json.dumps(options))
  workdir.check_unchanged(config.default(), place)
  with pytest.raises(ValueError, match=r'training\.steps was 16000, now 7'):
    workdir.check_unchanged(changed(training__steps=7), place)
  options['training']['gone'] = 3
  (place / 'config.json').write_text(json.dumps(options))
  with pytest.raises(ValueError, match=r'training\.gone was 3, now None'):
    workdir.check_unchanged(config.default(), place)
