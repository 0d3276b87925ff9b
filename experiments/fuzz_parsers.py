"""What fuzz.py damages: valid files of each parser, how they are read, and their checksums."""

import dataclasses
import gzip
import io
import json
import struct
import sys
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.fuzz_mutations import Random, mutate

sys.path.append(str(Path(__file__).parents[1] / 'tests'))  # They can write all formats.

_MAX_PIXELS = 2**21


@dataclasses.dataclass(frozen=True)
class Parser:
  """What is fuzzed.

  Attributes:
    seeds: writes valid files, or folders, into a folder.
    read: reads one of them.
    finish: makes the checksums of an input right.
    name: what messages must have of the file's name, or of its data set's.
    names: of the files of a folder that are changed, as a pattern.
  """

  seeds: Callable[[Path], object]
  read: Callable[[Path], object]
  finish: Callable[[bytes], bytes] | None = None
  name: str = 'input'
  names: str = '**/*'


# --- checksums ---------------------------------------------------------------------------------


def _seal(content: bytes) -> bytes:
  from sjft_jax.runtime import artifacts

  try:
    return json.dumps(artifacts.seal(json.loads(content))).encode()
  except (ValueError, AttributeError, RecursionError):
    return content


def _sum_png(content: bytes) -> bytes:
  """Compute the checksums of a PNG's chunks."""
  out, at = content[:8], 8
  while at + 12 <= len(content):
    (length,) = struct.unpack_from('>I', content, at)
    body = content[at + 4 : at + 8 + length]
    out += content[at : at + 4] + body + struct.pack('>I', zlib.crc32(body))
    at += 12 + length
  return out


