"""Views of an image: for retrieval, for evaluation, and the random ones for training.

All functions take and return RGB uint8 0–255. An image that already has the requested size keeps
its pixels as they are. Of an image that is more than 16 times as long as it is wide, evaluation
views show the middle; `multi_scale` does so from 4 times on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from sjft_jax.runtime.choice import choose

AUGMENTATIONS = ('pursuit', 'resnet', 'none')
VIEWS = ('center', 'ten_crop', 'multi_scale')
SIDES = (224, 256, 384, 480, 640)  # Of `multi_scale`; He et al. 2016, section 3.4.

Image = UInt8[np.ndarray, '_height _width 3']

# Eigenvectors (columns) and eigenvalues of the RGB covariance of ImageNet, for values in [0, 1]
# (Krizhevsky et al. 2012, section 4.1; the numbers are those of fb.resnet.torch).
_EIGENVECTORS = np.array(
  [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_LEVELS = np.arange(256.0)[:, None]
_MIDDLE = np.array([0.5, 0.5])
_MIN_CROP_SHARE = 0.6  # Of the short side.
# Of `multi_scale`. An image of four times its length takes four times the memory, at every size.
_MAX_ASPECT = 4.0


@dataclass(frozen=True, kw_only=True)
class ImageSize:
  """The size of the images that the network sees: the section `images` of the configuration.

  Attributes:
    resize: short side before cropping, in pixels.
    crop: side of the square that is cut out, in pixels.
  """

  resize: int
  crop: int


def describe_view(image: Image, *, resize: int, crop: int) -> UInt8[np.ndarray, 'crop crop 3']:
  """Return the view that descriptors see: warped to resize×resize, centre crop, never mirrored.

  The authors' released code warps as well, but crops and mirrors at random; a fixed view makes
  the ranking deterministic.

  Args:
    image: any size.
    resize: side of the warped image, in pixels.
    crop: side of the view, in pixels.

  Raises:
    ValueError: `crop` exceeds `resize`.
  """
  _check_size(resize, crop)
  return _center(_resize(image, resize, resize), crop)


def center_crop(image: Image, *, resize: int, crop: int) -> UInt8[np.ndarray, 'crop crop 3']:
  """Return the centre of the image once its short side is `resize` pixels.

  Args:
    image: any size.
    resize: short side before cropping, in pixels.
    crop: side of the view, in pixels.

  Raises:
    ValueError: `crop` exceeds `resize`.
  """
  _check_size(resize, crop)
  return _center(_resize_short(image, resize), crop)


def ten_crop(image: Image, *, resize: int, crop: int) -> UInt8[np.ndarray, '10 crop crop 3']:
  """Return four corners and the centre, then their mirror images (Krizhevsky et al. 2012).

  The order is top left, top right, bottom left, bottom right, centre.

  Args:
    image: any size.
    resize: short side before cropping, in pixels.
    crop: side of the views, in pixels.

  Raises:
    ValueError: `crop` exceeds `resize`.
  """
  _check_size(resize, crop)
  image = _resize_short(image, resize)
  bottom, right = image.shape[0] - crop, image.shape[1] - crop
  corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2))
  crops = [image[y : y + crop, x : x + crop] for y, x in corners]
  return np.stack([*crops, *map(_mirror, crops)])


def multi_scale(
  image: Image, *, resize: int, crop: int, sides: Sequence[int] = SIDES
) -> tuple[UInt8[np.ndarray, '2 _height _width 3'], ...]:
  """Return the whole image at several sizes, each with its mirror image.

  This is for a network that takes any size, because it is convolutional up to a global pooling (He
  et al. 2016, section 3.4). So that few shapes are compiled, the image is warped to the nearest of
  17 aspect ratios from 1 to 4, by 6 % at most; see `round_aspect`.

  Args:
    image: any size.
    resize: short side of the other views; not used.
    crop: the `sides` are for a network trained at 224 pixels and scale with crop / 224.
    sides: the short sides, in pixels.

  Raises:
    ValueError: `crop` exceeds `resize`.
  """
  _check_size(resize, crop)
  image = _center(image, int(min(image.shape[:2]) * _MAX_ASPECT))
  height, width = image.shape[:2]
  aspect = round_aspect(max(height, width) / min(height, width))
  views = []
  for short in scaled_sides(crop, sides):
    long = round(short * aspect)
    view = _resize(image, *((long, short) if height > width else (short, long)))
    views.append(np.stack([view, _mirror(view)]))
  return tuple(views)


def round_aspect(aspect: float) -> float:
  """Round an aspect ratio of 1 or more to one of eight values between two powers of two.

  They are 1, 9/8, 10/8, … 15/8, 2, 9/4, …: the change is 1/16 at most.
  """
  mantissa, exponent = math.frexp(aspect)  # The mantissa is at least 1/2 and less than 1.
  return math.ldexp(round(mantissa * 16), exponent - 4)


def scaled_sides(crop: int, sides: Sequence[int] = SIDES) -> list[int]:
  """Return the short sides of `multi_scale`'s views, in pixels."""
  return [round(side * crop / 224) for side in sides]


