"""The folder of compiled programs, which are code: nobody else can write there."""

import os
import stat

import pytest

from sjft_jax.runtime import artifacts


@pytest.fixture
def home(tmp_path, monkeypatch):
  """Return the user's empty cache, beside an empty folder of temporary files."""
  (tmp_path / 'tmp').mkdir()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(artifacts.tempfile, 'tempdir', str(tmp_path / 'tmp'))
  artifacts.private_temporary_dir.cache_clear()
  yield tmp_path
  artifacts.private_temporary_dir.cache_clear()


def mode(path):
  return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize('umask', [0o022, 0o002, 0o000])
def test_new_folder_is_private(home, umask):
  before = os.umask(umask)
  try:
    folder = artifacts.code_cache_dir('xla')
  finally:
    os.umask(before)
  assert folder == home / 'cache' / 'sjft_jax' / 'xla'
  assert mode(folder) == mode(folder.parent) == 0o700


@pytest.mark.parametrize('name', ['sjft_jax', 'sjft_jax/xla'])
@pytest.mark.parametrize('permissions', [0o777, 0o775, 0o1777])
def test_folder_that_others_may_write_to_is_not_used(home, capsys, name, permissions):
  artifacts.code_cache_dir('xla')
  (home / 'cache' / name).chmod(permissions)
  folder = artifacts.code_cache_dir('xla')
  assert folder == home / 'tmp' / f'sjft_jax-{os.getuid()}' / 'xla'
  assert mode(folder) == mode(folder.parent) == 0o700
  printed = ''.join(capsys.readouterr().out.splitlines())
  assert f'{home}/cache/sjft_jax/xla is not used, since others may write there' in printed


def test_folder_of_another_user_is_not_used(home, monkeypatch):
  artifacts.code_cache_dir('xla')
  monkeypatch.setattr(artifacts.os, 'geteuid', lambda: os.getuid() + 1)
  assert artifacts.code_cache_dir('xla').is_relative_to(home / 'tmp')


def test_link_to_a_folder_of_others_is_not_used(home):
  (home / 'theirs').mkdir()
  (home / 'theirs').chmod(0o777)
  (home / 'cache' / 'sjft_jax').mkdir(parents=True, mode=0o700)
  (home / 'cache' / 'sjft_jax' / 'xla').symlink_to(home / 'theirs')
  assert artifacts.code_cache_dir('xla').is_relative_to(home / 'tmp')


def test_home_that_cannot_be_written_needs_no_line(home, capsys):
  (home / 'cache').write_text('no folder')
  assert artifacts.code_cache_dir('xla').is_relative_to(home / 'tmp')
  assert not capsys.readouterr().out
