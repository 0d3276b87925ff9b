"""Batch normalisation over two domains, synchronised over the devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MODES = ('mixed', 'per_domain', 'frozen')


class BatchNorm(nn.Module):
  """Normalise each channel, then scale and shift it (Ioffe & Szegedy 2015).

  The mode decides whose statistics normalise an image of a training micro-batch:

  - 'mixed': those of all its images, of both domains;
  - 'per_domain': those of its images of the same domain;
  - 'frozen': the running ones, which never change.

  A micro-batch is the images of all devices of the mapped axis 'batch', which must exist in
  training unless the mode is 'frozen'; each device holds equally many images. Statistics are taken
  over images, height and width; gradients flow through them. The variance is the biased one (the
  mean squared deviation, in two passes: E[x²] − E[x]² cancels where the mean is large).

  After each micro-batch, running ← momentum · running + (1 − momentum) · current, with the same
  biased variance, as in Flax. PyTorch's (Sync)BatchNorm is the same with 1 − momentum for its
  momentum, except that its running variance gains the *unbiased* n / (n − 1) · current for n pixels
  a channel. Where a micro-batch has images of one domain only, as when a trunk is trained on the
  source first, the other domain's running statistics follow these.

  In evaluation the running statistics normalise: with 'per_domain' the target's, or, where
  `is_source` is given, those of each image's own domain.

  Variables: params 'scale' and 'bias' `[c]`, shared by the domains and trained in every mode;
  batch_stats 'mean' and 'var' `[c]`, with 'per_domain' the target's, and the source's beside them
  as 'source_mean' and 'source_var'. All are float32, and so is the arithmetic; the output has the
  input's dtype.

  Attributes:
    train: whether this is a training pass.
    mode: one of `MODES`.
    momentum: share of the running statistics that remains after a micro-batch.
    epsilon: added to the variance.
  """

  train: bool
  mode: str = 'mixed'
  momentum: float = 0.999
  epsilon: float = 1e-5

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b h w c'],
    is_source: Bool[Array, ' b'] | None = None,
    is_frozen: bool = False,
  ) -> Float[Array, 'b h w c']:
    """Normalise `x`.

    Args:
      x: maps of any float type.
      is_source: the domain of each image; only 'per_domain' uses it, and needs it in training.
      is_frozen: normalise as in evaluation, whatever the attributes say.

    Raises:
      ValueError: training with 'per_domain' and no `is_source`.
    """
    channels = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, channels, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, channels, jnp.float32)
    if self.mode == 'per_domain':
      prefixes = ['', 'source_']
    else:
      prefixes, is_source = [''], None
    running_means = [
      self.variable('batch_stats', f'{prefix}mean', jnp.zeros, channels, jnp.float32)
      for prefix in prefixes
    ]
    running_variances = [
      self.variable('batch_stats', f'{prefix}var', jnp.ones, channels, jnp.float32)
      for prefix in prefixes
    ]

    dtype = x.dtype
    x = x.astype(jnp.float32)
    if not self.train or self.mode == 'frozen' or is_frozen:
      mean = _select([running.value for running in running_means], is_source)
      var = _select([running.value for running in running_variances], is_source)
      x -= mean
    else:
      if self.mode == 'per_domain' and is_source is None:
        raise ValueError("batch_norm='per_domain' trains only with is_source; pass it to apply")
      # Initialisation runs outside the mapped axis, and needs shapes only.
      axis_name = None if self.is_initializing() else 'batch'
      means, has_images = _domain_means(x, is_source, axis_name)
      mean = _select(means, is_source)
      x -= jax.lax.stop_gradient(mean)
      variances, _ = _domain_means(jnp.square(x), is_source, axis_name)
      var = _select(variances, is_source)
      if not self.is_initializing():
        self._update(running_means, means, has_images)
        self._update(running_variances, variances, has_images)
    multiplier = scale.reshape(1, 1, 1, -1) * jax.lax.rsqrt(var + self.epsilon)
    # The difference is a term of value zero that routes the mean's gradient: here it shares the
    # bias's sum over the map, and does not pass through every pixel. The variance gives the mean no
    # gradient, since deviations from the mean sum to zero.
    shift = bias.reshape(1, 1, 1, -1) - (mean - jax.lax.stop_gradient(mean)) * multiplier
    return (x * multiplier + shift).astype(dtype)

  def _update(
    self,
    running: list[nn.Variable],
    current: list[Float[Array, ' c']],
    has_images: list[Bool[Array, '']],
  ) -> None:
    """Move each domain's running statistic towards that of the micro-batch."""
    for domain, variable in enumerate(running):
      # The last of the list is the other domain's, or the same where there is only one.
      statistic = jnp.where(has_images[domain], current[domain], current[-1 - domain])
      variable.value = self.momentum * variable.value + (1 - self.momentum) * statistic


def _select(
  statistics: list[Float[Array, ' c']], is_source: Bool[Array, ' b'] | None
) -> Float[Array, '_b 1 1 c']:
  """Return each image's statistic: the first without `is_source`, else that of its domain."""
  target, *source = (v.reshape(1, 1, 1, -1) for v in statistics)
  if is_source is None:
    return target
  return jnp.where(is_source.reshape(-1, 1, 1, 1), source[0], target)


def _domain_means(
  x: Float[Array, 'b h w c'], is_source: Bool[Array, ' b'] | None, axis_name: str | None
) -> tuple[list[Float[Array, ' c']], list[Bool[Array, '']]]:
  """Compute channel means over all images or each domain's, and whether there are such images."""
  if is_source is None:
    mean = x.mean(axis=(0, 1, 2))
    return [jax.lax.pmean(mean, axis_name) if axis_name else mean], [jnp.array(True)]
  image_means = x.mean(axis=(1, 2))
  means, has_images = [], []
  for members in (~is_source, is_source):
    # A sum and not a matrix product, which a GPU would round to ten bits.
    total = jnp.where(members[:, None], image_means, 0).sum(axis=0)
    count = members.sum()
    if axis_name:
      total, count = jax.lax.psum((total, count), axis_name)
    means.append(total / jnp.maximum(count, 1).astype(jnp.float32))
    has_images.append(count > 0)
  return means, has_images
