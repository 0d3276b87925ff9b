"""Small data sets, and rounds of an arm on them."""

import numpy as np

from sjft_jax.data.dataset import Domains, ImageArrays
from sjft_jax.round_files import Round

CLASSES = ('a', 'b, c')


def make_images(labels):
  size = len(labels)
  rng = np.random.default_rng(size)
  images = ImageArrays(rng.integers(0, 256, (size, 8, 8, 3), np.uint8))
  images.classes, images.labels = CLASSES, np.array(labels, np.int32)
  return images


def make_domains():
  return Domains(make_images([0, 1, 1]), make_images([0, 0, 1, 1]), make_images([0] * 12))


def make_round(*test, source_images=5, seconds=1.5):
  """Return a round after which the test images have these probabilities of the first class."""
  p = np.array(test, np.float32)
  return Round(
    num_neighbors=np.array([2, 4, 3]),
    source_images=source_images,
    hardness=np.array([0.1, 0.6, 0.2]),
    is_correct=np.array([True, False, True]),
    test={'center': np.stack([p, 1 - p], axis=1)},
    seconds=seconds,
  )
