"""Trained networks in exported folders: the files there, and how they are read again.

The folder's program is not run: the network is built from its description, with its weights.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath

from sjft_jax.data.transforms import VIEWS
from sjft_jax.models import build, joint, preprocess, trunk
from sjft_jax.models.trunk import TrunkSpec
from sjft_jax.models.weights import formats, libraries
from sjft_jax.models.weights.convert import NORMALIZATION_KEY
from sjft_jax.models.weights.libraries import Architecture
from sjft_jax.models.weights.run_checkpoint import (
  NETWORK_TYPES,
  TrainedNetwork,
  drop_source_statistics,
)
from sjft_jax.runtime import artifacts
from sjft_jax.runtime.choice import choose

# The names of the files; timm looks for the first two.
CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
PROGRAM, CARD = 'network.stablehlo', 'README.md'
# The part of config.json that is read here, and the version of this part.
_SECTION, _FORMAT = 'sjft_jax', 1
_REMEDY = 'export the run again, or copy the whole folder again'
# A forged folder should take no gigabytes for an image.
_MAX_SIDE, _MAX_BATCH_SIZE = 4096, 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionOptions:
  """What a network takes to predict, beside its variables.

  Attributes:
    dtype: of activations and products, as in `trunk.build_trunk`.
    resize, crop: of its images, as in `transforms.ImageSize`.
    views: of the evaluation; the first is the default.
    batch_size: of the evaluation.
    num_steps, num_rounds: of the whole training.
  """

  dtype: str
  resize: int
  crop: int
  views: tuple[str, ...]
  batch_size: int
  num_steps: int
  num_rounds: int

  def __post_init__(self) -> None:
    """Check the values, which come from files.

    Raises:
      ValueError: one is of another type, or impossible.
    """
    numbers = {name: value for name, value in vars(self).items() if name not in ('dtype', 'views')}
    for name, value in numbers.items():
      if type(value) is not int or value < 0:
        raise ValueError(f'{name}={value!r} is no number of this kind')
    if not 1 <= self.crop <= self.resize or self.batch_size < 1:
      raise ValueError(
        f'resize={self.resize}, crop={self.crop} or batch_size={self.batch_size} is impossible'
      )
    if not self.views:
      raise ValueError('it has no views')
    for view in self.views:
      choose('views', str(view), VIEWS)


_TYPES: dict[str, type | tuple[type, ...]] = {
  **NETWORK_TYPES,
  **{field.name: int for field in dataclasses.fields(PredictionOptions)},
  'dtype': str,
  'views': list,
  'step': int,
  'library': str,
  'sha256': dict,
}


def weight_files(count: int) -> list[str]:
  """Return the names of the files of `count` networks, by round; the last one is `WEIGHTS`."""
  return [*(f'round{number}.safetensors' for number in range(1, count)), WEIGHTS]


def is_weights(name: str) -> bool:
  """Return whether a file of this name can be one of `weight_files`."""
  return re.fullmatch(r'round\d+\.safetensors', name) is not None or name == WEIGHTS


def is_export(path: str | os.PathLike[str]) -> bool:
  """Return whether a path is an exported folder, complete or not."""
  folder = artifacts.absolute_path(path)
  return any((folder / name).exists() for name in (WEIGHTS, PROGRAM))


def find_architecture(description: dict[str, Any], crop: int) -> Architecture | None:
  """Return the network of another library that equals one of `run_checkpoint.TrainedNetwork`."""
  spec = TrunkSpec(**{name: description[name] for name in TrunkSpec._fields})
  return libraries.find_architecture(spec, crop)


def target_shapes(description: dict[str, Any], options: PredictionOptions) -> dict[str, Any]:
  """Return the shapes of the variables of a network's trunk and target head."""
  model = build.rebuild(description, dtype=options.dtype, num_source_classes=0)
  return joint.variable_shapes(model, options.crop)


def serialize(network: TrainedNetwork, architecture: Architecture | None) -> bytes:
  """Return the file of a network's trunk and target head, in the names of `architecture`.

  Of statistics of both domains, the file has the target's. Its metadata name the normalization of
  the images, with which the file alone is a start for another run.
  """
  variables = {
    'params': {name: network.params[name] for name in ('trunk', 'target')},
    'batch_stats': drop_source_statistics(network.batch_stats),
  }
  metadata = {NORMALIZATION_KEY: network.description['normalization']}
  if architecture is not None:
    metadata['format'] = 'pt'
  return _sort_header(
    bytes(safetensors.numpy.save(libraries.to_tensors(variables, architecture), metadata))
  )


def _sort_header(content: bytes) -> bytes:
  """Return a file of safetensors, which writes its metadata in any order, always the same."""
  size = int.from_bytes(content[:8], 'little')
  header = json.loads(content[8 : 8 + size])
  text = json.dumps(header, sort_keys=True, separators=(',', ':'), ensure_ascii=False).encode()
  text += b' ' * (-len(text) % 8)  # The tensors stay aligned.
  return len(text).to_bytes(8, 'little') + text + content[8 + size :]


