import numpy as np
import pytest
from screening.pictures import Pictures, blobs, some_bad

from sjft_jax.data.dataset import ConcatDataset, EncodedDataset, SubsetDataset
from sjft_jax.screening import perceptual_hash, scan


def test_every_image_has_a_hash_or_a_reason():
  data = some_bad(5, (2,))
  result = scan.scan(data)
  assert sorted(data.read) == list(range(5))
  assert result.bad == {2: 'bad 2'}
  for i in (0, 1, 3, 4):
    np.testing.assert_array_equal(result.hashes[i], perceptual_hash.phash(data.images[i]))
  assert not result.hashes[2].any()


def test_second_scan_decodes_only_what_could_not_be_read():
  first, data = scan.scan(some_bad(5, (2,))), some_bad(5, (2,))
  second = scan.scan(data)
  assert data.read == [2]
  np.testing.assert_array_equal(second.hashes, first.hashes)
  assert second.bad == first.bad


def test_another_fingerprint_is_scanned():
  scan.scan(Pictures('one', [blobs(0)]))
  data = Pictures('other', [blobs(0)])
  scan.scan(data)
  assert data.read == [0]


def test_cache_that_cannot_be_written_does_not_end_the_scan(tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  assert scan.scan(some_bad(5, (2,))).bad == {2: 'bad 2'}


def test_stopped_scan_resumes(tmp_path, monkeypatch, cache, capsys):
  monkeypatch.setattr(scan, '_CHUNK', 4)
  monkeypatch.setattr(scan, '_SAVE_EVERY_S', 0)
  bad = (1, 9, 17)
  with pytest.raises(KeyboardInterrupt):
    scan.scan(some_bad(20, bad, stop_at=13))
  (partial,) = (cache / 'screened').iterdir()
  data = some_bad(20, bad)
  resumed = scan.scan(data)
  assert sorted(data.read) == sorted([*range(12, 20), *bad])  # Bad ones once more.
  assert 'resumes at image 12 of' in capsys.readouterr().out
  assert not partial.exists()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'another'))
  undisturbed = scan.scan(some_bad(20, bad))
  np.testing.assert_array_equal(resumed.hashes, undisturbed.hashes)
  assert resumed.bad == undisturbed.bad == {i: f'bad {i}' for i in bad}
  assert list(resumed.bad) == list(bad)


def test_subsets_and_concatenations_are_taken_from_the_scans_of_their_parts():
  one, two = some_bad(8, (1, 6)), some_bad(5, (2,))
  hashes = [scan.scan(data).hashes for data in (one, two)]
  one.read, two.read = [], []
  subset = scan.scan(SubsetDataset(one, np.array([6, 0, 7, 1])))
  np.testing.assert_array_equal(subset.hashes, hashes[0][[6, 0, 7, 1]])
  assert subset.bad == {0: 'bad 6', 3: 'bad 1'}
  both = scan.scan(ConcatDataset([one, SubsetDataset(two, np.array([2, 4]))]))
  np.testing.assert_array_equal(both.hashes[:8], hashes[0])
  np.testing.assert_array_equal(both.hashes[8:], hashes[1][[2, 4]])
  assert both.bad == {1: 'bad 1', 6: 'bad 6', 8: 'bad 2'}
  assert (set(one.read), set(two.read)) == ({1, 6}, {2})


def test_reason_is_without_the_name_of_the_image():
  class Records(EncodedDataset):
    def read_encoded(self, index):
      return b''

    def key(self, index):
      return 'record 7'

  bad = scan.scan(Records('records', ('c',), np.zeros(1, np.int32), 'x')).bad
  assert 'record' not in bad[0]


def test_error_of_the_disk_is_no_bad_image():
  with pytest.raises(OSError, match='the disk is away'):
    scan.scan(Pictures('gone', [blobs(0), OSError('the disk is away')]))
