"""Adaptive histograms of filter responses: equal-mass bins from one pass over the target set.

Ge & Yu (2017, Section 3.2) set the width of every bin such that each holds about the same share of
the target's pixels.  `QuantileSketch` finds the edges in one pass and fixed memory, `counts` and
`normalize` make the histograms.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

# A bucket holds the float32 values that share sign, exponent and the first 7 bits of the mantissa.
_NUM_BUCKETS = 2**16
_TINY = np.finfo(np.float32).tiny
# Device counts are int32 (JAX has no int64 by default): they move to the host before they overflow.
_MAX_COUNT = 2**31 - 1


class QuantileSketch:
  """Distribution of each filter's responses, from which to read equal-mass edges.

  Counts responses in the 65,536 buckets of float32 values with the same upper 16 bits: 0.75 MiB a
  filter, however many responses.  The result does not depend on the order of the responses or on
  how they are batched, and sketches of parts add up to the sketch of the whole (`merge`).

  Error: an edge lies in the same bucket as the exact quantile, thus within 2^-7 of it relative to
  its magnitude, and the mass below it is wrong by less than the mass of that bucket.  Inside a
  bucket mass is taken as uniform, which in smooth distributions makes both errors much smaller.
  Zero is exact (values under 2^-126 count as zero), so are smallest and largest response.
  """

  def __init__(self, num_filters: int):
    self.counts = np.zeros((num_filters, _NUM_BUCKETS), np.int64)
    self.low = np.full(num_filters, np.inf, np.float32)
    self.high = np.full(num_filters, -np.inf, np.float32)
    # What the device has counted since it last handed over, and out of how many responses.
    self._pending: tuple[Array, Array, Array] | None = None
    self._num_pending = 0

  def update(
    self,
    responses: tuple[Float32[Array, 'batch _height _width _filter'], ...],
    valid: Bool[np.ndarray, 'batch'],
  ) -> None:
    """Counts the responses, all layers, of the images that are `valid` (the others are padding)."""
    size = max(response[..., 0].size for response in responses)
    if size > _MAX_COUNT:
      raise ValueError(
        f'{size} responses per filter in a batch exceed {_MAX_COUNT}; use fewer images'
      )
    if self._num_pending + size > _MAX_COUNT:
      self._flush()
    if self._pending is None:
      self._pending = (
        jnp.zeros(self.counts.size, jnp.int32),
        jnp.array(self.low),
        jnp.array(self.high),
      )
    self._pending = _tally(*self._pending, responses, valid)
    self._num_pending += size

  def merge(self, other: 'QuantileSketch') -> None:
    """Adds the responses that `other` has seen."""
    self._flush()
    other._flush()
    self.counts += other.counts
    self.low = np.minimum(self.low, other.low)
    self.high = np.maximum(self.high, other.high)

  def edges(self, *, num_bins: int) -> Float32[np.ndarray, 'filter edge']:
    """The `num_bins - 1` inner edges of each filter's bins, ascending; bin = edges ≤ response.

    A bucket with at least an equal share of the mass is an atom (ReLU's zero, a constant filter)
    and gets a bin of its own; the other bins share the remaining mass equally.  Where atoms cut
    this mass into parts, each part gets a whole number of bins, and a part too small for one joins
    an atom beside it.  A filter that has nothing to fill `num_bins` with is padded with +inf.

    Raises:
      ValueError: num_bins < 2, no responses, or a response that is not finite.
    """
    if num_bins < 2:
      raise ValueError(f'num_bins={num_bins} is less than 2; raise descriptors.num_bins')
    self._flush()
    if not self.counts.any(axis=1).all():
      raise ValueError('no responses to place edges by; the data set is empty')
    broken = ~(np.isfinite(self.low) & np.isfinite(self.high))
    if broken.any():
      raise ValueError(f'filter {np.flatnonzero(broken)[0]} gave a response that is not finite')
    return np.stack(
      [
        _equal_mass_edges(counts, float(low), float(high), num_bins)
        for counts, low, high in zip(self.counts, self.low, self.high, strict=True)
      ]
    )

  def _flush(self) -> None:
    if self._pending is not None:
      counts, low, high = self._pending
      self.counts += np.asarray(counts).reshape(self.counts.shape)
      self.low, self.high = np.array(low), np.array(high)
      self._pending, self._num_pending = None, 0


@functools.partial(jax.jit, donate_argnums=(0, 1, 2))
def _tally(counts, low, high, responses, valid):
  first = 0
  for response in responses:
    batch, height, width, num_filters = response.shape
    filters = np.arange(first, first + num_filters, dtype=np.int32)
    x = response.reshape(batch, height * width, num_filters)
    index = (filters * _NUM_BUCKETS).reshape(1, 1, -1) + _bucket(x)
    ones = jnp.broadcast_to(valid.astype(jnp.int32)[:, None, None], x.shape)
    counts = counts.at[index].add(ones)
    mask = valid[:, None, None]
    low = low.at[filters].min(jnp.where(mask, x, jnp.inf).min(axis=(0, 1)))
    high = high.at[filters].max(jnp.where(mask, x, -jnp.inf).max(axis=(0, 1)))
    first += num_filters
  return counts, low, high


def _bucket(x: Float32[Array, '*shape']) -> Int[Array, '*shape']:
  """The upper 16 bits of float32 in an order that agrees with <; −0 and subnormals go with 0."""
  x = jnp.where(jnp.abs(x) < _TINY, jnp.zeros_like(x), x)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  negative = bits >> 31 == 1
  key = jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))
  return (key >> 16).astype(jnp.int32)


def _lower_bounds(buckets: Int[np.ndarray, 'bucket']) -> Float[np.ndarray, 'bucket']:
  """The smallest float32 in each bucket, as float64."""
  key = buckets.astype(np.uint32) << np.uint32(16)
  bits = np.where(buckets < _NUM_BUCKETS // 2, ~key, key ^ np.uint32(1 << 31))
  x = bits.astype(np.uint32).view(np.float32).astype(np.float64)
  # Between zero and the smallest normal number there is nothing: all of it is zero's bucket.
  return np.where((x > 0) & (x < _TINY), _TINY, np.where((x < 0) & (x > -_TINY), 0.0, x))


def _equal_mass_edges(
  counts: Int[np.ndarray, 'bucket'], low: float, high: float, num_bins: int
) -> Float32[np.ndarray, 'edge']:
  buckets = np.flatnonzero(counts)
  mass = counts[buckets]
  lower = np.maximum(_lower_bounds(buckets), low)
  # The bucket above the largest finite number is infinity's, whose bound the maximum replaces.
  upper = np.minimum(_lower_bounds(buckets + 1), high)

  # Taking an atom away lowers the others' equal share, which may make atoms of more buckets.
  atom = np.zeros(len(buckets), bool)
  while True:
    num_free = num_bins - atom.sum()
    found = ~atom & (mass * num_free >= mass[~atom].sum())
    if not found.any():
      break
    atom |= found
  atoms = np.flatnonzero(atom)

  # The parts between atoms, some of them empty, and how many bins each gets: the running total is
  # rounded, such that no bin is lost.
  starts, ends = np.append(0, atoms + 1), np.append(atoms, len(buckets))
  below = np.append(0, np.cumsum(mass))
  part_mass = below[ends] - below[starts]
  free_mass = max(part_mass.sum(), 1)
  total = np.round(np.cumsum(part_mass) / free_mass * num_free).astype(int)
  part_bins = np.diff(total, prepend=0)

  edges: list[float] = []
  for i, (start, end, bins) in enumerate(zip(starts, ends, part_bins, strict=True)):
    first, last = i == 0, i == len(atoms)
    if bins and not first:
      edges.append(_lower_bounds(buckets[start - 1 : start] + 1)[0])
    if bins > 1:
      wanted = below[start] + part_mass[i] * np.arange(1, bins) / bins
      j = np.searchsorted(below, wanted, side='right') - 1
      edges.extend(lower[j] + (wanted - below[j]) / mass[j] * (upper[j] - lower[j]))
    if not last and (bins or not first):
      edges.append(_lower_bounds(buckets[end : end + 1])[0])
  padding = [np.inf] * (num_bins - 1 - len(edges))
  return np.array(edges + padding, np.float32)


@jax.jit
def counts(
  edges: Float[Array, 'filter edge'],
  responses: Float[Array, 'batch height width filter'],
) -> Int[Array, 'batch filter bin']:
  """The number of pixels in each of the edge + 1 bins; a pixel's bin is the number of edges ≤ it.

  Responses beyond those that the edges were made from fall in the end bins.
  """
  batch, height, width, num_filters = responses.shape
  pixels = responses.reshape(batch, height * width, num_filters)

  # Edge by edge, image by image: on a CPU 2–10 times as fast as comparing a batch at once, as
  # searchsorted with scatter-add, and as np.histogram.
  def at_least(image):
    return jax.lax.map(lambda edge: (image >= edge[None]).sum(0, dtype=jnp.int32), edges.T)

  inner = jnp.swapaxes(jax.lax.map(at_least, pixels), 1, 2)
  every = jnp.full((batch, num_filters, 1), height * width, jnp.int32)
  none = jnp.zeros_like(every)
  return -jnp.diff(jnp.concatenate([every, inner, none], axis=2), axis=2)


def normalize(
  counts: Int[Array, 'batch filter bin'], *, smoothing: float
) -> Float[Array, 'batch filter bin']:
  """Histograms that are positive and sum to one: (counts + smoothing) / (pixels + smoothing·bins).

  Args:
    counts: pixels per bin.
    smoothing: pseudo-count added to every bin, in pixels.

  Raises:
    ValueError: smoothing ≤ 0, which would let the divergence of two images be infinite.
  """
  if not smoothing > 0:
    raise ValueError(f'smoothing={smoothing} must exceed 0; raise descriptors.smoothing')
  smoothed = counts.astype(jnp.float32) + smoothing
  return smoothed / smoothed.sum(axis=-1, keepdims=True)
