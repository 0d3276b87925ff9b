import copy
import dataclasses
import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sjft_jax.data import transforms

KINDS = ('resnet', 'pursuit', 'none')


def noise(height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def atlas(height, width):
  """Return an image whose pixels spell out where they are: red is twice x, green is twice y."""
  y, x = np.mgrid[:height, :width]
  return np.stack([2 * x, 2 * y, 0 * x], axis=-1).astype(np.uint8)


class ScriptedGenerator(np.random.Generator):
  """Draws the given families and never mirrors; everything else is random."""

  def __init__(self, seed, *families):
    super().__init__(np.random.Philox(seed))
    self.families = list(families)

  def choice(self, known):
    assert self.families[0] in known
    return self.families.pop(0)

  def random(self, size=None):
    return 0.9 if size is None else super().random(size)


def pursue(image, seed, geometry, look):
  rng = ScriptedGenerator(seed, geometry, look)
  return transforms.augment(image, rng, kind='pursuit', crop=64, resize=72)


def fit_affine(view):
  """Return where a view of the atlas comes from: (x, y) of its centre, and the 2×2 matrix."""
  inner = slice(16, 48)  # Nothing here comes from beyond the image.
  y, x = np.mgrid[inner, inner] - 31.5
  design = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1)
  fit = np.linalg.lstsq(design, view[inner, inner, :2].reshape(-1, 2) / 2, rcond=None)[0]
  return fit[2], fit[:2].T


sizes = st.tuples(st.integers(8, 90), st.integers(8, 90))
crops = st.tuples(st.integers(2, 40), st.integers(2, 40)).map(sorted)


@given(sizes, crops)
@settings(max_examples=60)
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
@settings(max_examples=60)
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


def test_an_image_of_the_requested_size_keeps_its_pixels():
  image = noise(24, 24)
  for view in (transforms.describe_view, transforms.center_crop):
    np.testing.assert_array_equal(view(image, resize=24, crop=24), image)


def test_shrinking_averages_pixels_and_warps_where_asked():
  image = noise(24, 48)
  blocks = image.reshape(12, 2, 12, 4, 3).mean((1, 3))
  view = transforms.describe_view(image, resize=12, crop=12)
  assert np.abs(view - blocks).max() < 1  # Rounded twice.
  blocks = image.reshape(12, 2, 24, 2, 3).mean((1, 3))[:, 6:18]
  view = transforms.center_crop(image, resize=12, crop=12)
  assert np.abs(view - blocks).max() <= 0.5 + 1e-6


@pytest.mark.parametrize('kind', ['resnet', 'pursuit'])
def test_augmentation_is_a_pure_function_of_image_and_generator(kind):
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


@pytest.mark.parametrize('kind', ['resnet', 'pursuit'])
@given(sizes, crops, st.integers(0, 2**32))
@settings(max_examples=150)
def test_augmentation_leaves_no_dark_borders(kind, size, crop_resize, seed):
  """Of a white image every view is white, but for the colour shift."""
  crop, resize = crop_resize
  image = np.full((*size, 3), 255, np.uint8)
  rng = np.random.default_rng(seed)
  view = transforms.augment(image, rng, kind=kind, crop=crop, resize=resize)
  assert view.min() >= (180 if kind == 'resnet' else 227)
  assert np.ptp(view, axis=(0, 1)).max() <= 2


def test_pursuit_is_the_centre_crop_when_both_families_do_nothing():
  image = noise(72, 100)
  expected = transforms.center_crop(image, resize=72, crop=64)
  np.testing.assert_array_equal(pursue(image, 0, 'none', 'none'), expected)


