"""Data sets that TFDS has prepared as ArrayRecord, read without TensorFlow."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from etils import epath

from sjft_jax.data import digests, riegeli
from sjft_jax.data.builders import BUILDERS, register
from sjft_jax.data.dataset import EncodedDataset
from sjft_jax.runtime import artifacts, console
from sjft_jax.runtime.errors import system_error

# The features that TFDS and our builders keep the name of an image in, the best one first.
_NAME_FEATURES = ('file_name', 'image/filename', 'filename', 'image/id')

# A description of a few bytes may declare any number; ImageNet has 21,841 classes in all.
_MAX_CLASSES = 1_000_000

# The index has room for the longest name in each row; paths on disks have up to 4,096 letters.
_MAX_KEY = 4096
# Bytes of the labels of a data set of objects: 60 times those of COCO.
_MAX_MULTI_HOT = 2**30

_TEMPLATE = re.compile(r'([^{}/]|\{[A-Z_]+\}){,200}')

# The types of features that are read. TFDS imports the module of any other name that a file gives.
_FEATURE_TYPES = frozenset(
  f'tensorflow_datasets.core.features.{name}'
  for name in (
    'bounding_boxes.BBoxFeature',
    'class_label_feature.ClassLabel',
    'feature.Tensor',
    'features_dict.FeaturesDict',
    'image_feature.Image',
    'labeled_image.LabeledImage',
    'scalar.Scalar',
    'sequence_feature.Sequence',
    'tensor_feature.Tensor',
    'text_feature.Text',
  )
)


class UnlabelledError(Exception):
  """An image has TFDS's label of those without one, -1; the argument is its position."""


