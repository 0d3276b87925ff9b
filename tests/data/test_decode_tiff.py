import struct
import zlib

import numpy as np
import pytest
from skimage import data as photographs

from sjft_jax.data.decode import UnreadableError, decode_image

PHOTOGRAPH = np.ascontiguousarray(photographs.astronaut()[60:84, 170:210])


def write_tiff(
  values,
  *,
  byte_order='<',
  planes=True,
  deflate=False,
  rows=None,
  photometric=2,
  tile=None,
  fourth=2,
):
  """Return a TIFF of the samples [height, width, sample], each in a plane of its own or together.

  Args:
    values: the samples, of 8 or 16 bits.
    byte_order: of the numbers.
    planes: whether samples are stored plane by plane.
    deflate: whether strips are compressed.
    rows: of each strip; default: all.
    photometric: what the samples are; 2: RGB.
    tile: the side of square tiles instead of strips.
    fourth: what a fourth sample of RGB is; 2: alpha, 0: unspecified.
  """
  height, width, samples = values.shape
  rows = rows or height
  values = values.astype(values.dtype.newbyteorder(byte_order))
  if tile:
    values = np.pad(values, ((0, -height % tile), (0, -width % tile), (0, 0)))
  parts = []
  for plane in np.moveaxis(values, 2, 0) if planes else [values]:
    for top in range(0, len(plane), tile or rows):
      for left in range(0, plane.shape[1], tile or width):
        part = plane[top : top + (tile or rows), left : left + (tile or width)].tobytes()
        parts.append(zlib.compress(part) if deflate else part)
  bits = 8 * values.dtype.itemsize
  starts = np.cumsum([8, *map(len, parts)])
  entries = {
    256: ('I', [width]),
    257: ('I', [height]),
    258: ('H', [bits] * samples),
    259: ('H', [8 if deflate else 1]),
    262: ('H', [photometric]),
    277: ('H', [samples]),
    284: ('H', [1 + planes]),
  }
  places = (324, 325) if tile else (273, 279)
  entries |= {322: ('I', [tile]), 323: ('I', [tile])} if tile else {278: ('I', [rows])}
  entries |= {places[0]: ('I', list(starts[:-1])), places[1]: ('I', list(map(len, parts)))}
  if samples == 4 and photometric == 2:
    entries[338] = ('H', [fourth])
  directory = starts[-1] + starts[-1] % 2
  body = b''.join(parts).ljust(directory - 8, b'\0')
  lists, table = b'', struct.pack(f'{byte_order}H', len(entries))
  lists_start = directory + 6 + 12 * len(entries)
  for tag, (kind, numbers) in sorted(entries.items()):
    content = struct.pack(f'{byte_order}{len(numbers)}{kind}', *numbers)
    if len(content) > 4:
      place = struct.pack(f'{byte_order}I', lists_start + len(lists))
      lists, content = lists + content, place
    table += struct.pack(f'{byte_order}HHI', tag, {'H': 3, 'I': 4}[kind], len(numbers))
    table += content.ljust(4, b'\0')
  header = {'<': b'II', '>': b'MM'}[byte_order] + struct.pack(f'{byte_order}HI', 42, directory)
  return header + body + table + bytes(4) + lists


@pytest.mark.parametrize('byte_order', ['<', '>'])
@pytest.mark.parametrize('layout', [{}, {'rows': 5}, {'tile': 16}], ids=['whole', 'rows', 'tiles'])
@pytest.mark.parametrize('deflate', [False, True])
@pytest.mark.parametrize('alpha', [False, True])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_planes_have_the_pixels_of_the_picture(dtype, alpha, deflate, layout, byte_order):
  opaque = np.full((*PHOTOGRAPH.shape[:2], 1), 255, np.uint8)
  values = np.concatenate([PHOTOGRAPH, opaque], 2) if alpha else PHOTOGRAPH
  values = values.astype(dtype) * (257 if dtype == np.uint16 else 1)
  tiff = write_tiff(values, deflate=deflate, byte_order=byte_order, **layout)
  np.testing.assert_array_equal(decode_image(tiff), PHOTOGRAPH)


@pytest.mark.parametrize('byte_order', ['<', '>'])
@pytest.mark.parametrize('deflate', [False, True])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_one_plane_is_grey(dtype, deflate, byte_order):
  grey = PHOTOGRAPH[..., :1]
  values = grey.astype(dtype) * (257 if dtype == np.uint16 else 1)
  tiff = write_tiff(values, deflate=deflate, byte_order=byte_order, photometric=1)
  np.testing.assert_array_equal(decode_image(tiff), np.repeat(grey, 3, 2))


@pytest.mark.parametrize('deflate', [False, True])
def test_planes_of_fewer_bits_than_16_are_refused(deflate):
  tiff = write_tiff(PHOTOGRAPH.astype(np.uint16) << 4, deflate=deflate)
  assert refusal(tiff) == (
    'has 16 bits per channel in a layout that cannot be read; save it as 8-bit RGB'
  )


@pytest.mark.parametrize('is_alpha', [False, True])
@pytest.mark.parametrize('depth', [12, 16])
def test_a_fourth_sample_of_16_bits_is_alpha_if_the_file_says_so(depth, is_alpha):
  values = np.full((4, 5, 4), (1 << depth) - 1, np.uint16)
  values[..., :3] >>= 1
  values[0, 0, 3] = 0
  decoded = decode_image(write_tiff(values, planes=False, fourth=2 if is_alpha else 0))
  np.testing.assert_array_equal(decoded[0, :2], [[255 if is_alpha else 127] * 3, [127] * 3])


DEEP = PHOTOGRAPH.astype(np.uint16)


@pytest.mark.parametrize(
  'tiff',
  [
    write_tiff(DEEP[..., :2], planes=False, photometric=1),
    write_tiff(DEEP, photometric=1),
    write_tiff(DEEP[..., [0, 1, 2, 0, 1]], planes=False),
    write_tiff(DEEP[..., [0, 1, 2, 0, 1]]),
    write_tiff(PHOTOGRAPH[..., [0, 1, 2, 0, 1]]),
    write_tiff(DEEP[..., [0, 1, 2, 0]], photometric=5),
    b'MM' + struct.pack('>HHHQQHHQQ', 43, 8, 0, 16, 1, 273, 16, 1, 0),
  ],
  ids=['grey and alpha', 'grey planes', 'five', 'five planes', 'five of 8 bits', 'CMYK', 'BigTIFF'],
)
def test_layouts_that_cannot_be_read_are_not_called_damage(tiff):
  assert refusal(tiff) == 'has a layout that cannot be read; save it as 8-bit RGB'


@pytest.mark.parametrize('byte_order', ['<', '>'])
@pytest.mark.parametrize('is_big', [False, True])
def test_strips_of_a_tiff_are_counted_before_they_are_read(byte_order, is_big):
  header = {'<': b'II', '>': b'MM'}[byte_order]
  if is_big:
    tiff = header + struct.pack(f'{byte_order}HHHQQHHQQ', 43, 8, 0, 16, 1, 273, 16, 10**7, 0)
  else:
    tiff = header + struct.pack(f'{byte_order}HIHHHII', 42, 8, 1, 273, 4, 10**7, 0)
  assert refusal(tiff) == 'has 10,000,000 strips, more than the limit of 131,072'


def refusal(tiff):
  """Return the reason why a TIFF is unreadable."""
  with pytest.raises(UnreadableError) as caught:
    decode_image(tiff)
  return str(caught.value)
