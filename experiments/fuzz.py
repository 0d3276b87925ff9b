"""Damage small valid files at random, and count what the parsers make of them.

  python -m experiments.fuzz [--parser=all] [--minutes=10] [--seed=0] [--findings=DIR] [--json]

Each parser reads files that come from strangers: weights, images, lists, archives, records of TFDS,
checkpoints, the JSON files of work directories and exports. A valid file is changed in one to eight
places: bits, numbers, parts that are cut out, repeated or come from another file; JSON in its
values, too. Where a checksum would reveal that, it is computed anew for half of the inputs.

A process of its own reads one input after another. It must return, or raise ValueError with a text
that names the file (commands cut long texts and escape control characters), within 10 seconds of a
processor's core and 512 MB beyond what it had. It may write only to its own folder, start no
program and open no connection. All else is a finding, and so is a crash: the input is kept in the
folder --findings with what happened, and the exit status is 1.

An input is a pure function of parser, seed and number. With --findings=DIR a later call goes on
with the numbers that follow, and the counts add up.
"""

import dataclasses
import gzip
import io
import json
import multiprocessing
import os
import resource
import shutil
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

sys.path.append(str(Path(__file__).parents[1] / 'tests'))  # They can write all formats.

MAX_SECONDS, MAX_MEGABYTES = 10, 512
# A parser that hangs is ended, on a busy machine too.
_PATIENCE_S = 30
_TURN_S = 30
_MAX_PIXELS = 2**21
_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32_767, 65_535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40)
_NUMBERS += (2**62, 2**63 - 1, 2**63, 2**64 - 1)
_VALUES: tuple[Any, ...] = (None, True, -1, 0, 3, 0.5, 2**31, 2**63, 10**400, 1e308, float('nan'))
_VALUES += ('', 'x', '\0', '../..', 'a' * 10_000, [], {}, [[]], [1] * 1000, ['a', 'a'], {'a': {}})

Random = np.random.Generator


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


# --- changes -------------------------------------------------------------------------------------


def mutate(content: bytes, others: list[bytes], rng: Random) -> bytes:
  """Return content that is changed in one to eight places."""
  if rng.random() < 0.5:
    with_values = _mutate_json(content, rng)
    if with_values is not None:
      return with_values
  data = bytearray(content)
  for _ in range(min(int(rng.geometric(0.4)), 8)):
    at = int(rng.integers(len(data) + 1))
    if rng.random() < 0.5:  # Headers are at the beginning, or at the end.
      at = min(at, int(rng.geometric(0.02)))
    elif rng.random() < 0.2:
      at = max(len(data) - int(rng.geometric(0.02)), 0)
    length = min(int(rng.geometric(0.05)), len(data) - at)
    other = others[int(rng.integers(len(others)))]
    start = int(rng.integers(len(other) + 1))
    match int(rng.integers(8)):
      case 0 if at < len(data):
        data[at] ^= 1 << int(rng.integers(8))
      case 1 if at < len(data):
        data[at] = int(rng.integers(256))
      case 2 | 3:
        size = int(rng.choice([1, 2, 4, 8]))
        number = int(rng.choice(np.array(_NUMBERS, object))) % 256**size
        if rng.random() < 0.3:
          number = (int.from_bytes(data[at : at + size], 'little') + 1) % 256**size
        order = 'little' if rng.random() < 0.5 else 'big'
        data[at : at + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
      case 4:
        del data[at : at + length]
      case 5:
        data[at:at] = data[at : at + length] * int(rng.choice([1, 2, 1000]))
      case 6:
        data[at : at + length] = other[start : start + length]
      case 7 if rng.random() < 0.3:
        del data[at:]
  return bytes(data)


def _mutate_json(content: bytes, rng: Random) -> bytes | None:
  """Return JSON in which a value or a name is another; None if it is none."""
  try:
    document = json.loads(content)
  except ValueError:
    return None
  nodes = [(parent, key) for parent in _parents(document) for key in _keys(parent)]
  for _ in range(int(rng.geometric(0.6))):
    if not nodes:
      break
    parent, key = nodes[int(rng.integers(len(nodes)))]
    if key not in _keys(parent):
      continue
    source, other = nodes[int(rng.integers(len(nodes)))]
    value = _VALUES[int(rng.integers(len(_VALUES)))]
    match int(rng.integers(4)):
      case 0:
        del parent[key]
      case 1 if other in _keys(source):
        parent[key] = json.loads(json.dumps(source[other]))
      case 2 if isinstance(parent, dict):
        parent[str(value)[:100]] = parent.pop(key)
      case _:
        parent[key] = value
  return json.dumps(document).encode()


def _parents(node: Any) -> list[Any]:
  """Return all lists and dicts in a document."""
  inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
  own = [node] if isinstance(node, dict | list) else []
  return own + [parent for value in inner for parent in _parents(value)]


def _keys(node: Any) -> list[Any]:
  return list(node) if isinstance(node, dict) else list(range(len(node)))


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

  arms = {'rounds': {'rounds': [{'seconds': 1.5}]}}
  results = {'fingerprint': 'x', 'view': 'center', 'test_images': 9, 'table': [{'arm': 'rounds'}]}
  (folder / 'run').mkdir()
  artifacts.write_json(folder / 'run' / 'results.json', {**results, 'arms': arms})


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


# --- the process that reads ----------------------------------------------------------------------


class _Input:
  """The inputs of a parser, in a folder that is there."""

  def __init__(self, name: str, folder: Path):
    self._name, self._parser, self._folder = name, PARSERS[name], folder
    (folder / 'seeds').mkdir()
    self._parser.seeds(folder / 'seeds')
    self._seeds = sorted((folder / 'seeds').iterdir())
    self._contents = [
      file.read_bytes() for file in sorted((folder / 'seeds').rglob('*')) if file.is_file()
    ]

  def read_seeds(self) -> None:
    for seed in self._seeds:
      self._parser.read(self._place(seed))

  def _place(self, path: Path) -> Path:
    """Copy a valid file, or a folder, to where inputs are."""
    out = self._folder / f'input{path.suffix}'
    if path.is_dir():
      shutil.rmtree(out, ignore_errors=True)
      shutil.copytree(path, out)
    else:
      shutil.copy(path, out)
    return out

  def write(self, seed: int, number: int) -> tuple[Path, Path]:
    """Return the path to be read and, of a folder, the file there that is changed."""
    rng = np.random.default_rng([seed, zlib.crc32(self._name.encode()), number])
    path = self._seeds[int(rng.integers(len(self._seeds)))]
    file = path
    if path.is_dir():
      files = sorted(file for file in path.glob(self._parser.names) if file.is_file())
      file = files[int(rng.integers(len(files)))]
    content = mutate(file.read_bytes(), self._contents, rng)
    if self._parser.finish and rng.random() < 0.5:
      content = self._parser.finish(content)
    out = self._place(path)
    changed = out / file.relative_to(path)
    changed.write_bytes(content)
    return out, changed

  def read(self, path: Path) -> str:
    """Read an input; return 'accepted' or 'refused'.

    Raises:
      Exception: anything that is a finding.
    """
    try:
      self._parser.read(path)
    except ValueError as error:
      text = str(error)
      if isinstance(error, UnicodeError | json.JSONDecodeError):
        raise RuntimeError('an error of the library') from error
      if self._parser.name not in text:
        raise RuntimeError(f'a message that names no file: {text!r}') from error
      return 'refused'
    return 'accepted'


def _forbid(folder: Path) -> None:
  """Let this process write to no other folder, start no program and open no connection."""
  allowed = (str(folder), '/dev/', '/proc/self/')
  forbidden = ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'socket.connect')

  def check(event: str, arguments: tuple[Any, ...]) -> None:
    if event in forbidden:
      raise RuntimeError(f'{event}{arguments!r} is not for a parser')
    if event == 'open' and isinstance(arguments[0], str) and isinstance(arguments[2], int):
      writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
      if writes and not os.path.abspath(arguments[0]).startswith(allowed):
        raise RuntimeError(f'{arguments[0]} is written')

  sys.addaudithook(check)


