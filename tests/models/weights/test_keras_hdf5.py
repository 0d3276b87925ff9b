import io
import itertools
import json
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest
from models import torch_reference
from models.weights.weight_files import (
  assert_same,
  normal,
  write_keras_3,
  write_keras_older,
)

from sjft_jax.models.weights import formats

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


@pytest.mark.parametrize('is_model', [False, True])
@pytest.mark.parametrize(
  'name',
  ['{layer}/{weight}:0', '{layer}/{weight}', '{layer}_1/{weight}:0', '{layer}/{weight}_2:0'],
)
def test_older_keras_files_are_read(tmp_path, name, is_model):
  layers = {
    layer: {name.format(layer=layer, weight=key.split('/')[1]): a for key, a in weights}
    for layer, weights in keras_layers()
  }
  layers['pool'] = {}
  checkpoint = formats.read(write_keras_older(tmp_path / 'net.h5', layers, is_model))
  assert checkpoint.origin == 'keras'
  assert_same(checkpoint.tensors, KERAS)


def test_bfloat16_is_read(tmp_path):
  expected = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in KERAS.items()}
  layers = {
    path: (layer, [tensor.astype(ml_dtypes.bfloat16) for tensor in tensors])
    for path, (layer, tensors) in keras_3_layers().items()
  }
  older = {
    layer: {f'{layer}/{key.split("/")[1]}:0': expected[key] for key, _ in weights}
    for layer, weights in keras_layers()
  }
  expected = {name: tensor.astype(np.float32) for name, tensor in expected.items()}
  assert_same(formats.read(write_keras_3(tmp_path / 'net.weights.h5', layers)).tensors, expected)
  assert_same(formats.read(write_keras_older(tmp_path / 'net.h5', older)).tensors, expected)


def test_keras_1_and_nested_models_are_read(tmp_path):
  kernel, bias = normal(3, 3, 3, 4), normal(4)
  layers = {
    'block1_conv1': {'block1_conv1_W_1:0': kernel, 'block1_conv1_b_1:0': bias},
    'fc1': {'fc1_W:0': kernel, 'fc1_b:0': bias},
    'base': {'conv1_1_conv/kernel:0': kernel, 'base/conv1_1_conv/bias:0': bias},
  }
  assert_same(
    formats.read(write_keras_older(tmp_path / 'net.h5', layers)).tensors,
    {
      f'{layer}/{weight}': array
      for layer in ('block1_conv1', 'fc1', 'conv1_1_conv')
      for weight, array in (('kernel', kernel), ('bias', bias))
    },
  )
  layers['other'] = {'fc1/kernel:0': kernel}
  with pytest.raises(ValueError, match='two layers have weights called fc1/kernel'):
    formats.read(write_keras_older(tmp_path / 'net.h5', layers))


def keras_3_layers():
  layers = {layer: [array for _, array in weights] for layer, weights in keras_layers()}
  kinds = ('conv2d', 'batch_normalization', 'dense')
  return {
    f'layers/{kind}': (layer, arrays)
    for kind, (layer, arrays) in zip(kinds, layers.items(), strict=True)
  }


def test_keras_3_files_are_read(tmp_path):
  layers = keras_3_layers()
  assert_same(formats.read(write_keras_3(tmp_path / 'net.weights.h5', layers)).tensors, KERAS)
  nameless = write_keras_3(tmp_path / 'net.weights.h5', layers, has_names=False)
  with pytest.raises(ValueError, match='does not name its layers; save the whole model as .keras'):
    formats.read(nameless)


@pytest.mark.parametrize('has_names', [False, True])
def test_keras_archives_are_read(tmp_path, has_names):
  nested = {
    'layers/conv2d_1': ('conv2_conv', [normal(1, 1, 4, 4)]),
    'layers/functional/layers/conv2d': ('inner_conv', [normal(1, 1, 4, 4, seed=9)]),
  }
  hdf5 = io.BytesIO()
  write_keras_3(hdf5, keras_3_layers() | nested, has_names)

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
  checkpoint = formats.read(tmp_path / 'net.keras')
  assert checkpoint.origin == 'keras'
  more = {f'{name}/kernel': arrays[0] for name, arrays in nested.values()}
  assert_same(checkpoint.tensors, KERAS | more)


@pytest.mark.parametrize('shuffle', [False, True])
@pytest.mark.parametrize('compression', ['gzip', None])
def test_chunks_and_gzip_are_read(tmp_path, compression, shuffle):
  tensors = {'conv/kernel': normal(5, 7, 30, 10), 'conv/bias': np.zeros(9000, np.float32)}
  with h5py.File(tmp_path / 'net.h5', 'w') as file:
    for name, tensor in tensors.items():
      options = {'compression': compression, 'shuffle': shuffle}
      file.create_dataset(name, data=tensor, chunks=(4,) * tensor.ndim, **options)
  assert_same(formats.read(tmp_path / 'net.h5').tensors, tensors)
  with h5py.File(tmp_path / 'net.h5', 'w') as file:
    file.create_dataset('conv/kernel', data=normal(9), compression='lzf')
  with pytest.raises(ValueError, match='conv/kernel is packed by another filter than gzip'):
    formats.read(tmp_path / 'net.h5')


def test_datasets_outside_the_file_are_refused(tmp_path):
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


@pytest.mark.reference
@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')
def test_files_that_keras_saves_are_read(tmp_path):
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
    checkpoint = formats.read(tmp_path / name)
    assert checkpoint.origin == 'keras'
    assert_same(checkpoint.tensors, expected)
