"""Depthwise convolution with quick gradients on CPU.

XLA's CPU compiler makes slow loops of a grouped convolution of one channel a group. Here it is a
sum of products with shifted maps, which the compiler makes one loop of, and so is the gradient of
the maps.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(
  x: Float[Array, 'b h w c'], kernel: Float[Array, 'k k 1 c'], stride: int, padding: Padding
) -> Float[Array, 'b h2 w2 c']:
  """Convolve every channel with a kernel of its own; sums are float32.

  Args:
    x: maps.
    kernel: of the same type.
    stride: of both axes.
    padding: pixels of zeros above and below, and at the left and the right.
  """
  return _forward(x, kernel, stride, padding)[0]


def _forward(
  x: Array, kernel: Array, stride: int, padding: Padding
) -> tuple[Array, tuple[Array, Array]]:
  size = kernel.shape[0]
  taps = kernel.astype(jnp.float32).reshape(size * size, 1, 1, 1, -1)
  first, *others = (
    shifted.astype(jnp.float32) * tap
    for shifted, tap in zip(_shifted_maps(x, size, stride, padding), taps, strict=True)
  )
  return sum(others, start=first).astype(x.dtype), (x, kernel)


def _backward(
  stride: int, padding: Padding, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
  x, kernel = residuals
  size = kernel.shape[0]
  # Apart by the stride, padded so that the flipped kernel gives as many pixels as x has.
  spread = [
    (size - 1 - before, side + before - (out - 1) * stride - 1, stride - 1)
    for side, out, (before, _) in zip(x.shape[1:3], gradient.shape[1:3], padding, strict=True)
  ]
  zero = jnp.zeros((), gradient.dtype)
  spaced = jax.lax.pad(gradient, zero, [(0, 0, 0), *spread, (0, 0, 0)])
  x_gradient, _ = _forward(spaced, kernel[::-1, ::-1], 1, ((0, 0), (0, 0)))
  kernel_gradient = jax.lax.platform_dependent(
    x,
    gradient,
    cpu=partial(_sum_rows, size, stride, padding),
    default=partial(_sum_maps, size, stride, padding),
  )
  return x_gradient, kernel_gradient.reshape(kernel.shape).astype(kernel.dtype)


depthwise.defvjp(_forward, _backward)


def _sum_maps(
  size: int, stride: int, padding: Padding, x: Array, gradient: Array
) -> Float[Array, 'k*k c']:
  """Compute the gradient of a kernel."""
  gradient = gradient.astype(jnp.float32)
  return jnp.stack(
    [
      (shifted.astype(jnp.float32) * gradient).sum(axis=(0, 1, 2))
      for shifted in _shifted_maps(x, size, stride, padding)
    ]
  )


def _sum_rows(
  size: int, stride: int, padding: Padding, x: Array, gradient: Array
) -> Float[Array, 'k*k c']:
  """Compute the same row by row: on CPU, sums over whole maps take two to eight times as long."""
  batch, height, width, channels = gradient.shape
  padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))

  def add_row(number: Array, sums: list[Array]) -> list[Array]:
    image, row = number // height, number % height
    out = jax.lax.dynamic_slice(gradient, (image, row, 0, 0), (1, 1, *gradient.shape[2:]))
    rows = jax.lax.dynamic_slice(padded, (image, row * stride, 0, 0), (1, size, *padded.shape[2:]))
    out, rows = out[0].astype(jnp.float32), rows[0].astype(jnp.float32)
    return [
      part + rows[:, j : j + (width - 1) * stride + 1 : stride] * out for j, part in enumerate(sums)
    ]

  # One array for each column of the kernel: one for each of its values compiles in four times the
  # time.
  sums = [jnp.zeros((size, width, channels), jnp.float32)] * size
  sums = jax.lax.fori_loop(0, batch * height, add_row, sums)
  return jnp.stack([part.sum(axis=1) for part in sums], axis=1).reshape(-1, channels)


def _shifted_maps(x: Array, size: int, stride: int, padding: Padding) -> Iterator[Array]:
  """Yield what each value of a kernel is multiplied with, row by row."""
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  height, width = ((side - size) // stride * stride + 1 for side in x.shape[1:3])
  for i in range(size):
    for j in range(size):
      yield x[:, i : i + height : stride, j : j + width : stride]
