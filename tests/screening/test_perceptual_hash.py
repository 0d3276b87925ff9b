import cv2
import imagehash
import numpy as np
import PIL.Image
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st

from sjft_jax.screening import perceptual_hash


def bits(image):
  return np.unpackbits(perceptual_hash.phash(image).view(np.uint8))


def distance(one, other):
  return int((bits(one) != bits(other)).sum())


@pytest.fixture(scope='module')
def photographs():
  images = [getattr(skimage.data, name)() for name in ('astronaut', 'cat', 'coffee', 'rocket')]
  return [*images, np.repeat(skimage.data.camera()[..., None], 3, axis=2)]


def reencode(image, quality):
  _, data = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
  return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def test_bits_are_those_of_imagehash(photographs):
  for image in photographs:
    expected = imagehash.phash(PIL.Image.fromarray(image), hash_size=12).hash.ravel()
    assert perceptual_hash.phash(image).shape == (perceptual_hash.WORDS,)
    np.testing.assert_array_equal(bits(image), np.pad(expected, (0, 16)))


def test_bits_are_low_frequencies_above_their_median(photographs):
  """The DCT is OpenCV's; rounding may change bits next to the median."""
  for image in photographs:
    grey = PIL.Image.fromarray(image).convert('L').resize((48, 48), PIL.Image.Resampling.LANCZOS)
    low = cv2.dct(np.asarray(grey, np.float32))[:12, :12]
    # The transform of imagehash is not normalised: its first row and column are √2 larger.
    low[0] *= 2**0.5
    low[:, 0] *= 2**0.5
    expected = (low > np.median(low)).ravel()
    assert (bits(image)[: perceptual_hash.BITS] != expected).sum() <= 2


def test_copies_are_near_and_others_are_not(photographs):
  for i, image in enumerate(photographs):
    height, width = image.shape[:2]
    copies = (
      reencode(image, 30),
      cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
      cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC),
      cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA),
      image[height // 100 : -height // 100, width // 100 : -width // 100],
      np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2),
    )
    assert max(distance(image, copy) for copy in copies) <= perceptual_hash.RADIUS
    assert min(distance(image, other) for other in [*photographs[:i], image[:, ::-1]]) > 50


def brute_force(sources, targets, radius, max_targets):
  pairs = []
  for i, source in enumerate(sources):
    bits = [(sum(int(w).bit_count() for w in source ^ t), j) for j, t in enumerate(targets)]
    pairs += [(i, j, b) for b, j in sorted(bits)[:max_targets] if b <= radius]
  return np.array(pairs, np.int64).reshape(-1, 3)


def hashes(random, count):
  """Draw hashes with few bits, so that there are ties."""
  return (random.integers(0, 2**32, (count, 5)) & random.integers(0, 8, (count, 5))).astype(
    np.uint32
  )


@given(seed=st.integers(0, 2**32 - 1), radius=st.integers(0, 20), max_targets=st.integers(1, 5))
def test_pairs_are_those_of_brute_force(seed, radius, max_targets):
  random = np.random.default_rng(seed)
  sources, targets = hashes(random, 11), hashes(random, 7)
  pairs = perceptual_hash.find_near_pairs(sources, targets, radius=radius, max_targets=max_targets)
  np.testing.assert_array_equal(pairs, brute_force(sources, targets, radius, max_targets))


def test_pairs_do_not_depend_on_blocks(monkeypatch):
  random = np.random.default_rng(0)
  sources, targets = hashes(random, 150), hashes(random, 7)
  whole = perceptual_hash.find_near_pairs(sources, targets, radius=5)
  np.testing.assert_array_equal(whole, brute_force(sources, targets, 5, 16))
  assert len(whole) > 10
  monkeypatch.setattr(perceptual_hash, '_BLOCK', 16)
  blocks = perceptual_hash.find_near_pairs(sources, targets, radius=5)
  np.testing.assert_array_equal(blocks, whole)


def test_no_hashes_give_no_pairs():
  some, none = np.zeros((3, 5), np.uint32), np.zeros((0, 5), np.uint32)
  assert perceptual_hash.find_near_pairs(some, none).shape == (0, 3)
  assert perceptual_hash.find_near_pairs(none, some).shape == (0, 3)


def test_a_large_image_has_the_same_hash_part_by_part(monkeypatch):
  image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
  expected = perceptual_hash.phash(image)
  for pixels in (10, 500):  # Less than a row, and some rows.
    monkeypatch.setattr(perceptual_hash, '_PART_PIXELS', pixels)
    np.testing.assert_array_equal(perceptual_hash.phash(image), expected)
