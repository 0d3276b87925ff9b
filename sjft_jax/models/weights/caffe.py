"""Read Caffe's .caffemodel: the blobs of each layer of a NetParameter message.

The file is a protocol buffer. It is walked here without the library of that name, which would take
600 bytes for each of the empty messages that a file may hold at two bytes apiece.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sjft_jax.models.weights.budget import PART_BYTES, Budget

# The kinds of fields: a number, eight bytes, a length and as many bytes, four bytes.
_NUMBER, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5

# The numbers of the fields of caffe.proto that hold weights; all others are skipped.
_DIM = 1  # BlobShape
_LEGACY_SHAPE = (1, 2, 3, 4)  # BlobProto: num, channels, height, width
_DATA, _SHAPE, _DOUBLE_DATA = 5, 7, 8
_MAX_DIMS = 32  # Caffe's own limit.


class _LayerFields(NamedTuple):
  """The numbers of a network's field of layers, and of a layer's name and blobs."""

  layers: int
  name: int
  blobs: int


# V1LayerParameter and LayerParameter.
_LAYERS = (_LayerFields(2, 4, 6), _LayerFields(100, 1, 7))


def read(content: bytes, budget: Budget) -> dict[str, np.ndarray]:
  """Return blobs by '<layer>/<n>', of the current and of the older kind of layers.

  Raises:
    ValueError: two layers have the same name, a blob is not as long as its shape says, or the file
      is damaged or has more fields than the budget allows.
  """
  tensors: dict[str, np.ndarray] = {}
  order: list[str] = []
  for layer_fields in _LAYERS:
    for number, kind, layer in _fields(memoryview(content), budget):
      if (number, kind) == (layer_fields.layers, _BYTES):
        order.append(_read_layer(layer, layer_fields, tensors, budget))
  # CaffeNet has AlexNet's names and shapes.
  if {'pool1', 'norm1'} <= set(order) and order.index('pool1') < order.index('norm1'):
    raise ValueError('it is CaffeNet, which pools before it normalises; AlexNet is bvlc_alexnet')
  return tensors


def _read_layer(
  content: memoryview, layer_fields: _LayerFields, tensors: dict[str, np.ndarray], budget: Budget
) -> str:
  """Add the blobs of a layer to `tensors`; return its name."""
  layer, blobs = '', []
  for number, kind, value in _fields(content, budget):
    if (number, kind) == (layer_fields.name, _BYTES):
      layer = str(value, 'utf-8')
    elif (number, kind) == (layer_fields.blobs, _BYTES):
      blobs.append(value)
  for i, blob in enumerate(blobs):
    name = f'{layer}/{i}'
    if name in tensors:
      raise ValueError(f'two layers are called {layer}')
    tensors[name] = _blob_values(name, blob, budget)
  return layer


def _blob_values(name: str, content: memoryview, budget: Budget) -> np.ndarray:
  """Return the numbers of a blob, in the file's own memory where they lie in one piece."""
  data: dict[int, list[memoryview]] = {_DATA: [], _DOUBLE_DATA: []}
  dims: list[int] | None = None
  legacy_shape = [0] * len(_LEGACY_SHAPE)
  for number, kind, value in _fields(content, budget):
    if number in data and kind == _BYTES:
      data[number].append(value)
    elif (number, kind) == (_SHAPE, _BYTES):
      dims = [*(dims or ()), *_read_dims(value, budget)]
    elif number in _LEGACY_SHAPE and kind == _NUMBER:
      legacy_shape[_LEGACY_SHAPE.index(number)] = value
  shape = tuple(legacy_shape if dims is None else dims)
  is_double = any(map(len, data[_DOUBLE_DATA]))
  pieces = data[_DOUBLE_DATA if is_double else _DATA]
  values = np.frombuffer(_join(pieces, budget), '<f8' if is_double else '<f4')
  if len(shape) > _MAX_DIMS or math.prod(shape) != len(values):
    raise ValueError(f'blob {name} has {len(values)} numbers for its shape {shape[:_MAX_DIMS]}')
  return values.reshape(shape)


def _join(pieces: list[memoryview], budget: Budget) -> bytes | memoryview:
  if len(pieces) == 1:
    return pieces[0]
  budget.take(sum(map(len, pieces)))
  return b''.join(pieces)


def _read_dims(content: memoryview, budget: Budget) -> Iterator[int]:
  for number, kind, value in _fields(content, budget):
    if (number, kind) == (_DIM, _NUMBER):
      yield value
    elif (number, kind) == (_DIM, _BYTES):  # Several in one field.
      position = 0
      while position < len(value):
        budget.take(PART_BYTES)
        dim, position = _read_varint(value, position)
        yield dim


def _fields(content: memoryview, budget: Budget) -> Iterator[tuple[int, int, Any]]:
  """Yield the number, kind and value of each field of a message: a number, or its bytes.

  Raises:
    ValueError: a field ends outside the message, or is of none of the kinds in use.
  """
  position = 0
  while position < len(content):
    budget.take(PART_BYTES)
    tag, position = _read_varint(content, position)
    number, kind = tag >> 3, tag & 7
    value, position = (
      _read_varint(content, position) if kind in (_NUMBER, _BYTES) else (0, position)
    )
    if kind == _NUMBER:
      yield number, kind, value
      continue
    if not number or kind not in (_EIGHT_BYTES, _BYTES, _FOUR_BYTES):
      raise ValueError('it is no message of Caffe')
    size = value if kind == _BYTES else 8 if kind == _EIGHT_BYTES else 4
    if size > len(content) - position:
      raise ValueError('it ends within a field')
    yield number, kind, content[position : position + size]
    position += size


def _read_varint(content: memoryview, position: int) -> tuple[int, int]:
  """Return the number at a position, seven bits to a byte, and the position behind it."""
  number = 0
  for i, byte in enumerate(content[position : position + 10]):
    number |= (byte & 127) << 7 * i
    if byte < 128:
      return number, position + i + 1
  raise ValueError('it ends within a field')
