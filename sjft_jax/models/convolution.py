"""The convolution layer of all trunks."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sjft_jax.models.depthwise import Padding, depthwise

# He et al. 2015, scaled by the fan-out: N(0, 2 / (kernel area × output channels)).
he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class Conv(nn.Module):
  """A square convolution.

  Parameters are float32: 'kernel' `[size, size, channels / groups, features]`, and 'bias'
  `[features]` (zeros at first) with `use_bias`.

  Attributes:
    features: output channels.
    size: pixels a side of the kernel.
    stride: of both axes.
    padding: pixels of zeros on each of the four sides, whatever the stride; or 'same', as in
      TensorFlow: as few as give ⌈side / stride⌉ pixels, the odd one at the end.
    groups: runs of channels that are convolved separately; must divide channels and features.
    use_bias: whether a bias is added.
    dtype: of the products and the output.
    kernel_init: initialiser of the kernel.
  """

  features: int
  size: int
  stride: int = 1
  padding: int | Literal['same'] = 0
  groups: int = 1
  use_bias: bool = False
  dtype: Any = jnp.float32
  kernel_init: nn.initializers.Initializer = he_normal

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 d']:
    """Convolve maps of any float type; the output has `dtype`."""
    shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
    kernel = self.param('kernel', self.kernel_init, shape, jnp.float32).astype(self.dtype)
    x = x.astype(self.dtype)
    if self.groups == x.shape[-1] == self.features > 1:
      out = depthwise(x, kernel, self.stride, self._explicit_padding(x))
    else:
      # Groups are separate convolutions: XLA's CPU gradients of grouped ones take twice the time.
      outputs = [
        self._convolve(group, group_kernel)
        for group, group_kernel in zip(
          jnp.split(x, self.groups, axis=-1), jnp.split(kernel, self.groups, axis=-1), strict=True
        )
      ]
      out = outputs[0] if self.groups == 1 else jnp.concatenate(outputs, axis=-1)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
      out += bias.astype(self.dtype).reshape(1, 1, 1, -1)
    return out

  def _convolve(
    self, x: Float[Array, 'b h w c'], kernel: Float[Array, 'k k c d']
  ) -> Float[Array, 'b h2 w2 d']:
    # Convolutions that are matrix products are written as such: XLA's CPU gradients take a third of
    # the time or less.
    if self.padding == 0 and self.size == 1:
      x = x[:, :: self.stride, :: self.stride]
      # The pixels lie in one axis: on CPU, products of four axes take a quarter longer.
      return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:3], -1)
    if self.padding == 0 and x.shape[1:3] == (self.size, self.size):
      return jnp.tensordot(x, kernel, axes=3)[:, None, None]
    if self.padding == 0 and self.size == self.stride:
      return self._convolve_patches(x, kernel)
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      window_strides=(self.stride, self.stride),
      padding=self._explicit_padding(x),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  def _convolve_patches(
    self, x: Float[Array, 'b h w c'], kernel: Float[Array, 'k k c d']
  ) -> Float[Array, 'b h2 w2 d']:
    """Convolve patches that do not overlap; pixels beyond the last whole patch do not count."""
    batch, height, width = x.shape[0], x.shape[1] // self.size, x.shape[2] // self.size
    x = x[:, : height * self.size, : width * self.size]
    x = x.reshape(batch, height, self.size, width, self.size, -1).transpose(0, 1, 3, 2, 4, 5)
    flat_kernel = kernel.reshape(-1, kernel.shape[-1])
    return (x.reshape(-1, flat_kernel.shape[0]) @ flat_kernel).reshape(batch, height, width, -1)

  def _explicit_padding(self, x: Float[Array, 'b h w c']) -> Padding:
    """Return the pixels of zeros before and after each axis of the map."""
    if self.padding != 'same':
      return ((self.padding, self.padding),) * 2
    height, width = (
      max((-(-side // self.stride) - 1) * self.stride + self.size - side, 0)
      for side in x.shape[1:3]
    )
    return (height // 2, height - height // 2), (width // 2, width - width // 2)