def evaluation_views(image: Image, *, size: ImageSize, view: str) -> tuple[np.ndarray, ...]:
  """Return an image's views for evaluation, one array uint8 [view, height, width, 3] for each size.

  Args:
    image: any size.
    size: of the crops; `multi_scale` scales its sides with `size.crop`.
    view: one of `VIEWS`.

  Raises:
    ValueError: `view` is unknown, or `size.crop` exceeds `size.resize`.
  """
  match choose('view', view, VIEWS):
    case 'center':
      return (center_crop(image, resize=size.resize, crop=size.crop)[None],)
    case 'ten_crop':
      return (ten_crop(image, resize=size.resize, crop=size.crop),)
  return multi_scale(image, resize=size.resize, crop=size.crop)


def evaluation_side(size: ImageSize, view: str) -> int:
  """Return the short side, in pixels, above which `evaluation_views` gains nothing.

  Args:
    size: of the crops.
    view: one of `VIEWS`.
  """
  return max(scaled_sides(size.crop)) if view == 'multi_scale' else size.resize


def augmentation_side(kind: str, resize: int) -> int:
  """Return the short side, in pixels, above which `augment` never enlarges what it cuts out.

  Images may be decoded at any reduced size that keeps so much.

  Args:
    kind: one of `AUGMENTATIONS`.
    resize: as for `augment`.

  Raises:
    ValueError: `kind` is unknown.
  """
  match choose('kind', kind, AUGMENTATIONS):
    case 'resnet':
      return _max_resize(resize)
    case 'pursuit':
      return math.ceil(resize / _MIN_CROP_SHARE)
  return resize


