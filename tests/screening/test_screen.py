"""Unreadable images and planted copies: found, told, left out."""

import csv

import cv2
import numpy as np
import PIL.Image
import pytest
import skimage.data

from sjft_jax.data.dataset import ConcatDataset, EncodedDataset, SubsetDataset
from sjft_jax.data.decode import UnreadableError
from sjft_jax.data.demo import DemoDiverse, DemoTextures
from sjft_jax.data.folder import ClassFolder
from sjft_jax.screening.screen import exclude_unreadable, screen


class Pictures:
  """Images at hand; `read` has who was asked for. What is no image is raised."""

  def __init__(self, name, images, labels=None, classes=('one', 'two'), stop_at=None):
    self.name = self.fingerprint = name
    self.images, self.classes, self.stop_at, self.read = images, classes, stop_at, []
    self.labels = np.zeros(len(images), np.int32) if labels is None else np.array(labels)
    if self.labels.ndim == 1:
      self.labels = self.labels.astype(np.int32)

  def __len__(self):
    return len(self.images)

  def __getitem__(self, index):
    self.read.append(index)
    if index == self.stop_at:
      raise KeyboardInterrupt
    if isinstance(self.images[index], Exception):
      raise self.images[index]
    return self.images[index]

  def read_image(self, index, *, min_side):
    return self[index]

  def key(self, index):
    return f'{index}.jpg'


def blobs(seed, stripes=0):
  """A picture of coarse shapes, with fine stripes of some height across it."""
  random = np.random.default_rng([7, seed])
  coarse = cv2.resize(random.uniform(60, 190, (6, 6)), (96, 96), interpolation=cv2.INTER_CUBIC)
  wave = stripes * np.sin(2 * np.pi * 13 / 96 * np.arange(96))
  grey = np.clip(coarse + wave, 0, 255).astype(np.uint8)
  return np.repeat(grey[..., None], 3, axis=2)


def jpeg(image, quality=90):
  _, data = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
  return data.tobytes()


def encoded(image, quality):
  return cv2.imdecode(np.frombuffer(jpeg(image, quality), np.uint8), cv2.IMREAD_COLOR_RGB)


def scaled(image, factor):
  kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
  return cv2.resize(image, None, fx=factor, fy=factor, interpolation=kind)


