"""Write weight files of torch and Keras, from the formats' descriptions alone."""

import collections
import itertools
import pickle
import struct
import zipfile

import h5py
import numpy as np


class Global(str):
  """A name that a pickle imports."""


Call = collections.namedtuple('Call', 'function arguments')
Persistent = collections.namedtuple('Persistent', 'id')
Build = collections.namedtuple('Build', 'object state')


def opcodes(value):
  """Pickle a value with the opcodes that torch.save uses."""
  match value:
    case Global():
      return b'c' + value.replace(' ', '\n').encode() + b'\n'
    case Call(function, arguments):
      return opcodes(function) + opcodes(arguments) + b'R'
    case Persistent(id):
      return opcodes(id) + b'Q'
    case Build(instance, state):
      return opcodes(instance) + opcodes(state) + b'b'
    case dict():
      return b'}(' + b''.join(map(opcodes, itertools.chain(*value.items()))) + b'u'
    case tuple():
      return b'(' + b''.join(map(opcodes, value)) + b't'
    case str():
      return b'X' + struct.pack('<I', len(value)) + value.encode()
    case None:
      return b'N'
    case bool():
      return b'\x88' if value else b'\x89'
    case int():
      length = value.bit_length() // 8 + 1
      return b'\x8a' + bytes([length]) + value.to_bytes(length, 'little', signed=True)
  raise TypeError(value)


def dump(value):
  """Return a pickle of a value, of protocol 2."""
  return b'\x80\x02' + opcodes(value) + b'.'


def tensor(key, size, offset, shape, strides, kind='Float', part=()):
  """Describe a tensor as torch pickles it, a strided view of a storage."""
  storage = Persistent(('storage', Global(f'torch {kind}Storage'), key, 'cpu', size, *part))
  function = Global('torch._utils _rebuild_tensor_v2')
  hooks = Call(Global('collections OrderedDict'), ())
  return Call(function, (storage, offset, shape, strides, False, hooks))


def write_torch_zip(path, data, storages, byteorder=b'little', compression=zipfile.ZIP_STORED):
  """Write a file of torch since 1.6: the pickle `data` and the arrays of its storages."""
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('net/data.pkl', data)
    archive.writestr('net/version', b'3\n')
    archive.writestr('net/byteorder', byteorder)
    for key, array in storages.items():
      archive.writestr(f'net/data/{key}', array.tobytes())
  return path


def write_torch_legacy(path, data, storages):
  """Write the same as torch before 1.6."""
  info = {'protocol_version': 1001, 'little_endian': True}
  head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps(info, 2)
  raw = (struct.pack('<q', len(array)) + array.tobytes() for array in storages.values())
  path.write_bytes(head + data + pickle.dumps(list(storages), 2) + b''.join(raw))
  return path


def write_pickle(path, data, storages):
  """Write the pickle `data` alone."""
  path.write_bytes(data)
  return path


def write_keras_older(path, layers, is_model=False):
  """Write a file of Keras 1 or 2; layers: {'layer': {'path below the layer': array}}."""
  with h5py.File(path, 'w') as file:
    group = file.create_group('model_weights') if is_model else file
    group.attrs['layer_names'] = list(layers)
    for layer, weights in layers.items():
      layer_group = group.create_group(layer)
      layer_group.attrs['weight_names'] = list(weights)
      for name, array in weights.items():
        layer_group[name] = array
    if is_model:
      file['optimizer_weights/adam/m:0'] = np.zeros(3, np.float32)
  return path


def write_keras_3(target, layers, has_names=True):
  """Write the weights of Keras 3; layers: {'layers/conv2d': (name, arrays)}."""
  with h5py.File(target, 'w') as file:
    for path, (name, arrays) in layers.items():
      group = file.create_group(f'{path}/vars')
      if has_names:
        group.attrs['name'] = name
      for i, array in enumerate(arrays):
        group[str(i)] = array
    file['optimizer/vars/0'] = np.zeros(3, np.float32)
  return target


def normal(*shape, seed=0):
  """Draw float32 numbers."""
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_same(tensors, expected):
  """Check that tensors have the same names, types, shapes and values."""
  assert set(tensors) == set(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(tensors[name], array, strict=True)