def test_pursuit_geometry_has_the_distributions_of_its_families():
  image = atlas(72, 100)
  center = np.array([49.5, 35.5])
  places, scales, angles, corners = [], [], [], []
  for seed in range(200):
    place, matrix = fit_affine(pursue(image, seed, 'crop', 'none'))
    scale = matrix[0, 0]
    np.testing.assert_allclose(matrix, scale * np.eye(2), atol=0.02)
    assert 0.6 * 72 / 64 - 0.02 < scale < 72 / 64 + 0.02
    reach = 32 * scale
    places.append((place - reach + 0.5) / ((100, 72) - 2 * reach))  # From 0 to 1.

    place, matrix = fit_affine(pursue(image, seed, 'scale', 'none'))
    np.testing.assert_allclose(matrix, matrix[0, 0] * np.eye(2), atol=0.02)
    np.testing.assert_allclose(place, center, atol=0.6)
    scales.append(matrix[0, 0])

    view = pursue(image, seed, 'rotation', 'none')
    place, matrix = fit_affine(view)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(2), atol=0.03)
    np.testing.assert_allclose(place, center, atol=0.6)
    # What lies beyond the upper and lower end is mirrored; to the left and right the image goes on.
    y, x = np.mgrid[:64, :64] - 31.5
    expected = place[0] + matrix[0, 0] * x + matrix[0, 1] * y
    np.testing.assert_allclose(view[:, :, 0] / 2, expected, atol=1)
    angles.append(np.rad2deg(np.arctan2(matrix[1, 0], matrix[0, 0])))

    view = pursue(image, seed, 'homography', 'none')
    plain = transforms.center_crop(image, resize=72, crop=64)
    moved = (view.astype(float) - plain)[:, :, :2] / 2
    assert np.abs(moved[16:48, 16:48]).max() < 0.1 * 64 * np.sqrt(2) + 0.6
    corners.append(moved[20, 20])
  places = np.array(places)[:, 0]
  assert places.min() < 0.05
  assert places.max() > 0.95
  assert np.quantile(places, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.12)
  # Out as far as the image reaches, in by the square root of two.
  assert min(scales) == pytest.approx(2**-0.5, abs=0.02)
  assert max(scales) == pytest.approx(72 / 64, abs=0.02)
  assert min(angles) == pytest.approx(-15, abs=1)
  assert max(angles) == pytest.approx(15, abs=1)
  assert np.std(corners, axis=0).min() > 1


def test_pursuit_look_stays_in_the_ranges_of_its_families():
  image = np.kron(noise(9, 9), np.ones((8, 8, 1), np.uint8)) // 4 + 128
  plain = pursue(image, 0, 'none', 'none').astype(float)
  for seed in range(20):
    ratio = pursue(image, seed, 'none', 'color') / plain
    gain = ratio.mean(axis=(0, 1))
    assert np.abs(gain - 1).max() < 0.11
    assert np.ptp(gain) > 0.005
    assert np.abs(ratio - gain).max() < 0.5 / 128 + 0.002  # One gain a channel, but for rounding.

    changed = pursue(image, seed, 'none', 'contrast')
    assert changed.mean() == pytest.approx(plain.mean(), abs=0.5)
    assert 0.59 < changed.std() / plain.std() < 1.41

    blurred = pursue(image, seed, 'none', 'blur').astype(float)
    assert blurred.mean() == pytest.approx(plain.mean(), abs=2)
    assert np.abs(np.diff(blurred, axis=1)).max() < np.abs(np.diff(plain, axis=1)).max()

    rng = ScriptedGenerator(seed)
    file = io.BytesIO()
    Image.fromarray(plain.astype(np.uint8)).save(file, 'JPEG', quality=int(rng.integers(30, 91)))
    expected = np.asarray(Image.open(file), float)
    assert np.abs(pursue(image, seed, 'none', 'jpeg') - expected).mean() < 0.5


@given(st.sampled_from(['resnet', 'pursuit', 'none']), crops, st.integers(0, 2**32))
@settings(max_examples=200)
def test_an_image_of_the_augmentation_side_is_not_enlarged(kind, crop_resize, seed):
  crop, resize = crop_resize
  side = transforms.augmentation_side(kind, resize)
  enlarged = []

  def resize_(image, height, width):
    enlarged.append(height > image.shape[0] or width > image.shape[1])
    return np.zeros((height, width, 3), np.uint8)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(transforms, '_resize', resize_)
    image, rng = noise(side, side + 7), np.random.default_rng(seed)
    transforms.augment(image, rng, kind=kind, crop=crop, resize=resize)
  assert enlarged == [False]


