"""Measure how fast the layers of a ResNet are, forward and gradients, against PyTorch's.

  python -m experiments.bench_layers --batch=8 [--repeats=9]

Each layer three times: ours as `sjft_jax.runtime.compilation` has it compiled, ours as XLA compiles
it by itself, and PyTorch's (channels last); milliseconds, medians over turns in one process, and
the median of each turn's ratio. Two more rows show what was not taken: XLA's own 1×1 convolution
and max-pool. It needs the extra `reference`.
"""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from flax import linen as nn
from torch.nn import functional

from experiments.timing import Work, race, speedup
from sjft_jax.models.batch_norm import BatchNorm
from sjft_jax.models.convolution import Conv
from sjft_jax.models.pooling import max_pool
from sjft_jax.runtime import compilation, launch

BATCH = flags.DEFINE_integer('batch', 8, 'Images.')
REPEATS = flags.DEFINE_integer('repeats', 9, 'Turns of each.')


class Layer(NamedTuple):
  """A layer: `apply(variables, images)` and `init(key, images)`, and the same in PyTorch."""

  apply: Callable[..., Any]
  init: Callable[..., Any]
  in_torch: Callable[..., torch.Tensor]


def conv(channels: int, features: int, size: int, stride: int = 1) -> Layer:
  layer = Conv(features, size, stride, padding=size // 2)
  in_torch = torch.nn.Conv2d(channels, features, size, stride, size // 2, bias=False)
  return Layer(layer.apply, layer.init, in_torch)


def xla_conv(channels: int, features: int, size: int) -> Layer:
  layer = nn.Conv(features, (size, size), use_bias=False)
  return Layer(layer.apply, layer.init, torch.nn.Conv2d(channels, features, size, bias=False))


def norm(channels: int) -> Layer:
  layer = BatchNorm(True)

  def apply(variables, x):
    # A mapped axis of one, for the synchronisation.
    mapped = jax.vmap(
      lambda x: layer.apply(variables, x, mutable=['batch_stats'])[0], axis_name='batch'
    )
    return nn.relu(mapped(x[None])[0])

  in_torch = torch.nn.Sequential(torch.nn.BatchNorm2d(channels), torch.nn.ReLU())
  return Layer(apply, layer.init, in_torch)


def pool(function: Callable[[jax.Array], jax.Array]) -> Layer:
  return Layer(lambda _, x: function(x), lambda *_: {}, lambda x: functional.max_pool2d(x, 3, 2, 1))


def xla_pool(x: jax.Array) -> jax.Array:
  return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


# By name: the side and channels of the map that the layer reads, and the layer.
LAYERS = {
  '7×7/2, 224² × 3 → 64': (224, 3, conv(3, 64, 7, 2)),
  '3×3, 56² × 64': (56, 64, conv(64, 64, 3)),
  '3×3, 28² × 128': (28, 128, conv(128, 128, 3)),
  '3×3, 14² × 256': (14, 256, conv(256, 256, 3)),
  '3×3, 7² × 512': (7, 512, conv(512, 512, 3)),
  '3×3/2, 28² × 256': (28, 256, conv(256, 256, 3, 2)),
  '1×1, 56² × 64 → 256': (56, 64, conv(64, 256, 1)),
  '1×1, 56² × 64 → 256, XLA convolution': (56, 64, xla_conv(64, 256, 1)),
  '1×1, 14² × 1024 → 256': (14, 1024, conv(1024, 256, 1)),
  '1×1, 14² × 256 → 1024': (14, 256, conv(256, 1024, 1)),
  '1×1, 7² × 2048 → 512': (7, 2048, conv(2048, 512, 1)),
  'norm, ReLU, 56² × 256': (56, 256, norm(256)),
  'norm, ReLU, 14² × 256': (14, 256, norm(256)),
  'norm, ReLU, 14² × 1024': (14, 1024, norm(1024)),
  'max-pool 3×3/2, 112² × 64': (112, 64, pool(lambda x: max_pool(x, 3, 'padded'))),
  'max-pool 3×3/2, 112² × 64, XLA': (112, 64, pool(xla_pool)),
}


def make_contenders(side: int, channels: int, layer: Layer) -> dict[str, Work]:
  """Return the forward and backward pass of a layer, as ours, as XLA's and as PyTorch's."""
  random = np.random.default_rng(0)
  x = random.standard_normal((BATCH.value, side, side, channels), np.float32)
  variables = jax.device_get(layer.init(jax.random.key(0), jnp.asarray(x)))
  is_first = channels == 3  # Images need no gradient.

  def forward_and_backward(variables, x, g):
    if is_first:
      y, gradient = jax.vjp(lambda variables: layer.apply(variables, x), variables)
    else:
      y, gradient = jax.vjp(layer.apply, variables, x)
    return y, gradient(g)

  shape = jax.eval_shape(layer.apply, variables, x).shape
  g = random.standard_normal(shape, np.float32)
  arguments = jax.device_put((variables, x, g))
  lowered = jax.jit(forward_and_backward).lower(*arguments)
  ours, plain = compilation.compile_lowered(lowered), lowered.compile()

  def channels_last(array):
    tensor = torch.from_numpy(array.transpose(0, 3, 1, 2).copy())
    return tensor.contiguous(memory_format=torch.channels_last)

  if isinstance(layer.in_torch, torch.nn.Module):
    layer.in_torch.to(memory_format=torch.channels_last)
  tensor, upstream = channels_last(x).requires_grad_(not is_first), channels_last(g)

  def run_torch():
    tensor.grad = None
    layer.in_torch(tensor).backward(upstream)

  return {
    'ours': lambda: ours(*arguments),
    'XLA by itself': lambda: plain(*arguments),
    'PyTorch': run_torch,
  }


def main(_: object) -> None:
  print(f'{"":38}{"ours":>8}{"XLA":>8}{"PyTorch":>9}{"speed":>7}')
  for name, layer in LAYERS.items():
    seconds = race(make_contenders(*layer), REPEATS.value)
    ours, plain, in_torch = (1e3 * statistics.median(turns) for turns in seconds.values())
    speed = speedup([seconds['PyTorch']], seconds['ours'])
    print(f'{name:38}{ours:8.1f}{plain:8.1f}{in_torch:9.1f}{speed:7.2f}', flush=True)


if __name__ == '__main__':
  launch.reexec_with_huge_pages()  # As the commands do; PyTorch profits too.
  app.run(main)
