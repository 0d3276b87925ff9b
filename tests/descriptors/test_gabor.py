import math

import jax
import numpy as np
import pytest
from scipy import ndimage, signal
from skimage.filters import gabor_kernel

from sjft_jax.descriptors import gabor

SUPPORTS = (13, 25, 47, 91)


def parameters():
  """Manjunath & Ma 1996, Section 2, as printed (its `2 ln 2 σu²` read as (2 ln 2) σu²)."""
  low, high, scales, orientations = 0.05, 0.4, 4, 6
  a = (high / low) ** (1 / (scales - 1))
  log = 2 * math.log(2)
  sigma_u = (a - 1) * high / ((a + 1) * math.sqrt(log))
  sigma_v = (
    math.tan(math.pi / (2 * orientations))
    * (high - log * sigma_u**2 / high)
    / math.sqrt(log - log**2 * sigma_u**2 / high**2)
  )
  return a, high, sigma_u, sigma_v


def oracle_kernel(m, n):
  """One filter in float64, pixel by pixel."""
  a, high, sigma_u, sigma_v = parameters()
  sigma_x, sigma_y = 1 / (2 * math.pi * sigma_u), 1 / (2 * math.pi * sigma_v)
  theta = n * math.pi / 6
  radius = SUPPORTS[m] // 2
  g = np.zeros((SUPPORTS[m], SUPPORTS[m]), complex)
  for row in range(SUPPORTS[m]):
    for column in range(SUPPORTS[m]):
      x, y = column - radius, row - radius
      xp = (x * math.cos(theta) + y * math.sin(theta)) / a**m
      yp = (-x * math.sin(theta) + y * math.cos(theta)) / a**m
      gauss = math.exp(-0.5 * (xp**2 / sigma_x**2 + yp**2 / sigma_y**2))
      wave = complex(math.cos(2 * math.pi * high * xp), math.sin(2 * math.pi * high * xp))
      g[row, column] = gauss * wave / (2 * math.pi * sigma_x * sigma_y) / a**m
  return g - g.mean()


def oracle_responses(image):
  """Linear convolution in float64 over a mirrored border."""
  luminance = (0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]) / 255
  padded = np.pad(luminance, 45, mode='symmetric')
  bank = gabor.kernels().astype(complex)
  maps = [signal.convolve(padded, k.real, mode='valid') for k in bank]
  maps += [signal.convolve(padded, k.imag, mode='valid') for k in bank]
  return np.stack(maps, axis=-1)


def center(kernel, size):
  margin = (len(kernel) - size) // 2
  return kernel[margin : len(kernel) - margin, margin : len(kernel) - margin]


def test_parameters_tile_the_frequency_plane():
  """The formulas let half-peak ellipses touch between scales and between orientations."""
  a, high, sigma_u, sigma_v = parameters()
  half_peak = math.sqrt(2 * math.log(2))
  assert a == pytest.approx(2)
  assert high - half_peak * sigma_u == pytest.approx(high / a + half_peak * sigma_u / a)
  # The ray halfway between two orientations touches the ellipse: on it, the filter's transfer
  # function peaks at exactly one half.
  radius = np.linspace(0, 1, 1_000_001)
  u, v = radius * math.cos(math.pi / 12), radius * math.sin(math.pi / 12)
  transfer = np.exp(-0.5 * ((u - high) ** 2 / sigma_u**2 + v**2 / sigma_v**2))
  assert transfer.max() == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize('m', range(4))
@pytest.mark.parametrize('n', range(6))
def test_kernels_follow_the_definition(m, n):
  kernel = gabor.kernels()[6 * m + n]
  expected = oracle_kernel(m, n)
  np.testing.assert_allclose(center(kernel, SUPPORTS[m]), expected, atol=1e-8)
  assert np.count_nonzero(kernel) == np.count_nonzero(center(kernel, SUPPORTS[m]))
  assert np.abs(kernel.astype(complex).sum()) < 1e-6


