"""How many planted copies of test images the leak guard finds, and what it takes for one wrongly.

  python -m experiments.copies

Every image is treated in several ways; each treatment's copies form a source of their own. The
images are the demo's test images, and photographs and paintings (extra `demo`).
"""

import hashlib

import cv2
import numpy as np
from absl import app, logging

from sjft_jax.data import demo, transforms
from sjft_jax.data.demo_pictures import package_folder
from sjft_jax.screening import screen


def jpeg(image, quality):
  bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
  _, data = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
  return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def scaled(image, factor):
  kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
  return cv2.resize(image, None, fx=factor, fy=factor, interpolation=kind)


def cut(image, share, before):
  """Without `share` of each side, of which the part `before` is cut off at the top and left."""
  cuts = [round(share * side) for side in image.shape[:2]]
  (y, x), (height, width) = [round(before * c) for c in cuts], image.shape[:2]
  return image[y : y + height - cuts[0], x : x + width - cuts[1]]


TREATMENTS = {
  'none': lambda x: x,
  **{f'JPEG quality {q}': lambda x, q=q: jpeg(x, q) for q in (90, 70, 50, 30)},
  'half size': lambda x: scaled(x, 0.5),
  'double size': lambda x: scaled(x, 2),
  'half size, JPEG quality 50': lambda x: jpeg(scaled(x, 0.5), 50),
  'grey': lambda x: np.repeat(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None], 3, 2),
  'brighter': lambda x: np.clip(x * 1.15 + 8, 0, 255).astype(np.uint8),
  '2 % cut off around': lambda x: cut(x, 0.02, 0.5),
  '5 % cut off around': lambda x: cut(x, 0.05, 0.5),
  '3 % cut off at a corner': lambda x: cut(x, 0.03, 1),
  '5 % cut off at a corner': lambda x: cut(x, 0.05, 1),
}


class Images:
  """Images at hand, as a data set."""

  classes = ('image',)

  def __init__(self, name, images):
    self.name, self.images = name, [np.ascontiguousarray(image) for image in images]
    self.labels = np.zeros(len(images), np.int32)
    self.fingerprint = hashlib.sha256(b''.join(i.tobytes() for i in self.images)).hexdigest()

  def __len__(self):
    return len(self.images)

  def __getitem__(self, index):
    return self.images[index]

  def read_image(self, index, *, min_side):
    return self.images[index]

  def key(self, index):
    return str(index)


def pictures():
  """Photographs and paintings, at most 500 pixels on the short side."""
  files = sorted((package_folder('skimage', 'scikit-image') / 'data').glob('*.[jp][pn]g'))
  files += sorted((package_folder('miniworld') / 'textures' / 'portraits').glob('*.png'))
  images = [cv2.imdecode(np.fromfile(f, np.uint8), cv2.IMREAD_COLOR_RGB) for f in files]
  images = [image for image in images if min(image.shape[:2]) >= 96]
  return [transforms._resize_short(i, 500) if min(i.shape[:2]) > 500 else i for i in images]


def main(_):
  logging.set_verbosity(logging.WARNING)
  textures = demo.DemoTextures('test')
  sets = {
    'demo': Images('demo', [textures[i] for i in range(len(textures))]),
    'pictures': Images('pictures', pictures()),
  }
  found = {}
  for name, test in sets.items():
    for treatment, treat in TREATMENTS.items():
      copies = Images(treatment, [treat(image) for image in test.images])
      pairs = screen.duplicates(copies, test)
      found[name, treatment] = len(np.unique(pairs.source[pairs.source == pairs.target]))
  print(
    f'{"share found":28}'
    + ''.join(f'{name} ({len(test)})'.rjust(16) for name, test in sets.items())
  )
  for treatment in TREATMENTS:
    shares = (found[name, treatment] / len(test) for name, test in sets.items())
    print(f'{treatment:28}' + ''.join(f'{share:16.1%}' for share in shares))
  source = demo.DemoDiverse()
  wrong = len(np.unique(screen.duplicates(source, textures).source))
  print(f'{wrong} of the {len(source):,} images of the demo source pass for copies of test images')


if __name__ == '__main__':
  app.run(main)
