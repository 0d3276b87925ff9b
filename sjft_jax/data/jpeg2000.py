"""Check into how many parts a JPEG 2000 image is divided, before OpenJPEG makes room for all."""

import itertools
import re
import struct
from collections.abc import Iterator

# A tile with four components takes 13 kB, and a precinct or a block of coefficients some hundred
# bytes. The largest images that are read have 2,731 tiles of 256 × 256 pixels, 45,000 precincts of
# 128 × 128 or 700,000 blocks of 32 × 32 in three components.
_MAX_TILES, _MAX_PRECINCTS, _MAX_BLOCKS = 2**12, 2**19, 2**20
# Layers of precincts, which are read one by one, and segments of headers.
_MAX_PACKETS, _MAX_SEGMENTS = 2**22, 2**16
# An image has one codestream; others could hide it.
_MAX_CODESTREAMS = 8
_START = re.compile(rb'\xff\x4f\xff\x51')
_DEFAULTS, _OF_COMPONENT, _TILE_PART, _DATA = 0xFF52, 0xFF53, 0xFF90, 0xFF93


def check_parts(data: bytes) -> None:
  """Check that the tiles, precincts, blocks and layers of an image are not too many.

  Raises:
    ValueError: they are, or a header is damaged.
  """
  starts = [match.start() for match in itertools.islice(_START.finditer(data), 99)]
  if len(starts) > _MAX_CODESTREAMS:
    raise ValueError('it has too many codestreams')
  try:
    for start in starts:
      _check_codestream(data, start + 4)
  except struct.error as error:
    raise ValueError('its header is damaged') from error


def _check_codestream(data: bytes, position: int) -> None:
  length, _, *box, components = struct.unpack_from('>HHIIIIIIIIH', data, position)
  right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = box
  if not (tile_width and tile_height and left < right and top < bottom):
    raise ValueError('its header is damaged')
  tiles = -(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height)
  if not 0 < tiles <= _MAX_TILES:
    raise ValueError(f'it has {tiles:,} tiles, the limit is {_MAX_TILES:,}')
  sides = min(tile_width, right - left), min(tile_height, bottom - top)
  layers, divisions = 1, []
  for marker, content in _read_segments(data, position + length):
    if marker == _DEFAULTS:
      layers = max(layers, *struct.unpack_from('>H', content, 2))
      divisions.append((content[0], content[5:]))
    elif marker == _OF_COMPONENT:
      number = 2 if components > 256 else 1
      divisions.append((content[number], content[number + 1 :]))
  # Which tile or component each belongs to does not matter: the finest counts for all.
  for has_precincts, division in divisions:
    precincts, blocks = _count_parts(sides, division, bool(has_precincts & 1))
    precincts, blocks = (count * tiles * components for count in (precincts, blocks))
    if precincts > _MAX_PRECINCTS or precincts * layers > _MAX_PACKETS or blocks > _MAX_BLOCKS:
      raise ValueError(f'it has {precincts:,} precincts, {blocks:,} blocks and {layers:,} layers')


def _count_parts(sides: tuple[int, int], division: bytes, has_precincts: bool) -> tuple[int, int]:
  """Return the number of precincts and of blocks of a component in a tile.

  Args:
    sides: of the tile, in pixels.
    division: levels, the exponents of a block's sides less two, two bytes of something else, and
      for each resolution the exponents of a precinct's sides.
    has_precincts: whether there are such; else there is one in each resolution.
  """
  levels, *block, _, _ = struct.unpack_from('5B', division)
  precincts = blocks = 0
  for resolution in range(levels + 1):
    both = struct.unpack_from('B', division, 5 + resolution)[0] if has_precincts else 0xFF
    num_precincts = num_blocks = 1
    for side, exponent, small in zip(sides, (both & 15, both >> 4), block, strict=True):
      reduced = -(-side >> min(levels - resolution, 63)) or 1
      num_precincts *= -(-reduced >> exponent) + 1
      # Within a precinct of the three bands of a resolution, which are half as large.
      num_blocks *= -(-reduced >> min((small & 15) + 2, max(exponent - (resolution > 0), 0))) + 1
    precincts, blocks = precincts + num_precincts, blocks + num_blocks
  return precincts, blocks


def _read_segments(data: bytes, position: int) -> Iterator[tuple[int, bytes]]:
  """Yield the marker and the content of each segment, in the headers of all parts of tiles."""
  part = None
  for _ in range(_MAX_SEGMENTS):
    if position + 4 > len(data):
      return
    marker, length = struct.unpack_from('>HH', data, position)
    if marker == _DATA:
      if part is None:
        return
      begin, num_bytes = part
      if num_bytes < 14:  # The last part, up to the end.
        return
      position, part = begin + num_bytes, None
      continue
    if marker < 0xFF00:
      return
    content = data[position + 4 : position + 2 + length]
    if marker == _TILE_PART:
      part = position, *struct.unpack_from('>I', content, 2)
    yield marker, content
    position += 2 + max(length, 2)
  raise ValueError('it has too many segments')
