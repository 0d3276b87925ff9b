"""Read Keras's weight files: the older .h5, and the .weights.h5 and .keras of Keras 3."""

import collections
import io
import json
import math
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from sjft_jax.models.weights.budget import PART_BYTES, Budget
from sjft_jax.models.weights.safe_pickle import read_member

# The names of weights, which Keras 3 only numbers, by the kind of their layer.
_WEIGHTS = {
  'batch_normalization': ('gamma', 'beta', 'moving_mean', 'moving_variance'),
  'conv2d': ('kernel', 'bias'),
  'dense': ('kernel', 'bias'),
  'depthwise_conv2d': ('kernel', 'bias'),
  'layer_normalization': ('gamma', 'beta'),
  'layer_scale': ('variable',),
}

# The names of Keras 1, with which the VGG networks were published, and today's; running_std was a
# variance, too.
_KERAS_1 = {
  'W': 'kernel',
  'b': 'bias',
  'running_mean': 'moving_mean',
  'running_std': 'moving_variance',
}
_WEIGHT_NAMES = '|'.join((*_KERAS_1, *_WEIGHTS['batch_normalization'], *_WEIGHTS['conv2d']))

# The configuration of a ResNet-152 has 0.3 MB.
_MAX_CONFIG_BYTES = 4 * 2**20
_MAX_PATH_LENGTH = 1000

_MAX_PACKING = 1032  # gzip packs as many bytes into one at most.

# HDF5 has no bfloat16: Keras writes two bytes without a type, and no other weights so.
_BFLOAT16 = np.dtype('V2')

# The filters that a dataset may have, in the order of writing: none, or gzip.
_FILTERS: tuple[list[int], ...] = (
  [],
  [h5py.h5z.FILTER_SHUFFLE],
  [h5py.h5z.FILTER_DEFLATE],
  [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE],
)


def read(path: Path, budget: Budget) -> dict[str, np.ndarray]:
  """Return weights by '<layer>/<weight>', the layer being the innermost one of nested models.

  Raises:
    ValueError: two layers have the same name, layers have none, weights are not in the file, or
      they take more than the budget. The parser raises errors of its own.
  """
  with h5py.File(path) as file:
    return _read(file, {}, budget)


def read_archive(archive: zipfile.ZipFile, budget: Budget) -> dict[str, np.ndarray]:
  """Return the same from a .keras file. Raises as `read` does."""
  if archive.getinfo('config.json').file_size > _MAX_CONFIG_BYTES:
    raise ValueError('its config.json is larger than 4 MiB')
  names = _layer_names(json.loads(read_member(archive, 'config.json')))
  with h5py.File(io.BytesIO(read_member(archive, 'model.weights.h5'))) as file:
    return _read(file, names, budget)


def _read(file: h5py.File, layer_names: dict[str, str], budget: Budget) -> dict[str, np.ndarray]:
  datasets = _read_datasets(file, budget)
  # The file of a whole model holds its optimizer's state, too.
  prefix = 'model_weights/'
  model = {path.removeprefix(prefix): path for path in datasets if path.startswith(prefix)}
  tensors: dict[str, np.ndarray] = {}
  for path_in_model, path in (model or {path: path for path in datasets}).items():
    if path_in_model.startswith(('layers/', 'optimizer/', 'vars/')):
      name = _keras_3_name(file, path_in_model, layer_names)
    else:
      name = _older_name(path_in_model)
    if name in tensors:
      raise ValueError(f'two layers have weights called {name}')
    if name:
      tensors[name] = datasets[path]
  return tensors


def _read_datasets(file: h5py.File, budget: Budget) -> dict[str, np.ndarray]:
  """Return the numeric datasets by their paths; links are not followed."""
  datasets: dict[str, np.ndarray] = {}

  def visit(name: str, item: Any) -> None:
    # The library takes about ten times as long for an object as pickle for an opcode.
    budget.take(10 * PART_BYTES)
    if len(name) > _MAX_PATH_LENGTH:
      raise ValueError(f'{name[:100]}… is no name of a weight')
    if not isinstance(item, h5py.Dataset):
      return
    if item.dtype.kind not in 'fiub' and item.dtype != _BFLOAT16:
      return
    # Values that are not stored would be filled in, at any size.
    if item.external or item.is_virtual:
      raise ValueError(f'{name} is not stored in it')
    _check_stored(name, item, budget)
    value = item[()]
    datasets[name] = value.view(ml_dtypes.bfloat16) if item.dtype == _BFLOAT16 else value

  file.visititems(visit)
  return datasets


