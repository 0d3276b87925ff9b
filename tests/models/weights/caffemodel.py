"""Writes .caffemodel files, from the format's description alone."""

import numpy as np


def encode(layers):
  """A NetParameter message with the given arrays as blobs: {'conv1': [kernel, bias], ...}."""
  return b''.join(_layer(name, blobs) for name, blobs in layers.items())


def _layer(name, blobs):
  content = _field(1, name.encode())
  for blob in blobs:
    blob = np.asarray(blob, '<f4')
    shape = b''.join(map(_varint, blob.shape))
    content += _field(7, _field(7, _field(1, shape)) + _field(5, blob.tobytes()))
  return _field(100, content)


def _field(number, content):
  return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number):
  digits = []
  while number >= 128:
    digits.append(number % 128 + 128)
    number //= 128
  return bytes([*digits, number])
