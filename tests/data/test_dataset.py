import numpy as np
import pytest
from data.numbered import NumberedDataset

from sjft_jax.data.dataset import (
  ConcatDataset,
  Dataset,
  EncodedDataset,
  ImageArrays,
  SubsetDataset,
  class_names,
)
from sjft_jax.data.decode import UnreadableError


def test_subset_holds_the_chosen_images_in_the_given_order():
  whole = NumberedDataset('whole', [0, 1, 2, 1], domain=5)
  subset = SubsetDataset(whole, np.array([3, 0, 2]))
  assert isinstance(subset, Dataset)
  assert len(subset) == 3
  assert (subset.name, subset.classes) == ('whole', ('a', 'b', 'c'))
  np.testing.assert_array_equal(subset.labels, [1, 0, 2])
  assert [subset.key(i) for i in range(3)] == ['image 3', 'image 0', 'image 2']
  assert [subset[i][0, 0, 1] for i in range(3)] == [3, 0, 2]
  assert subset.read_image(0, min_side=7)[0, 0].tolist() == [5, 3, 7]
  others = [
    SubsetDataset(whole, np.array([3, 2, 0])),
    SubsetDataset(NumberedDataset('other', [0, 1, 2, 1]), np.array([3, 0, 2])),
  ]
  assert len({subset.fingerprint, whole.fingerprint, *(o.fingerprint for o in others)}) == 4
  assert SubsetDataset(whole, np.array([3, 0, 2])).fingerprint == subset.fingerprint


def test_concatenation_has_the_label_spaces_side_by_side():
  joined = ConcatDataset(
    [
      NumberedDataset('one', [0, 2], domain=3),
      NumberedDataset('three', [1, 0, 1], ('x', 'y'), domain=5),
    ]
  )
  assert isinstance(joined, Dataset)
  assert joined.name == 'one+three'
  assert joined.classes == ('one/a', 'one/b', 'one/c', 'three/x', 'three/y')
  np.testing.assert_array_equal(joined.labels, [0, 2, 4, 3, 4])
  assert joined.labels.dtype == np.int32
  assert [joined.key(i) for i in (1, 2)] == ['one/image 1', 'three/image 0']
  assert [joined[i][0, 0].tolist() for i in (0, 1, 2, 4)] == [
    [3, 0, 0],
    [3, 1, 0],
    [5, 0, 0],
    [5, 2, 0],
  ]
  assert joined.read_image(3, min_side=9)[0, 0].tolist() == [5, 1, 9]
  with pytest.raises(IndexError):
    joined[5]


def test_data_sets_that_cannot_be_joined_are_named():
  with pytest.raises(ValueError, match='two of the data sets to join are called one'):
    ConcatDataset([NumberedDataset('one', [0]), NumberedDataset('one', [1])])
  with pytest.raises(ValueError, match='many has several classes per image and cannot be joined'):
    ConcatDataset([NumberedDataset('one', [0]), NumberedDataset('many', [[True, False, True]])])


def test_class_names_are_those_of_all_classes_in_an_image():
  assert class_names(NumberedDataset('single', [2, 0]), 0) == 'c'
  assert class_names(NumberedDataset('multi', [[False] * 3, [True, False, True]]), 1) == 'a, c'


@pytest.fixture
def images():
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, size, np.uint8) for size in ((4, 6, 3), (5, 2, 3))]


def test_arrays_are_a_data_set_of_one_class(images):
  data = ImageArrays(images)
  assert isinstance(data, Dataset)
  assert (len(data), data.classes) == (2, ('image',))
  assert data.labels.tolist() == [0, 0]
  assert data.labels.dtype == np.int32
  assert [data.key(i) for i in (0, 1, -1)] == ['0', '1', '1']
  for index, image in enumerate(images):
    np.testing.assert_array_equal(data[index], image)
    np.testing.assert_array_equal(data.read_image(index, min_side=1), image)
  for read in (data.key, data.__getitem__):
    with pytest.raises(IndexError):
      read(2)


def test_arrays_may_be_given_as_one_array(images):
  stacked = np.stack([images[0], images[0] // 2])
  data = ImageArrays(stacked)
  assert len(data) == 2
  np.testing.assert_array_equal(data[1], stacked[1])
  assert data.fingerprint == ImageArrays(list(stacked)).fingerprint


def test_the_fingerprint_of_arrays_follows_pixels_shapes_and_order(images):
  variants = [
    images,
    images[::-1],
    images[:1],
    [images[0], images[1] ^ 1],
    [images[0].reshape(6, 4, 3), images[1]],
  ]
  fingerprints = {ImageArrays(variant).fingerprint for variant in variants}
  assert len(fingerprints) == len(variants)
  assert ImageArrays([image.copy() for image in images]).fingerprint in fingerprints


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (np.zeros((4, 4, 3)), r'image 1 is float64 \[4, 4, 3\]; give uint8 RGB, \[height, width, 3\]'),
    (np.zeros((4, 4), np.uint8), r'image 1 is uint8 \[4, 4\]'),
    (np.zeros((4, 4, 4), np.uint8), r'image 1 is uint8 \[4, 4, 4\]'),
    (np.zeros((0, 4, 3), np.uint8), r'image 1 is uint8 \[0, 4, 3\]'),
  ],
)
def test_arrays_that_are_no_images_are_refused(images, image, message):
  with pytest.raises(ValueError, match=message):
    ImageArrays([images[0], image])


def test_no_arrays_are_refused():
  for nothing in ([], np.zeros((0, 4, 4, 3), np.uint8)):
    with pytest.raises(ValueError, match='no images are given'):
      ImageArrays(nothing)


def test_an_unreadable_image_is_named_with_its_reason_and_a_remedy():
  class Records(EncodedDataset):
    def read_encoded(self, index):
      return b''

    def key(self, index):
      return f'record {index}'

  data = Records('records', ['c'], np.zeros(1, np.int32), 'x')
  assert isinstance(data, Dataset)
  with pytest.raises(UnreadableError, match='^records: record 0 is empty; replace or remove it$'):
    data[0]
