"""Descriptors of images: filter responses and their histograms, one batch at a time."""

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
  """Fit bins of equal mass to the responses to all images, in one pass (`QuantileSketch`).

  Args:
    bank: of filters.
    batches: RGB images 0–255 of the target's training set.
    num_bins: bins of each filter.

  Returns:
    The inner edges of each filter's bins; the layers' filters follow one after another.

  Raises:
    ValueError: num_bins < 2, or no images.
  """
  histogram.check_num_bins(num_bins)
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
  """Return the descriptors of each batch, on the device: one smoothed histogram of each filter.

  Args:
    bank: of filters.
    edges: of `fit_edges` with the same bank.
    batches: RGB images 0–255.
    smoothing: pseudo-count added to every bin, in pixels (`histogram.normalize`).
    batch_size: smaller batches are padded to this size; 0: to that of the first batch. An image's
      descriptor is then the same to the last bit as in a full batch.

  Raises:
    ValueError: smoothing ≤ 0, at once rather than with the first batch.
  """
  histogram.check_smoothing(smoothing)
  edges = jnp.asarray(edges)
  return (
    _describe(bank, edges, images, smoothing)[: valid.sum()]
    for images, valid in _padded(batches, batch_size)
  )


@functools.partial(compilation.jit, static_argnums=0)
def responses(bank: FilterBank, images: UInt8[Array, 'batch height width 3']) -> Responses:
  """Return `bank.respond(images)`, compiled by itself: faster, where nothing else is computed."""
  return bank.respond(images)


@functools.partial(compilation.jit, static_argnums=(0, 3))
def _describe(
  bank: FilterBank,
  edges: Float[Array, 'filter edge'],
  images: UInt8[Array, 'batch height width 3'],
  smoothing: float,
) -> Float[Array, 'batch filter bin']:
  layers = jnp.split(edges, np.cumsum(bank.num_filters)[:-1])
  counts = map(histogram.counts, layers, bank.respond(images))
  # Layers differ in their number of pixels, so each is normalised by itself.
  return jnp.concatenate([histogram.normalize(c, smoothing=smoothing) for c in counts], axis=1)


def _padded(
  batches: Batches, size: int = 0
) -> Iterator[tuple[UInt8[np.ndarray, 'size height width 3'], Bool[np.ndarray, ' size']]]:
  """Pad batches to `size`, or that of the first one, so that only one size is compiled."""
  for images in batches:
    size = max(size, len(images))
    valid = np.arange(size) < len(images)
    missing = size - len(images)
    yield np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))), valid
