"""Pictures that ship inside pip packages, and the patches and characters that the demo draws.

The packages are located, never imported. Everything is drawn from a generator that the caller
passes, see `image_rng`.
"""

import functools
import hashlib
import importlib.util
import pathlib
import threading

import cv2
import numpy as np
import PIL.Image
from jaxtyping import Float32, UInt8
from PIL import ImageFont

SIZE = 72  # Side of every image in pixels; training crops 64 of them.

Region = tuple[int, int, int, int]  # Top, left, bottom, right; the last two are exclusive.
Patch = UInt8[np.ndarray, '72 72 3']


def image_rng(seed: int, index: int) -> np.random.Generator:
  """Return a counter-based generator for one image: order of access and threads change nothing."""
  return np.random.Generator(np.random.Philox(key=[seed, index]))


def package_folder(module: str, distribution: str = '') -> pathlib.Path:
  """Return the folder of an installed package, without importing it.

  Args:
    module: the package's name in Python.
    distribution: its name for pip, where that differs.

  Raises:
    ModuleNotFoundError: the package is not installed.
  """
  try:
    spec = importlib.util.find_spec(module)
  except ModuleNotFoundError:  # The parent is missing.
    spec = None
  if spec is None or not spec.submodule_search_locations:
    raise ModuleNotFoundError(
      f"the demo reads pictures from {distribution or module}; run: pip install -e '.[demo]'"
    )
  return pathlib.Path(next(iter(spec.submodule_search_locations)))


def fingerprint(recipe: str, files: list[pathlib.Path]) -> str:
  """Return a hash of what the images depend on: recipe, files and the libraries that draw them."""
  lines = [recipe, f'recipe 1, opencv {cv2.__version__}, pillow {PIL.__version__}']
  lines += [f'{file.parent.name}/{file.name} {file.stat().st_size}' for file in files]
  return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


# Pictures are decoded once for all data sets of the process; the lock keeps two threads from
# decoding the same one, and from sharing a font's drawing state.
_lock = threading.Lock()


def read_sheet(file: pathlib.Path, grey: bool = False) -> np.ndarray:
  """Read a picture, once for all: RGB [height, width, 3], or grey [height, width].

  One whose short side has 900 to 1,499 pixels is halved.
  """
  with _lock:
    return _cached_sheet(file, grey)


def render_glyph(file: pathlib.Path, letter: str) -> UInt8[np.ndarray, 'height width']:
  """Render a letter of a font, once for all: ink 255 on 0."""
  with _lock:
    return _cached_glyph(file, letter)


@functools.cache
def sheet_size(file: pathlib.Path) -> tuple[int, int]:
  """Return height and width of what `read_sheet` reads, from the file's header."""
  with PIL.Image.open(file) as image:
    width, height = image.size
  return (height // 2, width // 2) if _is_halved(height, width) else (height, width)


def decode_picture(file: pathlib.Path, grey: bool) -> np.ndarray:
  """Do `read_sheet` without keeping the result.

  Raises:
    ValueError: the file is no picture.
  """
  # From bytes and without an ICC profile: the same pixels everywhere.
  mode = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB
  image = cv2.imdecode(np.fromfile(file, np.uint8), mode)
  if image is None:
    raise ValueError(f'{file} cannot be read as an image; install its package again')
  if _is_halved(*image.shape[:2]):
    # Whole blocks of 2×2 become a pixel: regions that are disjoint here are so in the file.
    height, width = (side // 2 * 2 for side in image.shape[:2])
    size = (width // 2, height // 2)
    image = cv2.resize(image[:height, :width], size, interpolation=cv2.INTER_AREA)
  return image


@functools.cache
def _cached_sheet(file: pathlib.Path, grey: bool) -> np.ndarray:
  return decode_picture(file, grey)


@functools.cache
def _cached_glyph(file: pathlib.Path, letter: str) -> UInt8[np.ndarray, 'height width']:
  mask = _cached_font(file).getmask(letter, mode='L')
  return np.array(mask, np.uint8).reshape(mask.size[::-1])


@functools.cache
def _cached_font(file: pathlib.Path) -> ImageFont.FreeTypeFont:
  return ImageFont.truetype(str(file), 64, layout_engine=ImageFont.Layout.BASIC)


def _is_halved(height: int, width: int) -> bool:
  return 900 <= min(height, width) < 1500  # The map of the Earth stays as it is.


def cut_patch(sheet: np.ndarray, region: Region, rng: np.random.Generator) -> Patch:
  """Cut out a patch at a random place, angle and scale, with random contrast and tint.

  Args:
    sheet: uint8 [height, width] or [height, width, 3].
    region: where the patch may lie; no pixel outside it is read.
    rng: the only source of randomness.
  """
  top, left, bottom, right = region
  # Interpolation sees this array only: no pixel from outside the region can enter.
  area = sheet[top:bottom, left:right]
  height, width = area.shape[:2]
  patch, contrast = np.zeros((SIZE, SIZE, 1), np.float32), 0.0
  for _ in range(8):  # A place where there is nothing to see gets another chance.
    angle = rng.uniform(0, 2 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    reach = (SIZE - 1) * (abs(cosine) + abs(sine))  # Sides of the rotated patch's bounding box.
    # One pixel beside the box on every side is read for interpolation; a hair for rounding.
    scale = min(rng.uniform(0.75, 1.25), (min(height, width) - 3.01) / reach)
    half = reach * scale / 2
    x, y = rng.uniform(1 + half, width - 2 - half), rng.uniform(1 + half, height - 2 - half)
    turn = scale * np.array([[cosine, -sine], [sine, cosine]])
    shift = np.array([x, y]) - turn @ np.full(2, (SIZE - 1) / 2)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    matrix = np.column_stack([turn, shift])
    view = cv2.warpAffine(area, matrix, (SIZE, SIZE), flags=flags).reshape(SIZE, SIZE, -1)
    candidate, deviation = _center_channels(view)
    if deviation > contrast:
      patch, contrast = candidate, deviation
    if contrast >= 3:
      break
  return _tint(patch, rng)


def _tint(patch: Float32[np.ndarray, '72 72 channel'], rng: np.random.Generator) -> Patch:
  """Give a patch random brightness, contrast and channel gains, whatever it had before.

  Colours within the patch stay, its cast does not.
  """
  for _ in range(2):  # Once more after clipping, so that outliers do not show in the contrast.
    patch, deviation = _center_channels(patch)
    patch = np.clip(patch / np.float32(max(deviation, 1e-3)), -2.5, 2.5)
  patch, deviation = _center_channels(patch)
  contrast = np.float32(rng.uniform(30, 42) / max(deviation, 1e-3))
  patch = patch * contrast + np.float32(rng.uniform(115, 140))
  return np.clip(np.rint(patch * rng.uniform(0.8, 1.2, 3).astype(np.float32)), 0, 255).astype(
    np.uint8
  )


def _center_channels(patch: np.ndarray) -> tuple[Float32[np.ndarray, '72 72 channel'], float]:
  """Return the patch with channel means of zero, and its standard deviation over all channels."""
  means, deviations = cv2.meanStdDev(patch)
  return patch - means.T.astype(np.float32), float(np.sqrt((deviations**2).mean()))


def draw_character(mask: UInt8[np.ndarray, 'height width'], rng: np.random.Generator) -> Patch:
  """Draw a character at a random angle and scale, in random ink on random paper.

  Args:
    mask: its shape, ink 255 on 0.
    rng: the only source of randomness.
  """
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
