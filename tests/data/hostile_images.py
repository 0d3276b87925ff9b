"""Write small image files that would take gigabytes or minutes, if a decoder trusted them."""

import io
import struct
import zlib

import PIL.Image

from sjft_jax.data.decode import MAX_PIXELS

# The largest square that is decoded.
SIDE = 13_377
assert SIDE**2 < MAX_PIXELS < (SIDE + 1) ** 2
SIZE = 20_000_000  # bytes, of files that are long


def _fill(head, part, tail=b''):
  """Return a file of `SIZE` bytes at most that repeats a part."""
  return head + part * ((SIZE - len(head) - len(tail)) // len(part)) + tail


def _encode(kind, size=(8, 8), mode='RGB', **options):
  buffer = io.BytesIO()
  PIL.Image.new(mode, size).save(buffer, kind, **options)
  return buffer.getvalue()


def _gif(width, height):
  """Return a GIF of one pixel on a canvas."""
  canvas = b'GIF89a' + struct.pack('<HHBBB', width, height, 0, 0, 0)
  return canvas + b',' + struct.pack('<HHHHB', 0, 0, 1, 1, 0) + b'\x02\x02\x44\x01\x00;'


def gif_of_any_size():
  """Declare 65,535 × 65,535 pixels."""
  return _gif(65_535, 65_535)


def gif_canvas():
  """Declare as many pixels as are decoded, of which one is there."""
  return _gif(SIDE, SIDE)


def gif_blocks():
  """Have an extension of 10 million blocks."""
  head, tail = _gif(1, 1)[:13], _gif(1, 1)[13:]
  return _fill(head + b'!\x01', b'\x01a', b'\0' + tail)


def gif_comment():
  """Have a comment of 20 MB, in blocks of 255 bytes."""
  head, tail = _gif(1, 1)[:13], _gif(1, 1)[13:]
  return _fill(head + b'!\xfe', b'\xff' + b'a' * 255, b'\0' + tail)


def webp_canvas():
  """Declare as many pixels as are decoded, of which 64 are there."""
  image = _encode('WEBP', lossless=True)[12:]
  side = (SIDE - 1).to_bytes(3, 'little')
  frame = bytes(6) + (7).to_bytes(3, 'little') * 2 + bytes(4) + image
  body = b'VP8X' + struct.pack('<II', 10, 0x12) + side * 2
  body += b'ANIM' + struct.pack('<IIH', 6, 0, 0) + b'ANMF' + struct.pack('<I', len(frame)) + frame
  return b'RIFF' + struct.pack('<I', 4 + len(body)) + b'WEBP' + body


def _chunk(name, content):
  check = struct.pack('>I', zlib.crc32(name + content))
  return struct.pack('>I', len(content)) + name + content + check


def _png(depth, colour, row_bytes, width=SIDE, height=SIDE):
  packer = zlib.compressobj(1)
  rows = bytes(1 + row_bytes) * 64
  pixels = b''.join(packer.compress(rows) for _ in range(height // 64 + 1)) + packer.flush()
  header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
  parts = (b'IHDR', header), (b'IDAT', pixels), (b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + b''.join(_chunk(*part) for part in parts)


def png_of_one_bit():
  """Pack as many pixels as are decoded into a few kB."""
  return _png(1, 0, -(-SIDE // 8))


def png_with_alpha():
  """Pack as many pixels of four channels into a few MB."""
  return _png(8, 6, 4 * SIDE)


def png_chunks():
  """Have 1.7 million empty chunks before the pixels."""
  png = _encode('PNG')
  return _fill(png[:33], _chunk(b'heLp', b''), png[33:])


def png_chunks_behind():
  """Have 1.7 million empty chunks behind the pixels."""
  png = _encode('PNG')
  return _fill(png[:-12], _chunk(b'heLp', b''), png[-12:])


def jpeg_segments():
  """Have 5 million empty segments."""
  jpeg = _encode('JPEG')
  return _fill(jpeg[:2], b'\xff\xe1\x00\x02', jpeg[2:])


def jpeg_comments():
  """Have 5 million empty comments, in a file that is left to Pillow."""
  jpeg = bytearray(_encode('JPEG', subsampling='4:2:0'))
  jpeg[jpeg.index(b'\xff\xc0') + 14] = 0x12
  return _fill(bytes(jpeg[:2]), b'\xff\xfe\x00\x02', bytes(jpeg[2:]))


def jpeg_fill():
  """Have 20 MB of fill bytes between two segments."""
  jpeg = _encode('JPEG')
  return _fill(jpeg[:2], b'\xff', jpeg[2:])


def _segment(marker, content):
  return bytes([0xFF, marker]) + struct.pack('>H', 2 + len(content)) + content


def jpeg_scans(passes=882):
  """Go over as many pixels as are decoded up to 882 times, and find zeros."""
  blocks = (-(-SIDE // 8)) ** 2
  jpeg = b'\xff\xd8' + _segment(0xDB, b'\0' + b'\1' * 64)
  jpeg += _segment(0xC2, struct.pack('>BHHB', 8, SIDE, SIDE, 1) + b'\1\x11\0')
  # Each table has one code, of one bit: no difference, and a run of 2¹⁴ and more empty blocks.
  lengths = b'\1' + bytes(15)
  jpeg += _segment(0xC4, b'\x00' + lengths + b'\x00') + _segment(0xC4, b'\x10' + lengths + b'\xe0')
  jpeg += _segment(0xDA, b'\1\1\0' + b'\0\0\0') + bytes(-(-blocks // 8))
  bits = ('0' + '1' * 14) * (blocks // 32_767 + 1)
  bits += '1' * (-len(bits) % 8)
  runs = int(bits, 2).to_bytes(len(bits) // 8).replace(b'\xff', b'\xff\0')
  scans = [(k, high) for k in range(1, 64) for high in range(14, 0, -1)]
  for k, high in scans[:passes]:
    levels = (0 if high == 14 else high << 4) | (high - 1)
    jpeg += _segment(0xDA, b'\1\1\0' + bytes([k, k, levels])) + runs
  return jpeg + b'\xff\xd9'


def ppm_blanks():
  """Have 20 MB of blanks in the header."""
  return _fill(b'P4', b' ', b'1 1\n\0')


def ppm_comment():
  """Have a comment of 20 MB in the header."""
  return _fill(b'P4\n#', b'a', b'\n1 1\n\0')


def ppm_text():
  """Write 3.3 million pixels as text."""
  return b'P3\n1000 3333 250\n' + b'7 ' * 9_999_000


def ppm_of_another_maximum():
  """Have 6.6 million pixels whose maximum is not 255."""
  return b'P6\n1000 6600 254\n' + bytes(19_800_000)


def _bmp(width, height, body):
  header = struct.pack('<IiiHHIIiiII', 40, width, height, 1, 8, 1, len(body), 0, 0, 2, 0)
  return b'BM' + struct.pack('<IHHI', 62 + len(body), 0, 0, 62) + header + bytes(8) + body


def bmp_row():
  """End a row of 178 million pixels after one of them."""
  return _bmp(MAX_PIXELS, 1, b'\x01\x00' + b'\0\0' + b'\0\1')


def bmp_runs():
  """Write 10 million runs of one pixel."""
  return _bmp(1000, 9999, b'\x01\x00' * 9_999_000 + b'\0\1')


def _tiff(*tags):
  """Return a TIFF of some tags (number, type, count, value) and what stands behind them."""
  body = struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', *tag) for tag in tags)
  return b'II*\0' + struct.pack('<I', 8) + body + bytes(4)


def tiff_strips():
  """Have 5 million strips."""
  count = 4_990_000
  tags = [(256, 4, 1, 1), (257, 4, 1, 4_990_000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
  place = len(_tiff(*tags, *[(0, 0, 0, 0)] * 3))
  tags += [(273, 4, count, place), (278, 4, 1, 1), (279, 4, 1, 1)]
  return _tiff(*tags) + b''.join(struct.pack('<I', 8 + i % 64) for i in range(count))


def jp2_boxes():
  """Have 2.5 million empty boxes."""
  jp2 = _encode('JPEG2000')
  return _fill(jp2[:12], b'\0\0\0\x08free', jp2[12:])


def _codestream(width, tile, *, components=1, layers=1, precincts=b'', small=4, body=b'\x80'):
  """Return a square JPEG 2000 image whose blocks have 2^(2 + small) pixels a side."""
  size = struct.pack('>H8IH', 0, width, width, 0, 0, tile, tile, 0, 0, components)
  style = struct.pack('>BBHBBBBBB', bool(precincts), 0, layers, 0, 0, small, small, 0, 1)
  part = struct.pack('>HIBB', 0, 14 + len(body), 0, 1)
  return b''.join(
    [
      b'\xff\x4f' + _segment(0x51, size + b'\7\1\1' * components),
      _segment(0x52, style + precincts) + _segment(0x5C, b'\x40\x40'),
      _segment(0x90, part) + b'\xff\x93' + body + b'\xff\xd9',
    ]
  )


def jp2_tiles():
  """Have 65,025 tiles of one pixel."""
  return _codestream(255, 1, components=4)


def jp2_precincts():
  """Have a precinct for each of a million pixels, in a thousand layers."""
  return _codestream(1024, 1024, layers=1000, precincts=b'\0', small=0)


def jp2_blocks():
  """Have 11 million blocks of 16 pixels."""
  return _codestream(SIDE, SIDE, small=0)


def jp2_layers():
  """Have 65,535 layers of 12,288 precincts, all of them empty."""
  return _codestream(
    64, 64, components=3, layers=65_535, precincts=b'\0', small=0, body=bytes(19_000_000)
  )


ATTACKS = [
  gif_of_any_size,
  gif_canvas,
  gif_blocks,
  gif_comment,
  webp_canvas,
  png_of_one_bit,
  png_with_alpha,
  png_chunks,
  png_chunks_behind,
  jpeg_segments,
  jpeg_comments,
  jpeg_fill,
  jpeg_scans,
  ppm_blanks,
  ppm_comment,
  ppm_text,
  ppm_of_another_maximum,
  bmp_row,
  bmp_runs,
  tiff_strips,
  jp2_boxes,
  jp2_tiles,
  jp2_precincts,
  jp2_blocks,
  jp2_layers,
]
