"""Symmetric Kullback–Leibler divergence of descriptors (Ge & Yu 2017, Eq. 1) by matrix products.

With p a target's and q a source's histograms, one histogram h per filter, and m any histograms,

  d(p, q) = Σ_h w_h Σ_b (p − q)(log p − log q)
          = a(p) + a(q) − [p′ | w·log p′] · [w·log q′ | q′]ᵀ,   a(p) = Σ_h w_h Σ_b p′ log p′,
  p′ = p − m,   log p′ = log p − log m,   and so for q,

so all pairs cost two row sums and one product: the (target, source, bin) cube is never built. With
m the targets' mean, both factors are small, and so is the cancellation in float32.  a(p) = d(p, m).

The error that remains is within `TOLERANCE · (a(p) + a(q))`, whatever the value of d. Where d is so
small that this would blur it, `refine_near_duplicates` sums the terms of Eq. 1 in float64. It also
does where both sides are so close to m that their float32 logarithms hardly differ from m's, as
with one target, which m then is.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# Measured: over random problems of every kind, the error was 1 to 2 · 2^-24 in the mean and
# 16 · 2^-24 at most with numpy (its logarithms round more), 30 · 2^-24 with XLA on a CPU.
TOLERANCE = 2.0**-18
# Pairs below NEAR · (a(p) + a(q)) are computed term by term; above it, the relative error is under
# 2^-8.
NEAR = 2.0**-10
# So are pairs with a(p) + a(q) below CLOSE · Σ_h w_h, where the rounding of the logarithms would
# exceed the tolerance: measured with one target of 24 to 6,400 bins, from 2^-12 down.
CLOSE = 2.0**-11
# Terms that XLA sums in one product: one long sum rounds more than some shorter ones.
_TERMS = 2048
# Numbers that numpy computes at once: so many fit in a core's cache.
_CACHED_NUMBERS = 2**16
# Pairs that are refined at once: 35,200 terms in float64 are 0.3 MB a pair.
_REFINED_PAIRS = 128


class Center(NamedTuple):
  """The histograms m that both sides are centred by, and the weights of the filters.

  Attributes:
    mean: m.
    log_mean: log m.
    weights: w_h.
  """

  mean: Float[Array | np.ndarray, 'filter bin']
  log_mean: Float[Array | np.ndarray, 'filter bin']
  weights: Float[Array | np.ndarray, ' filter']


class Factors(NamedTuple):
  """One side of Eq. 1, ready for the product with the other.

  Attributes:
    self_terms: a(p) or a(q).
    close: pairs whose a(p) + a(q) is below this are computed term by term.
    factors: of sources q′, then w·log q′; of targets the other way around, w·log p′, then p′.
  """

  self_terms: Float[Array | np.ndarray, ' image']
  close: Float[Array | np.ndarray, '']
  factors: Float[Array | np.ndarray, 'image 2 term']


def make_center(
  targets: Float[np.ndarray, 'target filter bin'], weights: Float[np.ndarray, ' filter']
) -> Center:
  """Return the center at the targets' mean."""
  mean = targets.mean(axis=0)
  return Center(mean, np.log(mean), weights)


def source_factors(
  sources: Float[Array | np.ndarray, 'source filter bin'],
  center: Center,
  out: Float[Array | np.ndarray, 'source 2 term'] | None = None,
) -> Factors:
  """Return the sources' side of Eq. 1.

  Here and in the next two functions, numpy arrays are computed by numpy, on one core except for
  the product, and JAX arrays by XLA on their device.

  Args:
    sources: histograms.
    center: the same for both sides.
    out: the factors of an earlier result of this shape, which are overwritten.
  """
  return _factors(sources, center, out, is_target=False)


def target_factors(
  targets: Float[Array | np.ndarray, 'target filter bin'], center: Center
) -> Factors:
  """Return the targets' side of Eq. 1, which serves a whole search."""
  return _factors(targets, center, None, is_target=True)


def divergences(targets: Factors, sources: Factors) -> Float[Array | np.ndarray, 'target source']:
  """Return Eq. 1 in nats between all pairs, up to what `refine_near_duplicates` completes.

  Those divergences that are too small for the product to resolve have their sign bit set.
  """
  if isinstance(sources.factors, np.ndarray):
    return _divergences_by_numpy(targets, sources)
  return _divergences_by_xla(targets, sources)


def _factors(
  images: Float[Array | np.ndarray, 'image filter bin'], center: Center, out: Any, is_target: bool
) -> Factors:
  if isinstance(images, np.ndarray):
    return _factors_by_numpy(images, center, out, is_target)
  if out is None:
    out = jnp.zeros((len(images), 2, center.mean.size), jnp.float32)
  factors = _factors_by_xla(images, center, out, is_target)
  self_terms = _self_terms_by_xla(factors, images.shape[2])
  return Factors(self_terms, CLOSE * center.weights.sum(), factors)


