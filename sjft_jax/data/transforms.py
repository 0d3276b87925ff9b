"""Views of an image: for retrieval, for testing, and the random ones for training.

RGB uint8 0–255 in and out. An image that already has the size asked for comes through with its
pixels untouched. Of one more than 16 times as long as it is wide, tests see the middle.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from sjft_jax.runtime.options import choose

AUGMENTATIONS = ('pursuit', 'resnet', 'none')
VIEWS = ('center', 'ten_crop', 'multi_scale')
SIDES = (224, 256, 384, 480, 640)  # He et al. 2016, section 3.4

Image = UInt8[np.ndarray, '_height _width 3']

# Eigenvectors (columns) and eigenvalues of the RGB covariance of ImageNet, for values in [0, 1]
# (Krizhevsky et al. 2012, section 4.1; the numbers are those of fb.resnet.torch).
_EIGENVECTORS = np.array(
  [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_LEVELS = np.arange(256.0)[:, None]
_MIDDLE = np.array([0.5, 0.5])
_SMALLEST_CROP = 0.6  # of the short side


@dataclass(frozen=True, kw_only=True)
class ImageSize:
  """The size of the images that the network sees: the section `images` of the configuration.

  Attributes:
    resize: short side before cropping, pixels.
    crop: side of the square that is cut out, pixels.
  """

  resize: int
  crop: int


def describe_view(image: Image, *, resize: int, crop: int) -> UInt8[np.ndarray, 'crop crop 3']:
  """The view that descriptors see: warped to resize×resize, centre crop, never mirrored.

  The authors' released code warps as well, but crops and mirrors at random; a fixed view makes
  the ranking deterministic.

  Raises:
    ValueError: `crop` exceeds `resize`.
  """
  _check(resize, crop)
  return _center(_resize(image, resize, resize), crop)


def center_crop(image: Image, *, resize: int, crop: int) -> UInt8[np.ndarray, 'crop crop 3']:
  """The centre of the image once its short side is `resize` pixels.

  Raises:
    ValueError: `crop` exceeds `resize`.
  """
  _check(resize, crop)
  return _center(_resize_short(image, resize), crop)


def ten_crop(image: Image, *, resize: int, crop: int) -> UInt8[np.ndarray, '10 crop crop 3']:
  """Four corners and the centre, then their mirror images (Krizhevsky et al. 2012).

  The order is top left, top right, bottom left, bottom right, centre.

  Raises:
    ValueError: `crop` exceeds `resize`.
  """
  _check(resize, crop)
  image = _resize_short(image, resize)
  bottom, right = image.shape[0] - crop, image.shape[1] - crop
  corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2))
  crops = [image[y : y + crop, x : x + crop] for y, x in corners]
  return np.stack([*crops, *map(_mirror, crops)])


def multi_scale(
  image: Image, *, resize: int, crop: int, sides: Sequence[int] = SIDES
) -> tuple[UInt8[np.ndarray, '2 _side _side 3'], ...]:
  """The centre square at several sizes, each with its mirror image (He et al. 2016, section 3.4).

  For a network that takes any size, because it is convolutional up to a global pooling. He et al.
  show it the whole image; squares need one compilation for each side instead of each shape.

  Args:
    image: any size.
    resize: of the other views; not used.
    crop: the `sides` are for a network trained at 224 pixels and scale with crop / 224.
    sides: of the squares, in pixels.

  Raises:
    ValueError: `crop` exceeds `resize`.
  """
  _check(resize, crop)
  square = _center(image, min(image.shape[:2]))
  scaled = [_resize(square, side, side) for side in scaled_sides(crop, sides)]
  return tuple(np.stack([view, _mirror(view)]) for view in scaled)


def scaled_sides(crop: int, sides: Sequence[int] = SIDES) -> list[int]:
  """The sides of `multi_scale`'s squares, in pixels."""
  return [round(side * crop / 224) for side in sides]


def evaluation_views(image: Image, *, size: ImageSize, view: str) -> tuple[np.ndarray, ...]:
  """Return an image's crops for evaluation, one array uint8 [view, side, side, 3] for each side.

  Args:
    image: any size.
    size: of the crops; `multi_scale` scales its sides with `size.crop`.
    view: one of `VIEWS`.
  """
  match choose('view', view, VIEWS):
    case 'center':
      return (center_crop(image, resize=size.resize, crop=size.crop)[None],)
    case 'ten_crop':
      return (ten_crop(image, resize=size.resize, crop=size.crop),)
  return multi_scale(image, resize=size.resize, crop=size.crop)


def evaluation_side(size: ImageSize, view: str) -> int:
  """Return the short side, in pixels, above which `evaluation_views` gains nothing."""
  return max(scaled_sides(size.crop)) if view == 'multi_scale' else size.resize


def needed_side(kind: str, resize: int) -> int:
  """The short side, in pixels, above which `augment` never enlarges what it cuts out.

  Images may be decoded at any reduced size that keeps so much.

  Raises:
    ValueError: `kind` is unknown.
  """
  match kind:
    case 'resnet':
      return _largest(resize)
    case 'pursuit':
      return math.ceil(resize / _SMALLEST_CROP)
    case 'none':
      return resize
  raise _unknown(kind)