def cropped(image, share):
  """`share` of height and width gone, half of it on either side."""
  (top, height), (left, width) = (
    (round(n * share) // 2, round(n * share)) for n in image.shape[:2]
  )
  return image[top : image.shape[0] - height + top, left : image.shape[1] - width + left]


def rows(path):
  with path.open(encoding='utf-8', newline='') as file:
    return list(csv.reader(file))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache/sjft_jax'


OPTIONS = {'max_bad_share': 0.01, 'exclude_duplicates_of': 'test'}


def test_bad_files_are_named_and_left_out(tmp_path, capsys):
  for name in ('a/1', 'a/2', 'b/3', 'b/4', 'b/5'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / f'{name}.jpg').write_bytes(jpeg(blobs(int(name[-1]))))
  (tmp_path / 'a/empty.jpg').touch()
  whole = (tmp_path / 'b/5.jpg').read_bytes()
  (tmp_path / 'b/cut, short.jpg').write_bytes(whole[: len(whole) // 2])
  (tmp_path / 'b/page.jpg').write_text('<html>404</html>')
  data, good = ClassFolder(str(tmp_path), ''), Pictures('good', [blobs(1)])
  listing = tmp_path / 'bad_images.csv'
  part, same = exclude_unreadable((data, good), listing, max_bad_share=0.4)
  assert [part.key(i) for i in range(len(part))] == ['a/1.jpg', 'a/2.jpg'] + [
    f'b/{i}.jpg' for i in (3, 4, 5)
  ]
  assert part.labels.tolist() == [0, 0, 1, 1, 1]
  assert same is good
  header, *bad = rows(listing)
  assert header == ['data_set', 'image', 'reason']
  assert [row[:2] for row in bad] == [
    [data.name, f'{name}.jpg'] for name in ('a/empty', 'b/cut, short', 'b/page')
  ]
  assert all(reason and 'jpg' not in reason for _, _, reason in bad)
  told = capsys.readouterr().out
  assert (
    f'3 of 8 images of {data.name} cannot be read and are left out: a/empty.jpg, b/cut, short.jpg, '
    f'b/page.jpg; see {listing}' in told
  )
  for i in range(len(part)):
    np.testing.assert_array_equal(part[i], PIL.Image.open(tmp_path / part.key(i)))


def some_bad(count, bad, **options):
  images = [blobs(i) for i in range(count)]
  for i in bad:
    images[i] = UnreadableError(f'bad {i}')
  return Pictures(f'{count} with {len(bad)} bad', images, **options)


def test_too_large_a_share_is_an_error_but_listed(tmp_path):
  data, listing = some_bad(10, (1, 3, 5, 8)), tmp_path / 'bad.csv'
  (rest,) = exclude_unreadable((data,), listing, max_bad_share=0.4)
  assert rest.indices.tolist() == [0, 2, 4, 6, 7, 9]
  listing.unlink()
  with pytest.raises(ValueError) as error:  # noqa: PT011
    exclude_unreadable((data,), listing, max_bad_share=0.3)
  assert str(error.value) == (
    f'4 of 10 images of {data.name} cannot be read, a share of 0.4 above max_bad_share=0.3: 1.jpg, '
    f'3.jpg, 5.jpg …; see {listing}; replace them, or raise max_bad_share'
  )
  assert rows(listing)[1:] == [[data.name, f'{i}.jpg', f'bad {i}'] for i in (1, 3, 5, 8)]


@pytest.mark.parametrize('labels', [[0, 1, 0, 1], [[1, 0], [0, 1], [1, 0], [0, 1]]])
def test_a_class_without_images_is_an_error(tmp_path, labels):
  labels = np.array(labels) if np.ndim(labels) == 1 else np.array(labels, bool)
  data = some_bad(4, (1, 3), labels=labels)
  with pytest.raises(ValueError, match="no image of class 'two' of 4 with 2 bad can be read"):
    exclude_unreadable((data,), tmp_path / 'bad.csv', max_bad_share=0.5)
  # A class that never had one is no loss.
  rest = SubsetDataset(data, np.array([0, 2]))
  assert exclude_unreadable((rest,), tmp_path / 'bad.csv', max_bad_share=0) == (rest,)


def test_an_error_of_the_disk_is_no_bad_image(tmp_path):
  data = Pictures('gone', [blobs(0), OSError('the disk is away')])
  with pytest.raises(OSError, match='the disk is away'):
    exclude_unreadable((data,), tmp_path / 'bad.csv', max_bad_share=1)


def test_the_second_time_nothing_is_decoded(tmp_path):
  def data():
    return [
      Pictures('target', [blobs(i) for i in range(3)]),
      some_bad(5, (2,)),
      Pictures('source', [encoded(blobs(i), 50) for i in range(3, 9)]),
    ]

  options = {'max_bad_share': 0.5, 'exclude_duplicates_of': 'test_and_train'}
  first = screen(tmp_path / '1', *data(), **options)
  again = data()
  second = screen(tmp_path / '2', *again, **options)
  assert [dataset.read for dataset in again] == [[], [], []]
  assert [d.fingerprint for d in first] == [d.fingerprint for d in second]
  assert first[2].indices.tolist() == [2, 3, 4, 5]  # 3 and 4 are copies, 2 cannot be read.
  for name in ('bad_images.csv', 'duplicates.csv'):
    assert (tmp_path / '1' / name).read_bytes() == (tmp_path / '2' / name).read_bytes()
    assert len(rows(tmp_path / '1' / name)) > 1


def test_without_a_cache_the_same_is_found(tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  data = some_bad(5, (2,))
  (rest,) = exclude_unreadable((data,), tmp_path / 'bad.csv', max_bad_share=0.5)
  assert rest.indices.tolist() == [0, 1, 3, 4]


def test_stopped_it_goes_on(tmp_path, monkeypatch, cache, capsys):
  monkeypatch.setattr(screen, '_CHUNK', 4)
  monkeypatch.setattr(screen, '_PARTIAL_EVERY', 0)
  bad = (1, 9, 17)
  with pytest.raises(KeyboardInterrupt):
    screen.screened(some_bad(20, bad, stop_at=13))
  (partial,) = (cache / 'screened').iterdir()
  data = some_bad(20, bad)
  found = screen.screened(data)
  assert sorted(data.read) == list(range(12, 20))
  assert 'goes on from image 12 of' in capsys.readouterr().out
  assert not partial.exists()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'another'))
  undisturbed = screen.screened(some_bad(20, bad))
  np.testing.assert_array_equal(found.hashes, undisturbed.hashes)
  assert found.bad == undisturbed.bad == {i: f'bad {i}' for i in bad}
  assert list(found.bad) == list(bad)


def test_parts_and_unions_are_known_from_what_they_are_made_of():
  one, two = some_bad(8, (1, 6)), some_bad(5, (2,))
  whole = [screen.screened(data) for data in (one, two)]
  one.read, two.read = [], []
  part = screen.screened(SubsetDataset(one, np.array([6, 0, 7, 1])))
  np.testing.assert_array_equal(part.hashes, whole[0].hashes[[6, 0, 7, 1]])
  assert part.bad == {0: 'bad 6', 3: 'bad 1'}
  both = screen.screened(ConcatDataset([one, SubsetDataset(two, np.array([2, 4]))]))
  np.testing.assert_array_equal(both.hashes[:8], whole[0].hashes)
  np.testing.assert_array_equal(both.hashes[8:], whole[1].hashes[[2, 4]])
  assert both.bad == {1: 'bad 1', 6: 'bad 6', 8: 'bad 2'}
  assert one.read == two.read == []


def test_the_reason_is_without_the_name(tmp_path):
  class Records(EncodedDataset):
    def read_encoded(self, index):
      return b''

    def key(self, index):
      return 'record 7'

  bad = screen.screened(Records('records', ('c',), np.zeros(1, np.int32), 'x')).bad
  assert 'record' not in bad[0]


def planted():
  """Photographs: the first two in the test set, the third in the training set; and the source."""
  images = [getattr(skimage.data, name)() for name in ('astronaut', 'cat', 'coffee', 'rocket')]
  copies = [
    *(images[0], encoded(images[0], 30), scaled(images[0], 0.25), cropped(images[0], 0.03)),
    *(images[2], images[3], images[0][:, ::-1], images[1][:150, :200]),
  ]
  return (
    Pictures('train', [images[2], blobs(0)]),
    Pictures('test', [blobs(1), images[0], images[1]]),
    Pictures('source', copies),
  )


def test_copies_of_test_images_leave_the_source(tmp_path, capsys):
  target, test, source = planted()
  found = screen(tmp_path, target, test, source, **OPTIONS)
  assert found[:2] == (target, test)
  assert found[2].indices.tolist() == [4, 5, 6, 7]
  header, *pairs = rows(tmp_path / 'duplicates.csv')
  assert header == ['source', 'target', 'target_set', 'hamming', 'divergence']
  assert [pair[:3] for pair in pairs] == [[f'{i}.jpg', '1.jpg', 'test'] for i in range(4)]
  assert pairs[0][3:] == ['0', '0.0000']
  assert all(0 < float(nats) < 0.3 for *_, nats in pairs[1:])
  assert '4 of 8 source images duplicate test images and are left out' in capsys.readouterr().out


def test_of_training_images_too_on_request(tmp_path):
  *_, source = screen(tmp_path, *planted(), **OPTIONS | {'exclude_duplicates_of': 'test_and_train'})
  assert source.indices.tolist() == [5, 6, 7]
  assert rows(tmp_path / 'duplicates.csv')[-1] == ['4.jpg', '0.jpg', 'train', '0', '0.0000']


def test_none_leaves_them_in_but_tells(tmp_path, capsys):
  target, test, source = planted()
  found = screen(tmp_path, target, test, source, **OPTIONS | {'exclude_duplicates_of': 'none'})
  assert found == (target, test, source)
  assert len(rows(tmp_path / 'duplicates.csv')) == 5
  assert '4 of 8 source images duplicate test images and stay in' in capsys.readouterr().out


def test_alike_in_coarse_shapes_alone_is_no_copy(tmp_path, capsys):
  test = Pictures('test', [blobs(i) for i in range(9)])
  source = Pictures('source', [blobs(3, stripes=40), encoded(blobs(4), 50)])
  *_, rest = screen(tmp_path, Pictures('train', [blobs(9)]), test, source, **OPTIONS)
  assert 'comparing likely duplicates: 2 in' in capsys.readouterr().out
  assert rest.indices.tolist() == [0]


def test_no_duplicates_no_rows(tmp_path, capsys):
  data = [Pictures(name, [blobs(i)]) for i, name in enumerate(('train', 'test', 'source'))]
  assert screen(tmp_path, *data, **OPTIONS) == tuple(data)
  assert len(rows(tmp_path / 'duplicates.csv')) == len(rows(tmp_path / 'bad_images.csv')) == 1
  assert '0 of 1 source images duplicate test images' in capsys.readouterr().out


def test_a_source_of_nothing_but_copies_is_an_error(tmp_path):
  images = [blobs(i) for i in range(3)]
  data = [Pictures('train', [blobs(9)]), Pictures('test', images), Pictures('source', images)]
  with pytest.raises(ValueError, match='every image of source duplicates an image of the target'):
    screen(tmp_path, *data, **OPTIONS)


def test_unknown_option_before_any_image_is_read(tmp_path):
  data = planted()
  with pytest.raises(ValueError, match="exclude_duplicates_of='tests' is unknown; use one of test"):
    screen(tmp_path, *data, **OPTIONS | {'exclude_duplicates_of': 'tests'})
  assert not any(dataset.read for dataset in data)


@pytest.mark.slow
def test_copies_planted_in_the_demo(tmp_path):
  """All that were re-encoded or resized are found, and nothing else of the demo's source."""
  test, source = DemoTextures('test'), DemoDiverse()
  chosen = range(0, len(test), 6)  # four of every class
  treatments = {
    'exact': lambda image: image,
    **{f'quality {q}': lambda image, q=q: encoded(image, q) for q in (90, 70, 50, 30)},
    'halved': lambda image: scaled(image, 0.5),
    'doubled': lambda image: scaled(image, 2),
    'cropped by 2 %': lambda image: cropped(image, 0.02),
    'cropped by 5 %': lambda image: cropped(image, 0.05),
  }
  copies = Pictures('planted', [treat(test[i]) for treat in treatments.values() for i in chosen])
  both = ConcatDataset([source, copies])
  *_, rest = screen(tmp_path, DemoTextures('train'), test, both, **OPTIONS)
  gone = np.setdiff1d(np.arange(len(both)), rest.indices)
  assert not (gone < len(source)).any()  # 13 would be one in a thousand
  found = np.isin(np.arange(len(source), len(both)), gone).reshape(len(treatments), len(chosen))
  share = dict(zip(treatments, found.mean(axis=1), strict=True))
  assert share.pop('cropped by 5 %') > 0.9
  assert share == dict.fromkeys(share, 1.0)
  for copy, original, *_ in rows(tmp_path / 'duplicates.csv')[1:]:
    place = int(copy.removeprefix('planted/').removesuffix('.jpg'))
    assert original == test.key(chosen[place % len(chosen)])
