"""Encode .caffemodel files, from the format's description alone."""

import numpy as np


def encode(layers, version=2, kind='shape'):
  """Encode a NetParameter message with arrays as blobs: {'conv1': [kernel, bias], ...}.

  `version` is that of the layers' messages; `kind` is one of `blob`.
  """
  number, name, blobs = {1: (2, 4, 6), 2: (100, 1, 7)}[version]
  content = field(1, b'net')
  for layer, arrays in layers.items():
    body = field(name, layer.encode())
    body += field(2, b'x') if version == 2 else field(5, 4)
    body += b''.join(field(blobs, blob(array, kind)) for array in arrays)
    content += field(number, body + field(106, field(1, 96)))  # An unknown field.
  return content


def blob(array, kind='shape'):
  """Encode a BlobProto: 'legacy' has the four dimensions of Caffe before 2014, 'double' float64."""
  array = np.asarray(array)
  packed = field(8, array.astype('<f8').tobytes()) if kind == 'double' else b''
  data = packed or field(5, array.astype('<f4').tobytes())
  if kind == 'legacy':
    dims = (1,) * (4 - array.ndim) + array.shape
    return b''.join(field(i + 1, n) for i, n in enumerate(dims)) + data
  return data + field(6, b'\0' * 4) + field(7, field(1, b''.join(map(varint, array.shape))))


def field(number, value):
  """Encode a field of a protocol buffer: a number, or bytes."""
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  return varint(number << 3 | 2) + varint(len(value)) + value


def varint(number):
  """Encode a number in as many bytes as it needs."""
  out = b''
  while number > 127:
    out, number = out + bytes([number & 127 | 128]), number >> 7
  return out + bytes([number])
