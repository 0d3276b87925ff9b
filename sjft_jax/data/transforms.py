"""Views of an image: for retrieval, for testing, and the random ones for training.

RGB uint8 0–255 in and out. An image that already has the size asked for comes through with its
pixels untouched.
"""

import cv2
import numpy as np
from jaxtyping import UInt8

AUGMENTATIONS = ('pursuit', 'resnet', 'none')

Image = UInt8[np.ndarray, '_height _width 3']

# Eigenvectors (columns) and eigenvalues of the RGB covariance of ImageNet, for values in [0, 1]
# (Krizhevsky et al. 2012, section 4.1; the numbers are those of fb.resnet.torch).
_EIGENVECTORS = np.array(
  [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])


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
  crops = np.stack([image[y : y + crop, x : x + crop] for y, x in corners])
  return np.concatenate([crops, crops[:, :, ::-1]])


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
  if kind == 'none':
    return center_crop(image, resize=resize, crop=crop)
  if kind == 'resnet':
    view = _random_crop(image, rng, resize, crop)
  elif kind == 'pursuit':
    view = _pursue(image, rng, resize, crop)
  else:
    raise ValueError(f'augment={kind!r} is unknown; choose one of {", ".join(AUGMENTATIONS)}')
  return np.ascontiguousarray(view[:, ::-1]) if rng.random() < 0.5 else view


def _random_crop(image: Image, rng: np.random.Generator, resize: int, crop: int) -> Image:
  image = _resize_short(image, int(rng.integers(resize, resize * 480 // 256 + 1)))
  y, x = (int(rng.integers(side - crop + 1)) for side in image.shape[:2])
  shift = _EIGENVECTORS @ (_EIGENVALUES * rng.normal(0, 0.1, 3)) * 255
  return _clip(image[y : y + crop, x : x + crop] + shift)


def _pursue(image: Image, rng: np.random.Generator, resize: int, crop: int) -> Image:
  image = _resize_short(image, resize)
  height, width = image.shape[:2]
  # The view's corners in the image, clockwise from the top left; pixel centres are integers.
  square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (crop - 1.0)
  corners = square + np.array([(width - crop) // 2, (height - crop) // 2])
  center = corners.mean(0)
  match rng.choice(['none', 'crop', 'homography', 'scale', 'rotation']):
    case 'crop':
      side = rng.uniform(0.6, 1) * (resize - 1)
      corners = square / (crop - 1) * side
      corners += rng.uniform(0, 1, 2) * [width - 1 - side, height - 1 - side]
    case 'homography':
      corners += rng.uniform(-0.1, 0.1, (4, 2)) * crop
    case 'scale':
      corners = center + (corners - center) * 2 ** rng.uniform(-0.5, 0.5)
    case 'rotation':
      angle = np.deg2rad(rng.uniform(-15, 15))
      turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
      corners = center + (corners - center) @ turn
  matrix = cv2.getPerspectiveTransform(square.astype(np.float32), corners.astype(np.float32))
  view = cv2.warpPerspective(
    image,
    matrix,
    (crop, crop),
    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    borderMode=cv2.BORDER_REFLECT_101,
  )
  match rng.choice(['none', 'color', 'contrast', 'blur', 'jpeg']):
    case 'color':
      view = _clip(view * rng.uniform(0.8, 1.2, 3))
    case 'contrast':
      mean = view.mean()
      view = _clip(mean + (view - mean) * rng.uniform(0.6, 1.4))
    case 'blur':
      view = cv2.GaussianBlur(view, (0, 0), rng.uniform(0.003, 0.01) * crop)
    case 'jpeg':
      quality = int(rng.integers(30, 91))
      _, data = cv2.imencode('.jpg', view, [cv2.IMWRITE_JPEG_QUALITY, quality])
      view = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
  return view


def _check(resize: int, crop: int) -> None:
  if not 1 <= crop <= resize:
    raise ValueError(f'crop={crop} must lie between 1 and resize={resize}; lower crop')


def _resize(image: Image, height: int, width: int) -> Image:
  if image.shape[:2] == (height, width):
    return image
  shrinks = height * width < image.shape[0] * image.shape[1]
  return cv2.resize(
    image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  )


def _resize_short(image: Image, short: int) -> Image:
  height, width = image.shape[:2]
  scale = short / min(height, width)
  return _resize(image, round(height * scale), round(width * scale))


def _center(image: Image, crop: int) -> Image:
  y, x = ((side - crop) // 2 for side in image.shape[:2])
  return image[y : y + crop, x : x + crop]


def _clip(image: np.ndarray) -> Image:
  return np.clip(np.rint(image), 0, 255).astype(np.uint8)
