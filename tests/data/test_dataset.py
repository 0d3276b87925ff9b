import numpy as np
import pytest

from sjft_jax.data.dataset import ConcatDataset, Dataset, SubsetDataset


class Numbered:
  """Images whose pixels spell their place and the side that was asked for."""

  def __init__(self, name, labels, classes=('a', 'b', 'c')):
    self.name = self.fingerprint = name
    self.labels = np.array(labels)
    self.labels = self.labels.astype(bool if self.labels.ndim > 1 else np.int32)
    self.classes = classes

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    return self.at_least(index, 0)

  def at_least(self, index, side):
    return np.full((2, 2, 3), (index, side, len(self.name)), np.uint8)

  def key(self, index):
    return f'image {index}'


def test_a_part_is_the_chosen_images_in_the_given_order():
  whole = Numbered('whole', [0, 1, 2, 1])
  part = SubsetDataset(whole, np.array([3, 0, 2]))
  assert isinstance(part, Dataset)
  assert len(part) == 3
  assert (part.name, part.classes) == ('whole', ('a', 'b', 'c'))
  np.testing.assert_array_equal(part.labels, [1, 0, 2])
  assert [part.key(i) for i in range(3)] == ['image 3', 'image 0', 'image 2']
  assert [part[i][0, 0, 0] for i in range(3)] == [3, 0, 2]
  assert part.at_least(0, 7)[0, 0].tolist() == [3, 7, 5]
  others = [
    SubsetDataset(whole, np.array([3, 2, 0])),
    SubsetDataset(Numbered('other', [0, 1, 2, 1]), np.array([3, 0, 2])),
  ]
  assert len({part.fingerprint, whole.fingerprint, *(o.fingerprint for o in others)}) == 4
  assert SubsetDataset(whole, np.array([3, 0, 2])).fingerprint == part.fingerprint


def test_a_union_has_the_label_spaces_side_by_side():
  union = ConcatDataset([Numbered('one', [0, 2]), Numbered('three', [1, 0, 1], ('x', 'y'))])
  assert isinstance(union, Dataset)
  assert union.name == 'one+three'
  assert union.classes == ('one/a', 'one/b', 'one/c', 'three/x', 'three/y')
  np.testing.assert_array_equal(union.labels, [0, 2, 4, 3, 4])
  assert union.labels.dtype == np.int32
  assert [union.key(i) for i in (1, 2)] == ['one/image 1', 'three/image 0']
  assert [union[i][0, 0].tolist() for i in (0, 1, 2, 4)] == [
    [0, 0, 3],
    [1, 0, 3],
    [0, 0, 5],
    [2, 0, 5],
  ]
  assert union.at_least(3, 9)[0, 0].tolist() == [1, 9, 5]
  with pytest.raises(IndexError):
    union[5]


def test_what_cannot_be_united_is_named():
  with pytest.raises(ValueError, match='the same data set twice: one, one'):
    ConcatDataset([Numbered('one', [0]), Numbered('one', [1])])
  with pytest.raises(ValueError, match='many has several classes an image'):
    ConcatDataset([Numbered('one', [0]), Numbered('many', [[True, False, True]])])
