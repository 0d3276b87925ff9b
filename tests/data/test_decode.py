import concurrent.futures
import io
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PpmImagePlugin
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data as photographs

from sjft_jax.data import decode, image_formats
from sjft_jax.data.decode import UnreadableError, decode_image

PHOTOGRAPH = photographs.astronaut()[60:143, 170:281]
# Each file is decoded for many of its truncations: small pictures keep that quick.
SMALL = np.ascontiguousarray(PHOTOGRAPH[:24, :40])


def encode(image, kind='JPEG', **options):
  image = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def decode_with_pillow(data):
  return np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert('RGB'))


WHOLE = {
  'jpeg': encode(SMALL),
  'progressive': encode(SMALL, progressive=True),
  'restarts': encode(SMALL, restart_marker_blocks=2),
  'grey jpeg': encode(SMALL[..., 0]),
  'cmyk': encode(PIL.Image.fromarray(SMALL).convert('CMYK')),
  'png': encode(SMALL, 'PNG'),
  'palette': encode(PIL.Image.fromarray(SMALL).quantize(16), 'PNG'),
  'gif': encode(SMALL, 'GIF'),
  'webp': encode(SMALL, 'WEBP'),
  'lossless webp': encode(SMALL, 'WEBP', lossless=True),
  'bmp': encode(SMALL, 'BMP'),
  'tiff': encode(SMALL, 'TIFF'),
  'ppm': encode(SMALL, 'PPM'),
}


@pytest.mark.parametrize('name', WHOLE)
def test_pixels_are_those_pillow_filters(name):
  decoded = decode_image(WHOLE[name])
  assert decoded.dtype == np.uint8
  np.testing.assert_array_equal(decoded, decode_with_pillow(WHOLE[name]))


@pytest.mark.parametrize('strip', [30, 100])
@pytest.mark.parametrize('name', WHOLE)
def test_strips_have_the_same_pixels(monkeypatch, name, strip):
  expected = decode_image(WHOLE[name])
  monkeypatch.setattr(decode, '_STRIP_PIXELS', strip)  # Less than a row, and some rows.
  np.testing.assert_array_equal(decode_image(WHOLE[name]), expected)


@pytest.mark.parametrize('maximum', [1, 100, 254, 255, 256, 4095, 65535])
@pytest.mark.parametrize('kind', [2, 3, 5, 6])
def test_portable_maps_of_any_maximum_have_pillows_values(kind, maximum):
  shape = (5, 7, 3) if kind in (3, 6) else (5, 7)
  values = np.random.default_rng(maximum).integers(0, maximum + 1, shape)
  values.flat[0] = maximum
  data = f'P{kind}\n# size\n7 5\n{maximum}\n'.encode()
  if kind < 4:
    data += b'# all\n' + b'\n'.join(b'%d #x' % value for value in values.flat) + b'\nend'
  else:
    data += values.astype('u1' if maximum < 256 else '>u2').tobytes()
  with PIL.Image.open(io.BytesIO(data.removesuffix(b'\nend'))) as image:
    pillow = np.asarray(image)
  decoder = PIL.Image.open(io.BytesIO(data)).tile[0]
  if decoder[0].startswith('ppm'):
    read = decode._read_ppm(
      PIL.PpmImagePlugin.PpmImageFile(io.BytesIO(data)),
      *(data[decoder[2] :],),
      is_text=kind < 4,
      maximum=maximum,
    )
    np.testing.assert_array_equal(np.asarray(read), pillow)
  assert decode_image(data).shape == (5, 7, 3)


def test_bitmaps_as_text_have_pillows_pixels():
  data = b'P1\n7 5\n# all\n' + b'0110 1#\n\t10\r\n' * 5
  np.testing.assert_array_equal(decode_image(data), decode_with_pillow(data))


@pytest.mark.parametrize(
  ('data', 'reason'),
  [
    (b'P1\n7 5\n0101', 'is truncated'),
    (b'P1\n2 1\n02', 'is damaged (a value is over 1)'),
    (b'P2\n2 1\n9\n1', 'is truncated'),
    (b'P2\n2 1\n9\n', 'is truncated'),
    (b'P2\n2 1\n9\n1 10', 'is damaged (a value is over 9)'),
    (b'P2\n2 1\n9\n1 99999999999999999999', 'is damaged (a value is over 9)'),
    (b'P2\n2 1\n9\n1 -1', 'is truncated'),
    (b'P3\n1 1\n9\n1 2 x', 'is truncated'),
    (b'P6\n1 1\n9\n\1\2', 'is truncated'),
  ],
)
def test_damaged_portable_maps_are_refused(data, reason):
  assert refusal(data) == reason


