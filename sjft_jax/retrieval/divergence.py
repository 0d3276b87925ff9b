"""Symmetric Kullback–Leibler divergence of descriptors (Ge & Yu 2017, Eq. 1) by matrix products.

With p a target's and q a source's histograms, one histogram h per filter,

  d(p, q) = Σ_h w_h Σ_b (p − q)(log p − log q)
          = a(p) + a(q) − [w·p | w·log p] · [log q | q]ᵀ,   a(p) = Σ_h w_h Σ_b p log p,

so all pairs cost two row sums and one product: the (target, source, bin) cube is never built. The
value does not change when the same constant is subtracted from p and q, or from log p and log q.
Subtracting the targets' means makes both factors small, and the cancellation in float32 with them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class TargetFactors(NamedTuple):
  """The target's side of Eq. 1, computed once for a whole search."""

  mean: Float[Array, 'filter bin']
  mean_log: Float[Array, 'filter bin']
  weights: Float[Array, 'filter']
  self_terms: Float[Array, 'target']
  factor: Float[Array, 'target two_filter_bin']


def _self_terms(
  p: Float[Array, 'image filter bin'],
  log_p: Float[Array, 'image filter bin'],
  weights: Float[Array, 'filter'],
) -> Float[Array, 'image']:
  return jax.vmap(lambda p, log_p: jnp.vdot(weights, jnp.sum(p * log_p, axis=-1)))(p, log_p)


def _side_by_side(
  left: Float[Array, 'image filter bin'], right: Float[Array, 'image filter bin']
) -> Float[Array, 'image two_filter_bin']:
  return jnp.concatenate([left, right], axis=-1).reshape(len(left), -1)


@jax.jit
def target_factors(
  targets: Float[Array, 'target filter bin'], weights: Float[Array, 'filter']
) -> TargetFactors:
  """Centres the targets and lays them out for the product with any block of sources."""
  log_targets = jnp.log(targets)
  mean, mean_log = targets.mean(axis=0), log_targets.mean(axis=0)
  p, log_p = targets - mean[None], log_targets - mean_log[None]
  w = weights[None, :, None]
  return TargetFactors(
    mean, mean_log, weights, _self_terms(p, log_p, weights), _side_by_side(w * p, w * log_p)
  )


@jax.jit
def divergences_to(
  targets: TargetFactors, sources: Float[Array, 'source filter bin']
) -> Float[Array, 'target source']:
  """Eq. 1 between every target and every source of a block, in nats. Never negative."""
  q, log_q = sources - targets.mean[None], jnp.log(sources) - targets.mean_log[None]
  product = jnp.matmul(targets.factor, _side_by_side(log_q, q).T, precision='highest')
  self_terms = _self_terms(q, log_q, targets.weights)
  divergence = targets.self_terms[:, None] + self_terms[None, :] - product
  # Rounding can carry a near-duplicate just below zero. NaN stays NaN, for rank to report.
  return jnp.where(divergence <= 0, 0.0, divergence)


def symmetric_kl(
  targets: Float[Array, 'target filter bin'],
  sources: Float[Array, 'source filter bin'],
  weights: Float[Array, 'filter'],
) -> Float[Array, 'target source']:
  """Symmetric Kullback–Leibler divergence in nats between all pairs (Ge & Yu 2017, Eq. 1).

  Args:
    targets: histograms; every one positive and summing to one. Smoothing is the caller's choice
      (`descriptors.histogram.normalize`), never made here.
    sources: the same for the source images.
    weights: w_h, the weight of each filter's histogram: 1 / (number of filters in its layer).
  """
  return divergences_to(target_factors(targets, weights), sources)
