"""Read pickles of tensors and arrays, torch's two formats among them, without running their code.

Nothing that a pickle names is imported. A short list of names stands for functions of this file,
which only record what a tensor is made of; any other name is refused.
"""

import dataclasses
import io
import math
import pickle
import zipfile
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

# The pickled number at the start of files before torch 1.6.
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
    """Return the elements, in their buffer.

    Args:
      buffers: the storages' contents, by key.

    Raises:
      ValueError: the elements lie outside the storage, or are more than it holds.
    """
    start, size = self.storage.start, self.storage.size
    if any(
      type(n) is not int or n < 0 for n in (start, size, self.offset, *self.shape, *self.strides)
    ):
      raise ValueError(f'a tensor {self} is not measured in natural numbers')
    buffer = buffers[self.storage.key][start : start + size][self.offset :]
    reach = 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
    count = math.prod(self.shape)
    if count > len(buffer) or (count and reach > len(buffer)):
      raise ValueError(f'a tensor {self.shape} reaches outside its storage')
    strides = [stride * buffer.itemsize if count else 0 for stride in self.strides]
    return np.lib.stride_tricks.as_strided(buffer, self.shape, strides, writeable=False)


class _Array:
  """A numpy array; a pickle creates it and gives its content afterwards.

  Attributes:
    value: the array, once it is filled.
  """

  value: np.ndarray

  def fill(self, state: tuple) -> None:
    """Set the value from numpy's pickled state."""
    _, shape, dtype, is_fortran, content = state
    if isinstance(content, str):  # Python 2 wrote bytes as text.
      content = content.encode('latin1')
    flat = np.frombuffer(content, dtype.value)
    self.value = flat.reshape(shape, order='F' if is_fortran else 'C')


class _Dtype:
  """A plain numeric dtype; a pickle creates it and gives its byte order afterwards.

  Attributes:
    value: the dtype.
  """

  def __init__(self, name: str, *_: Any):
    self.value = np.dtype(name)
    if self.value.kind not in 'fiub':
      raise pickle.UnpicklingError(f'dtype {name} is not numeric')

  def fill(self, state: tuple) -> None:
    """Set the byte order from numpy's pickled state."""
    if state[1] in ('<', '>'):
      self.value = self.value.newbyteorder(state[1])


class _Ignored:
  """A value that a training script saves beside the weights: its arguments, its best score."""

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


# The unpickler in Python: the one in C would leave BUILD to the objects themselves, and reserves as
# much memory as a damaged file asks for.
class _Unpickler(pickle._Unpickler):
  """An unpickler of containers of tensors and arrays that refuses every other global.

  Attributes:
    dtypes: of the storages that the pickle refers to, by key.
  """

  dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
  stack: list[Any]

  def __init__(self, file: io.BytesIO):
    super().__init__(file, encoding='latin1')
    self.dtypes: dict[str, np.dtype] = {}

  def find_class(self, module: str, name: str) -> Any:
    """Return the stand-in for a global."""
    # numpy 2 renamed the module that older pickles name.
    name = f'{module}.{name}'.replace('numpy.core.', 'numpy._core.')
    if name not in _ALLOWED:
      raise pickle.UnpicklingError(
        f'it names {name}, which is no tensor (of a network save its state_dict)'
      )
    return _ALLOWED[name]

  def load_build(self) -> None:
    """Fill arrays; drop the attributes of anything else, such as a state_dict's _metadata."""
    state = self.stack.pop()
    if isinstance(self.stack[-1], _Array | _Dtype):
      self.stack[-1].fill(state)

  dispatch[pickle.BUILD[0]] = load_build

  def persistent_load(self, pid: tuple) -> _Storage:
    """Return the storage that torch's pickles refer to by `pid`."""
    kind, dtype, key, _, size, *view = pid
    if kind != 'storage' or self.dtypes.setdefault(key, dtype) is not dtype:
      raise pickle.UnpicklingError(f'it refers to {kind} {key}, which is no storage of one type')
    start = 0
    if view and view[0] is not None:
      _, start, size = view[0]
    return _Storage(key, start, size)


