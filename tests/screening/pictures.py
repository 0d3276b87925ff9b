"""Small pictures, their copies, and data sets of them, for the tests of screening."""

import csv

import cv2
import numpy as np
import skimage.data

from sjft_jax.data.decode import UnreadableError


class Pictures:
  """Images in memory; an exception in place of an image is raised when it is read.

  Attributes:
    read: the indices of the images that were read, in order.
  """

  def __init__(self, name, images, labels=None, classes=('one', 'two'), stop_at=None):
    self.name = self.fingerprint = name
    self.images, self.classes, self.stop_at, self.read = images, classes, stop_at, []
    self.labels = np.zeros(len(images), np.int32) if labels is None else np.array(labels)
    if self.labels.ndim == 1:
      self.labels = self.labels.astype(np.int32)

  def __len__(self):
    return len(self.images)

  def __getitem__(self, index):
    self.read.append(index)
    if index == self.stop_at:
      raise KeyboardInterrupt
    if isinstance(self.images[index], Exception):
      raise self.images[index]
    return self.images[index]

  def read_image(self, index, *, min_side):
    return self[index]

  def key(self, index):
    return f'{index}.jpg'


def blobs(seed, stripes=0):
  """Draw a picture of coarse shapes, crossed by fine stripes of this height."""
  random = np.random.default_rng([7, seed])
  coarse = cv2.resize(random.uniform(60, 190, (6, 6)), (96, 96), interpolation=cv2.INTER_CUBIC)
  wave = stripes * np.sin(2 * np.pi * 13 / 96 * np.arange(96))
  grey = np.clip(coarse + wave, 0, 255).astype(np.uint8)
  return np.repeat(grey[..., None], 3, axis=2)


def some_bad(count, bad, **options):
  """Make a data set of blobs in which the images `bad` cannot be read."""
  images = [blobs(i) for i in range(count)]
  for i in bad:
    images[i] = UnreadableError(f'bad {i}')
  return Pictures(f'{count} with {len(bad)} bad', images, **options)


def jpeg(image, quality=90):
  _, data = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
  return data.tobytes()


def reencode(image, quality):
  return cv2.imdecode(np.frombuffer(jpeg(image, quality), np.uint8), cv2.IMREAD_COLOR_RGB)


def scale(image, factor):
  kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
  return cv2.resize(image, None, fx=factor, fy=factor, interpolation=kind)


def crop(image, share):
  """Crop `share` of height and width, half of it on either side."""
  (top, height), (left, width) = (
    (round(n * share) // 2, round(n * share)) for n in image.shape[:2]
  )
  return image[top : image.shape[0] - height + top, left : image.shape[1] - width + left]


def planted_copies():
  """Make a training set, a test set, and a source with copies of images of both.

  The first four source images are copies of the second test image, the fifth one is a copy of the
  first training image, and the other three are no copies.
  """
  images = [getattr(skimage.data, name)() for name in ('astronaut', 'cat', 'coffee', 'rocket')]
  source = [
    *(images[0], reencode(images[0], 30), scale(images[0], 0.25), crop(images[0], 0.03)),
    *(images[2], images[3], images[0][:, ::-1], images[1][:150, :200]),
  ]
  return (
    Pictures('train', [images[2], blobs(0)]),
    Pictures('test', [blobs(1), images[0], images[1]]),
    Pictures('source', source),
  )


def read_rows(path):
  with path.open(encoding='utf-8', newline='') as file:
    return list(csv.reader(file))
