import csv

import numpy as np
import pytest

from sjft_jax.data.dataset import EncodedDataset, SubsetDataset
from sjft_jax.data.digests import digest
from sjft_jax.screening.exact_duplicates import exclude_test_files, list_contradictions


class Contents(EncodedDataset):
  """Images whose stored bytes are given; None: they cannot be read."""

  def __init__(self, name, contents, labels):
    super().__init__(name, ('one', 'two'), np.array(labels, np.int32), name)
    zeros = np.zeros(16, np.uint8)
    self.digests = np.array([zeros if c is None else digest(c) for c in contents])

  def read_encoded(self, index):
    pytest.fail('digests decide; no image is read again')

  def key(self, index):
    return f'{self.name}/{index}'


def listed(path):
  with path.open(encoding='utf-8', newline='') as file:
    return list(csv.reader(file))


@pytest.fixture
def domains():
  train = Contents('train', [b'a', b'b', b'c', None, b'd'], [0, 0, 1, 1, 1])
  whole = Contents('test', [b'c', b'x', None, b'a'], [0, 0, 1, 1])
  return train, SubsetDataset(whole, np.array([3, 2, 1, 0]))


def test_training_images_that_are_test_images_are_left_out(tmp_path, capsys, domains):
  rest = exclude_test_files(*domains, tmp_path / 'copies.csv', keep=False)
  assert rest.indices.tolist() == [1, 3, 4]
  assert listed(tmp_path / 'copies.csv') == [
    ['train', 'test'],
    *(['train/0', 'test/3'], ['train/2', 'test/0']),
  ]
  assert (
    '2 of 5 training images are test images as well and are left out of the training: train/0 = '
    'test/3, train/2 = test/0; see' in capsys.readouterr().out.replace('\n', '')
  )


def test_they_can_be_kept(tmp_path, capsys, domains):
  assert exclude_test_files(*domains, tmp_path / 'copies.csv', keep=True) is domains[0]
  assert 'as well and stay in' in capsys.readouterr().out
  assert len(listed(tmp_path / 'copies.csv')) == 3


def test_splits_without_common_files_stay(tmp_path, capsys, domains):
  test = SubsetDataset(domains[1].whole, np.array([1, 2]))
  assert exclude_test_files(domains[0], test, tmp_path / 'copies.csv', keep=False) is domains[0]
  assert not capsys.readouterr().out
  assert len(listed(tmp_path / 'copies.csv')) == 1


def test_a_class_of_nothing_else_is_an_error(tmp_path, domains):
  train = SubsetDataset(domains[0], np.array([0, 4]))
  with pytest.raises(ValueError, match="all training images of class 'one' are test images as"):
    exclude_test_files(train, domains[1], tmp_path / 'copies.csv', keep=False)


def test_images_in_two_classes_are_listed_until_there_are_none(tmp_path, capsys):
  path, columns = tmp_path / 'contradictions.csv', ['image', 'class', 'other_image', 'other_class']
  list_contradictions(Contents('train', [b'a', b'b', b'a'], [0, 0, 1]), path)
  one, two = ['train/0', 'one'], ['train/2', 'two']
  assert listed(path) == [columns, one + two, two + one]
  list_contradictions(Contents('train', [b'a', b'a', b'b', b'a', b'c'], [0, 0, 1, 1, 1]), path)
  assert [row[0] for row in listed(path)[1:]] == ['train/0', 'train/1', 'train/3']
  assert '3 of 5 training images are in another class as well' in capsys.readouterr().out
  list_contradictions(Contents('train', [b'a', b'b', None], [0, 0, 1]), path)
  assert listed(path) == [columns]
