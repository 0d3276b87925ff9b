"""Symmetric Kullback–Leibler divergence of descriptors (Ge & Yu 2017, Eq. 1) by matrix products.

With p a target's and q a source's histograms, one histogram h per filter, and m any histograms,

  d(p, q) = Σ_h w_h Σ_b (p − q)(log p − log q)
          = a(p) + a(q) − [p′ | w·log p′] · [w·log q′ | q′]ᵀ,   a(p) = Σ_h w_h Σ_b p′ log p′,
  p′ = p − m,   log p′ = log p − log m,   and so for q,

so all pairs cost two row sums and one product: the (target, source, bin) cube is never built. With
m the targets' mean, both factors are small, and so is the cancellation in float32.  a(p) = d(p, m).

The error that remains is within `TOLERANCE · (a(p) + a(q))`, whatever the value of d. Where d is so
small that this would blur it, `refine_near_duplicates` adds up the terms of Eq. 1 in float64.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# Of experience: over random problems of every kind, the error was 1 to 2 · 2^-24 in the mean and
# 16 · 2^-24 at most with numpy (its logarithms round more), 30 · 2^-24 with XLA on a CPU.
TOLERANCE = 2.0**-18
# Below NEAR · (a(p) + a(q)) terms are summed one by one; above, the relative error is under 2^-8.
NEAR = 2.0**-10
# One long sum rounds more than some shorter ones.
_TERMS = 2048
# So many numbers at a time are worked on from the core's cache.
_IN_CACHE = 2**16
# Pairs that `refine_near_duplicates` works on at once: 35,200 terms in float64 are 0.3 MB a pair.
_CHUNK = 128


class Center(NamedTuple):
  """The histograms m and what depends on them alone."""

  mean: Float[Array | np.ndarray, 'filter bin']
  log_mean: Float[Array | np.ndarray, 'filter bin']
  weights: Float[Array | np.ndarray, ' filter']


class Factors(NamedTuple):
  """One side of Eq. 1, ready for the product with the other."""

  self_terms: Float[Array | np.ndarray, ' image']
  # Sources: p′, then w·log p′; targets: the other way around.
  factors: Float[Array | np.ndarray, 'image 2 term']


def center(
  targets: Float[np.ndarray, 'target filter bin'], weights: Float[np.ndarray, ' filter']
) -> Center:
  mean = targets.mean(axis=0)
  return Center(mean, np.log(mean), weights)


def source_factors(
  sources: Float[Array | np.ndarray, 'source filter bin'],
  center: Center,
  memory: Float[Array | np.ndarray, 'source 2 term'] | None = None,
) -> Factors:
  """The source's side; `memory` is the factors of a former result, which are lost.

  As in the next two functions, numpy's arrays are worked on by numpy, on one core but for products,
  and JAX's by XLA on their device.
  """
  return _factors(sources, center, memory, of_targets=False)


def target_factors(
  targets: Float[Array | np.ndarray, 'target filter bin'], center: Center
) -> Factors:
  """The target's side, made once for a whole search."""
  return _factors(targets, center, None, of_targets=True)


def divergences(targets: Factors, sources: Factors) -> Float[Array | np.ndarray, 'target source']:
  """Eq. 1 between all pairs in nats, but for those that `refine_near_duplicates` has to complete.

  Theirs, too small for the product to tell, have the sign bit set.
  """
  if isinstance(sources.factors, np.ndarray):
    return _divergences_by_numpy(targets, sources)
  return _divergences_by_xla(targets, sources)


def _factors(images, center, memory, of_targets):
  if isinstance(images, np.ndarray):
    return _factors_by_numpy(images, center, memory, of_targets)
  if memory is None:
    memory = jnp.zeros((len(images), 2, center.mean.size), jnp.float32)
  factors = _factors_by_xla(images, center, memory, of_targets)
  return Factors(_self_terms_by_xla(factors, images.shape[2]), factors)


