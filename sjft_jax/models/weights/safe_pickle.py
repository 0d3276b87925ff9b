"""Pickles of tensors and arrays, torch's two formats among them, read without running code.

Nothing that a pickle names is imported: a short list of names stands for the functions here, which
only note what a tensor is made of; any other name is refused.
"""

import dataclasses
import io
import math
import pickle
import zipfile
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

# The number that the files before torch 1.6 start with, as pickled.
LEGACY_MAGIC = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'

_STORAGE_DTYPES = {
  'DoubleStorage': '<f8',
  'FloatStorage': '<f4',
  'HalfStorage': '<f2',
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': '<i8',
  'IntStorage': '<i4',
  'ShortStorage': '<i2',
  'CharStorage': 'i1',
  'ByteStorage': 'u1',
  'BoolStorage': '?',
}


@dataclasses.dataclass(frozen=True)
class _Storage:
  """A buffer of the file, or a part of one, counted in elements."""

  key: str
  start: int
  size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A strided view of a storage, counted in elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def view(self, buffers: dict[str, np.ndarray]) -> np.ndarray:
    """The elements in their buffer.

    Raises:
      ValueError: they lie outside the storage, or are more than it holds.
    """
    start, size = self.storage.start, self.storage.size
    if any(
      type(n) is not int or n < 0 for n in (start, size, self.offset, *self.shape, *self.strides)
    ):
      raise ValueError(f'a tensor {self} is not measured in natural numbers')
    buffer = buffers[self.storage.key][start : start + size][self.offset :]
    reach = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
    count = math.prod(self.shape)
    if count > len(buffer) or (count and reach > len(buffer)):
      raise ValueError(f'a tensor {self.shape} reaches outside its storage')
    strides = [step * buffer.itemsize if count else 0 for step in self.strides]
    return np.lib.stride_tricks.as_strided(buffer, self.shape, strides, writeable=False)


class _Array:
  """A numpy array, whose content a pickle gives after its making."""

  value: np.ndarray

  def fill(self, state: tuple) -> None:
    _, shape, dtype, is_fortran, content = state
    if isinstance(content, str):  # Python 2 wrote bytes as text.
      content = content.encode('latin1')
    flat = np.frombuffer(content, dtype.value)
    self.value = flat.reshape(shape, order='F' if is_fortran else 'C')


class _Dtype:
  """A plain numeric dtype, whose byte order a pickle gives after its making."""

  def __init__(self, name: str, *_: Any):
    self.value = np.dtype(name)
    if self.value.kind not in 'fiub':
      raise pickle.UnpicklingError(f'dtype {name} is not numeric')

  def fill(self, state: tuple) -> None:
    if state[1] in ('<', '>'):
      self.value = self.value.newbyteorder(state[1])


class _Ignored:
  """What a training script keeps beside the weights: its arguments, its best score."""

  def __init__(self, *_: Any):
    pass