def write_config(
  folder: Path,
  network: TrainedNetwork,
  options: PredictionOptions,
  architecture: Architecture | None,
) -> None:
  """Write config.json: labels and preprocessing as timm reads them, and what `Folder` reads.

  Args:
    folder: with the files of weights.
    network: the newest of them.
    options: of the prediction.
    architecture: in whose names the weights are.
  """
  description = network.description
  mean, deviation = preprocess.NORMALIZATIONS[description['normalization']]
  pretrained: dict[str, Any] = {
    'num_classes': len(description['classes']),
    'input_size': [3, options.crop, options.crop],
    'interpolation': 'bilinear',
    'crop_pct': crop_share(options.resize, options.crop),
    'crop_mode': 'center',
    'mean': [value / 255 for value in mean],
    'std': [value / 255 for value in deviation],
  }
  config: dict[str, Any] = {
    'num_classes': len(description['classes']),
    'label_names': description['classes'],
    'pretrained_cfg': pretrained,
    _SECTION: {
      'format': _FORMAT,
      **{name: description[name] for name in NETWORK_TYPES},
      **dataclasses.asdict(options),
      'step': network.step,
      'library': architecture.library if architecture else '',
      'sha256': {path.name: _sha256(path) for path in sorted(folder.glob('*.safetensors'))},
    },
  }
  if architecture and architecture.library == 'timm':
    layers = architecture.layout.names
    pretrained['fixed_input_size'] = has_image_size(description)
    pretrained |= {'first_conv': next(iter(layers.values())), 'classifier': layers['classifier']}
    config = {'architecture': architecture.name, **config}
  artifacts.write_json(folder / CONFIG, config)


def has_image_size(description: dict[str, Any]) -> bool:
  """Return whether timm builds this network for images of one size: a vision transformer."""
  return description['name'] in trunk.VITS


def crop_share(resize: int, crop: int) -> float:
  """Return timm's crop_pct: it resizes images to floor(crop / crop_pct), which is `resize`."""
  share = crop / resize
  return share if math.floor(crop / share) == resize else math.nextafter(share, 0)


class Folder:
  """An exported folder.

  Attributes:
    options: of the prediction.
  """

  options: PredictionOptions

  def __init__(self, path: str | os.PathLike[str]):
    """Read the folder's config.json.

    Raises:
      ValueError: it is missing, damaged, or of another version of this package.
    """
    if artifacts.is_remote(path):
      raise ValueError(f'{path}: an export is read from a disk; copy it there')
    self._path = Path(artifacts.absolute_path(path))
    file = self._path / CONFIG
    if not file.exists():
      raise ValueError(f'{self._path} is no complete export: {CONFIG} is missing; {_REMEDY}')
    config = artifacts.load_json(epath.Path(file), {'label_names': list, _SECTION: dict}, _REMEDY)
    self._saved = saved = config[_SECTION]
    if saved.get('format') != _FORMAT:
      raise ValueError(f'{self._path} was exported by another version of sjft_jax; {_REMEDY}')
    self._description = {name: saved.get(name) for name in NETWORK_TYPES}
    self._description['classes'] = config['label_names']
    try:
      self._check(config['label_names'])
      names = [field.name for field in dataclasses.fields(PredictionOptions)]
      options = {name: saved[name] for name in names}
      self.options = PredictionOptions(**options | {'views': tuple(saved['views'])})
      self._shapes = target_shapes(self._description, self.options)
    except (ValueError, OverflowError) as error:
      raise ValueError(f'{file} cannot be used: {error}; {_REMEDY}') from error
    self._architecture = None
    if saved['library']:
      self._architecture = find_architecture(self._description, self.options.crop)

  def load(self, name: str = WEIGHTS) -> TrainedNetwork:
    """Load a network, by default the newest one.

    Args:
      name: of its file.

    Raises:
      ValueError: the file is missing or damaged, or of another network.
    """
    file = self._path / name
    tensors = formats.read(file).tensors
    if _sha256(file) != self._saved['sha256'].get(name):
      raise ValueError(f'{file} is damaged: its content has another checksum; {_REMEDY}')
    expected = libraries.tensor_shapes(self._shapes, self._architecture)
    if {name: tensor.shape for name, tensor in tensors.items()} != expected or any(
      tensor.dtype != np.float32 or not np.isfinite(tensor).all() for tensor in tensors.values()
    ):
      raise ValueError(f'{file} holds no weights of the network in {CONFIG}; {_REMEDY}')
    variables = libraries.to_variables(tensors, self._shapes, self._architecture)
    path = epath.Path(self._path)
    return TrainedNetwork(path, path, self._saved['step'], self._description, **variables)

  def load_rounds(self) -> list[TrainedNetwork]:
    """Load the network that each round ended with, in the order of the rounds.

    Raises:
      ValueError: they were not exported, or a file is damaged.
    """
    if len(self._saved['sha256']) != self.options.num_rounds:
      raise ValueError(
        f'{self._path} holds the network of the last round only; export the run with --fused'
      )
    return [self.load(name) for name in weight_files(self.options.num_rounds)]

  def _check(self, classes: list[Any]) -> None:
    """Check types, and numbers that decide memory.

    Raises:
      ValueError: they are impossible.
    """
    for name, expected in _TYPES.items():
      if not isinstance(self._saved.get(name), expected):
        raise ValueError(f'it has no {name} of the right type')
    if not classes or not all(isinstance(text, str) for text in classes):
      raise ValueError('it has no classes, or one that is no text')
    resize, batch_size = self._saved['resize'], self._saved['batch_size']
    if resize > _MAX_SIDE or batch_size > _MAX_BATCH_SIZE:
      raise ValueError(f'resize={resize} or batch_size={batch_size} is too large')


def _sha256(path: Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
