"""Read pickles of tensors and arrays, torch's two formats among them, without running their code.

Nothing that a pickle names is imported. A short list of names stands for functions of this file,
which only record what a tensor is made of; any other name is refused.

What a pickle of few bytes could blow up is counted against a `Budget` first: opcodes, and arguments
of calls, since calls may copy them and a pickle may use one argument any number of times.
"""

import dataclasses
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from sjft_jax.models.weights.budget import PART_BYTES, Budget

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

# What training scripts save beside the weights: settings, counts, paths, types of tensors. Python
# 3.13 has its paths in pathlib._local, and protocol 2 the builtins under the name of Python 2.
_IGNORED = (
  'argparse.Namespace',
  'collections.Counter',  # The milestones of MultiStepLR.
  'collections.defaultdict',
  *(
    f'{module}.{name}'
    for module in ('builtins', '__builtin__')
    for name in ('bool', 'dict', 'float', 'frozenset', 'int', 'list', 'set', 'str', 'tuple')
  ),
  *(f'__builtin__.{name}' for name in ('long', 'unicode')),
  *(
    f'{module}.{name}'
    for module in ('pathlib', 'pathlib._local')
    for name in ('Path', 'PosixPath', 'PurePath', 'PurePosixPath', 'PureWindowsPath', 'WindowsPath')
  ),
  *(f'torch.{prefix}int{bits}' for prefix in ('', 'u') for bits in (8, 16, 32, 64)),
  *(f'torch.{name}' for name in ('bfloat16', 'bool', 'float16', 'float32', 'float64')),
  *(f'torch.complex{bits}' for bits in (32, 64, 128)),
)

_MAX_DIMS = 32
_MAX_ARGUMENTS = 16  # torch's functions have nine at most.


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
    buffer = buffers[self.storage.key][start : start + size][self.offset :]
    reach = 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
    count = math.prod(self.shape)
    if count > len(buffer) or (count and reach > len(buffer)):
      raise ValueError(f'a tensor {self.shape} reaches outside its storage')
    strides = [stride * buffer.itemsize if count else 0 for stride in self.strides]
    return np.lib.stride_tricks.as_strided(buffer, self.shape, strides, writeable=False)


def _check_sizes(*sizes: Any) -> None:
  """Check what a pickle gives as sizes.

  An error must not show them: a tuple that holds one tuple twice, and so on for 24 levels, is 16
  million long in a message.

  Raises:
    ValueError: they are not natural numbers of 63 bits.
  """
  if not all(type(n) is int and 0 <= n < 2**63 for n in sizes):
    raise ValueError('a tensor is not measured in natural numbers')


def _check_shape(shape: Any) -> None:
  if type(shape) is not tuple or len(shape) > _MAX_DIMS:
    raise ValueError('a tensor has no shape')
  _check_sizes(*shape)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
  if not isinstance(storage, _Storage):
    raise ValueError('a tensor has no storage')
  _check_sizes(offset)
  _check_shape(shape)
  _check_shape(strides)
  return _Tensor(storage, offset, shape, strides)


class _Array:
  """A numpy array; a pickle creates it and gives its content afterwards.

  Attributes:
    value: the array, once it is filled.
  """

  value: np.ndarray

  def fill(self, state: tuple) -> None:
    """Set the value from numpy's pickled state."""
    _, shape, dtype, is_fortran, content = state
    _check_shape(shape)
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
    # Only short names: a list of many types would be one dtype, too.
    if not isinstance(name, str) or len(name) > 8 or np.dtype(name).kind not in 'fiub':
      raise pickle.UnpicklingError('a dtype is not numeric')
    self.value = np.dtype(name)

  def fill(self, state: tuple) -> None:
    """Set the byte order from numpy's pickled state."""
    if state[1] in ('<', '>'):
      self.value = self.value.newbyteorder(state[1])


class _Ignored:
  """A value that a training script saves beside the weights: its arguments, its best score.

  It stands for types too: what a file calls or makes of them is one more of these.
  """

  def __init__(self, *_: Any):
    pass