def _factors_by_numpy(
  images: Float[np.ndarray, 'image filter bin'],
  center: Center,
  out: Float[np.ndarray, 'image 2 term'] | None,
  is_target: bool,
) -> Factors:
  images = images.reshape(len(images), -1)
  mean, log_mean = center.mean.ravel(), center.log_mean.ravel()
  weights = np.repeat(center.weights, center.mean.shape[1])
  # Memory that is used again: on a CPU, new pages cost more than the logarithms.
  factors = np.empty((len(images), 2, len(mean)), np.float32) if out is None else out
  self_terms = np.empty(len(images), np.float32)
  step = -(-_CACHED_NUMBERS // len(mean))
  # Zeros and numbers that are not finite pass: the caller checks the divergences.
  with np.errstate(divide='ignore', invalid='ignore'):
    for start in range(0, len(images), step):
      rows = slice(start, start + step)
      difference, weighted = factors[rows, int(is_target)], factors[rows, 1 - int(is_target)]
      np.subtract(images[rows], mean, out=difference)
      np.log(images[rows], out=weighted)
      weighted -= log_mean
      weighted *= weights
      self_terms[rows] = np.vecdot(difference, weighted)
  return Factors(self_terms, np.asarray(CLOSE * center.weights.sum(), np.float32), factors)


def _divergences_by_numpy(targets: Factors, sources: Factors) -> Float[np.ndarray, 'target source']:
  p, q = (side.factors.reshape(len(side.factors), -1) for side in (targets, sources))
  products = np.matmul(p, q.T)
  with np.errstate(invalid='ignore'):
    d = np.subtract(targets.self_terms[:, None], products, out=products)
    d += sources.self_terms
    # Few targets have a near source: only their rows are compared element by element.
    a, b = targets.self_terms, sources.self_terms
    near = ~((d.min(axis=1) >= NEAR * (a + b.max())) & (a + b.min() >= targets.close))
    scale = a[near, None] + b
    is_near = (d[near] < NEAR * scale) | (scale < targets.close)
    d[near] = np.where(is_near, -np.maximum(d[near], 0), d[near])
  return d


# `out` is donated: XLA writes the result into its memory, and it has no other use.
@functools.partial(jax.jit, donate_argnums=2, static_argnums=3, keep_unused=True)
def _factors_by_xla(
  images: Float[Array, 'image filter bin'],
  center: Center,
  out: Float[Array, 'image 2 term'],
  is_target: bool,
) -> Float[Array, 'image 2 term']:
  del out
  difference = images - center.mean[None]
  weighted = center.weights[None, :, None] * (jnp.log(images) - center.log_mean[None])
  parts = (weighted, difference) if is_target else (difference, weighted)
  return jnp.stack([part.reshape(len(images), -1) for part in parts], axis=1)


@functools.partial(jax.jit, static_argnums=1)
def _self_terms_by_xla(
  factors: Float[Array, 'image 2 term'], num_bins: int
) -> Float[Array, ' image']:
  # No product, whose factors a GPU may round to ten bits; shorter sums round less.
  return (factors[:, 0] * factors[:, 1]).reshape(len(factors), -1, num_bins).sum(axis=2).sum(axis=1)


@jax.jit
def _divergences_by_xla(targets: Factors, sources: Factors) -> Float[Array, 'target source']:
  p, q = (side.factors.reshape(len(side.factors), -1) for side in (targets, sources))
  parts = (slice(i, i + _TERMS) for i in range(0, p.shape[1], _TERMS))
  products = sum(jnp.matmul(p[:, part], q[:, part].T, precision='highest') for part in parts)
  scale = targets.self_terms[:, None] + sources.self_terms[None, :]
  d = scale - products
  # Rounding can carry a near-duplicate below zero.
  return jnp.where((d < NEAR * scale) | (scale < targets.close), -jnp.maximum(d, 0), d)


def refine_near_duplicates(
  divergences: Float[np.ndarray, 'target source'],
  targets: Float[np.ndarray, 'target filter bin'],
  sources: Float[Array | np.ndarray, '_source filter bin'],
  weights: Float[np.ndarray, ' filter'],
  active: Bool[np.ndarray, ' target'],
) -> Float[np.ndarray, 'target source']:
  """Return the divergences with the pairs that are too close for the product computed in float64.

  Args:
    divergences: the result of `divergences` for `targets` and the first of `sources`.
    targets: histograms.
    sources: histograms; those beyond the columns of `divergences` are padding.
    weights: w_h.
    active: the targets whose pairs are computed; those of the others only lose their sign.
  """
  near = np.signbit(divergences) & (divergences <= 0)  # NaN can have a sign bit, too.
  refined, q = np.abs(divergences), np.asarray(sources)
  pairs = np.argwhere(near & active[:, None])
  for start in range(0, len(pairs), _REFINED_PAIRS):
    rows, columns = pairs[start : start + _REFINED_PAIRS].T
    a, b = targets[rows].astype(np.float64), q[columns].astype(np.float64)
    refined[rows, columns] = symmetric_kl_of_pairs(a, b, weights.astype(np.float64))
  return refined


def symmetric_kl_of_pairs(
  p: Float[np.ndarray, 'pair filter bin'],
  q: Float[np.ndarray, 'pair filter bin'],
  weights: Float[np.ndarray, ' filter'],
) -> Float[np.ndarray, ' pair']:
  """Return Eq. 1 in nats between p[i] and q[i], term by term in the precision of the arrays."""
  terms = (p - q) * (np.log(p) - np.log(q))
  return np.asarray(terms.sum(axis=2) @ weights)


def symmetric_kl(
  targets: Float[Array | np.ndarray, 'target filter bin'],
  sources: Float[Array | np.ndarray, 'source filter bin'],
  weights: Float[Array | np.ndarray, ' filter'],
) -> Float[np.ndarray, 'target source']:
  """Return the symmetric Kullback–Leibler divergence in nats of all pairs (Ge & Yu 2017, Eq. 1).

  The product of two JAX arrays is computed on their device, any other by numpy.

  Args:
    targets: float32 histograms, each positive and summing to one. They are smoothed by the caller
      (`descriptors.histogram.normalize`), never here.
    sources: the same for the source images.
    weights: w_h, the weight of each filter's histogram: 1 / (number of filters in its layer).
  """
  p, w = np.asarray(targets), np.asarray(weights)
  center = make_center(p, w)
  if isinstance(sources, np.ndarray):
    targets = p
  d = divergences(target_factors(targets, center), source_factors(sources, center))
  return refine_near_duplicates(np.asarray(d), p, sources, w, np.ones(len(p), bool))