@pytest.mark.parametrize('m', range(4))
def test_kernels_agree_with_scikit_image(m):
  a, high, sigma_u, sigma_v = parameters()
  for n in range(6):
    theirs = gabor_kernel(
      high / a**m,
      theta=n * np.pi / 6,
      sigma_x=a**m / (2 * np.pi * sigma_u),
      sigma_y=a**m / (2 * np.pi * sigma_v),
      n_stds=6,
    )
    # Its kernels are normalised by the area of the scaled envelope (a^-2m), and are not zero-mean.
    # Their support is another rectangle: compare where the two overlap.
    radius, (rows, columns) = SUPPORTS[m] // 2, (s // 2 for s in theirs.shape)
    i, j = min(radius, rows), min(radius, columns)
    ours = gabor.kernels()[6 * m + n][45 - i : 46 + i, 45 - j : 46 + j]
    theirs = theirs[rows - i : rows + i + 1, columns - j : columns + j + 1]
    difference = ours - theirs * a**m
    np.testing.assert_allclose(difference, difference.mean(), atol=1e-7)
    assert abs(difference.mean()) < 2e-3 * np.abs(ours).max()


@pytest.mark.parametrize('size', [(1, 1), (1, 2), (3, 5), (37, 50), (64, 64), (91, 20), (102, 99)])
def test_responses_match_scipy_at_any_size(size):
  images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
  (responses,) = gabor.respond(images)
  assert responses.shape == (2, *size, 48)
  for image, response in zip(images, np.asarray(responses), strict=True):
    # Half the rounding step, and float32.
    np.testing.assert_allclose(response, oracle_responses(image), atol=gabor.RESOLUTION / 2 + 1e-6)


@pytest.mark.parametrize('f', [0, 8, 15, 22])
def test_responses_match_scipy_without_fourier_transform(f):
  image = np.random.default_rng(0).integers(0, 256, (47, 53, 3), np.uint8)
  (responses,) = jax.device_get(gabor.respond(image[None]))
  luminance = image @ np.array([0.299, 0.587, 0.114]) / 255
  kernel = gabor.kernels()[f].astype(complex)
  for part, response in (
    (kernel.real, responses[0, ..., f]),
    (kernel.imag, responses[0, ..., f + 24]),
  ):
    expected = ndimage.convolve(luminance, part, mode='reflect')  # its name for symmetric
    np.testing.assert_allclose(response, expected, atol=gabor.RESOLUTION / 2 + 1e-6)


@pytest.mark.parametrize('color', [(0, 0, 0), (255, 255, 255), (200, 3, 77)])
def test_flat_images_respond_with_exact_zero(color):
  images = np.full((1, 40, 33, 3), color, np.uint8)
  assert not np.asarray(gabor.respond(images)[0]).any()


def test_batches_as_on_a_gpu_give_the_same_responses(monkeypatch):
  images = np.random.default_rng(2).integers(0, 256, (gabor._GPU_BATCH + 3, 21, 30, 3), np.uint8)
  (expected,) = gabor.respond(images)
  monkeypatch.setattr(jax.lax, 'platform_dependent', lambda x, *, cpu, default: default(x))
  (responses,) = jax.jit(gabor.respond.__wrapped__)(images)
  np.testing.assert_allclose(responses, expected, rtol=0, atol=gabor.RESOLUTION)


def test_each_filter_prefers_its_own_wave():
  """Frequency and orientation in the order that the docstring states."""
  y, x = np.mgrid[:128, :128]
  for m in range(1, 4):
    for n in range(6):
      theta = n * np.pi / 6
      wave = np.cos(2 * np.pi * 0.4 / 2**m * (x * np.cos(theta) + y * np.sin(theta)))
      image = np.uint8(np.round(127.5 + 100 * wave))[None, ..., None].repeat(3, -1)
      (responses,) = jax.device_get(gabor.respond(image))
      energy = (responses[0, 45:-45, 45:-45] ** 2).sum(axis=(0, 1))
      # Filters' gains grow as a^m: compare at equal gain.
      energy = (energy[:24] + energy[24:]) / 4.0 ** np.repeat(np.arange(4), 6)
      assert energy.argmax() == 6 * m + n
