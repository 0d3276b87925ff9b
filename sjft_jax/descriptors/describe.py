"""Descriptors of a data set: filter responses and their histograms, one batch at a time."""

import functools
from collections.abc import Iterable, Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from sjft_jax.descriptors import histogram
from sjft_jax.descriptors.alexnet import Responses
from sjft_jax.descriptors.bank import FilterBank
from sjft_jax.runtime import compilation

Batches = Iterable[UInt8[np.ndarray, 'batch height width 3']]


def fit_edges(
  bank: FilterBank, batches: Batches, *, num_bins: int
) -> Float[np.ndarray, 'filter edge']:
  """Edges of equal-mass bins over the responses to all images, in one pass (`QuantileSketch`).

  Args:
    bank: its layers lie one after another along the filter axis.
    batches: RGB images 0–255 of the target's training set.
    num_bins: bins per filter.

  Raises:
    ValueError: num_bins < 2, or no images.
  """
  if num_bins < 2:
    raise ValueError(f'num_bins={num_bins} is less than 2; raise descriptors.num_bins')
  sketch = histogram.QuantileSketch(sum(bank.num_filters))
  for images, valid in _padded(batches):
    sketch.update(responses(bank, images), valid)
  return sketch.edges(num_bins=num_bins)


def describe(
  bank: FilterBank,
  edges: Float[Array | np.ndarray, 'filter edge'],
  batches: Batches,
  *,
  smoothing: float,
  batch_size: int = 0,
) -> Iterator[Float[Array, 'batch filter bin']]:
  """The descriptors of each batch: one smoothed histogram per filter, on the device.

  Args:
    bank, edges: as `fit_edges` took and returned them.
    batches: RGB images 0–255.
    smoothing: pseudo-count per bin, in pixels (`histogram.normalize`).
    batch_size: smaller batches are filled up to it, that they may be described to the last bit as
      they would be inside larger ones; 0: up to the first one's size.

  Raises:
    ValueError: smoothing ≤ 0, at once rather than with the first batch.
  """
  if not smoothing > 0:
    raise ValueError(f'smoothing={smoothing} must exceed 0; raise descriptors.smoothing')
  edges = jnp.asarray(edges)
  return (
    _describe(bank, edges, images, smoothing)[: valid.sum()]
    for images, valid in _padded(batches, batch_size)
  )


@functools.partial(compilation.jit, static_argnums=0)
def responses(bank: FilterBank, images: UInt8[Array, 'batch height width 3']) -> Responses:
  """What `bank.respond` gives, where it is all that is wanted: compiled for itself it is faster."""
  return bank.respond(images)


@functools.partial(compilation.jit, static_argnums=(0, 3))
def _describe(bank, edges, images, smoothing):
  layers = jnp.split(edges, np.cumsum(bank.num_filters)[:-1])
  counts = map(histogram.counts, layers, bank.respond(images))
  # Layers differ in their number of pixels: each is normalised by its own.
  return jnp.concatenate([histogram.normalize(c, smoothing=smoothing) for c in counts], axis=1)


def _padded(
  batches: Batches, size: int = 0
) -> Iterator[tuple[UInt8[np.ndarray, 'size height width 3'], Bool[np.ndarray, ' size']]]:
  """Fills smaller batches up to `size` or the first one's, lest each size be compiled anew."""
  for images in batches:
    size = max(size, len(images))
    valid = np.arange(size) < len(images)
    missing = size - len(images)
    yield np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))), valid