def _memory(name: str) -> float:
  lines = Path('/proc/self/status').read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000


def _read_all(name: str, seed: int, number: int, folder: str, pipe: Any) -> None:
  """Read the inputs of a parser from a number on, without end, and send what comes of each."""
  os.chdir(folder)
  os.environ.update(HOME=folder, XDG_CACHE_HOME=folder, TMPDIR=folder, CUDA_VISIBLE_DEVICES='')
  tempfile.tempdir = folder
  inputs = _Input(name, Path(folder))
  inputs.read_seeds()
  output = os.open(os.devnull, os.O_WRONLY)  # Libraries print what they think of such files.
  for stream in (1, 2):
    os.dup2(output, stream)
  limit = int(_memory('VmSize') * 1e6) + 8 * 2**30
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  _forbid(Path(folder))
  before, peak = 0.0, 64.1
  while True:
    path, file = inputs.write(seed, number)
    pipe.send(('begins', str(file)))
    if peak > before + 64:  # To measure anew takes milliseconds.
      Path('/proc/self/clear_refs').write_text('5')
      before = peak = _memory('VmRSS')
    start, reason = time.process_time(), ''
    try:
      outcome = inputs.read(path)
    except BaseException as error:
      outcome, reason = type(error).__name__, traceback.format_exc()
    seconds, peak = time.process_time() - start, _memory('VmHWM')
    megabytes = peak - before
    if outcome in ('accepted', 'refused'):
      if seconds > MAX_SECONDS:
        outcome, reason = 'slow', f'{seconds:.1f} s'
      elif megabytes > MAX_MEGABYTES:
        outcome, reason = 'large', f'{megabytes:.0f} MB'
    pipe.send(('ends', outcome, reason, seconds, megabytes))
    number += 1


# --- the process that counts ---------------------------------------------------------------------