def test_augmentation_side_is_that_of_the_smallest_cut():
  assert transforms.augmentation_side('none', 256) == 256
  assert transforms.augmentation_side('resnet', 256) == 480
  assert transforms.augmentation_side('pursuit', 256) == 427
  with pytest.raises(ValueError, match="kind='mixup' is unknown"):
    transforms.augmentation_side('mixup', 256)


def test_a_side_that_shrinks_is_averaged_while_the_other_grows():
  row = noise(1, 96)
  view = transforms.describe_view(np.repeat(row, 12, axis=0), resize=24, crop=24)
  expected = row.reshape(1, 24, 4, 3).mean(axis=2)
  assert np.abs(view - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize('size', [(1, 1), (3000, 20), (20, 3000), (1, 30_000)])
def test_extreme_shapes_give_views_in_little_memory(size):
  image = noise(*size)
  options = {'resize': 256, 'crop': 224}
  tracemalloc.start()
  try:
    assert transforms.describe_view(image, **options).shape == (224, 224, 3)
    assert transforms.center_crop(image, **options).shape == (224, 224, 3)
    assert transforms.ten_crop(image, **options).shape == (10, 224, 224, 3)
    assert len(transforms.multi_scale(image, **options)) == 5
    families = ['none', 'crop', 'homography', 'scale', 'rotation']
    for rng in (ScriptedGenerator(0, family, 'none') for family in families):
      view = transforms.augment(image, rng, kind='pursuit', **options)
      assert view.shape == (224, 224, 3)
    for seed in range(5):
      rng = np.random.default_rng(seed)
      view = transforms.augment(image, rng, kind='resnet', **options)
      assert view.shape == (224, 224, 3)
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
  finally:
    tracemalloc.stop()


def test_multi_scale_views_of_a_square_are_resized_squares_and_their_mirror_images():
  image = noise(64, 64)
  views = transforms.multi_scale(image, resize=72, crop=64)
  assert [view.shape for view in views] == [(2, s, s, 3) for s in (64, 73, 110, 137, 183)]
  np.testing.assert_array_equal(views[0], [image, image[:, ::-1]])
  for view in views:
    np.testing.assert_array_equal(view[0], transforms._resize(image, *view.shape[1:3]))
    np.testing.assert_array_equal(view[1], view[0][:, ::-1])


@pytest.mark.parametrize(
  ('size', 'shape'),
  [
    ((64, 100), (64, 96)),  # 1.56 is rounded to 12/8.
    ((100, 64), (96, 64)),
    ((64, 96), (64, 96)),
    ((64, 67), (64, 64)),
    ((64, 69), (64, 72)),
    ((25, 65), (64, 160)),  # 2.6 is rounded to 10/4.
  ],
)
def test_multi_scale_views_show_the_whole_image(size, shape):
  views = transforms.multi_scale(atlas(*size), resize=72, crop=64)
  assert views[0].shape == (2, *shape, 3)
  # Pixels say where they come from: from everywhere between the ends of both sides.
  y, x = ((np.arange(n) + 0.5) * old / n - 0.5 for n, old in zip(shape, size, strict=True))
  inner = np.s_[2:-2, 2:-2]
  assert np.abs(views[0][0, ..., 0] / 2 - x)[inner].max() < 1
  assert np.abs(views[0][0, ..., 1] / 2 - y[:, None])[inner].max() < 1
  for view in views:
    height, width = view.shape[1:3]
    assert abs(np.log(width / height) - np.log(size[1] / size[0])) < np.log(1.0625) + 0.01
    np.testing.assert_array_equal(view[1], view[0][:, ::-1])


def test_multi_scale_views_average_where_they_shrink():
  image = noise(64, 96)
  (half,) = transforms.multi_scale(image, resize=224, crop=224, sides=(32,))
  expected = image.reshape(32, 2, 48, 2, 3).mean((1, 3))
  assert np.abs(half[0] - expected).max() <= 0.5 + 1e-6


def test_multi_scale_views_have_few_shapes():
  rng = np.random.default_rng(0)
  sizes = np.exp(rng.uniform(0, np.log(4.0), 3000))
  aspects = {transforms.round_aspect(aspect) for aspect in sizes}
  assert aspects == {n / 8 for n in range(8, 16)} | {n / 4 for n in range(8, 17)}
  for aspect in sizes:
    assert abs(np.log(transforms.round_aspect(aspect) / aspect)) <= np.log(1.0625) + 1e-9
  shapes = {
    transforms.multi_scale(noise(*size), resize=8, crop=8)[-1].shape[1:3]
    for size in ((20, 1000), (1000, 20), (20, 80), (80, 20))
  }
  assert shapes == {(23, 92), (92, 23)}


def test_evaluation_views_are_those_of_the_named_function():
  image, size = noise(80, 100), transforms.ImageSize(resize=72, crop=64)
  options = {'resize': 72, 'crop': 64}
  (center,) = transforms.evaluation_views(image, size=size, view='center')
  np.testing.assert_array_equal(center, transforms.center_crop(image, **options)[None])
  (ten,) = transforms.evaluation_views(image, size=size, view='ten_crop')
  np.testing.assert_array_equal(ten, transforms.ten_crop(image, **options))
  scales = transforms.evaluation_views(image, size=size, view='multi_scale')
  for view, expected in zip(scales, transforms.multi_scale(image, **options), strict=True):
    np.testing.assert_array_equal(view, expected)
  with pytest.raises(ValueError, match="view='corner' is unknown; .*center, ten_crop, multi_scale"):
    transforms.evaluation_views(image, size=size, view='corner')


@pytest.mark.parametrize('view', transforms.VIEWS)
def test_every_evaluation_view_has_its_short_sides(view):
  size = transforms.ImageSize(resize=72, crop=64)
  views = transforms.evaluation_views(noise(50, 90), size=size, view=view)
  sides = transforms.scaled_sides(64) if view == 'multi_scale' else [64]
  aspect = 1.75 if view == 'multi_scale' else 1
  count = {'center': 1, 'ten_crop': 10, 'multi_scale': 2}[view]
  assert [array.shape for array in views] == [(count, s, round(aspect * s), 3) for s in sides]
  assert all(array.dtype == np.uint8 for array in views)


@pytest.mark.parametrize('view', transforms.VIEWS)
def test_an_image_of_the_evaluation_side_is_not_enlarged(view, monkeypatch):
  size = transforms.ImageSize(resize=72, crop=64)
  side = transforms.evaluation_side(size, view)
  resize, enlarged = transforms._resize, []

  def record(image, height, width):
    enlarged.append(height > image.shape[0] or width > image.shape[1])
    return resize(image, height, width)

  monkeypatch.setattr(transforms, '_resize', record)
  transforms.evaluation_views(noise(side, side + 7), size=size, view=view)
  assert not any(enlarged)
  transforms.evaluation_views(noise(side - 1, side + 7), size=size, view=view)
  assert any(enlarged)


def test_evaluation_side_is_the_largest_side_that_a_view_needs():
  size = transforms.ImageSize(resize=256, crop=224)
  assert [transforms.evaluation_side(size, view) for view in transforms.VIEWS] == [256, 256, 640]
  smaller = transforms.ImageSize(resize=128, crop=112)
  assert transforms.evaluation_side(smaller, 'multi_scale') == 320


def test_image_size_cannot_change_and_takes_keywords_only():
  size = transforms.ImageSize(resize=72, crop=64)
  assert size == transforms.ImageSize(crop=64, resize=72)
  with pytest.raises(dataclasses.FrozenInstanceError):
    size.crop = 32
  with pytest.raises(TypeError):
    transforms.ImageSize(72, 64)


def test_impossible_options_are_named():
  image = noise(20, 20)
  for view in (
    transforms.describe_view,
    transforms.center_crop,
    transforms.ten_crop,
    transforms.multi_scale,
  ):
    with pytest.raises(ValueError, match='crop=9 must lie between 1 and resize=8'):
      view(image, resize=8, crop=9)
  with pytest.raises(ValueError, match="kind='mixup' is unknown"):
    transforms.augment(image, np.random.default_rng(), kind='mixup', crop=8, resize=8)
