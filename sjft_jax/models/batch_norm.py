"""Batch norm over two domains, synchronised over the devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MODES = ('mixed', 'per_domain', 'frozen')


class BatchNorm(nn.Module):
  """Normalises each channel, then scales and shifts it (Ioffe & Szegedy 2015).

  Whose statistics normalise an image of a training micro-batch:

  - 'mixed': those of all its images, of both domains;
  - 'per_domain': those of its images of the same domain;
  - 'frozen': the running ones, which never change.

  A micro-batch is the images of all devices of the mapped axis 'batch', which must exist in
  training unless the mode is 'frozen'; each device holds equally many images. Statistics are taken
  over images, height and width; gradients flow through them. The variance is the biased one (the
  mean squared deviation, in two passes: E[x²] − E[x]² cancels where the mean is large).

  After each micro-batch, running ← momentum · running + (1 − momentum) · current, with the same
  biased variance, as in Flax. PyTorch's (Sync)BatchNorm is the same with 1 − momentum for its
  momentum, but that its running variance gains the *unbiased* n / (n − 1) · current for n pixels a
  channel. Where a micro-batch has images of one domain only, as when a trunk is trained on the
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
    momentum: share of the running statistics that a micro-batch leaves.
    epsilon: added to the variance.
  """

  train: bool
  mode: str = 'mixed'
  momentum: float = 0.999
  epsilon: float = 1e-5

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], is_source: Bool[Array, ' b'] | None = None
  ) -> Float[Array, 'b h w c']:
    """Normalised `x`; `is_source` is only read, and in training required, by 'per_domain'.

    Raises:
      ValueError: training with 'per_domain' and no `is_source`.
    """
    channels = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, channels, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, channels, jnp.float32)
    if self.mode != 'per_domain':
      domains, is_source = [''], None
    else:
      domains = ['', 'source_']
    means = [
      self.variable('batch_stats', f'{d}mean', jnp.zeros, channels, jnp.float32) for d in domains
    ]
    variances = [
      self.variable('batch_stats', f'{d}var', jnp.ones, channels, jnp.float32) for d in domains
    ]

    dtype = x.dtype
    x = x.astype(jnp.float32)
    if not self.train or self.mode == 'frozen':
      mean, var = (_pick([v.value for v in running], is_source) for running in (means, variances))
      x -= mean
    else:
      if self.mode == 'per_domain' and is_source is None:
        raise ValueError("batch_norm='per_domain' trains only with is_source; pass it to apply")
      # Initialisation runs outside the mapped axis, and needs shapes only.
      axis_name = None if self.is_initializing() else 'batch'
      current_means, present = _domain_means(x, is_source, axis_name)
      mean = _pick(current_means, is_source)
      x -= jax.lax.stop_gradient(mean)
      current_variances, _ = _domain_means(jnp.square(x), is_source, axis_name)
      var = _pick(current_variances, is_source)
      if not self.is_initializing():
        for running, current in ((means, current_means), (variances, current_variances)):
          for domain, variable in enumerate(running):
            # The last of the list is the other domain, or the same where there is only one.
            seen = jnp.where(present[domain], current[domain], current[-1 - domain])
            variable.value = self.momentum * variable.value + (1 - self.momentum) * seen
    multiplier = scale.reshape(1, 1, 1, -1) * jax.lax.rsqrt(var + self.epsilon)
    # The mean's gradient goes through this zero, where it shares the bias's sum over the map, and
    # not through every pixel. The variance has none: deviations from the mean sum to zero.
    shift = bias.reshape(1, 1, 1, -1) - (mean - jax.lax.stop_gradient(mean)) * multiplier
    return (x * multiplier + shift).astype(dtype)


def _pick(
  of_domain: list[Float[Array, ' c']], is_source: Bool[Array, ' b'] | None
) -> Float[Array, '_b 1 1 c']:
  """Each image's own: the first of the list without domains, else the target's or the source's."""
  target, *source = (v.reshape(1, 1, 1, -1) for v in of_domain)
  if is_source is None:
    return target
  return jnp.where(is_source.reshape(-1, 1, 1, 1), source[0], target)


def _domain_means(
  x: Float[Array, 'b h w c'], is_source: Bool[Array, ' b'] | None, axis_name: str | None
) -> tuple[list[Float[Array, ' c']], list[Bool[Array, '']]]:
  """Channel means of all images or of each domain's, and whether there are such images."""
  if is_source is None:
    mean = x.mean(axis=(0, 1, 2))
    return [jax.lax.pmean(mean, axis_name) if axis_name else mean], [jnp.array(True)]
  of_image = x.mean(axis=(1, 2))
  means, present = [], []
  for members in (~is_source, is_source):
    # A sum and no product, which a GPU would round to ten bits.
    total = jnp.where(members[:, None], of_image, 0).sum(axis=0)
    count = members.sum()
    if axis_name:
      total, count = jax.lax.psum((total, count), axis_name)
    means.append(total / jnp.maximum(count, 1).astype(jnp.float32))
    present.append(count > 0)
  return means, present
