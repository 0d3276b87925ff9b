"""How fast the layers of a ResNet are, forward and gradients, against PyTorch's.

  python -m experiments.bench_layers --batch=8 [--repeats=9]

Each layer three times: ours as `sjft_jax.runtime.compilation` has it compiled, ours as XLA compiles
by itself, and PyTorch's (channels last); milliseconds, medians over turns in one process, and the
median of each turn's ratio. Two more rows show what was not taken: XLA's own 1×1 convolution and
max-pool. It needs the extra `reference`.
"""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from flax import linen as nn
from torch.nn import functional

from experiments.turns import in_turns, ratio
from sjft_jax.models.batch_norm import BatchNorm
from sjft_jax.models.convolution import Conv
from sjft_jax.models.pooling import max_pool
from sjft_jax.runtime import compilation, launch

BATCH = flags.DEFINE_integer('batch', 8, 'Images.')
REPEATS = flags.DEFINE_integer('repeats', 9, 'Turns of each.')


def conv(channels, features, size, stride=1):
  layer = Conv(features, size, stride, padding=size // 2)
  theirs = torch.nn.Conv2d(channels, features, size, stride, size // 2, bias=False)
  return layer.apply, layer.init, theirs


def xla_conv(channels, features, size):
  layer = nn.Conv(features, (size, size), use_bias=False)
  return layer.apply, layer.init, torch.nn.Conv2d(channels, features, size, bias=False)


def norm(channels):
  layer = BatchNorm(True)

  def apply(variables, x):
    # A mapped axis of one, for the synchronisation.
    mapped = jax.vmap(
      lambda x: layer.apply(variables, x, mutable=['batch_stats'])[0], axis_name='batch'
    )
    return nn.relu(mapped(x[None])[0])

  return apply, layer.init, torch.nn.Sequential(torch.nn.BatchNorm2d(channels), torch.nn.ReLU())


def pool(function):
  def theirs(x):
    return functional.max_pool2d(x, 3, 2, 1)

  return lambda _, x: function(x), lambda *_: {}, theirs


def xla_pool(x):
  return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


# Name: the side and channels of the map that it reads, and the layer.
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


def contenders(side, channels, layer):
  apply, init, theirs = layer
  random = np.random.default_rng(0)
  x = random.standard_normal((BATCH.value, side, side, channels), np.float32)
  variables = jax.device_get(init(jax.random.key(0), jnp.asarray(x)))
  is_first = channels == 3  # Images need no gradient.

  def both(variables, x, g):
    if is_first:
      y, gradient = jax.vjp(lambda variables: apply(variables, x), variables)
    else:
      y, gradient = jax.vjp(apply, variables, x)
    return y, gradient(g)

  shape = jax.eval_shape(apply, variables, x).shape
  g = random.standard_normal(shape, np.float32)
  arguments = jax.device_put((variables, x, g))
  lowered = jax.jit(both).lower(*arguments)
  programs = {'ours': compilation.compile_lowered(lowered), 'XLA by itself': lowered.compile()}

  def channels_last(a):
    tensor = torch.from_numpy(a.transpose(0, 3, 1, 2).copy())
    return tensor.contiguous(memory_format=torch.channels_last)

  if isinstance(theirs, torch.nn.Module):
    theirs.to(memory_format=torch.channels_last)
  tensor, upstream = channels_last(x).requires_grad_(not is_first), channels_last(g)

  def run_torch():
    tensor.grad = None
    theirs(tensor).backward(upstream)

  works = {
    name: lambda program=program: jax.block_until_ready(program(*arguments))
    for name, program in programs.items()
  }
  return works | {'PyTorch': run_torch}


def main(argv):
  del argv
  print(f'{"":38}{"ours":>8}{"XLA":>8}{"PyTorch":>9}{"speed":>7}')
  for name, of_layer in LAYERS.items():
    times = in_turns(contenders(*of_layer), REPEATS.value)
    ours, plain, rival = (1e3 * statistics.median(took) for took in times.values())
    speed = ratio([times['PyTorch']], times['ours'])
    print(f'{name:38}{ours:8.1f}{plain:8.1f}{rival:9.1f}{speed:7.2f}', flush=True)


if __name__ == '__main__':
  launch.reexec_with_huge_pages()  # As the commands do; PyTorch profits too.
  app.run(main)