def read_arrays(content: bytes) -> dict[str, np.ndarray]:
  """Read a pickle of nested dicts of numpy arrays as one dict, with names joined by '/'.

  Raises:
    ValueError: the pickle holds something else. The unpickler raises errors of its own, in the
      other functions too.
  """
  return _flatten(_Unpickler(io.BytesIO(content)).load(), depth=8)


def _flatten(tree: Any, depth: int) -> dict[str, np.ndarray]:
  if not isinstance(tree, dict) or not depth:
    raise ValueError('the pickle is not nested dicts of numpy arrays')
  tensors = {}
  for name, value in tree.items():
    if isinstance(value, _Array):
      tensors[str(name)] = value.value
    else:
      tensors |= {f'{name}/{below}': array for below, array in _flatten(value, depth - 1).items()}
  return tensors


def read_torch_zip(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
  """Read the tensors that torch.save has written since 1.6.

  Raises:
    ValueError: the file is of a big-endian machine or compressed, or holds no state_dict or tensors
      outside their storages.
  """
  names = archive.namelist()
  folder = next(name for name in names if name.endswith('/data.pkl')).removesuffix('data.pkl')
  if f'{folder}byteorder' in names and read_member(archive, f'{folder}byteorder') != b'little':
    raise ValueError('it was saved on a big-endian machine')
  unpickler = _Unpickler(io.BytesIO(read_member(archive, f'{folder}data.pkl')))
  tensors = _find_state_dict(unpickler.load())
  buffers = {
    key: np.frombuffer(read_member(archive, f'{folder}data/{key}'), unpickler.dtypes[key])
    for key in {tensor.storage.key for tensor in tensors.values()}
  }
  return {name: tensor.view(buffers) for name, tensor in tensors.items()}


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
  """Read a member of an archive that torch or Keras wrote.

  Raises:
    ValueError: it is compressed, as theirs never are: a small one could unpack to terabytes.
  """
  if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
    raise ValueError(f'its {name} is compressed')
  return archive.read(name)


def read_torch_legacy(content: bytes) -> dict[str, np.ndarray]:
  """Read the tensors that torch.save wrote before 1.6, or writes in its old format.

  Raises:
    ValueError: the file holds no state_dict, or tensors outside their storages.
  """
  file = io.BytesIO(content)
  # These are the magic number, the format's version, and the machine, which does not matter:
  # storages are little-endian on any.
  for _ in range(3):
    _Unpickler(file).load()
  unpickler = _Unpickler(file)
  tensors = _find_state_dict(unpickler.load())
  buffers = {}
  for key in _Unpickler(file).load():
    dtype = unpickler.dtypes[key]
    size = int.from_bytes(file.read(8), 'little')
    buffers[key] = np.frombuffer(content, dtype, size, file.tell())
    file.seek(size * dtype.itemsize, io.SEEK_CUR)
  return {name: tensor.view(buffers) for name, tensor in tensors.items()}


def _find_state_dict(tree: Any) -> dict[str, _Tensor]:
  """Return the tensors by name, of the averaged network if there is one."""
  if not isinstance(tree, dict):
    raise ValueError('it is no state_dict')
  parts = {name: _named_tensors(part) for name, part in tree.items() if isinstance(part, dict)}
  for name in ('state_dict_ema', 'model_ema', 'state_dict', 'model'):
    if parts.get(name):
      return parts[name]
  # Some scripts have names of their own for the state_dict.
  return max([_named_tensors(tree), *parts.values()], key=len)


def _named_tensors(part: dict[Any, Any]) -> dict[str, _Tensor]:
  return {str(name): value for name, value in part.items() if isinstance(value, _Tensor)}
