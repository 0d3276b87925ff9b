import numpy as np
import pytest

from sjft_jax.runtime import artifacts


def test_what_is_saved_is_loaded_and_absence_is_none(tmp_path):
  path = tmp_path / 'deep' / 'a.npz'
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


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('old')

  def write():
    with artifacts.atomic_write(path) as file:
      file.write(b'half of the ne')
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write()
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]


def test_fingerprints_tell_inputs_apart_and_do_not_depend_on_the_order_of_keys():
  one = artifacts.fingerprint({'a': 1, 'b': [2, 3]}, 'x')
  assert one == artifacts.fingerprint({'b': (2, 3), 'a': 1}, 'x')
  assert one != artifacts.fingerprint({'a': 1, 'b': [2, 4]}, 'x')
