"""Folders of striped images, for tests of searches in folders."""

import cv2
import numpy as np


def write_images(folder, count, seed):
  """Write stripes in noise, spread over folders of folders."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:16, :18]
  for number in range(count):
    angle, width = rng.uniform(0, 6), rng.uniform(0.7, 4)
    wave = 128 + 60 * np.sin((x * np.cos(angle) + y * np.sin(angle)) / width)
    pixels = wave[..., None] + rng.normal(0, rng.uniform(3, 25), (16, 18, 3))
    file = folder / f'{number % 3}' / f'{number % 7}' / f'{number}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), np.clip(pixels, 0, 255).astype(np.uint8))


def write_target_and_source(path):
  """Write a folder `target` of 5 images and a folder `source` of 150, and return `path`."""
  write_images(path / 'target', 5, seed=0)
  write_images(path / 'source', 150, seed=1)
  return path
