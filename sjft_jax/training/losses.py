"""The joint loss: each image counts in the cross-entropy of its own domain only."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int32


@dataclass(frozen=True, kw_only=True)
class LossOptions:
  """The section `loss` of the configuration.

  Attributes:
    target_weight: weight of the mean cross-entropy of a step's target images.
    source_weight: weight of the mean cross-entropy of its source images.
    label_smoothing: share of a label that is spread over all classes, in both domains.
  """

  target_weight: float
  source_weight: float
  label_smoothing: float = 0.0


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
  """Compute this micro-batch's contribution to the joint loss of a step.

  The joint loss is target_weight × the mean cross-entropy of the step's target images +
  source_weight × that of its source images (Ge & Yu 2017, Section 3.1, with the weights of the
  released code). The means are over the whole step, so contributions add up to the loss however
  images are spread over devices and micro-batches. A domain without images contributes exactly 0.

  Args:
    logits: outputs of both heads, 'target' and 'source', for every image.
    labels: class of each image in the label space of its own domain.
    is_source: whether an image is of the source.
    multi_hot: the classes in each image of a multi-label source, whose loss is then the sigmoid
      cross-entropy; None: the source has one label an image.
    num_target: target images in the whole step, on all devices and in all micro-batches.
    num_source: source images in the whole step.
    options: weights and label smoothing.

  Returns:
    The contribution, in nats, and the unweighted sums of the losses by domain.
  """
  target_sum = cross_entropy_sum(logits['target'], labels, ~is_source, options.label_smoothing)
  if multi_hot is None:
    source_sum = cross_entropy_sum(logits['source'], labels, is_source, options.label_smoothing)
  else:
    source_sum = sigmoid_cross_entropy_sum(
      logits['source'], multi_hot, is_source, options.label_smoothing
    )
  target_mean = target_sum / jnp.maximum(num_target, 1).astype(jnp.float32)
  source_mean = source_sum / jnp.maximum(num_source, 1).astype(jnp.float32)
  loss = options.target_weight * target_mean + options.source_weight * source_mean
  return loss, {'target': target_sum, 'source': source_sum}


def cross_entropy_sum(
  logits: Float[Array, 'image classes'],
  labels: Int32[Array, ' image'],
  mask: Bool[Array, ' image'],
  smoothing: float = 0.0,
) -> Float[Array, '']:
  """Sum the cross-entropies, in nats, of the images where `mask` is true.

  Args:
    logits: outputs of one head.
    labels: classes; any number where `mask` is false, for those are of the other domain.
    mask: which images count.
    smoothing: share of a label that is spread evenly over all classes (Szegedy et al. 2016,
      Section 7).
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
  """Sum −log p(classes of an image), in nats, over the images where `mask` is true.

  The classes are independent, each with the probability sigmoid(logit).

  Args:
    logits: outputs of one head.
    multi_hot: the classes in each image.
    mask: which images count.
    smoothing: share of each class's label that is spread evenly over present and absent, as in
      Keras.
  """
  if smoothing:
    multi_hot = (1 - smoothing) * multi_hot.astype(logits.dtype) + smoothing / 2
  losses = optax.sigmoid_binary_cross_entropy(logits, multi_hot).sum(axis=1)
  return jnp.sum(losses, where=mask)