def _sum_tar(content: bytes) -> bytes:
  """Compute the checksums of a tar archive's headers, as far as sizes lead from one to the next."""
  data, at = bytearray(content), 0
  while at + 512 <= len(data) and any(data[at : at + 512]):
    data[at + 148 : at + 156] = b' ' * 8
    data[at + 148 : at + 156] = b'%06o\0 ' % sum(data[at : at + 512])
    try:
      size = int(bytes(data[at + 124 : at + 136]).strip(b'\0 ') or b'0', 8)
    except ValueError:
      break
    at += 512 + -(-max(size, 0) // 512) * 512
  return bytes(data)


def _change_zip(content: bytes) -> bytes:
  """Write a zip archive anew in which members are changed, so that their checksums are right."""
  rng = np.random.default_rng(zlib.crc32(content))
  try:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
      members = {name: archive.read(name) for name in archive.namelist()}
  except Exception:  # The archive itself is damaged.
    return content
  out = io.BytesIO()
  with warnings.catch_warnings(), zipfile.ZipFile(out, 'w') as archive:
    warnings.simplefilter('ignore')
    changed = rng.choice(list(members)) if members else ''
    for name, value in members.items():
      archive.writestr(name, mutate(value, [*members.values()], rng) if name == changed else value)
  return out.getvalue()


# --- parsers -------------------------------------------------------------------------------------


def _tensors(seed: int = 0) -> dict[str, np.ndarray]:
  shapes = {'conv1.weight': (4, 3, 3, 3), 'conv1.bias': (4,), 'fc.weight': (2, 4), 'fc.bias': (2,)}
  rng = np.random.default_rng(seed)
  return {name: rng.standard_normal(shape).astype('f4') for name, shape in shapes.items()}


def _write_torch(folder: Path) -> None:
  from models.weights import weight_files as wf

  storages, parts = {}, {}
  for number, (name, array) in enumerate(_tensors().items()):
    strides = tuple(stride // 4 for stride in array.strides)
    storages[str(number)] = array.ravel()
    parts[name] = wf.tensor(str(number), array.size, 0, array.shape, strides)
  data = wf.dump({'state_dict': parts, 'epoch': 3})
  wf.write_torch_zip(folder / 'a.pth', data, storages)
  wf.write_torch_zip(folder / 'b.pth', wf.dump(parts), storages)
  legacy = {
    name: wf.tensor(str(n), array.size, 0, array.shape, (1,) * array.ndim, part=(None,))
    for n, (name, array) in enumerate(_tensors().items())
  }
  wf.write_torch_legacy(folder / 'c.pth', wf.dump(legacy), storages)


def _write_pickle(folder: Path) -> None:
  import pickle

  tree = {'params': {'AlexNet_0': {name: {'kernel': a} for name, a in _tensors().items()}}}
  for protocol in (2, 3, 4, 5):
    (folder / f'{protocol}.ckpt').write_bytes(pickle.dumps(tree, protocol))


def _write_safetensors(folder: Path) -> None:
  import safetensors.numpy

  for number in range(3):
    tensors = {name: array.astype('f2') for name, array in _tensors(number).items()}
    safetensors.numpy.save_file(tensors if number else _tensors(), folder / f'{number}.safetensors')


def _write_keras(folder: Path) -> None:
  from models.weights import weight_files as wf

  arrays = list(_tensors().values())
  wf.write_keras_older(folder / 'a.h5', {'conv1': {'conv1/kernel:0': arrays[0], 'b:0': arrays[1]}})
  wf.write_keras_older(folder / 'b.h5', {'fc': {'fc/kernel:0': arrays[2]}}, is_model=True)
  wf.write_keras_3(folder / 'c.h5', {'layers/conv2d': ('conv1', arrays[:2])})
  with zipfile.ZipFile(folder / 'd.keras', 'w') as archive:
    layers = [{'class_name': 'Conv2D', 'config': {'name': 'conv1'}}]
    archive.writestr('config.json', json.dumps({'config': {'layers': layers}}))
    archive.writestr('metadata.json', '{}')
    archive.writestr('model.weights.h5', (folder / 'c.h5').read_bytes())


def _write_caffe(folder: Path) -> None:
  from models.weights.caffemodel import encode

  blobs = {'conv1': list(_tensors().values())[:2], 'fc8': list(_tensors().values())[2:]}
  for number, (version, kind) in enumerate([(1, 'legacy'), (2, 'shape'), (2, 'double')]):
    (folder / f'{number}.caffemodel').write_bytes(encode(blobs, version, kind))


def _read_weights(path: Path) -> None:
  from sjft_jax.models.weights import formats

  formats.read(path)


def _write_images(folder: Path, kind: str, *variants: tuple[str, dict[str, Any]]) -> None:
  from PIL import Image

  if kind == 'HEIF':
    import pillow_heif

    pillow_heif.register_heif_opener()
  y, x = np.mgrid[:24, :31]
  pixels = np.stack([8 * x, 9 * y, 3 * x + 4 * y], axis=2).astype(np.uint8)
  for number, (mode, options) in enumerate(variants or (('RGB', {}),)):
    if mode == 'I;16':
      image = Image.fromarray(pixels[..., 0].astype(np.uint16) << 7)
    else:
      image = Image.fromarray(pixels).convert(mode)
    if options.pop('frames', 0):
      options |= {'save_all': True, 'append_images': [image.rotate(90), image.rotate(180)]}
    image.save(folder / f'{number}', kind, **options)


def _read_image(path: Path) -> None:
  from sjft_jax.data.decode import decode_image

  decode_image(path.read_bytes(), max_pixels=_MAX_PIXELS)


def _image(kind: str, *variants: tuple[str, dict[str, Any]]) -> Parser:
  finish = _sum_png if kind == 'PNG' else None
  return Parser(lambda folder: _write_images(folder, kind, *variants), _read_image, finish, '')


def _write_lists(folder: Path, suffix: str) -> None:
  import pyarrow as pa
  import pyarrow.csv
  import pyarrow.parquet

  for number in range(40):
    (folder.parent / f'{number}.jpg').write_bytes(_jpeg())
  columns = {
    'path': [f'{i}.jpg' for i in range(40)],
    'label': ['cat', 'dög'] * 20,
    'split': ['train', 'test'] * 20,
    'group': [str(i // 4) for i in range(40)],
  }
  table = pa.table(columns)
  if suffix == 'parquet':
    for number, options in enumerate(
      [{}, {'compression': 'none', 'use_dictionary': False}, {'compression': 'gzip'}]
    ):
      pyarrow.parquet.write_table(table, folder / f'{number}.parquet', **options)
    encodings = {'path': 'DELTA_LENGTH_BYTE_ARRAY', 'label': 'DELTA_LENGTH_BYTE_ARRAY'}
    pyarrow.parquet.write_table(
      table.append_column('list', [[[1, 2], []] * 20]),
      folder / '3.parquet',
      **{'compression': 'zstd', 'use_dictionary': False, 'column_encoding': encodings},
    )
    return
  options = pyarrow.csv.WriteOptions(delimiter='\t' if suffix == 'tsv' else ',')
  pyarrow.csv.write_csv(table, folder / f'0.{suffix}', options)


def _read_list(path: Path) -> None:
  from sjft_jax.data import image_list

  image_list.ListedImages.splits(str(path))
  image_list.read_paths(str(path))
  image_list.ListedImages(str(path), '')


def _write_tar(folder: Path, is_packed: bool) -> None:
  contents = {'a/b.jpg': b'x' * 700, 'n' * 150 + '.jpg': b'y', 'ü.jpg': b''}
  for number, kind in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w', format=kind) as archive:
      for name, content in contents.items():
        member = tarfile.TarInfo(name if kind != tarfile.USTAR_FORMAT else name[-90:])
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    content = out.getvalue()
    (folder / f'{number}.tar').write_bytes(gzip.compress(content) if is_packed else content)


def _sum_packed_tar(content: bytes) -> bytes:
  try:
    return gzip.compress(_sum_tar(mutate(gzip.decompress(content), [content], _rng_of(content))), 1)
  except (OSError, EOFError, zlib.error):
    return content


def _rng_of(content: bytes) -> Random:
  return np.random.default_rng(zlib.crc32(content))


def _read_tar(path: Path) -> None:
  from sjft_jax.data.builders import archive

  for _ in archive.members(path):
    pass


def _write_records(folder: Path) -> None:
  import tensorflow_datasets as tfds

  class Thing(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Two features, as a data set of class labels has them."""

    VERSION = tfds.core.Version('1.0.0')
    name = 'thing'
    url_infos: dict[str, Any] = {}  # noqa: RUF012

    def _info(self) -> Any:
      features = {
        'image': tfds.features.Image(),
        'label': tfds.features.ClassLabel(names=['cat', 'dog']),
        'file_name': tfds.features.Text(),
      }
      features = tfds.features.FeaturesDict(features)
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> Any:
      return {'train': self._generate_examples()}

    def _generate_examples(self) -> Any:
      jpeg = _jpeg()
      for index in range(5):
        yield index, {'image': jpeg, 'label': index % 2, 'file_name': f'{index}.jpg'}

  tfds.disable_progress_bar()
  data_dir = folder / 'data'
  Thing(data_dir=data_dir, file_format='array_record').download_and_prepare()


def _jpeg() -> bytes:
  from PIL import Image

  file = io.BytesIO()
  Image.new('RGB', (9, 12)).save(file, 'JPEG')
  return file.getvalue()


def _read_records(path: Path) -> None:
  from sjft_jax.data.records import Records

  data = Records('thing', str(path), 'train')
  for index in range(min(len(data), 10)):
    data.read_encoded(index)
    data.key(index)


def _write_checkpoint(folder: Path) -> None:
  from models.weights import run_directory

  state = {'step': np.array(7, np.int32), 'params': _tensors()}
  run_directory.save(folder / 'checkpoints', 5, state)


def _read_checkpoint(path: Path) -> None:
  from sjft_jax.runtime import checkpoints

  checkpoints.load_newest(path)


def _write_run(folder: Path) -> None:
  import untrained_run

  untrained_run.write(folder / 'run', name='resnet18v1', width=1 / 64, style='torch')


def _read_run(path: Path) -> None:
  from sjft_jax.classifier import Classifier

  Classifier(path)


def _write_export(folder: Path) -> None:
  import sjft_jax

  with tempfile.TemporaryDirectory() as scratch:
    _write_run(Path(scratch))
    sjft_jax.export(Path(scratch) / 'run' / 'arms' / 'rounds', folder / 'export')


def _write_npz(folder: Path) -> None:
  from sjft_jax.runtime import artifacts

  for number in range(2):
    arrays = {'hardness': np.arange(5.0), 'names': np.array(['a', 'bc'])}
    artifacts.save(folder / f'{number}.npz', 'x', **arrays, more=np.zeros((number, 2)))


def _read_npz(path: Path) -> None:
  from sjft_jax.runtime import artifacts

  artifacts.load(path, 'x')


def _write_results(folder: Path) -> None:
  from sjft_jax.runtime import artifacts

  scores = {'mean_class_accuracy': 0.5, 'top1': 0.25, 'cross_entropy': 1.5}
  round_ = {
    'source_images': 8,
    'num_neighbors': {'mean': 2.5, 'max': 4},
    'hardness': 0.75,
    'training_accuracy': 0.5,
    'seconds': 1.5,
    'test': {'center': scores},
  }
  results = {
    'fingerprint': 'x',
    'seed': 0,
    'device': '1 × cpu',
    'seconds': {'rank': 1.5},
    'test_images': 9,
    'view': 'center',
    'table': [{'arm': 'rounds', 'name': 'selected', 'source_images': 8, **scores}],
    'arms': {'rounds': {'rounds': [round_]}},
  }
  (folder / 'run').mkdir()
  artifacts.write_json(folder / 'run' / 'results.json', results)


def _read_results(path: Path) -> None:
  from etils import epath

  from sjft_jax import results

  results.read_results(epath.Path(path))


def _write_log(folder: Path) -> None:
  lines = [json.dumps({'step': step, 'loss': 1 / (1 + step)}) for step in range(20)]
  (folder / 'log.jsonl').write_text('\n'.join([*lines, '']))


def _read_log(path: Path) -> None:
  from etils import epath

  from sjft_jax.report import scores

  scores._curve(scores._read_log(epath.Path(path)), 'loss')


def _write_lock(folder: Path) -> None:
  record = {'pid': 3, 'host': 'a', 'since': '2026-11-30 12:00', 'id': 'b', 'boot': 'c'}
  (folder / 'lock.json').write_text(json.dumps(record))


def _read_lock(path: Path) -> None:
  from sjft_jax.runtime import lock

  lock._parse(path.read_bytes())


PARSERS = {
  'torch': Parser(_write_torch, _read_weights, _change_zip),
  'pickle': Parser(_write_pickle, _read_weights),
  'safetensors': Parser(_write_safetensors, _read_weights),
  'keras': Parser(_write_keras, _read_weights, _change_zip),
  'caffe': Parser(_write_caffe, _read_weights),
  'avif': _image('AVIF', ('RGB', {}), ('RGBA', {})),
  'bmp': _image('BMP', ('RGB', {}), ('P', {}), ('1', {})),
  'gif': _image('GIF', ('P', {}), ('P', {'frames': 1})),
  'heic': _image('HEIF', ('RGB', {}), ('RGBA', {})),
  'jpeg': _image(
    'JPEG', ('RGB', {}), ('L', {}), ('CMYK', {}), ('RGB', {'progressive': True, 'quality': 95})
  ),
  'jp2': _image('JPEG2000', ('RGB', {}), ('RGBA', {}), ('L', {'irreversible': True})),
  'png': _image('PNG', ('RGB', {}), ('RGBA', {}), ('P', {}), ('1', {}), ('I;16', {})),
  'ppm': _image('PPM', ('RGB', {}), ('L', {}), ('1', {}), ('I;16', {})),
  'tiff': _image(
    'TIFF',
    ('RGB', {}),
    ('L', {'compression': 'tiff_lzw'}),
    ('RGB', {'compression': 'tiff_adobe_deflate', 'frames': 1}),
    ('RGB', {'compression': 'jpeg'}),
    ('1', {'compression': 'group4'}),
    ('CMYK', {'compression': 'packbits'}),
    ('I;16', {'big_tiff': True}),
  ),
  'webp': _image('WEBP', ('RGB', {}), ('RGBA', {'lossless': True}), ('RGB', {'frames': 1})),
  'csv': Parser(lambda folder: _write_lists(folder, 'csv'), _read_list),
  'tsv': Parser(lambda folder: _write_lists(folder, 'tsv'), _read_list),
  'parquet': Parser(lambda folder: _write_lists(folder, 'parquet'), _read_list),
  'tar': Parser(lambda folder: _write_tar(folder, False), _read_tar, _sum_tar),
  'tar.gz': Parser(lambda folder: _write_tar(folder, True), _read_tar, _sum_packed_tar),
  'records': Parser(_write_records, _read_records, name='thing'),
  'checkpoint': Parser(_write_checkpoint, _read_checkpoint, _seal),
  'run': Parser(_write_run, _read_run, _seal, names='*.json'),
  'export': Parser(_write_export, _read_run, _seal),
  'npz': Parser(_write_npz, _read_npz, _change_zip),
  'results': Parser(_write_results, _read_results, _seal),
  'log': Parser(_write_log, _read_log),
  'lock': Parser(_write_lock, _read_lock),
}