def _frombuffer(content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
  array = _Array()
  array.fill((1, shape, dtype, order == 'F', content))
  return array


def _make_dict(pairs: Iterable[Any] = ()) -> dict[Any, Any]:
  result: dict[Any, Any] = {}
  for key, value in pairs:
    _set_item(result, key, value)
  return result


def _set_item(target: Any, key: Any, value: Any) -> None:
  """Set an item of a dict; those of a value that is ignored are dropped, keys and all.

  Raises:
    pickle.UnpicklingError: the key is one whose hash may take any time or be that of many others.
  """
  if isinstance(target, _Ignored):
    return
  parts = key if type(key) is tuple and len(key) <= _MAX_ARGUMENTS else (key,)
  for part in parts:
    is_small = type(part) is int and abs(part) < 2**63
    if not is_small and not isinstance(part, str | bytes | float | bool | None):
      raise pickle.UnpicklingError('a key of a dict is neither text nor a number')
  if type(target) is not dict:
    raise pickle.UnpicklingError('it sets items of what is no dict')
  target[key] = value


def _size(shape: Any = ()) -> tuple:
  _check_shape(shape)
  return shape


_ALLOWED: dict[str, Any] = {
  '_codecs.encode': lambda text, _: text.encode('latin1'),  # How protocol 2 writes bytes.
  'collections.OrderedDict': _make_dict,
  'numpy.dtype': _Dtype,
  'numpy.ndarray': _Ignored,
  'numpy._core.multiarray._reconstruct': lambda *_: _Array(),
  'numpy._core.multiarray.scalar': _Ignored,
  'numpy._core.numeric._frombuffer': _frombuffer,
  'torch.Size': _size,
  'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
  'torch._utils._rebuild_parameter_with_state': lambda tensor, *_: tensor,
  'torch._utils._rebuild_tensor': _rebuild_tensor,
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch.device': _Ignored,
  **dict.fromkeys(_IGNORED, _Ignored),
  **{f'torch.{name}': np.dtype(dtype) for name, dtype in _STORAGE_DTYPES.items()},
}


class _Opcodes(io.BytesIO):
  """The content of a file with pickles, read within a budget and within the file."""

  def __init__(self, content: bytes, budget: Budget):
    super().__init__(content)
    self.budget = budget

  def read(self, size: int | None = -1, /) -> bytes:
    """Return exactly `size` bytes. An opcode is one byte, and what it makes is small."""
    if size == 1:
      self.budget.take(PART_BYTES)
    content = super().read(size)
    if size is not None and len(content) < size:
      raise pickle.UnpicklingError('it ends within a pickle')
    return content


# Opcodes that neither torch nor numpy writes.
_REFUSED_OPCODES = (
  pickle.EXT1,
  pickle.EXT2,
  pickle.EXT4,
  pickle.INST,
  pickle.NEWOBJ_EX,
  pickle.NEXT_BUFFER,
  pickle.OBJ,
  pickle.PERSID,
  pickle.READONLY_BUFFER,
)


# The unpickler in Python: the one in C would leave BUILD to the objects themselves, and reserves as
# much memory as a damaged file asks for.
class _Unpickler(pickle._Unpickler):
  """An unpickler of containers of tensors and arrays that refuses every other global.

  Attributes:
    dtypes: of the storages that the pickle refers to, by key.
  """

  dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
  stack: list[Any]
  append: Callable[[Any], None]
  pop_mark: Callable[[], list[Any]]
  read: Callable[[int], bytes]

  def __init__(self, file: _Opcodes):
    super().__init__(file, encoding='latin1')
    self.budget = file.budget
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
      if type(state) is not tuple or len(state) > _MAX_ARGUMENTS:
        raise pickle.UnpicklingError('the state of an array is no tuple')
      self._take_copies(state)
      self.stack[-1].fill(state)

  def load_reduce(self) -> None:
    """Call a stand-in, within the budget."""
    arguments, function = self.stack.pop(), self.stack.pop()
    if type(arguments) is not tuple or len(arguments) > _MAX_ARGUMENTS:
      raise pickle.UnpicklingError('the arguments of a call are no short tuple')
    self._take_copies(arguments)
    self.append(function(*arguments))

  def load_bytearray8(self) -> None:
    """Read bytes; pickle's own method reserves what their length says before it reads them."""
    (size,) = struct.unpack('<Q', self.read(8))
    self.append(self.read(size))

  def load_frame(self) -> None:
    """Skip the length of a frame, which only helps to read in larger pieces."""
    self.read(8)

  def load_setitem(self) -> None:
    """Set one item of a dict."""
    value, key = self.stack.pop(), self.stack.pop()
    _set_item(self.stack[-1], key, value)

  def load_setitems(self) -> None:
    """Set several items of a dict."""
    items = self.pop_mark()
    for key, value in zip(items[::2], items[1::2], strict=True):
      _set_item(self.stack[-1], key, value)

  def load_dict(self) -> None:
    """Make a dict of items."""
    items = self.pop_mark()
    self.append(_make_dict(zip(items[::2], items[1::2], strict=True)))

  def refuse_opcode(self) -> None:
    """Refuse what no weight file needs."""
    raise pickle.UnpicklingError('it has an opcode that no pickle of tensors needs')

  dispatch |= {
    pickle.BUILD[0]: load_build,
    pickle.BYTEARRAY8[0]: load_bytearray8,
    pickle.DICT[0]: load_dict,
    pickle.FRAME[0]: load_frame,
    pickle.NEWOBJ[0]: load_reduce,
    pickle.REDUCE[0]: load_reduce,
    pickle.SETITEM[0]: load_setitem,
    pickle.SETITEMS[0]: load_setitems,
    # Sets are not needed, and their items may have no quick hash.
    pickle.EMPTY_SET[0]: pickle._Unpickler.dispatch[pickle.EMPTY_LIST[0]],
    pickle.ADDITEMS[0]: pickle._Unpickler.dispatch[pickle.APPENDS[0]],
    pickle.FROZENSET[0]: pickle._Unpickler.dispatch[pickle.LIST[0]],
  }
  dispatch |= dict.fromkeys([opcode[0] for opcode in _REFUSED_OPCODES], refuse_opcode)

  def _take_copies(self, arguments: tuple) -> None:
    """Count copies of texts and containers."""
    for argument in arguments:
      if isinstance(argument, str | bytes):
        self.budget.take(len(argument))
      elif isinstance(argument, list | tuple | dict):
        self.budget.take(len(argument) * PART_BYTES)

  def persistent_load(self, pid: tuple) -> _Storage:
    """Return the storage that torch's pickles refer to by `pid`."""
    if type(pid) is not tuple or len(pid) > _MAX_ARGUMENTS:
      raise pickle.UnpicklingError('it refers to what is no storage')
    kind, dtype, key, _, size, *view = pid
    is_storage = kind == 'storage' and isinstance(key, str) and isinstance(dtype, np.dtype)
    if not is_storage or self.dtypes.setdefault(key, dtype) is not dtype:
      raise pickle.UnpicklingError('it refers to what is no storage of one type')
    start = 0
    if view and type(view[0]) is tuple:
      _, start, size = view[0]
    _check_sizes(start, size)
    return _Storage(key, start, size)


def read_arrays(content: bytes, budget: Budget) -> dict[str, np.ndarray]:
  """Read a pickle of nested dicts of numpy arrays as one dict, with names joined by '/'.

  Raises:
    ValueError: the pickle holds something else, or takes more than the budget, as in the other
      functions. The unpickler raises errors of its own, in these too.
  """
  return _flatten(_Unpickler(_Opcodes(content, budget)).load(), 8, budget)


def _flatten(tree: Any, depth: int, budget: Budget) -> dict[str, np.ndarray]:
  if not isinstance(tree, dict) or not depth:
    raise ValueError('the pickle is not nested dicts of numpy arrays')
  tensors = {}
  for name, value in tree.items():
    name = str(name)
    # The same dict may be in many places.
    budget.take(PART_BYTES + len(name))
    if isinstance(value, _Array):
      tensors[name] = value.value
    else:
      for below, array in _flatten(value, depth - 1, budget).items():
        budget.take(PART_BYTES + len(name) + len(below))
        tensors[f'{name}/{below}'] = array
  return tensors


def read_torch_zip(archive: zipfile.ZipFile, budget: Budget) -> dict[str, np.ndarray]:
  """Read the tensors that torch.save has written since 1.6.

  Raises:
    ValueError: the file is of a big-endian machine or compressed, or holds no state_dict or tensors
      outside their storages.
  """
  names = archive.namelist()
  folder = next(name for name in names if name.endswith('/data.pkl')).removesuffix('data.pkl')
  if f'{folder}byteorder' in names and read_member(archive, f'{folder}byteorder') != b'little':
    raise ValueError('it was saved on a big-endian machine')
  unpickler = _Unpickler(_Opcodes(read_member(archive, f'{folder}data.pkl'), budget))
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
  member = archive.getinfo(name)
  if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
    raise ValueError(f'its {name} is compressed')
  return archive.read(name)


def read_torch_legacy(content: bytes, budget: Budget) -> dict[str, np.ndarray]:
  """Read the tensors that torch.save wrote before 1.6, or writes in its old format.

  Raises:
    ValueError: the file holds no state_dict, or tensors outside their storages.
  """
  file = _Opcodes(content, budget)
  # These are the magic number, the format's version, and the machine, which does not matter:
  # storages are little-endian on any.
  for _ in range(3):
    _Unpickler(file).load()
  unpickler = _Unpickler(file)
  tensors = _find_state_dict(unpickler.load())
  buffers = {}
  keys = _Unpickler(file).load()
  if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
    raise ValueError('it has no list of storages')
  for key in keys:
    dtype = unpickler.dtypes[key]
    size = int.from_bytes(file.read(8), 'little')
    buffers[key] = np.frombuffer(content, dtype, size, file.tell())
    file.seek(size * dtype.itemsize, io.SEEK_CUR)
  return {name: tensor.view(buffers) for name, tensor in tensors.items()}


def _find_state_dict(tree: Any) -> dict[str, _Tensor]:
  """Return the tensors by name, of the averaged network if there is one."""
  if not isinstance(tree, dict):
    raise ValueError('it is no state_dict')
  for name in ('state_dict_ema', 'model_ema', 'state_dict', 'model'):
    if isinstance(tree.get(name), dict) and (tensors := _named_tensors(tree[name])):
      return tensors
  # Some scripts have names of their own for the state_dict. One dict may have many names.
  parts = {id(part): part for part in tree.values() if isinstance(part, dict)}
  candidates = sorted(map(_named_tensors, [tree, *parts.values()]), key=len)
  if len(candidates) > 1 and len(candidates[-1]) == len(candidates[-2]) > 0:
    names = [name for name, part in tree.items() if isinstance(part, dict) and _named_tensors(part)]
    raise ValueError(
      f'it holds several networks, {", ".join(map(str, names))[:200]}: save one alone'
    )
  return candidates[-1]


def _named_tensors(part: dict[Any, Any]) -> dict[str, _Tensor]:
  return {str(name): value for name, value in part.items() if isinstance(value, _Tensor)}
