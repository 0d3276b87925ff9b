"""Keras's weight files: the older .h5, and the .weights.h5 and .keras of Keras 3."""

import collections
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sjft_jax.models.weights.safe_pickle import read_member

# What Keras 3 only numbers, by its layers' kinds.
_WEIGHTS = {
  'batch_normalization': ('gamma', 'beta', 'moving_mean', 'moving_variance'),
  'conv2d': ('kernel', 'bias'),
  'dense': ('kernel', 'bias'),
}

# Keras 1, with which the VGG networks were published; its running_std was a variance, too.
_KERAS_1 = {
  'W': 'kernel',
  'b': 'bias',
  'running_mean': 'moving_mean',
  'running_std': 'moving_variance',
}
_KNOWN = '|'.join((*_KERAS_1, *_WEIGHTS['batch_normalization'], *_WEIGHTS['conv2d']))


def read(path: Path) -> dict[str, np.ndarray]:
  """Weights by '<layer>/<weight>', the layer being the innermost one of nested models."""
  with h5py.File(path) as file:
    return _read(file, {})


def read_archive(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
  """The same from a .keras file."""
  names = _layer_names(json.loads(read_member(archive, 'config.json')))
  with h5py.File(io.BytesIO(read_member(archive, 'model.weights.h5'))) as file:
    return _read(file, names)


def _read(file: h5py.File, layer_names: dict[str, str]) -> dict[str, np.ndarray]:
  datasets = _datasets(file)
  # A whole model holds its optimizer's state, too.
  whole = {p.removeprefix('model_weights/'): p for p in datasets if p.startswith('model_weights/')}
  tensors: dict[str, np.ndarray] = {}
  for name, path in (whole or {p: p for p in datasets}).items():
    if name.startswith(('layers/', 'optimizer/', 'vars/')):
      found = _keras_3_name(file, name, layer_names)
    else:
      found = _older_name(name)
    if found in tensors:
      raise ValueError(f'two layers have weights called {found}')
    if found:
      tensors[found] = datasets[path]
  return tensors


def _datasets(file: h5py.File) -> dict[str, np.ndarray]:
  """All of them by their paths; links and what lies outside the file are not followed."""
  found: dict[str, np.ndarray] = {}

  def visit(name: str, item: Any) -> None:
    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in 'fiub':
      return
    # What is not stored would be filled in, at any size; deflate packs 1,032 to one.
    if item.external or item.is_virtual or item.nbytes > 1100 * item.id.get_storage_size():
      raise ValueError(f'{name} is not stored in it')
    found[name] = item[()]

  file.visititems(visit)
  return found


def _older_name(path: str) -> str:
  """'conv1/conv1/kernel:0', 'conv1/conv1_1/kernel_1:0', 'conv1/conv1_W_1:0' are 'conv1/kernel'."""
  *layers, weight = path.split('/')
  middle = len(layers) // 2
  first, second = '/'.join(layers[:middle]), '/'.join(layers[middle:])
  repeated = first and re.fullmatch(rf'{re.escape(first)}(_\d+)?', second)
  layer = first if repeated else layers[-1] if layers else ''
  weight = re.sub(r':\d+$', '', weight)
  if known := re.fullmatch(rf'(?:{re.escape(layer)}_)?({_KNOWN})(_\d+)?', weight):
    weight = _KERAS_1.get(known[1], known[1])
  return f'{layer}/{weight}'


def _keras_3_name(file: h5py.File, path: str, layer_names: dict[str, str]) -> str | None:
  """'layers/conv2d_1/vars/0' is the 'kernel' of a layer that an attribute or the table names."""
  parts = re.fullmatch(r'((?:layers/[^/]+/)*layers/([^/]+?)(?:_\d+)?)/vars/(\d+)', path)
  if not parts:  # The optimizer's, or a random generator's.
    return None
  weights = file[f'{parts[1]}/vars']
  layer = weights.attrs.get('name') or layer_names.get(parts[1])
  if layer is None:
    raise ValueError('it does not name its layers; save the whole model as .keras')
  names = _WEIGHTS.get(parts[2], ())
  # Without scale or centre the numbers mean something else.
  if parts[2] == 'batch_normalization' and len(weights) != len(names):
    names = ()
  i = int(parts[3])
  return f'{layer}/{names[i] if i < len(names) else i}'


def _layer_names(model: dict[str, Any], parent: str = '') -> dict[str, str]:
  """Names by path in the file, where a layer is its class and a count in the model's order."""
  names: dict[str, str] = {}
  counts: collections.Counter[str] = collections.Counter()
  for layer in model['config'].get('layers', []):
    kind = re.sub(r'(.)([A-Z][a-z]+)', r'\1_\2', re.sub(r'\W', '', layer['class_name']))
    kind = re.sub(r'([a-z])([A-Z])', r'\1_\2', kind).lower()
    path = f'{parent}layers/{kind}' + (f'_{counts[kind]}' if counts[kind] else '')
    counts[kind] += 1
    names[path] = layer['config']['name']
    names |= _layer_names(layer, f'{path}/')
  return names
