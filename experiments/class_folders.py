"""Write small data sets of noise, a folder of images for each class."""

from pathlib import Path

import cv2
import numpy as np


def write_class_folders(
  path: Path, classes: int, per_class: int, *, seed: int, height: int, width: int, suffix: str
) -> None:
  """Write `path/<class>/<number><suffix>`: coarse noise, smoothly enlarged to height × width."""
  rng = np.random.default_rng(seed)
  for label in range(classes):
    folder = path / f'class {label}'
    folder.mkdir(parents=True)
    for number in range(per_class):
      coarse = rng.integers(0, 256, (height // 10, width // 10, 3), np.uint8)
      image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
      cv2.imwrite(str(folder / f'{number}{suffix}'), image)
