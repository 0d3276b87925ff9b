import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sjft_jax.data import transforms

KINDS = ('resnet', 'pursuit', 'none')


def noise(height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


sizes = st.tuples(st.integers(8, 90), st.integers(8, 90))
crops = st.tuples(st.integers(2, 40), st.integers(2, 40)).map(sorted)


@given(sizes, crops)
@settings(max_examples=60, deadline=None)
def test_every_view_has_its_size(size, crop_resize):
  crop, resize = crop_resize
  image = noise(*size)
  assert transforms.describe_view(image, resize=resize, crop=crop).shape == (crop, crop, 3)
  assert transforms.center_crop(image, resize=resize, crop=crop).shape == (crop, crop, 3)
  assert transforms.ten_crop(image, resize=resize, crop=crop).shape == (10, crop, crop, 3)
  for kind in KINDS:
    rng = np.random.default_rng(1)
    view = transforms.augment(image, rng, kind=kind, crop=crop, resize=resize)
    assert view.shape == (crop, crop, 3)
    assert view.dtype == np.uint8


@given(st.integers(4, 60), st.integers(0, 30), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_crops_equal_slices_where_nothing_is_resized(short, extra, crop):
  """The short side is already `resize`: all views are plain slices."""
  crop = min(crop, short)
  image = noise(short, short + extra)
  crops = transforms.ten_crop(image, resize=short, crop=crop)
  end = short + extra
  middle_y, middle_x = (short - crop) // 2, (end - crop) // 2
  expected = [
    image[:crop, :crop],
    image[:crop, end - crop :],
    image[short - crop :, :crop],
    image[short - crop :, end - crop :],
    image[middle_y : middle_y + crop, middle_x : middle_x + crop],
  ]
  np.testing.assert_array_equal(crops[:5], expected)
  np.testing.assert_array_equal(crops[5:], [view[:, ::-1] for view in expected])
  np.testing.assert_array_equal(
    transforms.center_crop(image, resize=short, crop=crop), expected[-1]
  )
  np.testing.assert_array_equal(
    transforms.augment(image, np.random.default_rng(), kind='none', crop=crop, resize=short),
    expected[-1],
  )


def test_same_size_touches_no_pixel():
  image = noise(24, 24)
  for view in (transforms.describe_view, transforms.center_crop):
    np.testing.assert_array_equal(view(image, resize=24, crop=24), image)


def test_shrinking_averages_and_warps():
  image = noise(24, 48)
  blocks = image.reshape(12, 2, 12, 4, 3).mean((1, 3))
  view = transforms.describe_view(image, resize=12, crop=12)
  assert np.abs(view - blocks).max() <= 0.5 + 1e-6
  blocks = image.reshape(12, 2, 24, 2, 3).mean((1, 3))[:, 6:18]
  view = transforms.center_crop(image, resize=12, crop=12)
  assert np.abs(view - blocks).max() <= 0.5 + 1e-6


@pytest.mark.parametrize('kind', ['resnet', 'pursuit'])
def test_augmentation_is_pure_in_the_generator(kind):
  image = noise(72, 80)
  before = image.copy()
  views = []
  for seed in range(60):
    rng = np.random.Generator(np.random.Philox(key=[7, seed]))
    twin = copy.deepcopy(rng)
    options = {'kind': kind, 'crop': 64, 'resize': 72}
    view = transforms.augment(image, rng, **options)
    np.testing.assert_array_equal(transforms.augment(image, twin, **options), view)
    assert rng.random() == twin.random()
    views.append(view.tobytes())
  np.testing.assert_array_equal(image, before)
  # 'pursuit' leaves the view alone (mirror apart) in 1 of 25 draws, so a few may coincide.
  assert len(set(views)) > (58 if kind == 'resnet' else 50)


@pytest.mark.parametrize('kind', ['resnet', 'pursuit'])
def test_half_the_views_are_mirrored(kind):
  """A ramp from left to right tells a mirrored view from a plain one."""
  ramp = np.broadcast_to(np.linspace(60, 190, 72).astype(np.uint8)[:, None], (72, 72, 3)).copy()
  mirrored = 0
  for seed in range(200):
    rng = np.random.default_rng(seed)
    view = transforms.augment(ramp, rng, kind=kind, crop=64, resize=72).astype(int)
    mirrored += view[:, :32].mean() > view[:, 32:].mean()
  assert 70 < mirrored < 130


def test_resnet_colour_shift_is_uniform_within_the_view():
  image = np.full((72, 72, 3), 128, np.uint8)
  shifts = []
  for seed in range(400):
    rng = np.random.default_rng(seed)
    view = transforms.augment(image, rng, kind='resnet', crop=8, resize=72)
    assert (view == view[0, 0]).all()
    shifts.append(view[0, 0].astype(float) - 128)
  # Krizhevsky et al.: standard deviation 0.1 times the eigenvalue along each component.
  first = np.array(shifts) @ transforms._EIGENVECTORS[:, 0]
  assert first.std() == pytest.approx(0.1 * 0.2175 * 255, rel=0.15)


def test_impossible_options():
  image = noise(20, 20)
  for view in (transforms.describe_view, transforms.center_crop, transforms.ten_crop):
    with pytest.raises(ValueError, match='crop=9 must lie between 1 and resize=8'):
      view(image, resize=8, crop=9)
  with pytest.raises(ValueError, match="augment='mixup' is unknown"):
    transforms.augment(image, np.random.default_rng(), kind='mixup', crop=8, resize=8)