def augment(
  image: Image, rng: np.random.Generator, *, kind: str, crop: int, resize: int
) -> UInt8[np.ndarray, 'crop crop 3']:
  """Return a training view, a pure function of the image and the state of `rng`.

  Args:
    image: any size.
    rng: the only source of randomness.
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
  _check_size(resize, crop)
  match choose('kind', kind, AUGMENTATIONS):
    case 'none':
      return center_crop(image, resize=resize, crop=crop)
    case 'resnet':
      view = _crop_resnet(image, rng, resize, crop)
    case 'pursuit':
      view = _change_look(_change_geometry(image, rng, resize, crop), rng)
  return _mirror(view) if rng.random() < 0.5 else view


def _max_resize(resize: int) -> int:
  return resize * 480 // 256


def _crop_resnet(image: Image, rng: np.random.Generator, resize: int, crop: int) -> Image:
  """Draw a scale, a crop and a colour shift, as for ResNets (He et al. 2016)."""
  short = int(rng.integers(resize, _max_resize(resize) + 1))
  view = _cut(image, crop / short, rng.random(2), crop)
  shift = _EIGENVECTORS @ (_EIGENVALUES * rng.normal(0, 0.1, 3)) * 255
  return _map_levels(view, _LEVELS + shift)


def _change_geometry(image: Image, rng: np.random.Generator, resize: int, crop: int) -> Image:
  """Draw a geometric transformation (Paulin et al. 2014) and cut out a square."""
  family = rng.choice(['none', 'crop', 'homography', 'scale', 'rotation'])
  match family:
    case 'none':
      return _cut(image, crop / resize, _MIDDLE, crop)
    case 'crop':
      return _cut(image, rng.uniform(_MIN_CROP_SHARE, 1), rng.random(2), crop)
    case 'scale':  # Outwards as far as the image reaches.
      zoom = rng.uniform(-0.5, min(0.5, np.log2(resize / crop)))
      return _cut(image, crop / resize * 2**zoom, _MIDDLE, crop)
  # The view's corners, clockwise from the top left; pixel centres are integers.
  square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (crop - 1.0)
  image = _resize_short(image, resize, max_aspect=1.25)  # Turned squares reach no farther.
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
  """Draw a photometric transformation (Paulin et al. 2014)."""
  match rng.choice(['none', 'color', 'contrast', 'blur', 'jpeg']):
    case 'color':
      return _map_levels(view, _LEVELS * rng.uniform(0.9, 1.1, 3))
    case 'contrast':
      mean = view.mean()
      return _map_levels(view, mean + (_LEVELS - mean) * rng.uniform(0.6, 1.4))
    case 'blur':
      # Half a pixel is added, because less is invisible in small views.
      return cv2.GaussianBlur(view, (0, 0), 0.5 + rng.uniform(0, 0.008) * len(view))
    case 'jpeg':
      quality = int(rng.integers(30, 91))
      bgr = cv2.cvtColor(view, cv2.COLOR_RGB2BGR)
      _, data = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
      return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))
  return view


def _check_size(resize: int, crop: int) -> None:
  if not 1 <= crop <= resize:
    raise ValueError(f'crop={crop} must lie between 1 and resize={resize}; lower crop')


def _resize(image: Image, height: int, width: int) -> Image:
  """Resize by averages along a side that shrinks by more than half, bilinearly otherwise.

  Down to half the size, four neighbours are as many as an area holds, and cost a fifth of it.
  """
  sides = zip(image.shape[:2], (height, width), strict=True)
  averaged = tuple(new if old > 2 * new else old for old, new in sides)
  for shape, method in ((averaged, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
    if image.shape[:2] != shape:
      image = cv2.resize(image, shape[::-1], interpolation=method)
  return image


def _resize_short(image: Image, short: int, max_aspect: float = 16.0) -> Image:
  """Resize to a short side of `short`; of the long side at most `max_aspect` times as much stays.

  What is cut off lies at both ends. Without a limit an image of one row could take gigabytes.
  """
  side = min(image.shape[:2])
  image = _center(image, int(side * max_aspect))
  height, width = image.shape[:2]
  return _resize(image, round(height * short / side), round(width * short / side))


def _cut(image: Image, share: float, position: np.ndarray, crop: int) -> Image:
  """Cut out a square, `share` of the short side wide, and scale it to `crop`.

  Args:
    image: any size.
    share: of the short side, up to 1.
    position: (y, x) in [0, 1): 0 is the top or left end, and uniform numbers give uniform places.
    crop: side of the result, in pixels.
  """
  # Cut first: scaling the whole image costs several times as much.
  side = max(round(min(image.shape[:2]) * share), 1)
  y, x = (int(p * (n - side + 1)) for p, n in zip(position, image.shape[:2], strict=True))
  return _resize(image[y : y + side, x : x + side], crop, crop)


def _center(image: Image, side: int) -> Image:
  y, x = (max(length - side, 0) // 2 for length in image.shape[:2])
  return image[y : y + side, x : x + side]


def _mirror(image: Image) -> Image:
  return cv2.flip(image, 1)


def _map_levels(image: Image, levels: Float[np.ndarray, '256 _channel']) -> Image:
  """Replace each value by its entry in a table, one for each channel or one for all."""
  table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
  return cv2.LUT(image, np.repeat(table, 3 // table.shape[1], axis=1)[None])