def _factors_by_numpy(images, center, memory, of_targets):
  images = images.reshape(len(images), -1)
  mean, log_mean = center.mean.ravel(), center.log_mean.ravel()
  weights = np.repeat(center.weights, center.mean.shape[1])
  # On a CPU, new pages cost more than the logarithms.
  factors = np.empty((len(images), 2, len(mean)), np.float32) if memory is None else memory
  self_terms = np.empty(len(images), np.float32)
  few = -(-_IN_CACHE // len(mean))
  with np.errstate(divide='ignore', invalid='ignore'):  # The caller looks at the divergences.
    for start in range(0, len(images), few):
      part = slice(start, start + few)
      difference, weighted = factors[part, int(of_targets)], factors[part, 1 - int(of_targets)]
      np.subtract(images[part], mean, out=difference)
      np.log(images[part], out=weighted)
      weighted -= log_mean
      weighted *= weights
      self_terms[part] = np.vecdot(difference, weighted)
  return Factors(self_terms, factors)


def _divergences_by_numpy(targets, sources):
  p, q = (side.factors.reshape(len(side.factors), -1) for side in (targets, sources))
  products = np.matmul(p, q.T)
  with np.errstate(invalid='ignore'):
    d = np.subtract(targets.self_terms[:, None], products, out=products)
    d += sources.self_terms
    # Few targets have anything near: the others need no second look.
    near = ~(d.min(axis=1) >= NEAR * (targets.self_terms + sources.self_terms.max()))
    scale = targets.self_terms[near, None] + sources.self_terms
    d[near] = np.where(d[near] < NEAR * scale, -np.maximum(d[near], 0), d[near])
  return d


# The result goes into memory that is there already: an argument of no other use.
@functools.partial(jax.jit, donate_argnums=2, static_argnums=3, keep_unused=True)
def _factors_by_xla(images, center, memory, of_targets):
  weighted = center.weights[None, :, None] * (jnp.log(images) - center.log_mean[None])
  both = images - center.mean[None], weighted
  both = both[::-1] if of_targets else both
  return jnp.stack([part.reshape(len(images), -1) for part in both], axis=1)


@functools.partial(jax.jit, static_argnums=1)
def _self_terms_by_xla(factors, bins):
  # No product, whose factors a GPU may round to ten bits; shorter sums round less.
  return (factors[:, 0] * factors[:, 1]).reshape(len(factors), -1, bins).sum(axis=2).sum(axis=1)


@jax.jit
def _divergences_by_xla(targets, sources):
  p, q = (side.factors.reshape(len(side.factors), -1) for side in (targets, sources))
  parts = (slice(i, i + _TERMS) for i in range(0, p.shape[1], _TERMS))
  products = sum(jnp.matmul(p[:, part], q[:, part].T, precision='highest') for part in parts)
  scale = targets.self_terms[:, None] + sources.self_terms[None, :]
  d = scale - products
  # Rounding can carry a near-duplicate below zero.
  return jnp.where(d < NEAR * scale, -jnp.maximum(d, 0), d)


def refine_near_duplicates(
  divergences: Float[np.ndarray, 'target source'],
  targets: Float[np.ndarray, 'target filter bin'],
  sources: Float[Array | np.ndarray, '_source filter bin'],
  weights: Float[np.ndarray, ' filter'],
  wanted: Bool[np.ndarray, ' target'],
) -> Float[np.ndarray, 'target source']:
  """The divergences with the pairs too close for the product computed term by term.

  Args:
    divergences: what `divergences` made of `targets` and the first of `sources`.
    wanted: the targets for whom it matters; the others' divergences lose their sign alone.
  """
  near = np.signbit(divergences) & (divergences <= 0)  # NaN has a sign bit too.
  settled, q = np.abs(divergences), np.asarray(sources)
  pairs = np.argwhere(near & wanted[:, None])
  for start in range(0, len(pairs), _CHUNK):
    rows, columns = pairs[start : start + _CHUNK].T
    a, b = targets[rows].astype(np.float64), q[columns].astype(np.float64)
    settled[rows, columns] = symmetric_kl_of_pairs(a, b, weights.astype(np.float64))
  return settled


def symmetric_kl_of_pairs(
  p: Float[np.ndarray, 'pair filter bin'],
  q: Float[np.ndarray, 'pair filter bin'],
  weights: Float[np.ndarray, ' filter'],
) -> Float[np.ndarray, ' pair']:
  """Compute Eq. 1 between p[i] and q[i], as it is written, in nats and the arrays' precision."""
  terms = (p - q) * (np.log(p) - np.log(q))
  return np.asarray(terms.sum(axis=2) @ weights)


def symmetric_kl(
  targets: Float[Array | np.ndarray, 'target filter bin'],
  sources: Float[Array | np.ndarray, 'source filter bin'],
  weights: Float[Array | np.ndarray, ' filter'],
) -> Float[np.ndarray, 'target source']:
  """Symmetric Kullback–Leibler divergence in nats between all pairs (Ge & Yu 2017, Eq. 1).

  Args:
    targets: float32 histograms; every one positive and summing to one. Smoothing is the caller's
      choice (`descriptors.histogram.normalize`), never made here. The product of two JAX arrays is
      made on their device, others by numpy.
    sources: the same for the source images.
    weights: w_h, the weight of each filter's histogram: 1 / (number of filters in its layer).
  """
  p, w = np.asarray(targets), np.asarray(weights)
  around = center(p, w)
  if isinstance(sources, np.ndarray):
    targets = p
  d = divergences(target_factors(targets, around), source_factors(sources, around))
  return refine_near_duplicates(np.asarray(d), p, sources, w, np.ones(len(p), bool))
