import os
import pwd
import stat

import numpy as np
import pytest

from sjft_jax.runtime import artifacts


def test_saved_arrays_are_loaded_and_absence_is_none(workdir):
  path = workdir / 'deep' / 'a.npz'
  assert artifacts.load(path, 'x') is None
  artifacts.save(path, 'x', numbers=np.arange(5), seconds=1.5)
  loaded = artifacts.load(path, 'x')
  np.testing.assert_array_equal(loaded['numbers'], np.arange(5))
  assert loaded.keys() == {'numbers', 'seconds'}


def test_other_inputs_and_damage_are_refused_with_the_remedy(tmp_path):
  path = tmp_path / 'a.npz'
  artifacts.save(path, 'x', numbers=np.arange(5000))
  with pytest.raises(ValueError, match='made from other data.*new --workdir'):
    artifacts.load(path, 'y')
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(ValueError, match='is damaged.*delete it'):
    artifacts.load(path, 'x')


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
  path = tmp_path / 'a.npz'
  artifacts.save(path, 'x', numbers=np.arange(5))

  def fail(*_):
    raise MemoryError('Unable to allocate 381. MiB')

  monkeypatch.setattr(np, 'load', fail)
  with pytest.raises(MemoryError):
    artifacts.load(path, 'x')


def write_half(path):
  with artifacts.atomic_write(path) as file:
    file.write(b'half of the ne')
    raise KeyboardInterrupt


def test_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('old')
  with pytest.raises(KeyboardInterrupt):
    write_half(path)
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]


def write_half_folder(path):
  with artifacts.atomic_folder(path) as temporary:
    (temporary / 'half.txt').write_text('half')
    raise KeyboardInterrupt


@pytest.mark.parametrize('has_earlier', [False, True])
def test_a_folder_appears_once_it_is_complete_and_replaces_an_earlier_one(tmp_path, has_earlier):
  folder = tmp_path / 'folder'
  if has_earlier:
    folder.mkdir()
    (folder / 'old.txt').write_text('old')
  with artifacts.atomic_folder(folder) as temporary:
    (temporary / 'new.txt').write_text('new')
    assert folder.exists() == has_earlier
  assert [path.name for path in folder.iterdir()] == ['new.txt']
  with pytest.raises(KeyboardInterrupt):
    write_half_folder(folder)
  assert [path.name for path in folder.iterdir()] == ['new.txt']
  assert list(tmp_path.iterdir()) == [folder]


def test_interrupted_write_to_a_store_leaves_the_old_object(store):
  artifacts.save(store / 'a.npz', 'x')
  with pytest.raises(KeyboardInterrupt):
    write_half(store / 'a.npz')
  assert artifacts.load(store / 'a.npz', 'x') is not None


def test_temporary_file_has_a_random_name_next_to_the_output(tmp_path):
  names = set()
  for _ in range(2):
    with artifacts.atomic_write(tmp_path / 'a.txt') as file:
      assert os.path.dirname(file.name) == str(tmp_path)
      names.add(file.name)
  assert len(names) == 2


def test_temporary_file_follows_no_link_and_opens_no_file(tmp_path, monkeypatch):
  """Of another user of the folder, who knows the name beforehand."""
  monkeypatch.setattr(artifacts.secrets, 'token_hex', lambda _: 'known')
  temporary, victim = tmp_path / '.a.txt.known', tmp_path / 'victim'
  for target in (victim, tmp_path / 'nowhere'):
    victim.write_text('precious')
    temporary.symlink_to(target)
    with pytest.raises(FileExistsError):
      artifacts.write_json(tmp_path / 'a.txt', {})
    assert victim.read_text() == 'precious'
    assert not (tmp_path / 'nowhere').exists()
    temporary.unlink(missing_ok=True)
  temporary.write_text('open')
  with pytest.raises(FileExistsError):
    artifacts.write_json(tmp_path / 'a.txt', {})


def test_output_has_the_permissions_of_a_new_file(tmp_path):
  artifacts.write_json(tmp_path / 'a.json', {})
  (tmp_path / 'b.json').touch()
  modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ('a.json', 'b.json')]
  assert modes[0] == modes[1]


def test_writes_are_suppressed_except_those_of_this_process(tmp_path):
  own = artifacts.per_process_path(tmp_path / 'own', 1, 2)
  with artifacts.suppress_writes(tmp_path):
    for path in (tmp_path / 'all', own):
      artifacts.write_json(path, {})
  assert list(tmp_path.iterdir()) == [own]


def test_write_guard_prevents_writes_below_its_directory(tmp_path):
  def refuse():
    raise ValueError('the lock is lost')

  with artifacts.write_guard(tmp_path / 'run', refuse):
    with pytest.raises(ValueError, match='the lock is lost'):
      artifacts.write_json(tmp_path / 'run' / 'deep' / 'a.json', {})
    artifacts.write_json(tmp_path / 'run2', {})
  artifacts.write_json(tmp_path / 'run' / 'deep' / 'a.json', {})


def test_fingerprints_depend_on_values_and_not_on_the_order_of_keys():
  one = artifacts.fingerprint({'a': 1, 'b': [2, 3]}, 'x')
  assert one == artifacts.fingerprint({'b': (2, 3), 'a': 1}, 'x')
  assert one != artifacts.fingerprint({'a': 1, 'b': [2, 4]}, 'x')


def test_damaged_cache_is_made_again(cache):
  made = []

  def make():
    made.append(1)
    return {'numbers': np.arange(3)}

  for _ in range(2):
    arrays = artifacts.load_or_make('tests', 'numbers', make)
    np.testing.assert_array_equal(arrays['numbers'], np.arange(3))
  assert len(made) == 1
  (cache / 'sjft_jax' / 'tests' / 'numbers.npz').write_bytes(b'damage')
  artifacts.load_or_make('tests', 'numbers', make)
  assert len(made) == 2


@pytest.fixture
def unknown_user(monkeypatch, tmp_path):
  """A user without HOME whom the system does not list, and the folder of temporary files."""

  def getpwuid(number):
    raise KeyError(f'getpwuid(): uid not found: {number}')

  monkeypatch.setattr(pwd, 'getpwuid', getpwuid)
  for name in ('HOME', 'XDG_CACHE_HOME'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(artifacts.tempfile, 'tempdir', str(tmp_path))
  artifacts.private_temporary_dir.cache_clear()
  yield tmp_path
  artifacts.private_temporary_dir.cache_clear()


def test_cache_of_an_unknown_user_is_a_private_temporary_folder(unknown_user):
  folder = artifacts.cache_dir()
  assert folder == unknown_user / f'sjft_jax-{os.getuid()}'
  assert stat.S_IMODE(folder.stat().st_mode) == 0o700
  artifacts.private_temporary_dir.cache_clear()
  assert artifacts.cache_dir() == folder


@pytest.mark.parametrize('prepare', ['link', 'open'])
def test_temporary_folder_that_another_user_prepared_is_not_used(unknown_user, prepare):
  path = unknown_user / f'sjft_jax-{os.getuid()}'
  if prepare == 'link':
    (unknown_user / 'trap').mkdir(mode=0o700)
    path.symlink_to(unknown_user / 'trap')
  else:
    path.mkdir()
    path.chmod(0o777)
  folder = artifacts.cache_dir()
  assert folder not in (path, unknown_user / 'trap')
  assert stat.S_IMODE(folder.stat().st_mode) == 0o700
