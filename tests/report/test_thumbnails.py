"""Thumbnails: small, readable, made once."""

import base64
import io

import numpy as np
from PIL import Image

from sjft_jax.report.thumbnails import SIDE, Thumbnails, thumbnail


def decode(uri):
  kind, _, content = uri.partition(',')
  assert kind == 'data:image/webp;base64'
  return Image.open(io.BytesIO(base64.b64decode(content)))


def test_an_image_is_scaled_down_and_looks_the_same():
  y, x = np.mgrid[:300, :200]
  image = np.stack([x, y * 255 // 300, 255 - x], axis=2).astype(np.uint8)
  picture = decode(thumbnail(image))
  assert picture.size == (64, SIDE)
  expected = np.asarray(Image.fromarray(image).resize(picture.size, Image.Resampling.LANCZOS))
  difference = np.abs(np.asarray(picture.convert('RGB')).astype(int) - expected)
  assert difference.mean() < 4
  assert decode(thumbnail(image[:20, :30])).size == (30, 20)


def test_each_image_is_read_once():
  names = []

  def read(name):
    names.append(name)
    return np.full((8, 8, 3), name[1], np.uint8)

  thumbnails = Thumbnails(read)
  thumbnails.prepare([('source', 3), ('test', 5), ('source', 3)])
  assert thumbnails['source', 3] != thumbnails['test', 5]
  assert decode(thumbnails['target', 200]).convert('L').getpixel((4, 4)) in range(195, 206)
  assert sorted(names) == [('source', 3), ('target', 200), ('test', 5)]