def augment(
  image: Image, rng: np.random.Generator, *, kind: str, crop: int, resize: int
) -> UInt8[np.ndarray, 'crop crop 3']:
  """A training view, a pure function of the image and the state of `rng`.

  Args:
    image: any size.
    rng: the only source of chance.
    kind: 'resnet': short side drawn from [resize, 480/256·resize], random crop, mirror, colour
      noise along ImageNet's principal components (He et al. 2016, section 3.4).
      'pursuit': mirror, one geometric and one photometric member of the families of
      transformation pursuit (Paulin et al. 2014), where doing nothing is a member of each.
      'none': the centre crop.
    crop: side of the view in pixels.
    resize: short side before cropping, in pixels.

  Raises:
    ValueError: `kind` is unknown or `crop` exceeds `resize`.
  """
  _check(resize, crop)
  match kind:
    case 'none':
      return center_crop(image, resize=resize, crop=crop)
    case 'resnet':
      view = _random_crop(image, rng, resize, crop)
    case 'pursuit':
      view = _change_look(_change_geometry(image, rng, resize, crop), rng)
    case _:
      raise _unknown(kind)
  return _mirror(view) if rng.random() < 0.5 else view


def _unknown(kind: str) -> ValueError:
  return ValueError(f'augment={kind!r} is unknown; choose one of {", ".join(AUGMENTATIONS)}')


def _largest(resize: int) -> int:
  return resize * 480 // 256


def _random_crop(image: Image, rng: np.random.Generator, resize: int, crop: int) -> Image:
  short = int(rng.integers(resize, _largest(resize) + 1))
  view = _cut(image, crop / short, rng.random(2), crop)
  shift = _EIGENVECTORS @ (_EIGENVALUES * rng.normal(0, 0.1, 3)) * 255
  return _map_levels(view, _LEVELS + shift)


def _change_geometry(image: Image, rng: np.random.Generator, resize: int, crop: int) -> Image:
  family = rng.choice(['none', 'crop', 'homography', 'scale', 'rotation'])
  match family:
    case 'none':
      return _cut(image, crop / resize, _MIDDLE, crop)
    case 'crop':
      return _cut(image, rng.uniform(_SMALLEST_CROP, 1), rng.random(2), crop)
    case 'scale':  # As far out as the image reaches.
      zoom = rng.uniform(-0.5, min(0.5, np.log2(resize / crop)))
      return _cut(image, crop / resize * 2**zoom, _MIDDLE, crop)
  # The view's corners, clockwise from the top left; pixel centres are integers.
  square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (crop - 1.0)
  image = _resize_short(image, resize, longest=1.25)  # Turned squares reach no farther.
  height, width = image.shape[:2]
  corners = square + np.array([(width - crop) // 2, (height - crop) // 2])
  if family == 'homography':
    corners += rng.uniform(-0.1, 0.1, (4, 2)) * crop
  else:
    angle = np.deg2rad(rng.uniform(-15, 15))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    center = corners.mean(0)
    corners = center + (corners - center) @ turn
  matrix = cv2.getPerspectiveTransform(square.astype(np.float32), corners.astype(np.float32))
  return cv2.warpPerspective(
    image,
    matrix,
    (crop, crop),
    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    borderMode=cv2.BORDER_REFLECT_101,
  )


def _change_look(view: Image, rng: np.random.Generator) -> Image:
  match rng.choice(['none', 'color', 'contrast', 'blur', 'jpeg']):
    case 'color':
      return _map_levels(view, _LEVELS * rng.uniform(0.9, 1.1, 3))
    case 'contrast':
      mean = view.mean()
      return _map_levels(view, mean + (_LEVELS - mean) * rng.uniform(0.6, 1.4))
    case 'blur':
      # Half a pixel on top: less is not seen in small views.
      return cv2.GaussianBlur(view, (0, 0), 0.5 + rng.uniform(0, 0.008) * len(view))
    case 'jpeg':
      quality = int(rng.integers(30, 91))
      bgr = cv2.cvtColor(view, cv2.COLOR_RGB2BGR)
      _, data = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
      return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))
  return view


def _check(resize: int, crop: int) -> None:
  if not 1 <= crop <= resize:
    raise ValueError(f'crop={crop} must lie between 1 and resize={resize}; lower crop')


def _resize(image: Image, height: int, width: int) -> Image:
  """Averages along a side that shrinks by more than half, and is bilinear otherwise.

  Down to half the size, four neighbours are as many as an area holds, and cost a fifth of it.
  """
  sides = zip(image.shape[:2], (height, width), strict=True)
  low = tuple(goal if side > 2 * goal else side for side, goal in sides)
  for (rows, columns), how in ((low, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
    if image.shape[:2] != (rows, columns):
      image = cv2.resize(image, (columns, rows), interpolation=how)
  return image


def _resize_short(image: Image, short: int, longest: float = 16.0) -> Image:
  """To a short side of `short`, without what is beyond `longest` times that in the middle.

  Else an image of one row could take gigabytes.
  """
  side = min(image.shape[:2])
  image = _center(image, int(side * longest))
  height, width = image.shape[:2]
  return _resize(image, round(height * short / side), round(width * short / side))


def _cut(image: Image, share: float, place: np.ndarray, crop: int) -> Image:
  """A square, `share` of the short side wide, scaled to `crop`.

  `place` is in [0, 1): 0 is the top or left end, and uniform numbers give uniform places.
  """
  # Cut first: scaling the whole image costs several times as much.
  side = max(round(min(image.shape[:2]) * share), 1)
  y, x = (int(at * (n - side + 1)) for at, n in zip(place, image.shape[:2], strict=True))
  return _resize(image[y : y + side, x : x + side], crop, crop)


def _center(image: Image, side: int) -> Image:
  y, x = (max(length - side, 0) // 2 for length in image.shape[:2])
  return image[y : y + side, x : x + side]


def _mirror(image: Image) -> Image:
  return cv2.flip(image, 1)


def _map_levels(image: Image, levels: Float[np.ndarray, '256 _channel']) -> Image:
  """Each value replaced by its entry in a table, per channel or one for all."""
  table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
  return cv2.LUT(image, np.repeat(table, 3 // table.shape[1], axis=1)[None])
