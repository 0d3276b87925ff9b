"""A work directory on a disk, and one in an object store that lives in memory."""

import os
import threading

import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry


class MemoryStore(MemoryFileSystem):
  """Google Cloud Storage, as far as a test needs it: in memory, with exclusive creation."""

  protocol = ('gs', 'gcs')
  _creating = threading.Lock()

  @classmethod
  def _strip_protocol(cls, path):
    return '/' + path.partition('://')[2].strip('/') if '://' in path else path.rstrip('/')

  def pipe_file(self, path, value, mode='overwrite', **options):
    with self._creating:
      super().pipe_file(path, value, mode=mode, **options)


@pytest.fixture
def disk(tmp_path):
  """A work directory on a disk that does not exist yet."""
  return epath.Path(tmp_path / 'run')


@pytest.fixture
def store(monkeypatch):
  """A work directory in a store that does not exist yet."""
  for name in MemoryStore.protocol:
    monkeypatch.setitem(_registry, name, MemoryStore)
  monkeypatch.setattr(epath.backend.fsspec_backend, '_get_filesystem', lambda _: MemoryStore())
  monkeypatch.setattr(MemoryStore, 'store', {}, raising=False)
  monkeypatch.setattr(MemoryStore, 'pseudo_dirs', [''], raising=False)
  return epath.Path('gs://bucket/run')


@pytest.fixture(params=['disk', 'store'])
def workdir(request):
  """A work directory that does not exist yet, on a disk or in a store."""
  return request.getfixturevalue(request.param)


@pytest.fixture
def no_hard_links(monkeypatch):
  """Disks like FAT, and object stores behind FUSE."""

  def link(*_, **__):
    raise OSError(1, 'Operation not permitted')

  monkeypatch.setattr(os, 'link', link)
