"""Write small weight files that would take gigabytes or minutes, if a reader trusted them."""

import json
import pickle
import struct
import zipfile
import zlib

import h5py
import numpy as np
from models.weights.caffemodel import field
from models.weights.weight_files import (
  Global,
  dump,
  opcodes,
  tensor,
  write_torch_legacy,
  write_torch_zip,
)

GET, POP = b'h\x00', b'0'
MEGABYTE = 'é' * 2**20


def long_bytearray(path):
  """Declare a bytearray of 2 GiB and end."""
  path.write_bytes(b'\x80\x05' + pickle.BYTEARRAY8 + struct.pack('<Q', 2**31))


def many_names_of_a_storage(path):
  """Give one storage 400 names; as float32 each has 8 MB."""
  view = (2**21,)
  tensors = {f'w{i}': tensor('0', *view, 0, view, (1,), 'Half') for i in range(400)}
  write_torch_zip(path, dump(tensors), {'0': np.zeros(view, np.float16)})


def doubled(times):
  """Pickle a tuple that holds the same tuple twice, and so on."""
  return b'K\x01' + (b'2' + pickle.TUPLE2) * times


def doubled_shape(path, write=write_torch_zip):
  """Give a tensor a shape that is 67 million long in a message."""
  head, tail = dump({'w': tensor('0', 4, 0, Global('shape x'), (1,))}).split(b'cshape\nx\n')
  write(path, head + doubled(26) + tail, {'0': np.zeros(4, np.float32)})


def doubled_shape_legacy(path):
  """Write the same in torch's older format."""
  doubled_shape(path, write_torch_legacy)


def doubled_key(path):
  """Give a dict a key whose hash takes as many steps."""
  path.write_bytes(b'\x80\x04}' + doubled(33) + b'K\x01s.')


def text_encoded_often(path):
  """Encode one text 3,000 times."""
  encode = opcodes(Global('_codecs encode')) + GET + opcodes('latin1') + pickle.TUPLE2 + b'R'
  text = MEGABYTE.encode()
  text = b'X' + struct.pack('<I', len(text)) + text + b'q\x00' + POP
  path.write_bytes(b'\x80\x02' + text + b'(' + encode * 3000 + b'l.')


def list_copied_often(path, name='collections OrderedDict'):
  """Make 3,000 copies of a list of 20,000 pairs."""
  pairs = b'](' + b''.join(b'M' + struct.pack('<H', i) + b'N\x86' for i in range(20_000)) + b'e'
  call = opcodes(Global(name)) + GET + pickle.TUPLE1 + b'R'
  path.write_bytes(b'\x80\x02' + pairs + b'q\x00' + POP + b'(' + call * 3000 + b'l.')


def tuple_copied_often(path):
  """Make 3,000 tuples of the same list."""
  list_copied_often(path, 'torch Size')


def empty_dicts(path):
  """Make a dict of each of 8 million bytes."""
  path.write_bytes(b'\x80\x02' + b'}' * 8_000_000 + b'.')


def marks(path):
  """Make a mark of each of 8 million bytes."""
  path.write_bytes(b'\x80\x02' + b'(' * 8_000_000 + b'.')


def dict_in_many_places(path):
  """Hold each of six dicts 20 times in the next one: 64 million paths."""
  content = b'}'
  for _ in range(6):
    items = b''.join(opcodes(f'k{i}') + GET for i in range(20))
    content += b'q\x00' + POP + b'}(' + items + b'u'
  path.write_bytes(b'\x80\x02' + content + b'.')


def state_dict_in_many_places(path):
  """Give a dict of 3,000 tensors 3,000 names."""
  one = opcodes(tensor('0', 4, 0, (4,), (1,))) + b'q\x01' + POP
  part = b'}(' + b''.join(opcodes(f'w{i}') + b'h\x01' for i in range(3000)) + b'uq\x00' + POP
  tree = b'}(' + b''.join(opcodes(f'part{i}') + GET for i in range(3000)) + b'u.'
  write_torch_zip(path, b'\x80\x02' + one + part + tree, {'0': np.zeros(4, np.float32)})


def overlapping_members(path):
  """Write a zip archive in which 300 storages of 8 MB lie in each other."""
  count = 300
  # The heads of members are then as long as some numbers of float32.
  tensors = {f'w{i}': tensor(f'{i:05}', 2**21, 0, (2**21,), (1,)) for i in range(count)}
  storages = {f'net/data/{i:05}': None for i in reversed(range(count))}
  write_archive(path, {**storages, 'net/data.pkl': dump(tensors)}, bytes(2**23))


