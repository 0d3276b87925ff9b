"""The joint loss: each image counts in its own domain's cross-entropy only."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int32


@dataclass(frozen=True, kw_only=True)
class LossOptions:
  """The section `loss` of the configuration.

  Attributes:
    target_weight: of the mean cross-entropy of a step's target images.
    source_weight: of that of its source images.
    label_smoothing: share of a label that is spread over all classes, in both domains.
  """

  target_weight: float
  source_weight: float
  label_smoothing: float = 0.0


def cross_entropy_sum(
  logits: Float[Array, 'image classes'],
  labels: Int32[Array, ' image'],
  mask: Bool[Array, ' image'],
  smoothing: float = 0.0,
) -> Float[Array, '']:
  """Sum of the cross-entropies in nats of the images where `mask` is true.

  Labels elsewhere may be anything: they belong to the other domain's label space. `smoothing` is
  the share of a label that is spread evenly over all classes (Szegedy et al. 2016, Section 7).
  """
  labels = jnp.where(mask, labels, 0)
  if smoothing:
    smooth = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[1]), smoothing)
    losses = optax.softmax_cross_entropy(logits, smooth)
  else:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return jnp.sum(losses, where=mask)


def sigmoid_cross_entropy_sum(
  logits: Float[Array, 'image classes'],
  multi_hot: Bool[Array, 'image classes'],
  mask: Bool[Array, ' image'],
  smoothing: float = 0.0,
) -> Float[Array, '']:
  """Sum over the images where `mask` is true of −log p of which classes each shows, in nats.

  The classes are independent, each with the probability sigmoid(logit). `smoothing` is the share
  of each class's label that is spread evenly over multi_hot and not multi_hot, as in Keras.
  """
  if smoothing:
    multi_hot = (1 - smoothing) * multi_hot.astype(logits.dtype) + smoothing / 2
  losses = optax.sigmoid_binary_cross_entropy(logits, multi_hot).sum(axis=1)
  return jnp.sum(losses, where=mask)


def joint_loss(
  logits: dict[str, Float[Array, 'image classes']],
  labels: Int32[Array, ' image'],
  is_source: Bool[Array, ' image'],
  multi_hot: Bool[Array, 'image source_classes'] | None = None,
  *,
  num_target: Int32[Array, ''],
  num_source: Int32[Array, ''],
  options: LossOptions,
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """This part of a step's share of its loss, and the unweighted loss sums of its two domains.

  A step's loss is target_weight × the mean cross-entropy of its target images + source_weight ×
  that of its source images (Ge & Yu 2017, Section 3.1, with the released code's weights). The
  means are over the whole step: `num_target` and `num_source` count the images of all its devices
  and micro-batches, so that shares add up to the loss however the images are spread. A domain
  without images contributes exactly zero. With `multi_hot`, the classes in each image of a multi-label
  source, the source's loss is the sigmoid cross-entropy. Labels of both domains are smoothed alike.
  """
  sums = {
    'target': cross_entropy_sum(logits['target'], labels, ~is_source, options.label_smoothing),
    'source': cross_entropy_sum(logits['source'], labels, is_source, options.label_smoothing)
    if multi_hot is None
    else sigmoid_cross_entropy_sum(logits['source'], multi_hot, is_source, options.label_smoothing),
  }
  target_mean = sums['target'] / jnp.maximum(num_target, 1).astype(jnp.float32)
  source_mean = sums['source'] / jnp.maximum(num_source, 1).astype(jnp.float32)
  return options.target_weight * target_mean + options.source_weight * source_mean, sums