def _frombuffer(content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
  array = _Array()
  array.fill((1, shape, dtype, order == 'F', content))
  return array


_ALLOWED: dict[str, Any] = {
  '_codecs.encode': lambda text, _: text.encode('latin1'),  # How protocol 2 writes bytes.
  'argparse.Namespace': _Ignored,
  'collections.OrderedDict': dict,
  'numpy.dtype': _Dtype,
  'numpy.ndarray': _Ignored,
  'numpy._core.multiarray._reconstruct': lambda *_: _Array(),
  'numpy._core.multiarray.scalar': _Ignored,
  'numpy._core.numeric._frombuffer': _frombuffer,
  'torch.Size': tuple,
  'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
  'torch._utils._rebuild_parameter_with_state': lambda tensor, *_: tensor,
  'torch._utils._rebuild_tensor': _Tensor,
  'torch._utils._rebuild_tensor_v2': lambda storage, offset, shape, strides, *_: _Tensor(
    storage, offset, shape, strides
  ),
  'torch.device': _Ignored,
} | {f'torch.{name}': np.dtype(dtype) for name, dtype in _STORAGE_DTYPES.items()}


# The C unpickler would hand the work to the objects themselves (BUILD), and reserves as much memory
# as a damaged file asks for.
class _Unpickler(pickle._Unpickler):
  """Reads containers of tensors and arrays; refuses every other global."""

  dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
  stack: list[Any]

  def __init__(self, file: io.BytesIO):
    super().__init__(file, encoding='latin1')
    self.dtypes: dict[str, np.dtype] = {}

  def find_class(self, module: str, name: str) -> Any:
    # numpy 2 renamed the module that older pickles name.
    name = f'{module}.{name}'.replace('numpy.core.', 'numpy._core.')
    if name not in _ALLOWED:
      raise pickle.UnpicklingError(
        f'it names {name}, which is no tensor (of a network save its state_dict)'
      )
    return _ALLOWED[name]

  def load_build(self) -> None:
    """Fills arrays; drops the attributes of anything else, such as a state_dict's _metadata."""
    state = self.stack.pop()
    if isinstance(self.stack[-1], _Array | _Dtype):
      self.stack[-1].fill(state)

  dispatch[pickle.BUILD[0]] = load_build

  def persistent_load(self, pid: tuple) -> _Storage:
    kind, dtype, key, _, size, *view = pid
    if kind != 'storage' or self.dtypes.setdefault(key, dtype) is not dtype:
      raise pickle.UnpicklingError(f'it refers to {kind} {key}, which is no storage of one type')
    start = 0
    if view and view[0] is not None:
      _, start, size = view[0]
    return _Storage(key, start, size)


def read_arrays(content: bytes) -> dict[str, np.ndarray]:
  """A pickle of nested dicts of numpy arrays, as one dict with names joined by '/'."""
  return _flat(_Unpickler(io.BytesIO(content)).load(), depth=8)


def _flat(tree: Any, depth: int) -> dict[str, np.ndarray]:
  if not isinstance(tree, dict) or not depth:
    raise ValueError('the pickle is not nested dicts of numpy arrays')
  tensors = {}
  for name, value in tree.items():
    if isinstance(value, _Array):
      tensors[str(name)] = value.value
    else:
      tensors |= {f'{name}/{rest}': array for rest, array in _flat(value, depth - 1).items()}
  return tensors


def read_torch_zip(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
  """The tensors that torch.save wrote, since 1.6."""
  names = archive.namelist()
  folder = next(name for name in names if name.endswith('/data.pkl')).removesuffix('data.pkl')
  if f'{folder}byteorder' in names and read_member(archive, f'{folder}byteorder') != b'little':
    raise ValueError('it was saved on a big-endian machine')
  unpickler = _Unpickler(io.BytesIO(read_member(archive, f'{folder}data.pkl')))
  tensors = _state_dict(unpickler.load())
  buffers = {
    key: np.frombuffer(read_member(archive, f'{folder}data/{key}'), unpickler.dtypes[key])
    for key in {tensor.storage.key for tensor in tensors.values()}
  }
  return {name: tensor.view(buffers) for name, tensor in tensors.items()}


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
  """A file of an archive that torch or Keras wrote.

  Raises:
    ValueError: it is compressed, as theirs never are: a small one could unpack to terabytes.
  """
  if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
    raise ValueError(f'its {name} is compressed')
  return archive.read(name)


def read_torch_legacy(content: bytes) -> dict[str, np.ndarray]:
  """The tensors that torch.save wrote before 1.6, or writes in its old format."""
  file = io.BytesIO(content)
  # The magic number, the format's version, and the machine, although storages are little-endian
  # whatever it was.
  for _ in range(3):
    _Unpickler(file).load()
  unpickler = _Unpickler(file)
  tensors = _state_dict(unpickler.load())
  buffers = {}
  for key in _Unpickler(file).load():
    dtype = unpickler.dtypes[key]
    size = int.from_bytes(file.read(8), 'little')
    buffers[key] = np.frombuffer(content, dtype, size, file.tell())
    file.seek(size * dtype.itemsize, io.SEEK_CUR)
  return {name: tensor.view(buffers) for name, tensor in tensors.items()}


def _state_dict(tree: Any) -> dict[str, _Tensor]:
  if not isinstance(tree, dict):
    raise ValueError('it is no state_dict')
  parts = {name: _tensors(part) for name, part in tree.items() if isinstance(part, dict)}
  for name in ('state_dict_ema', 'model_ema', 'state_dict', 'model'):
    if parts.get(name):
      return parts[name]
  # Some scripts have names of their own for it.
  return max([_tensors(tree), *parts.values()], key=len)


def _tensors(part: dict[Any, Any]) -> dict[str, _Tensor]:
  return {str(name): value for name, value in part.items() if isinstance(value, _Tensor)}