@pytest.mark.parametrize('subsampling', ['4:4:4', '4:2:2', '4:2:0'])
@pytest.mark.parametrize('quality', [30, 95])
@pytest.mark.parametrize('progressive', [False, True])
def test_jpegs_of_every_kind_have_pillows_pixels(subsampling, quality, progressive):
  options = {'subsampling': subsampling, 'quality': quality, 'progressive': progressive}
  data = encode(PHOTOGRAPH, **options)
  np.testing.assert_array_equal(decode_image(data), decode_with_pillow(data))


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
def test_every_orientation_becomes_upright(kind, orientation):
  exif = PIL.Image.Exif()
  exif[0x010F] = 'a camera'
  exif[0x0112] = orientation
  data = encode(PHOTOGRAPH, kind, exif=exif)
  # Both byte orders; Pillow writes the first.
  big = struct.pack('>2sHIHHHIHHI', b'MM', 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
  for variant in (data, encode(PHOTOGRAPH, kind, exif=b'Exif\0\0' + big))[: 1 + (kind != 'TIFF')]:
    expected = decode_with_pillow(variant)
    assert expected.shape[:2] == ((83, 111) if orientation < 5 else (111, 83))
    np.testing.assert_array_equal(decode_image(variant), expected)


def test_the_orientation_may_stand_at_the_end_of_a_png():
  exif = struct.pack('>2sHIHHHIHHI', b'MM', 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)
  chunk = b'eXIf' + exif
  chunk = struct.pack('>I', len(exif)) + chunk + struct.pack('>I', zlib.crc32(chunk))
  data = encode(PHOTOGRAPH, 'PNG')
  np.testing.assert_array_equal(
    decode_image(data[:-12] + chunk + data[-12:]), np.rot90(PHOTOGRAPH, -1)
  )


@pytest.mark.parametrize(
  'exif', [b'II', b'MM\0*\0\0\xff\xff', b'??*\0\x08\0\0\0\1\0\x12\1' + b'\3' * 9]
)
def test_damaged_exif_is_passed_over(exif):
  data = encode(PHOTOGRAPH)
  segment = b'\xff\xe1' + struct.pack('>H', 8 + len(exif)) + b'Exif\0\0' + exif
  np.testing.assert_array_equal(decode_image(data[:2] + segment + data[2:]), decode_image(data))


def test_exif_is_found_behind_other_segments_and_fill_bytes_but_not_in_the_picture():
  data = encode(PHOTOGRAPH)
  exif = b'Exif\0\0' + struct.pack('>2sHIHHHIHHI', b'MM', 42, 8, 1, 0x0112, 3, 1, 3, 0, 0)

  def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack('>H', 2 + len(content)) + content

  between = segment(0xE2, b'\xff\xda' * 9000) + b'\xff' * 5 + segment(0xE1, exif)
  turned = data[:20] + between + data[20:]
  np.testing.assert_array_equal(decode_image(turned), decode_image(data)[::-1, ::-1])
  np.testing.assert_array_equal(decode_image(turned), decode_with_pillow(turned))
  comment = (
    data[:20] + segment(0xFE, b'no ' + segment(0xE1, exif)) + data[20:] + segment(0xE1, exif)
  )
  np.testing.assert_array_equal(decode_image(comment), decode_image(data))


@pytest.mark.parametrize('adobe', [False, True])
def test_cmyk_has_the_colours_that_pillow_gives_it(adobe):
  inks = PIL.Image.fromarray(PHOTOGRAPH).convert('CMYK')
  data = encode(inks, quality=95, subsampling=0)
  marker = data.index(b'Adobe')
  if not adobe:  # APP14 becomes an unknown segment.
    data = data[: marker - 3] + b'\xeb' + data[marker - 2 :]
  decoded = decode_image(data)
  np.testing.assert_array_equal(decoded, decode_with_pillow(data))
  assert np.abs(decoded.astype(int) - PHOTOGRAPH).mean() < 6
  assert decode_image(data, min_side=20).shape == (21, 28, 3)


def test_ycck_has_the_colours_that_pillow_gives_it():
  data = encode(PIL.Image.fromarray(PHOTOGRAPH).convert('CMYK'))
  transform = data.index(b'Adobe') + 11
  data = data[:transform] + b'\2' + data[transform + 1 :]
  assert simplejpeg.decode_jpeg_header(data)[2] == 'YCCK'
  np.testing.assert_array_equal(decode_image(data), decode_with_pillow(data))


def test_transparent_pixels_become_white():
  alpha = np.zeros(PHOTOGRAPH.shape[:2], np.uint8)
  alpha[:40], alpha[40:60] = 255, 51
  with_alpha = np.dstack([PHOTOGRAPH, alpha])
  for kind, options in (('PNG', {}), ('WEBP', {'lossless': True, 'exact': True}), ('TIFF', {})):
    decoded = decode_image(encode(with_alpha, kind, **options))
    np.testing.assert_array_equal(decoded[:40], PHOTOGRAPH[:40])
    assert (decoded[60:] == 255).all()
    blended = 0.2 * PHOTOGRAPH[40:60] + 0.8 * 255
    assert np.abs(decoded[40:60] - blended).max() <= 1
  palette = PIL.Image.frombytes('P', (2, 2), bytes([0, 1, 1, 2]))
  palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
  for kind in ('PNG', 'GIF'):
    decoded = decode_image(encode(palette, kind, transparency=1))
    np.testing.assert_array_equal(
      decoded[[0, 0, 1, 1], [0, 1, 0, 1]], [[10, 20, 30], [255] * 3, [255] * 3, [70, 80, 90]]
    )


def png_chunk(name, content):
  check = struct.pack('>I', zlib.crc32(name + content))
  return struct.pack('>I', len(content)) + name + content + check


def add_sbit(png, *bits):
  """Insert the chunk that says how many bits are significant."""
  place = png.index(b'IDAT') - 4
  return png[:place] + png_chunk(b'sBIT', bytes(bits)) + png[place:]


def encode_with_opencv(values, suffix):
  return cv2.imencode(suffix, values[..., ::-1] if values.ndim == 3 else values)[1].tobytes()


@pytest.mark.parametrize('depth', [8, 10, 12, 14, 16])
@pytest.mark.parametrize('kind', ['.png', '.tiff', '.pgm'])
@pytest.mark.parametrize('colour', [False, True])
def test_depth_in_a_file_of_16_bits_is_that_of_the_largest_value(depth, kind, colour):
  shape = (20, 30, 3) if colour else (20, 30)
  values = np.random.default_rng(depth).integers(0, 1 << depth, shape).astype(np.uint16)
  values[0, 0] = (1 << depth) - 1
  kind = '.ppm' if colour and kind == '.pgm' else kind
  decoded = decode_image(encode_with_opencv(values, kind))
  expected = values >> (depth - 8)
  # Pillow rounds what it reads from a PPM.
  tolerance = 1 if kind == '.ppm' and depth == 16 else 0
  expected = expected if colour else np.repeat(expected[..., None], 3, 2)
  assert np.abs(decoded.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize('repeats', [False, True])
def test_dark_values_that_were_scaled_to_16_bits_stay_dark(repeats):
  values = np.random.default_rng(0).integers(0, 200, (20, 30)).astype(np.uint16)
  scaled = values << 4 | (values >> 8 if repeats else 0 * values)
  decoded = decode_image(add_sbit(encode_with_opencv(scaled, '.png'), 12))
  np.testing.assert_array_equal(decoded[..., 0], values >> 4)


def test_alpha_of_16_bits_does_not_decide_the_depth():
  values = np.full((4, 5, 4), 65535, np.uint16)
  values[..., :3] = [1000, 2000, 4000]
  encoded = cv2.imencode('.png', values[..., [2, 1, 0, 3]])[1].tobytes()
  np.testing.assert_array_equal(decode_image(encoded)[0, 0], [62, 125, 250])


def test_alpha_has_the_depth_of_the_colours_if_it_fits():
  values = np.full((4, 5, 4), 4095, np.uint16)
  values[..., :3] = [1000, 2000, 4000]
  values[0, 0, 3] = 0
  decoded = decode_image(cv2.imencode('.png', values[..., [2, 1, 0, 3]])[1].tobytes())
  np.testing.assert_array_equal(decoded[0, :2], [[255] * 3, [62, 125, 250]])
  grey = np.full((4, 5, 1), 2000, np.uint16)
  header = png_chunk(b'IHDR', struct.pack('>IIBBBBB', 5, 4, 16, 4, 0, 0, 0))
  rows = np.concatenate([grey, grey * 2], 2).astype('>u2').reshape(4, 10)
  pixels = png_chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows)))
  decoded = decode_image(b'\x89PNG\r\n\x1a\n' + header + pixels + png_chunk(b'IEND', b''))
  # Of 11 bits in a depth of 12; alpha is nearly opaque.
  np.testing.assert_allclose(decoded, 125 + 130 * (1 - 250 / 255), atol=1)