def _check_stored(name: str, dataset: h5py.Dataset, budget: Budget) -> None:
  """Check that the file holds all values of a dataset, and count their memory.

  Raises:
    ValueError: it does not, or they are packed by something else than gzip, or to more than the
      dataset declares.
  """
  if dataset.chunks is None:
    chunks, stored_bytes = [], dataset.id.get_storage_size()
  else:
    chunks = _list_chunks(dataset, budget)
    chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    stored_bytes = len(chunks) * chunk_bytes
  if stored_bytes < dataset.nbytes:
    raise ValueError(f'{name} is not stored in it')
  budget.take(dataset.nbytes)
  if not chunks:
    return
  budget.take(chunk_bytes)  # A chunk may be larger than the dataset.
  properties = dataset.id.get_create_plist()
  filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
  if filters not in _FILTERS:
    raise ValueError(f'{name} is packed by another filter than gzip')
  for chunk in chunks:
    # gzip makes what it cannot pack larger by less than a thousandth.
    if chunk.filter_mask or chunk.size > 1.01 * chunk_bytes + 64:
      raise ValueError(f'{name} has a damaged chunk')
    # The library unpacks all that is there before it looks at the size.
    if h5py.h5z.FILTER_DEFLATE in filters and _MAX_PACKING * chunk.size > 2 * chunk_bytes:
      _, content = dataset.id.read_direct_chunk(chunk.chunk_offset)
      if len(zlib.decompressobj().decompress(content, chunk_bytes + 1)) != chunk_bytes:
        raise ValueError(f'{name} has a damaged chunk')


def _list_chunks(dataset: h5py.Dataset, budget: Budget) -> list[h5py.h5d.StoreInfo]:
  """Return where the chunks of a dataset are in the file."""
  chunks: list[h5py.h5d.StoreInfo] = []

  def add(chunk: h5py.h5d.StoreInfo) -> None:
    budget.take(PART_BYTES)
    chunks.append(chunk)

  dataset.id.chunk_iter(add)
  return chunks


def _older_name(path: str) -> str:
  """Return the name of a weight of Keras 1 or 2.

  'conv1/conv1/kernel:0', 'conv1/conv1_1/kernel_1:0' and 'conv1/conv1_W_1:0' are 'conv1/kernel'.
  """
  *layers, weight = path.split('/')
  middle = len(layers) // 2
  first, second = '/'.join(layers[:middle]), '/'.join(layers[middle:])
  is_repeated = first and re.fullmatch(rf'{re.escape(first)}(_\d+)?', second)
  layer = first if is_repeated else layers[-1] if layers else ''
  weight = re.sub(r':\d+$', '', weight)
  if match := re.fullmatch(rf'(?:{re.escape(layer)}_)?({_WEIGHT_NAMES})(_\d+)?', weight):
    weight = _KERAS_1.get(match[1], match[1])
  weight = re.sub(r'^variable(_\d+)?$', 'variable', weight, flags=re.IGNORECASE)  # It has no name.
  return f'{layer}/{weight}'


def _keras_3_name(file: h5py.File, path: str, layer_names: dict[str, str]) -> str | None:
  """Return the name of a weight of Keras 3; None for one of the optimizer or a random generator.

  'layers/conv2d_1/vars/0' is the 'kernel' of a layer; its name is an attribute or in `layer_names`.
  """
  parts = re.fullmatch(r'((?:layers/[^/]+/)*layers/([^/]+?)(?:_\d+)?)/vars/(\d+)', path)
  if not parts:
    return None
  weights = file[f'{parts[1]}/vars']
  layer = weights.attrs.get('name') or layer_names.get(parts[1])
  if layer is None:
    raise ValueError('it does not name its layers; save the whole model as .keras')
  names = _WEIGHTS.get(parts[2], ())
  # Of a norm without scale or centre the numbers mean something else.
  if parts[2] == 'batch_normalization' and len(weights) != len(names):
    names = ()
  i = int(parts[3])
  return f'{layer}/{names[i] if i < len(names) else i}'


def _layer_names(model: dict[str, Any], parent: str = '') -> dict[str, str]:
  """Return layers' names by path in the file: there a layer is its class and a count.

  Args:
    model: the configuration of the model, or of a nested one.
    parent: the path of the nested one.
  """
  names: dict[str, str] = {}
  counts: collections.Counter[str] = collections.Counter()
  for layer in model['config'].get('layers', []):
    kind = re.sub(r'(.)([A-Z][a-z]+)', r'\1_\2', re.sub(r'\W', '', layer['class_name']))
    kind = re.sub(r'([a-z])([A-Z])', r'\1_\2', kind).lower()
    if len(parent) + len(kind) > _MAX_PATH_LENGTH:
      raise ValueError('its config.json nests layers too deeply')
    path = f'{parent}layers/{kind}' + (f'_{counts[kind]}' if counts[kind] else '')
    counts[kind] += 1
    names[path] = layer['config']['name']
    names |= _layer_names(layer, f'{path}/')
  return names
