import pytest
from models.weights import caffemodel
from models.weights.weight_files import (
  assert_same,
  normal,
)

from sjft_jax.models.weights import formats


@pytest.mark.parametrize('kind', ['shape', 'legacy', 'double'])
@pytest.mark.parametrize('version', [1, 2])
def test_caffemodels_are_read(tmp_path, version, kind):
  layers = {
    'data': [],
    'conv1': [normal(4, 3, 5, 5), normal(4)],
    'fc8': [normal(6, 7), normal(6, seed=1)],
  }
  path = tmp_path / 'net.caffemodel'
  path.write_bytes(caffemodel.encode(layers, version, kind))
  checkpoint = formats.read(path)
  assert checkpoint.origin == 'caffe'
  expected = {f'{name}/{i}': a for name, arrays in layers.items() for i, a in enumerate(arrays)}
  if kind == 'legacy':
    expected = {
      name: array.reshape((1,) * (4 - array.ndim) + array.shape) for name, array in expected.items()
    }
  assert_same(checkpoint.tensors, expected)


def test_a_caffenet_is_not_taken_for_an_alexnet(tmp_path):
  path = tmp_path / 'net.caffemodel'
  conv = {'conv1': [normal(4, 3, 5, 5), normal(4)]}
  path.write_bytes(caffemodel.encode(conv | {'norm1': [], 'pool1': []}))
  formats.read(path)
  path.write_bytes(caffemodel.encode(conv | {'pool1': [], 'norm1': []}))
  with pytest.raises(ValueError, match='it is CaffeNet, which pools before it normalises'):
    formats.read(path)


def test_damaged_caffemodels_are_refused(tmp_path):
  field, blob = caffemodel.field, caffemodel.blob
  path = tmp_path / 'net.caffemodel'
  short = field(100, field(1, b'conv') + field(7, blob(normal(3)) + field(5, b'\0' * 4)))
  path.write_bytes(short)
  with pytest.raises(ValueError, match=r'blob conv/0 has 4 numbers for its shape \(3,\)'):
    formats.read(path)
  layer = field(100, field(1, b'conv') + field(7, blob(normal(3))))
  path.write_bytes(layer + layer)
  with pytest.raises(ValueError, match='two layers are called conv'):
    formats.read(path)