class Records(EncodedDataset):
  """A split of a prepared data set: images with one class each or, for 'objects', any number.

  Args:
    dataset: TFDS's name, with '/config' where there are several.
    data_dir: where it was prepared: `data_dir/dataset/[config/]version`; the newest version is
      read. '': TFDS's own directory, $TFDS_DATA_DIR or ~/tensorflow_datasets.
    split: 'train', 'train+validation', 'train[:80%]' …

  Raises:
    ValueError: the data set is not there, is stored as something else than ArrayRecord, has no such
      split, no classes, or a feature of a type that TFDS would import from elsewhere.
  """

  def __init__(self, dataset: str, data_dir: str, split: str):
    register()  # TFDS reads a prepared data set by the builder that prepared it.
    folder = _newest_version(dataset, data_dir)
    _check_description(folder)
    with _explain_damage(folder):
      builder = tfds.builder_from_directory(folder)
    check_format(builder.info.file_format, folder, dataset)
    with _explain_damage(folder):
      features = dict(builder.info.features)
      label = features.get('label') or _objects_label(features.get('objects'))
    if not isinstance(label, tfds.features.ClassLabel) or 'image' not in features:
      raise ValueError(
        f'{dataset} has the features {", ".join(features)}; an image with a label, or with objects '
        'that have one, is needed'
      )
    if (label.num_classes or 0) > _MAX_CLASSES:
      raise ValueError(f'{folder} declares {label.num_classes} classes, over {_MAX_CLASSES}')
    with _explain_damage(folder):
      class_names = label.names
    if not any(artifacts.glob(folder, '*label.labels.txt')):
      console.say(
        f'  {folder} does not name its {len(class_names):,} classes, which are called by their '
        'numbers; if TFDS has converted it from another format, copy the *.labels.txt from there'
      )
    try:
      with _explain_damage(folder, but=(ValueError, KeyError)):
        files = builder.info.splits[split].file_instructions
        # Images stay encoded, because `decode_image` decodes those of all data sets alike.
        decoders = {'image': tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(split, decoders=decoders)
    except (ValueError, KeyError) as error:
      message = (str(error.args[0]).splitlines() or [''])[0][:500]
      raise ValueError(f'{dataset}, split={split!r}: {message}') from error
    with _explain_damage(folder):
      paths = [epath.Path(file.filename) for file in files]
      if any(path.parent != folder for path in paths):
        raise ValueError('its files lie elsewhere')
      content = [dataset, str(builder.info.version), *class_names] + [
        f'{path.name} {of_file} {file.skip} {file.take}'
        for path, of_file, file in zip(paths, _contents(folder, paths), files, strict=True)
      ]
    fingerprint = hashlib.sha256('\n'.join(content).encode()).hexdigest()
    self._folder, paths = folder, sorted(set(paths))
    try:
      index = artifacts.load_or_make(
        'records', fingerprint, lambda: self._make_index(dataset, paths, len(class_names))
      )
    except UnlabelledError as error:
      raise ValueError(
        f'{dataset}, split={split!r}: image {error.args[0]} has no label, as in the test splits of '
        f'competitions; use a split with labels, of {", ".join(builder.info.splits)}'
      ) from error
    self._keys, self.digests = index['keys'], index['digests']
    super().__init__(dataset, class_names, index['labels'], fingerprint)

  def _make_index(
    self, name: str, paths: Sequence[epath.Path], num_classes: int
  ) -> dict[str, np.ndarray]:
    """Return labels, names and digests of all images, for which every record is read once."""
    labels: list[Any] = []
    keys: list[str] = []
    contents: list[np.ndarray] = []
    with (
      _explain_damage(self._folder),
      console.progress(f'index of {name}', len(self._records)) as advance,
    ):
      for path in paths:
        if not artifacts.is_remote(path):
          riegeli.check_packing(Path(path))
      for position in range(len(self._records)):
        record = self._records[position]
        label = record['label'] if 'label' in record else record['objects']['label']
        if np.ndim(label) == 0 and label == -1:
          raise UnlabelledError(position)
        if np.any((np.asarray(label) < 0) | (np.asarray(label) >= num_classes)):
          raise ValueError(f'record {position} has a label that is none of {num_classes}')
        labels.append(label)
        key = next((record[feature] for feature in _NAME_FEATURES if feature in record), position)
        key = key.decode() if isinstance(key, bytes) else str(key)
        if len(key) > _MAX_KEY:
          raise ValueError(f'record {position} has a name of {len(key):,} letters')
        keys.append(key)
        contents.append(digests.digest(record['image']))
        advance(1)
      index = {'keys': np.array(keys), 'digests': np.array(contents)}
      if not labels or not np.ndim(labels[0]):
        return {'labels': np.array(labels, np.int32), **index}
      if len(labels) * num_classes > _MAX_MULTI_HOT:
        raise ValueError(f'{len(labels):,} images of {num_classes:,} classes are too many')
      multi_hot = np.zeros((len(labels), num_classes), bool)
      for row, classes in zip(multi_hot, labels, strict=True):
        row[classes] = True
      return {'labels': multi_hot, **index}

  def read_encoded(self, index: int) -> bytes:
    with _explain_damage(self._folder):
      content: bytes = self._records[index]['image']
    return content

  def key(self, index: int) -> str:
    """Return the image's name in the archive it came from; its position where it has none."""
    return str(self._keys[index])


def check_format(file_format: tfds.core.FileFormat, folder: epath.Path, dataset: str) -> None:
  """Check that a prepared data set is stored as ArrayRecord.

  Args:
    file_format: of the data set.
    folder: where it lies.
    dataset: its name, with '/config' where there are several.

  Raises:
    ValueError: it is stored as something else; the message says how to convert it.
  """
  if file_format == tfds.core.FileFormat.ARRAY_RECORD:
    return
  # TFDS writes to just the folder that it is given, and leaves the names of the classes behind.
  new_folder = f'NEW_DATA_DIR/{dataset}/{folder.name}'
  raise ValueError(
    f'{folder} is stored as {file_format.value}; convert it, on a machine with '
    'TensorFlow: python -m tensorflow_datasets.scripts.convert_format '
    f'--dataset_version_dir={folder} --out_file_format=array_record --out_dir={new_folder}, then '
    f'cp {folder}/*.labels.txt {new_folder}, and give NEW_DATA_DIR'
  )


def resolve_data_dir(data_dir: str) -> epath.Path:
  """Return the data directory; for '' TFDS's own. '~' is the user's home."""
  return epath.Path(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR))


