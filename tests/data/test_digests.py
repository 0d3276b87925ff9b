import os
import shutil

import numpy as np
import pyarrow as pa
import pytest

from sjft_jax.data import digests


@pytest.fixture
def reads(monkeypatch):
  """Return the paths of the files that are read from now on; new files count as settled."""
  paths = []
  digest_file = digests._digest_file
  monkeypatch.setattr(digests, '_MIN_FILE_AGE_S', -60)
  monkeypatch.setattr(
    digests, '_digest_file', lambda root, path: paths.append(path) or digest_file(root, path)
  )
  return paths


def digest_folder(root, *names, kind='folder'):
  return digests.digest_files(str(root), pa.array(names, pa.large_string()), kind, 'name').tolist()


def test_digest_is_that_of_the_whole_content(tmp_path, reads):
  contents = [b'', b'x', bytes(10_000), bytes(5_000) + b'1' + bytes(4_999)]
  for number, content in enumerate(contents):
    (tmp_path / f'é{number}').write_bytes(content)
  names = [f'é{number}' for number in range(len(contents))]
  expected = [digests.digest(content).tolist() for content in contents]
  assert digest_folder(tmp_path, *names) == expected
  assert sorted(reads) == names
  assert len(set(map(tuple, expected))) == len(contents)


def test_only_files_with_new_stamps_are_read_again(tmp_path, reads):
  for name in 'abc':
    (tmp_path / name).write_text(name)
  first = digest_folder(tmp_path, *'abc')
  reads.clear()
  assert digest_folder(tmp_path, *'cab') == [first[2], first[0], first[1]]
  assert not reads
  stamps = os.stat(tmp_path / 'b')
  (tmp_path / 'b').write_text('x')
  os.utime(tmp_path / 'b', ns=(stamps.st_atime_ns, stamps.st_mtime_ns))
  (tmp_path / 'd').write_text('d')
  second = digest_folder(tmp_path, *'abcd')
  assert sorted(reads) == ['b', 'd']
  assert second[::2] == first[::2]
  assert second[1] == digests.digest(b'x').tolist()


def test_a_file_that_has_just_changed_is_read_again(tmp_path, reads, monkeypatch):
  monkeypatch.setattr(digests, '_MIN_FILE_AGE_S', 60)
  (tmp_path / 'a').write_text('a')
  for _ in range(2):
    digest_folder(tmp_path, 'a')
  assert reads == ['a', 'a']


def test_what_cannot_be_read_is_not_kept(tmp_path, reads):
  (tmp_path / 'folder').mkdir()
  assert not np.any(digest_folder(tmp_path, 'a', 'folder'))
  (tmp_path / 'a').write_text('a')
  assert digest_folder(tmp_path, 'a') == [digests.digest(b'a').tolist()]
  assert reads == ['a', 'folder', 'a']


def test_a_cache_that_is_damaged_or_cannot_be_written_does_no_harm(tmp_path, reads, cache):
  (tmp_path / 'a').write_text('a')
  expected = digest_folder(tmp_path, 'a')
  (path,) = cache.rglob('*.npz')
  whole = path.read_bytes()
  for content in (b'', b'junk', whole[:-100]):
    path.write_bytes(content)
    assert digest_folder(tmp_path, 'a') == expected
  shutil.rmtree(cache)
  cache.write_text('a file where the folder should be')
  assert digest_folder(tmp_path, 'a') == expected
  assert reads == ['a'] * 5


def test_single_files_leave_no_cache(tmp_path, cache):
  (tmp_path / 'a').write_text('a')
  digest_folder(tmp_path, 'a', kind='')
  assert not [*cache.rglob('*.npz')]