@pytest.mark.parametrize('shift', [0, 4])
@pytest.mark.parametrize('colour', [False, True])
def test_the_transparent_colour_of_16_bits_becomes_white(colour, shift):
  shape = (6, 7, 3) if colour else (6, 7)
  values = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16) >> shift
  values[-1, -1] = 65535 >> shift
  values[0, 0] = [65, 130, 200] if colour else 65
  values[0, 1] = values[0, 0] + 1  # Another colour, of the same upper 8 bits.
  png = encode_with_opencv(values, '.png')
  expected = decode_image(png).copy()
  expected[0, 0] = 255
  place = png.index(b'IDAT') - 4
  clear = png_chunk(b'tRNS', struct.pack('>3H' if colour else '>H', *np.atleast_1d(values[0, 0])))
  decoded = decode_image(png[:place] + clear + png[place:])
  np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize(
  ('bits', 'greys'), [(1, [0, 255]), (2, [0, 255, 170, 255]), (4, [17, 255])]
)
def test_the_transparent_grey_of_few_bits_becomes_white(bits, greys):
  header = png_chunk(b'IHDR', struct.pack('>IIBBBBB', len(greys), 1, bits, 0, 0, 0, 0))
  clear = png_chunk(b'tRNS', struct.pack('>H', {1: 1, 2: 1, 4: 11}[bits]))
  pixels = png_chunk(b'IDAT', zlib.compress(bytes([0, {1: 0x40}.get(bits, 0x1B)])))
  png = b'\x89PNG\r\n\x1a\n' + header + clear + pixels + png_chunk(b'IEND', b'')
  assert decode_image(png)[0, :, 0].tolist() == greys