@contextlib.contextmanager
def _explain_damage(folder: epath.Path, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
  """Say that a prepared data set is damaged, whatever TFDS and ArrayRecord make of it.

  Args:
    folder: of the data set.
    but: errors that are left as they are, as are those of the system.
  """
  try:
    yield
  except Exception as error:
    if isinstance(error, (MemoryError, UnlabelledError, *but)) or system_error(error):
      raise
    reason = (str(error).splitlines() or [''])[0][:200] or type(error).__name__
    raise ValueError(f'{folder} is damaged ({reason}); prepare the data set again') from error


def _contents(folder: epath.Path, paths: Sequence[epath.Path]) -> list[str]:
  """Return what stands for the content of each file: a digest; its length in an object store."""
  if artifacts.is_remote(folder):
    return [str(artifacts.file_size(path)) for path in paths]
  names = pa.array([path.name for path in paths], pa.large_string())
  return [
    row.tobytes().hex()
    for row in digests.digest_files(os.fspath(folder), names, 'records', folder.parent.name)
  ]


def _check_description(folder: epath.Path) -> None:
  """Check that a prepared data set names no Python class other than TFDS's own feature types.

  Raises:
    ValueError: it does, or its description is no JSON, or has no names of files.
  """
  for name in ('features.json', 'dataset_info.json'):
    path = folder / name
    if not path.exists():  # TFDS says what is missing.
      continue
    try:
      content = json.loads(path.read_text())
      # The other parts of dataset_info.json have types of numbers, which name no class.
      features = content.get('features') if name == 'dataset_info.json' else content
      types = list(_feature_types(features))
      _check_templates(content)
    except (ValueError, AttributeError, RecursionError) as error:
      raise ValueError(f'{path} is damaged; prepare the data set again') from error
    for feature_type in types:
      if feature_type not in _FEATURE_TYPES:
        short_names = sorted({known.rpartition('.')[2] for known in _FEATURE_TYPES})
        raise ValueError(
          f'{path} names the type {feature_type[:200]!r}, for which code would be imported; only '
          f'features of TFDS itself are read: {", ".join(short_names)}'
        )


def _check_templates(node: Any) -> None:
  """Check that the names of files in a description are texts with names of fields, not formats.

  A format such as '{SPLIT:>9999999999}' takes any amount of memory.

  Raises:
    ValueError: one is not.
  """
  if isinstance(node, list):
    for item in node:
      _check_templates(item)
  elif isinstance(node, dict):
    for key, value in node.items():
      if key in ('filepathTemplate', 'filepath_template') and not _TEMPLATE.fullmatch(str(value)):
        raise ValueError('it has no names of files')
      _check_templates(value)


def _feature_types(node: Any) -> Iterator[str]:
  """Yield the names of all feature types in the description of features, at any depth.

  TFDS has three notations: 'type', 'pythonClassName', and either of them in JSON within a text.
  """
  if isinstance(node, list):
    for item in node:
      yield from _feature_types(item)
  elif isinstance(node, dict):
    for key, value in node.items():
      # A feature may have one of these names, too: then the value is its description.
      if not isinstance(value, str):
        yield from _feature_types(value)
      elif key in ('type', 'pythonClassName', 'python_class_name'):
        yield value
      elif key in ('content', 'json'):
        yield from _feature_types(json.loads(value))


def _objects_label(objects: Any) -> Any:
  """Return the label in a sequence of objects, or None."""
  return dict(getattr(objects, 'feature', None) or {}).get('label')


def _newest_version(dataset: str, data_dir: str) -> epath.Path:
  """Return the folder of the newest version of a data set.

  Raises:
    ValueError: there is none, or there are several configurations to choose from.
  """
  root = resolve_data_dir(data_dir) / dataset
  # A preparation that was killed leaves 'incomplete.…', and a user's copy may be '1.0.0_old'.
  versions = [
    path.parent
    for path in artifacts.glob(root, '[0-9]*/dataset_info.json')
    if tfds.core.Version.is_valid(path.parent.name)
  ]
  if not versions:
    infos = artifacts.glob(root, '*/[0-9]*/dataset_info.json')
    configs = sorted({path.parent.parent.name for path in infos})
    if configs:
      raise ValueError(
        f'{root} has the configurations {", ".join(configs)}; name one, such as '
        f'{dataset}/{configs[-1]}'
      )
    name = dataset.partition('/')[0]
    remedy = (
      f'prepare it: python -m sjft_jax.data.prepare --dataset={dataset} '
      f'--data_dir={root.parents[dataset.count("/")]} --archives=FOLDER_OF_ITS_ARCHIVES'
      if name in BUILDERS
      else 'path must be the data directory in which TFDS has prepared it'
    )
    raise ValueError(f'there is no prepared {dataset} at {root}; {remedy}')
  return max(versions, key=lambda folder: tfds.core.Version(folder.name).tuple)
