"""Measure how many planted copies of test images the screening finds, and how many it mistakes.

  python -m experiments.copies

Every image is treated in several ways; each treatment's copies form a source of their own. The
images are the demo's test images, and photographs and paintings (extra `demo`).
"""

import cv2
import numpy as np
from absl import app, logging

from sjft_jax.data import demo, demo_pictures, transforms
from sjft_jax.data.dataset import ImageArrays
from sjft_jax.screening.near_duplicates import find_duplicates


def compress(image: np.ndarray, quality: int) -> np.ndarray:
  """Encode as JPEG and decode again."""
  bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
  _, data = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
  return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def scale(image: np.ndarray, factor: float) -> np.ndarray:
  interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
  return cv2.resize(image, None, fx=factor, fy=factor, interpolation=interpolation)


def cut(image: np.ndarray, share: float, before: float) -> np.ndarray:
  """Cut off `share` of each side, the part `before` of it at the top and left."""
  cuts = [round(share * side) for side in image.shape[:2]]
  (y, x), (height, width) = [round(before * c) for c in cuts], image.shape[:2]
  return image[y : y + height - cuts[0], x : x + width - cuts[1]]


TREATMENTS = {
  'none': lambda x: x,
  **{f'JPEG quality {q}': lambda x, q=q: compress(x, q) for q in (90, 70, 50, 30)},
  'half size': lambda x: scale(x, 0.5),
  'double size': lambda x: scale(x, 2),
  'half size, JPEG quality 50': lambda x: compress(scale(x, 0.5), 50),
  'grey': lambda x: np.repeat(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None], 3, 2),
  'brighter': lambda x: np.clip(x * 1.15 + 8, 0, 255).astype(np.uint8),
  '2 % cut off around': lambda x: cut(x, 0.02, 0.5),
  '5 % cut off around': lambda x: cut(x, 0.05, 0.5),
  '3 % cut off at a corner': lambda x: cut(x, 0.03, 1),
  '5 % cut off at a corner': lambda x: cut(x, 0.05, 1),
}


def load_pictures() -> list[np.ndarray]:
  """Load photographs and paintings, at most 500 pixels on the short side."""
  files = sorted(
    (demo_pictures.package_folder('skimage', 'scikit-image') / 'data').glob('*.[jp][pn]g')
  )
  files += sorted(
    (demo_pictures.package_folder('miniworld') / 'textures' / 'portraits').glob('*.png')
  )
  images = [cv2.imdecode(np.fromfile(f, np.uint8), cv2.IMREAD_COLOR_RGB) for f in files]
  images = [image for image in images if min(image.shape[:2]) >= 96]
  return [transforms._resize_short(i, 500) if min(i.shape[:2]) > 500 else i for i in images]


def main(_: object) -> None:
  logging.set_verbosity(logging.WARNING)
  textures = demo.DemoTextures('test')
  image_sets = {'demo': [textures[i] for i in range(len(textures))], 'pictures': load_pictures()}
  shares: dict[tuple[str, str], float] = {}
  for name, images in image_sets.items():
    test = ImageArrays(images)
    for treatment, treat in TREATMENTS.items():
      # Arrays lie side by side in memory, which the hash needs and a cut-out does not.
      copies = ImageArrays([np.ascontiguousarray(treat(image)) for image in images])
      pairs = find_duplicates(copies, test)
      found = np.unique(pairs.source[pairs.source == pairs.target])
      shares[name, treatment] = len(found) / len(test)
  titles = (f'{name} ({len(images)})'.rjust(16) for name, images in image_sets.items())
  print(f'{"share found":28}' + ''.join(titles))
  for treatment in TREATMENTS:
    print(f'{treatment:28}' + ''.join(f'{shares[name, treatment]:16.1%}' for name in image_sets))
  source = demo.DemoDiverse()
  mistaken = len(np.unique(find_duplicates(source, textures).source))
  print(f'{mistaken} of the {len(source):,} images of the demo source pass for copies')


if __name__ == '__main__':
  app.run(main)