def test_stated_depth_goes_before_the_largest_value():
  values = np.arange(600, dtype=np.uint16).reshape(20, 30)  # would fit into 10 bits
  png = add_sbit(encode(values, 'PNG'), 12)
  np.testing.assert_array_equal(decode_image(png)[..., 0], values >> 4)
  # As the standard of PNG wants it: values of 12 bits, scaled to 16.
  png = add_sbit(encode(values << 4, 'PNG'), 12)
  np.testing.assert_array_equal(decode_image(png)[..., 0], values >> 4)
  pgm = b'P5 30 20 4095\n' + values.astype('>u2').tobytes()
  assert np.abs(decode_image(pgm)[..., 0].astype(int) - (values >> 4)).max() <= 1
  colour = np.repeat(values[..., None], 3, 2)
  png = add_sbit(encode_with_opencv(colour, '.png'), 12, 12, 12)
  np.testing.assert_array_equal(decode_image(png), colour >> 4)


@pytest.mark.parametrize('kind', ['AVIF', 'JPEG2000'])
def test_avif_and_jpeg_2000_have_the_pixels_of_pillow(kind):
  data = encode(PHOTOGRAPH, kind)
  assert image_formats.is_image(data[: image_formats.HEADER_BYTES])
  np.testing.assert_array_equal(decode_image(data), decode_with_pillow(data))
  for length in range(len(data) // 2, len(data), 97):
    with pytest.raises(UnreadableError):
      decode_image(data[:length])


def test_formats_are_told_from_text_and_from_other_containers():
  assert all(image_formats.is_image(data[: image_formats.HEADER_BYTES]) for data in WHOLE.values())
  for text in (b'BMW', b'P1 is', b'BM' + b'W' * 60, b'P3 is the third', b'RIFF....WAVEfmt '):
    assert not image_formats.is_image(text) or text.startswith((b'P1 ', b'P3 '))
  heic = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(40)
  assert image_formats.is_heic(heic)
  assert not any(map(image_formats.is_heic, WHOLE.values()))


def test_heic_images_need_a_package(monkeypatch):
  heic = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(40)
  monkeypatch.setattr(image_formats, 'load_heic_reader', lambda: None)
  assert not image_formats.is_image(heic)
  assert refusal(heic) == (
    "is a HEIC image, which the package pillow-heif reads: pip install 'sjft_jax[heic]'"
  )


@pytest.mark.parametrize(('orientation', 'turns'), [(1, 0), (3, 2), (6, 3)])
def test_heic_images_are_upright_and_like_what_was_saved(orientation, turns):
  pillow_heif = pytest.importorskip('pillow_heif')
  image = PIL.Image.fromarray(PHOTOGRAPH)
  exif = PIL.Image.Exif()
  exif[0x0112] = orientation
  buffer = io.BytesIO()
  pillow_heif.from_pillow(image).save(buffer, quality=95, exif=exif.tobytes())
  data = buffer.getvalue()
  assert image_formats.is_image(data[: image_formats.HEADER_BYTES])
  upright = np.rot90(PHOTOGRAPH, turns)
  decoded = decode_image(data)
  assert decoded.shape == upright.shape
  assert np.abs(decoded.astype(int) - upright).mean() < 4
  for length in range(len(data) // 2, len(data) - 1, 97):
    with pytest.raises(UnreadableError):
      decode_image(data[:length])


def test_of_16_bits_the_upper_8_stay():
  grey = np.arange(0, 65536, 7, np.uint16)[:9000].reshape(90, 100)
  for kind in ('PNG', 'TIFF', 'PPM'):
    decoded = decode_image(encode(grey, kind))
    np.testing.assert_array_equal(decoded, np.repeat((grey >> 8)[..., None], 3, 2))
  # Pillow cannot write 16-bit RGB: a PNG of one row by hand.
  row = np.array([[0x1234, 0xABFF, 0xFF00], [0x00FF, 0x8000, 0x7FFF]], '>u2')
  header = png_chunk(b'IHDR', struct.pack('>IIBBBBB', 2, 1, 16, 2, 0, 0, 0))
  pixels = png_chunk(b'IDAT', zlib.compress(b'\0' + row.tobytes()))
  decoded = decode_image(b'\x89PNG\r\n\x1a\n' + header + pixels + png_chunk(b'IEND', b''))
  np.testing.assert_array_equal(decoded[0], row >> 8)


@pytest.mark.parametrize('depth', [8, 12, 16])
@pytest.mark.parametrize('compression', ['raw', 'tiff_lzw'])
def test_a_tiff_may_have_0_as_white(depth, compression):
  dark = np.arange(600).reshape(20, 30) % (1 << depth) << max(depth - 10, 0)
  dark[-1, -1] = (1 << depth) - 1
  dark = dark.astype(np.uint8 if depth == 8 else np.uint16)
  decoded = decode_image(encode(dark, 'TIFF', tiffinfo={262: 0}, compression=compression))
  # Pillow stores the negative of 8 bits itself, and values of 16 as they are.
  light = dark if depth == 8 else 255 - (dark >> (depth - 8)).astype(np.uint8)
  np.testing.assert_array_equal(decoded, np.repeat(light[..., None], 3, 2))


@pytest.mark.parametrize(
  ('array', 'reason'),
  [
    (np.full((4, 4), 0.5, np.float32), 'floating-point'),
    (np.full((4, 4), -1, np.int32), '16 bits'),
  ],
)
def test_pixels_without_a_place_in_8_bits_are_refused(array, reason):
  with pytest.raises(UnreadableError, match=reason):
    decode_image(encode(array, 'TIFF'))


def test_the_first_frame_is_decoded():
  frames = [PIL.Image.fromarray(np.roll(SMALL, 7 * n, 1)) for n in range(3)]
  for kind, options in (('GIF', {}), ('WEBP', {'lossless': True}), ('PNG', {}), ('TIFF', {})):
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode_image(data), decode_with_pillow(data))


@pytest.mark.parametrize(
  ('min_side', 'factor'),
  [(0, 1), (83, 1), (43, 1), (42, 2), (22, 2), (21, 4), (12, 4), (11, 8), (1, 8)],
)
def test_a_reduced_size_keeps_the_short_side(min_side, factor):
  data = encode(PHOTOGRAPH, quality=95)
  decoded = decode_image(data, min_side=min_side)
  height, width = (-(-side // factor) for side in PHOTOGRAPH.shape[:2])
  assert decoded.shape == (height, width, 3)
  # libjpeg's own reduction, as Pillow asks for it.
  image = PIL.Image.open(io.BytesIO(data))
  image.draft('RGB', (111 // factor, 83 // factor))
  np.testing.assert_array_equal(decoded, np.asarray(image))


def test_reduced_images_look_the_same_and_are_upright():
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  image = photographs.astronaut()[:400]
  small = decode_image(encode(image, quality=95, exif=exif), min_side=200)
  assert small.shape == (256, 200, 3)
  box = image.reshape(200, 2, 256, 2, 3).mean((1, 3))
  assert np.abs(small - np.rot90(box, -1)).mean() < 2
  np.testing.assert_array_equal(decode_image(encode(image, 'PNG'), min_side=10), image)


def refusal(data, **options):
  """Return the reason why data is unreadable."""
  with pytest.raises(UnreadableError) as caught:
    decode_image(data, **options)
  return str(caught.value)


def test_unreadable_data_is_refused_with_its_reason():
  assert refusal(b'') == 'is empty'
  page = b'\xef\xbb\xbf \n<!DOCTYPE html><html><body>404 Not Found</body></html>'
  assert refusal(page) == 'is a web page or other markup, not an image'
  for data in (b'no image at all', b'PK\3\4', b'\0' * 500, b'Please log in.'):
    assert refusal(data) == f'is no {image_formats.FORMATS} image'
  for name in ('jpeg', 'progressive', 'cmyk', 'png', 'gif', 'bmp', 'ppm', 'tiff'):
    assert refusal(WHOLE[name][: len(WHOLE[name]) // 2 + 100 * (name == 'cmyk')]) == 'is truncated'


@pytest.mark.parametrize('name', [name for name in WHOLE if 'webp' not in name])
def test_too_many_pixels_are_refused_by_the_header(name):
  assert refusal(WHOLE[name], max_pixels=959) == 'has 40×24 pixels, more than the limit of 959'
  assert decode_image(WHOLE[name], max_pixels=960).shape == (24, 40, 3)


def test_a_decompression_bomb_costs_neither_memory_nor_a_warning():
  frame = WHOLE['jpeg'].index(b'\xff\xc0') + 5
  jpeg = WHOLE['jpeg'][:frame] + b'\xff\xdc' * 2 + WHOLE['jpeg'][frame + 4 :]
  assert refusal(jpeg) == 'has 65500×65500 pixels, more than the limit of 178,956,970'
  header = b'IHDR' + struct.pack('>II', 200_000, 100_000) + WHOLE['png'][24:29]
  png = WHOLE['png'][:12] + header + struct.pack('>I', zlib.crc32(header)) + WHOLE['png'][33:]
  assert refusal(png).startswith('has 200000×100000 pixels')


@pytest.mark.parametrize('name', ['jpeg', 'progressive', 'restarts', 'grey jpeg', 'cmyk', 'png'])
def test_every_truncation_is_refused(name):
  whole = WHOLE[name]
  for length in range(len(whole)):
    refusal(whole[:length])


@pytest.mark.parametrize('name', ['palette', 'gif', 'webp', 'lossless webp', 'bmp', 'tiff', 'ppm'])
def test_truncated_data_is_refused_or_has_every_pixel(name):
  whole, expected = WHOLE[name], decode_image(WHOLE[name])
  for length in range(0, len(whole), 3):
    try:
      decoded = decode_image(whole[:length])
    except UnreadableError:
      continue
    assert length > len(whole) - 20
    np.testing.assert_array_equal(decoded, expected)


def test_a_cut_jpeg_is_refused_even_if_it_has_an_end():
  data = encode(photographs.astronaut()[:128, :128])
  scan = data.index(b'\xff\xda')
  for length in range(scan + 20, len(data) - 20, 61):
    assert refusal(data[:length] + b'\xff\xd9').startswith(('is truncated', 'is damaged (Corrupt'))


@given(st.binary(max_size=300), st.sampled_from(list(WHOLE)))
def test_trailing_bytes_change_nothing(trailing, name):
  if name in ('gif', 'webp', 'lossless webp'):
    return
  expected = decode_image(WHOLE[name])
  np.testing.assert_array_equal(decode_image(WHOLE[name] + trailing), expected)


def test_left_over_bytes_and_odd_versions_are_ignored():
  whole, expected = WHOLE['jpeg'], decode_image(WHOLE['jpeg'])
  left_over = whole[:-2] + b'\x12\x34' * 20 + whole[-2:]
  with pytest.raises(ValueError, match='extraneous bytes'):
    simplejpeg.decode_jpeg(left_over)
  np.testing.assert_array_equal(decode_image(left_over), expected)
  version = whole.index(b'JFIF') + 5
  odd = whole[:version] + b'\0' + whole[version + 1 :]
  with pytest.raises(ValueError, match='unknown JFIF revision'):
    simplejpeg.decode_jpeg(odd)
  np.testing.assert_array_equal(decode_image(odd), expected)
  # The odd version does not hide the missing end.
  assert refusal(odd[:-30]) == 'is truncated'
  assert refusal(odd[:-100] + b'\xff\xd9').startswith('is damaged (Corrupt JPEG data')


def test_unusual_subsampling_is_left_to_pillow():
  # Of one colour, so that blocks may be counted to other places.
  data = encode(np.full((32, 32, 3), (200, 90, 30), np.uint8), subsampling='4:2:0')
  component = data.index(b'\xff\xc0') + 10
  data = data[: component + 4] + b'\x12' + data[component + 5 :]
  with pytest.raises((ValueError, KeyError)):
    simplejpeg.decode_jpeg_header(data, strict=False)
  assert decode_image(data).shape == (32, 32, 3)


def decode_or_none(data):
  """Decode a picture; return None if it is refused in one line."""
  try:
    image = decode_image(data, max_pixels=10**6)
  except UnreadableError as error:
    if len(str(error).splitlines()) == 1:
      return None
    raise
  assert image.dtype == np.uint8
  assert image.shape[2:] == (3,)
  return image


@settings(max_examples=300)
@given(
  st.sampled_from([b'', b'\xff\xd8\xff', b'\xff\xd8\xff\xe0\0\x10JFIF\0', *image_formats._READERS]),
  st.binary(max_size=400),
)
def test_random_bytes_are_unreadable_and_nothing_else(start, rest):
  # A few bytes are a whole picture in the formats P1–P6.
  assert decode_or_none(start + rest) is None or start.startswith(b'P')


@given(
  st.sampled_from(list(WHOLE)),
  st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=4)), min_size=1),
)
def test_rotten_bytes_are_unreadable_and_nothing_else(name, patches):
  data = bytearray(WHOLE[name])
  for place, patch in patches:
    place %= len(data)
    data[place : place + len(patch)] = patch
  decode_or_none(bytes(data))


def test_threads_do_not_disturb_each_other():
  names = list(WHOLE) * 20
  expected = {name: decode_image(data) for name, data in WHOLE.items()}
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for name, image in zip(
      names, pool.map(lambda name: decode_image(WHOLE[name]), names), strict=True
    ):
      np.testing.assert_array_equal(image, expected[name])


def test_decoding_prints_and_warns_nothing(tmp_path):
  """In a process of its own: pytest would turn warnings into errors, and libraries print in C."""
  files = {
    'cut png': WHOLE['png'][:-500],
    'cut jpeg': WHOLE['jpeg'][:-50],
    'junk': b'\xff\xd8\xff' + b'7' * 99,
  }
  rotten = WHOLE['jpeg'][:-300] + b'\x12\x34' * 40 + WHOLE['jpeg'][-200:]
  exif = PIL.Image.Exif()
  exif[0x0112] = 3
  files |= {'rotten': rotten, 'odd exif': encode(SMALL, 'TIFF', exif=exif)[:-3], **WHOLE}
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
  program = (
    'import pathlib, sys\nfrom sjft_jax.data.decode import UnreadableError, decode_image\n'
    'for file in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n'
    '  try: decode_image(file.read_bytes())\n'
    '  except UnreadableError: pass\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program, str(tmp_path)], capture_output=True, text=True, check=True
  )
  assert (done.stdout, done.stderr) == ('', '')


def test_the_warning_filter_is_set_once_at_the_first_use_pillow_filters(tmp_path):
  (tmp_path / 'image.gif').write_bytes(WHOLE['gif'])
  program = (
    'import pathlib, sys, warnings\n'
    'from sjft_jax.data.decode import decode_image\n'
    'def pillow_filters():\n'
    '  return [f for f in warnings.filters if "PIL" in getattr(f[3], "pattern", "")]\n'
    'assert not pillow_filters()\n'
    'for _ in range(2):\n'
    '  decode_image(pathlib.Path(sys.argv[1]).read_bytes())\n'
    '  assert len(pillow_filters()) == 1\n'
  )
  subprocess.run([sys.executable, '-c', program, tmp_path / 'image.gif'], check=True)
