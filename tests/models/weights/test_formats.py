import json
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models.weights import caffemodel
from models.weights.weight_files import (
  assert_same,
  dump,
  normal,
  tensor,
  write_keras_3,
  write_keras_older,
  write_pickle,
  write_torch_legacy,
  write_torch_zip,
)

from sjft_jax.models.weights import formats


def test_safetensors_are_read(tmp_path):
  tensors = {'w': normal(3, 2), 'half': normal(2).astype(np.float16), 'count': np.array(3)}
  brain = np.array([1.5, -2], ml_dtypes.bfloat16)
  header = {'brain': {'dtype': 'BF16', 'shape': [2], 'data_offsets': [0, 4]}}
  safetensors.numpy.save_file(tensors, tmp_path / 'net.bin', metadata={'format': 'pt'})
  checkpoint = formats.read(tmp_path / 'net.bin')
  assert checkpoint.origin == 'torch'
  assert_same(checkpoint.tensors, tensors | {'half': tensors['half'].astype(np.float32)})
  assert list(checkpoint.tensors) == ['count', 'half', 'w']
  text = json.dumps(header).encode()
  (tmp_path / 'brain').write_bytes(struct.pack('<Q', len(text)) + text + brain.tobytes())
  checkpoint = formats.read(tmp_path / 'brain')
  assert_same(checkpoint.tensors, {'brain': np.array([1.5, -2], np.float32)})


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


def test_missing_files_are_refused(tmp_path):
  for path in (tmp_path / 'nowhere', tmp_path):
    with pytest.raises(ValueError, match='no such weight file'):
      formats.read(path)


def test_neither_of_two_networks_in_a_pickle_is_guessed(tmp_path):
  one, other = ({name: tensor(str(key), 6, 0, (3, 2), (2, 1)) for name in 'ab'} for key in range(2))
  path, storages = tmp_path / 'net.pth', {'0': normal(6), '1': normal(6, seed=1)}
  write_torch_zip(path, dump({'student': one, 'teacher': other}), storages)
  with pytest.raises(ValueError, match='several networks, student, teacher: save one alone'):
    formats.read(path)
  del other['b']
  write_torch_zip(path, dump({'student': one, 'head': other}), storages)
  assert set(formats.read(path).tensors) == {'a', 'b'}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp('files')
  data = dump({'a': tensor('0', 24, 0, (6, 4), (1, 6)), 'b': tensor('1', 1, 0, (), (), 'Long')})
  storages = {'0': normal(24), '1': np.array([7])}
  write_torch_zip(folder / 'zip.pth', data, storages)
  write_torch_legacy(folder / 'legacy.pth', data, storages)
  safetensors.numpy.save_file({'a': normal(3, 2)}, folder / 'net.safetensors')
  write_pickle(folder / 'net.ckpt', pickle.dumps({'Net_0': {'kernel': normal(2, 3)}}), {})
  content = caffemodel.encode({'conv': [normal(4, 3, 2, 2), normal(4)]})
  (folder / 'net.caffemodel').write_bytes(content)
  write_keras_older(folder / 'net.h5', {'conv': {'conv/kernel:0': normal(3, 2)}})
  write_keras_3(
    folder / 'net.weights.h5', {'layers/conv2d': ('conv', [normal(3, 3, 3, 4), normal(4)])}
  )
  return sorted(path.read_bytes() for path in folder.iterdir())


# The fixtures only lend a folder and files, which no example changes for the next.
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_gives_an_error_or_tensors(tmp_path, files, data):
  content = bytearray(data.draw(st.sampled_from(files)))
  if data.draw(st.booleans()):
    del content[data.draw(st.integers(0, len(content) - 1)) :]
  # Most of the structure is at the start.
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
