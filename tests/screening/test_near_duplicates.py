import cv2
import numpy as np
import pytest
from screening.pictures import Pictures, blobs, crop, planted_copies, reencode, scale

from sjft_jax.data.dataset import ConcatDataset
from sjft_jax.data.demo import DemoDiverse, DemoTextures
from sjft_jax.data.image_list import ListedImages
from sjft_jax.screening.near_duplicates import find_duplicates, group_images


def test_copies_are_found_with_their_bits_and_divergence():
  _, test, source = planted_copies()
  pairs = find_duplicates(source, test)
  assert pairs.source.tolist() == [0, 1, 2, 3]
  assert pairs.target.tolist() == [1, 1, 1, 1]
  assert pairs.hamming[0] == pairs.divergence[0] == 0
  assert (pairs.hamming < 44).all()
  assert ((pairs.divergence[1:] > 0) & (pairs.divergence[1:] < 0.3)).all()


def test_second_search_decodes_nothing():
  _, test, source = planted_copies()
  first = find_duplicates(source, test)
  test.read, source.read = [], []
  second = find_duplicates(source, test)
  assert test.read == source.read == []
  for column, expected in zip(second, first, strict=True):
    np.testing.assert_array_equal(column, expected)


def test_likeness_in_coarse_shapes_alone_is_no_copy(capsys):
  test = Pictures('test', [blobs(i) for i in range(9)])
  source = Pictures('source', [blobs(3, stripes=40), reencode(blobs(4), 50)])
  pairs = find_duplicates(source, test)
  assert 'comparing likely duplicates: 2 in' in capsys.readouterr().out
  assert pairs.source.tolist() == [1]
  assert pairs.target.tolist() == [4]


def test_no_duplicates_give_empty_columns():
  pairs = find_duplicates(Pictures('source', [blobs(0)]), Pictures('test', [blobs(1)]))
  assert [len(column) for column in pairs] == [0] * 4


@pytest.mark.slow
def test_copies_planted_in_the_demo_are_found():
  """All that are re-encoded or resized are found, and nothing else of the demo's source."""
  test, source = DemoTextures('test'), DemoDiverse()
  originals = range(0, len(test), 6)  # four of every class
  treatments = {
    'exact': lambda image: image,
    **{f'quality {q}': lambda image, q=q: reencode(image, q) for q in (90, 70, 50, 30)},
    'halved': lambda image: scale(image, 0.5),
    'doubled': lambda image: scale(image, 2),
    'cropped by 2 %': lambda image: crop(image, 0.02),
    'cropped by 5 %': lambda image: crop(image, 0.05),
  }
  copies = Pictures('planted', [treat(test[i]) for treat in treatments.values() for i in originals])
  pairs = find_duplicates(ConcatDataset([source, copies]), test)
  assert not (pairs.source < len(source)).any()  # 13 would be one in a thousand
  planted = pairs.source - len(source)
  is_found = np.isin(np.arange(len(copies)), planted).reshape(len(treatments), len(originals))
  share = dict(zip(treatments, is_found.mean(axis=1), strict=True))
  assert share.pop('cropped by 5 %') > 0.9
  assert share == dict.fromkeys(share, 1.0)
  np.testing.assert_array_equal(pairs.target, np.array(originals)[planted % len(originals)])


def test_copies_and_groups_are_joined(tmp_path):
  """Image 3 is a copy of image 0, and in a group with image 5; the others stand alone."""
  rng = np.random.default_rng(0)
  images = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(6)]
  images[3] = images[0]
  for number, pixels in enumerate(images):
    cv2.imwrite(str(tmp_path / f'{number}.png'), pixels)
  rows = '\n'.join(f'{n}.png,{"ab"[n % 2]},{"g" if n in (3, 5) else ""}' for n in range(6))
  (tmp_path / 'list.csv').write_text(f'path,label,group\n{rows}\n')
  groups = group_images(ListedImages(str(tmp_path / 'list.csv'), ''))
  assert groups[0] == groups[3] == groups[5]
  assert len(set(groups.tolist())) == 4
