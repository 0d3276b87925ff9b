"""Read Caffe's .caffemodel: the blobs of each layer of a NetParameter message."""

import functools
import math
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_MESSAGE, _STRING, _BYTES = _Field.TYPE_MESSAGE, _Field.TYPE_STRING, _Field.TYPE_BYTES
_INT32, _INT64 = _Field.TYPE_INT32, _Field.TYPE_INT64

# The fields of caffe.proto that hold weights; a parser skips all others. Packed numbers are
# declared as bytes, which they are in the file: as numbers they would become a list of up to 138
# million Python floats.
_MESSAGES: dict[str, list[tuple[str, int, int, bool, str]]] = {
  # name, number, type, repeated, message
  'BlobShape': [('dim', 1, _INT64, True, '')],
  'Blob': [
    ('num', 1, _INT32, False, ''),
    ('channels', 2, _INT32, False, ''),
    ('height', 3, _INT32, False, ''),
    ('width', 4, _INT32, False, ''),
    ('data', 5, _BYTES, True, ''),
    ('shape', 7, _MESSAGE, False, 'BlobShape'),
    ('double_data', 8, _BYTES, True, ''),
  ],
  'Layer': [('name', 1, _STRING, False, ''), ('blobs', 7, _MESSAGE, True, 'Blob')],
  'V1Layer': [('name', 4, _STRING, False, ''), ('blobs', 6, _MESSAGE, True, 'Blob')],
  'Net': [
    ('layers', 2, _MESSAGE, True, 'V1Layer'),
    ('layer', 100, _MESSAGE, True, 'Layer'),
  ],
}


@functools.cache
def _net_message() -> type[message.Message]:
  """Build the class of messages that hold a network."""
  file = descriptor_pb2.FileDescriptorProto(name='sjft_jax/caffe', package='sjft_jax.caffe')
  for name, fields in _MESSAGES.items():
    descriptor = file.message_type.add(name=name)
    for field, number, kind, is_repeated, message_name in fields:
      descriptor.field.add(
        name=field,
        number=number,
        type=kind,
        label=_Field.LABEL_REPEATED if is_repeated else _Field.LABEL_OPTIONAL,
        type_name=f'.sjft_jax.caffe.{message_name}' if message_name else None,
      )
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName('sjft_jax.caffe.Net'))


def read(content: bytes) -> dict[str, np.ndarray]:
  """Return blobs by '<layer>/<n>', of the current and of the older kind of layers.

  Raises:
    ValueError: two layers have the same name, or a blob is not as long as its shape says. The
      parser raises errors of its own.
  """
  net = _net_message().FromString(content)
  tensors: dict[str, np.ndarray] = {}
  for layer in (*net.layers, *net.layer):
    for i, blob in enumerate(layer.blobs):
      name = f'{layer.name}/{i}'
      if name in tensors:
        raise ValueError(f'two layers are called {layer.name}')
      tensors[name] = _blob_values(name, blob)
  return tensors


def _blob_values(name: str, blob: Any) -> np.ndarray:
  is_double = bool(blob.double_data)
  content = b''.join(blob.double_data if is_double else blob.data)
  values = np.frombuffer(content, '<f8' if is_double else '<f4')
  if blob.HasField('shape'):
    shape = tuple(blob.shape.dim)
  else:
    shape = (blob.num, blob.channels, blob.height, blob.width)
  if min(shape, default=1) < 0 or math.prod(shape) != len(values):
    raise ValueError(f'blob {name} has {len(values)} numbers for its shape {shape}')
  return values.reshape(shape)
