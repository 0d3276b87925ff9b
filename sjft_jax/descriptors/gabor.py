"""The Gabor filter bank of Manjunath & Ma (1996): 4 scales × 6 orientations, real and imaginary.

Manjunath & Ma, "Texture features for browsing and retrieval of image data", PAMI 18(8), 1996:
the half-peak contours of the filters touch one another in the frequency plane and cover it from
`LOWEST` to `HIGHEST` cycles per pixel.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex64, Float, UInt8

LOWEST, HIGHEST = 0.05, 0.4  # centre frequencies of the coarsest and finest scale, cycles/pixel
NUM_SCALES, NUM_ORIENTATIONS = 4, 6
NUM_FILTERS = 2 * NUM_SCALES * NUM_ORIENTATIONS
RADII = (6, 12, 23, 45)  # of each scale's square support: 3 of the longer standard deviation
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, of RGB
# Responses are rounded to multiples of this, about 1/250 of a grey level. A flat patch has response
# zero, which in floating point is noise around 1e-7, and adaptive bins would resolve that noise.
RESOLUTION = 2.0**-16
# Images that a GPU convolves together: with 224 pixels a side, their spectra take some 200 MB.
_GPU_BATCH = 8


@functools.cache
def kernels() -> Complex64[np.ndarray, '24 size size']:
  """Return the 24 complex filters, centred in square arrays and zero outside their own support.

  Filter 6·m + n has frequency HIGHEST / a^m (m = 0 is the finest scale; a = 2) and orientation
  θ = n·π/6, so that it oscillates along (x, y) = (cos θ, sin θ), x to the right and y down:

    g(x, y) = a^-m / (2π σx σy) · exp(-½ (x'²/σx² + y'²/σy²) + 2πi · HIGHEST · x')
    x' = a^-m (x cos θ + y sin θ),  y' = a^-m (-x sin θ + y cos θ)

  with the paper's σx = 1/(2π σu), σy = 1/(2π σv). A constant is subtracted from each over its
  support, so that real and imaginary parts are zero-mean. All is computed in float64.
  """
  a = (HIGHEST / LOWEST) ** (1 / (NUM_SCALES - 1))
  half_peak = 2 * math.log(2)
  sigma_u = (a - 1) * HIGHEST / ((a + 1) * math.sqrt(half_peak))
  # The paper's σv, multiplied out.
  sigma_v = math.tan(math.pi / (2 * NUM_ORIENTATIONS)) * math.sqrt(
    HIGHEST**2 / half_peak - sigma_u**2
  )
  sigma_x, sigma_y = 1 / (2 * math.pi * sigma_u), 1 / (2 * math.pi * sigma_v)

  bank = []
  for m, radius in enumerate(RADII):
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1] / a**m
    for n in range(NUM_ORIENTATIONS):
      cos, sin = math.cos(n * math.pi / NUM_ORIENTATIONS), math.sin(n * math.pi / NUM_ORIENTATIONS)
      along, across = x * cos + y * sin, -x * sin + y * cos
      envelope = np.exp(-((along / sigma_x) ** 2 + (across / sigma_y) ** 2) / 2)
      g = (
        envelope * np.exp(2j * math.pi * HIGHEST * along) / (a**m * 2 * math.pi * sigma_x * sigma_y)
      )
      bank.append(np.pad(g - g.mean(), max(RADII) - radius))
  return np.stack(bank).astype(np.complex64)


@jax.jit
def respond(
  images: UInt8[Array, 'batch height width 3'],
) -> tuple[Float[Array, 'batch height width 48']]:
  """Return the responses to the luminance, 0–1, of RGB images of any size: one layer of 48 maps.

  Maps 0–23 are the convolutions with the real parts of `kernels()`, 24–47 with the imaginary
  parts. They have the image's size; beyond its border the image is continued by its mirror image
  ('symmetric', as often as the filter is wide). Responses are rounded to `RESOLUTION`.
  """
  coefficients = jnp.asarray(LUMINANCE, jnp.float32)
  luminance = jnp.dot(images.astype(jnp.float32), coefficients, precision='highest') / 255
  # The filters are zero-mean: subtracting a half changes nothing but the rounding error.
  luminance = luminance - 0.5
  height, width = images.shape[1:3]

  # Finer scales need a narrower border: scale by scale is 1.1 to 1.25 times as fast on a CPU as the
  # widest border for all.
  def convolve(image: Float[Array, 'height width']) -> Float[Array, 'height width 48']:
    maps = []
    for m, radius in enumerate(RADII):
      rows, columns = _extension(height, radius), _extension(width, radius)
      spectrum = jnp.fft.fft2(image[rows][:, columns])
      transfer = jnp.asarray(_transfer(m, len(rows), len(columns)))
      # The image is real: one complex product carries both parts of the filter.
      maps.append(jnp.fft.ifft2(spectrum[None] * transfer)[:, :height, :width])
    both = jnp.concatenate([part for f in (jnp.real, jnp.imag) for part in map(f, maps)])
    return jnp.moveaxis(jnp.round(both / RESOLUTION) * RESOLUTION, 0, -1)

  # Image by image, the working set stays in a CPU's cache; one image alone leaves a GPU idle.
  by_image = functools.partial(jax.lax.map, convolve)
  by_batch = functools.partial(jax.lax.map, convolve, batch_size=_GPU_BATCH)
  return (jax.lax.platform_dependent(luminance, cpu=by_image, default=by_batch),)


def _extension(size: int, radius: int) -> np.ndarray:
  """Return indices that continue an axis by mirroring, for circular convolution with a filter.

  Mirroring makes the axis periodic in 2·size. A wide filter needs one period; for a narrower one it
  is enough to continue by the filter's radius on either side.
  """
  period = min(2 * size, _fast_length(size + 2 * radius))
  position = np.arange(period)
  position = np.where(position < size + radius, position, position - period) % (2 * size)
  return np.minimum(position, 2 * size - 1 - position)


def _fast_length(length: int) -> int:
  """Return the next length whose only prime factors are 2, 3 and 5."""
  while True:
    rest = length
    for prime in (2, 3, 5):
      while rest % prime == 0:
        rest //= prime
    if rest == 1:
      return length
    length += 1


@functools.lru_cache(maxsize=8 * NUM_SCALES)
def _transfer(m: int, height: int, width: int) -> Complex64[np.ndarray, '6 height width']:
  """Return the Fourier transform of scale m's filters, centred at the origin of a torus."""
  radius, margin = RADII[m], max(RADII) - RADII[m]
  inside = slice(margin, margin + 2 * radius + 1)
  bank = kernels()[m * NUM_ORIENTATIONS :, inside, inside][:NUM_ORIENTATIONS]
  offsets = np.arange(-radius, radius + 1)
  torus = np.zeros((len(bank), height, width), np.complex128)
  # A filter wider than the period wraps around it, more than once if need be.
  np.add.at(torus, np.ix_(np.arange(len(bank)), offsets % height, offsets % width), bank)
  return np.fft.fft2(torus).astype(np.complex64)