def write_archive(path, members, shared):
  """Write a zip archive; a member that is None holds all that follows it, and `shared` at last."""
  body, places = shared, []
  for name, content in members.items():
    content = body if content is None else content
    head = struct.pack('<HHHHHIIIHH', 20, 0, 0, 0, 33, zlib.crc32(content), *[len(content)] * 2,
                       len(name), 0)  # fmt: skip
    local = b'PK\3\4' + head + name.encode()
    is_shared = members[name] is None
    body = local + (b'' if is_shared else content) + body
    places.append((name, head[:-4] + struct.pack('<H', len(name)), len(body)))
  directory = b''.join(
    b'PK\1\2' + struct.pack('<H', 20) + head + struct.pack('<HHHHII', 0, 0, 0, 0, 0,
                                                         len(body) - from_end) + name.encode()
    for name, head, from_end in places
  )  # fmt: skip
  count = min(len(places), 0xFFFF)
  end = struct.pack('<HHHHIIH', 0, 0, count, count, len(directory), len(body), 0)
  path.write_bytes(body + directory + b'PK\5\6' + end)


def empty_layers(path):
  """Write a Caffe network of 2.5 million layers of two bytes."""
  path.write_bytes(b'\x12\x00' * 2_500_000)


def empty_blobs(path):
  """Write a Caffe network of a layer with 4 million empty blobs."""
  path.write_bytes(field(100, field(1, b'conv') + b'\x3a\x00' * 4_000_000))


def many_dims(path):
  """Write a Caffe network of a blob with 16 million dimensions."""
  shape = field(7, field(1, b'\x01' * 16_000_000))
  path.write_bytes(field(100, field(1, b'conv') + field(7, field(5, bytes(4)) + shape)))


def packed_zeros(path):
  """Write 2 GiB of zeros with gzip, 1,029 to one."""
  chunk = zlib.compress(bytes(2**24), 9)
  with h5py.File(path, 'w') as file:
    data = file.create_dataset('conv/kernel', (2**29,), 'f4', chunks=(2**22,), compression='gzip')
    for i in range(2**7):
      data.id.write_direct_chunk((i * 2**22,), chunk)


def chunk_that_grows(path):
  """Write a chunk of 1 kB that unpacks to 1 GiB."""
  packer = zlib.compressobj(9)
  chunk = b''.join(packer.compress(bytes(2**24)) for _ in range(64)) + packer.flush()
  with h5py.File(path, 'w') as file:
    data = file.create_dataset('conv/kernel', (256,), 'f4', chunks=(256,), compression='gzip')
    data.id.write_direct_chunk((0,), chunk)


def large_chunk(path):
  """Write one number in a chunk of 1 GiB."""
  packer = zlib.compressobj(9)
  chunk = b''.join(packer.compress(bytes(2**24)) for _ in range(64)) + packer.flush()
  options = {'maxshape': (None,), 'chunks': (2**28,), 'compression': 'gzip'}
  with h5py.File(path, 'w') as file:
    data = file.create_dataset('conv/kernel', (1,), 'f4', **options)
    data.id.write_direct_chunk((0,), chunk)


def long_layer_paths(path):
  """Nest 3,000 layers in one whose class has a name of 1 MB."""
  layers = [{'class_name': 'Dense', 'config': {'name': f'n{i}'}} for i in range(3000)]
  outer = {'class_name': 'a' * 2**20, 'config': {'name': 'outer', 'layers': layers}}
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('config.json', json.dumps({'config': {'layers': [outer]}}))
    archive.writestr('model.weights.h5', b'')


def long_header(path):
  """Write safetensors with 150,000 tensors without elements."""
  empty = {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]}
  header = json.dumps({f't{i}': empty for i in range(150_000)}).encode()
  path.write_bytes(struct.pack('<Q', len(header)) + header)


ATTACKS = [
  long_bytearray,
  many_names_of_a_storage,
  doubled_shape,
  doubled_shape_legacy,
  doubled_key,
  text_encoded_often,
  list_copied_often,
  tuple_copied_often,
  empty_dicts,
  marks,
  dict_in_many_places,
  state_dict_in_many_places,
  overlapping_members,
  empty_layers,
  empty_blobs,
  many_dims,
  packed_zeros,
  chunk_that_grows,
  large_chunk,
  long_layer_paths,
  long_header,
]