@dataclasses.dataclass
class Tally:
  """What came of the inputs of a parser with a seed so far.

  Attributes:
    inputs: how many there were.
    outcomes: how often each outcome.
    seconds: of all inputs together, on the clock.
    slowest, largest: most seconds of a core and megabytes of an input that is no finding.
  """

  inputs: int = 0
  outcomes: dict[str, int] = dataclasses.field(
    default_factory=lambda: {'accepted': 0, 'refused': 0}
  )
  seconds: float = 0
  slowest: float = 0
  largest: float = 0

  @property
  def findings(self) -> int:
    return self.inputs - self.outcomes['accepted'] - self.outcomes['refused']


def fuzz(name: str, seed: int, seconds: float, tally: Tally, findings: Path) -> None:
  """Read inputs for some time, from the number on that `tally` has come to, and add them to it."""
  context = multiprocessing.get_context('spawn')
  deadline = time.monotonic() + seconds
  is_first = True
  while is_first or time.monotonic() < deadline:
    is_first = False
    with tempfile.TemporaryDirectory() as folder:
      pipe, other = context.Pipe()
      process = context.Process(
        target=_read_all, args=(name, seed, tally.inputs, folder, other), daemon=True
      )
      process.start()
      other.close()
      try:
        _count(pipe, deadline, name, seed, tally, findings)
      finally:
        process.kill()
        process.join()


def _count(pipe: Any, deadline: float, name: str, seed: int, tally: Tally, findings: Path) -> None:
  """Count what a process sends until the deadline, or until it hangs or dies."""
  file = None
  start = time.monotonic()
  while True:
    try:
      is_there = any(pipe.poll(_PATIENCE_S) for _ in range(2))  # It may have been suspended.
      message = pipe.recv() if is_there else ('ends', 'hangs', '', 0.0, 0.0)
    except EOFError:
      message = ('ends', 'crash', '', 0.0, 0.0)
    if message[0] == 'begins':
      file = Path(message[1])
      if time.monotonic() > deadline:
        break
      continue
    if file is None:
      raise RuntimeError(f'the valid files of {name} cannot be read')
    _, outcome, reason, took, megabytes = message
    now = time.monotonic()
    tally.seconds, start = tally.seconds + now - start, now
    tally.outcomes[outcome] = tally.outcomes.get(outcome, 0) + 1
    if outcome in ('accepted', 'refused'):
      tally.slowest, tally.largest = max(tally.slowest, took), max(tally.largest, megabytes)
    else:
      findings.mkdir(parents=True, exist_ok=True)
      place = findings / f'{name}-{seed}-{tally.inputs}-{outcome}-{file.name}'
      place.write_bytes(file.read_bytes() if file.exists() else b'')
      place.with_name(f'{place.name}.txt').write_text(f'{file}\n{reason}')
    tally.inputs += 1
    if outcome in ('hangs', 'crash'):
      break


def _load(path: Path) -> dict[str, Tally]:
  if not path.exists():
    return {}
  return {key: Tally(**value) for key, value in json.loads(path.read_text()).items()}


def _save(path: Path, tallies: dict[str, Tally]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'{path.name}.new')
  temporary.write_text(json.dumps({k: dataclasses.asdict(v) for k, v in tallies.items()}, indent=1))
  temporary.replace(path)


def _print_table(tallies: dict[str, Tally]) -> None:
  columns = ('minutes', 'inputs', 'refused', 'accepted', 'findings', 'slowest, s', 'largest, MB')
  print(f'{"":18}', *(f'{column:>11}' for column in columns))
  for key, t in sorted(tallies.items()):
    counts = (t.inputs, t.outcomes['refused'], t.outcomes['accepted'], t.findings)
    cells = [f'{t.seconds / 60:11.1f}', *(f'{count:11,}' for count in counts)]
    print(f'{key:18}', *cells, f'{t.slowest:11.2f}', f'{t.largest:11.0f}')


def main(_: object) -> None:
  options = flags.FLAGS
  names = [*PARSERS] if options.parser == 'all' else options.parser.split(',')
  with tempfile.TemporaryDirectory() as scratch:
    findings = Path(options.findings or scratch).absolute()
    tallies = _load(findings / 'tallies.json')
    left = 60 * options.minutes
    turn = min(_TURN_S, left / len(names))
    while left > 0:  # By turns, so that one that ends early has fuzzed all alike.
      for name in names:
        tally = tallies.setdefault(f'{name} {options.seed}', Tally())
        fuzz(name, options.seed, turn, tally, findings)
        _save(findings / 'tallies.json', tallies)
        left -= turn
        if left <= 0:
          break
    if options.json:
      print(json.dumps({key: dataclasses.asdict(tally) for key, tally in tallies.items()}))
    else:
      _print_table(tallies)
    sys.exit(any(tally.findings for tally in tallies.values()))


if __name__ == '__main__':
  # Not above: a test imports this module beside commands that have flags of the same names.
  flags.DEFINE_string('parser', 'all', f'{", ".join(PARSERS)}; several with commas; all.')
  flags.DEFINE_float('minutes', 10, 'For all parsers together, which take turns.')
  flags.DEFINE_integer('seed', 0, 'Of the inputs.', lower_bound=0)
  flags.DEFINE_string('findings', None, 'A folder that keeps findings and counts.')
  flags.DEFINE_bool('json', False, 'Print one JSON object and nothing else.')
  app.run(main)
