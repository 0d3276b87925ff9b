"""How fast the joint training step is, against the same step in PyTorch.

  python -m experiments.bench_train_step                          # ResNet-152 v2 at 224 pixels
  python -m experiments.bench_train_step --network=alexnet --size=64 --batch=32   # the demo's
  python -m experiments.bench_train_step --dtype=bfloat16 [--json] [--compile]

A step is forward, backward and update of a network with two heads, on `batch` images of which half
are the source's: SGD with momentum and weight decay, batch norm over all images. PyTorch runs
timm's resnetv2 (channels last), or torchvision's AlexNet up to conv5, with the same losses; with
--compile, its step under torch.compile as well, and the faster of the two counts. Both take turns
in one process, and every turn times steps for half a second after a first one, as in a training,
where one step follows the other; figures are medians over the turns, ratios medians of each turn's
ratio, since other tenants slow the machine for seconds at a time.

- images_per_second; speedup_vs_torch: PyTorch's time over ours.
- speedup_vs_plain: the time of the same step compiled without `sjft_jax.runtime.compilation` over
  ours.
- fraction_of_peak: multiplications and additions, three times those of a forward pass (by XLA's
  count of it), over those of a square product in the same precision, numpy's or JAX's, whichever
  is the faster.
- compile_seconds: of the first call, and of one with what the user's cache keeps from before.
- memory_mib: what XLA plans for the step, parameters and optimizer included.
- peak_memory_mib, torch_peak_memory_mib: on a CPU, most resident memory of a process of its own
  during its second step, libraries and what came before included; ours was compiled before.

Needs the extra `reference`.
"""

import os
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments import peak_memory
from experiments.turns import in_turns, ratio, show
from sjft_jax import config
from sjft_jax.models import joint, trunk
from sjft_jax.runtime import compilation, launch
from sjft_jax.training import optimizer, step
from tests.models import torch_reference

NETWORK = flags.DEFINE_string('network', 'resnet152v2', 'A ResNet v2, or alexnet.')
SIZE = flags.DEFINE_integer('size', 224, 'Pixels a side.')
BATCH = flags.DEFINE_integer('batch', 8, "Images a step, half of them the source's.")
DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of the activations.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Turns of each.')
COMPILE = flags.DEFINE_bool('compile', False, 'Let PyTorch compile its step too.')
MEMORY_OF = flags.DEFINE_enum(
  'memory_of', None, ['ours', 'torch'], 'Only: make a step, print the peak in MiB.'
)
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object and nothing else.')
CLASSES = {'target': 100, 'source': 1000}


def batch():
  rng = np.random.default_rng(0)
  is_source = np.arange(BATCH.value) % 2 == 1
  return {
    'image': rng.integers(0, 256, (BATCH.value, SIZE.value, SIZE.value, 3), np.uint8),
    'label': rng.integers(0, CLASSES['target'], BATCH.value).astype(np.int32),
    'is_source': is_source,
  }


class Ours:
  """The step of this package; `plain`: compiled as XLA does it by itself."""

  def __init__(self, *, plain=False):
    network = joint.Joint(
      trunk.build_trunk(name=NETWORK.value, fully_connected=False, dtype=DTYPE.value),
      CLASSES['target'],
      CLASSES['source'],
    )
    variables = joint.init(network, jax.random.key(0), SIZE.value)
    options = config.default()
    options.solver.update(learning_rate=1e-3, momentum_style='torch')
    solver = optimizer.sgd(options.training.steps, **options.solver)
    mapped = step.make_train_step(network.apply, solver, 0, **options.loss).mapped
    self.state = step.replicate(step.create_state(**variables, optimizer=solver), 1)
    self.batch = step.shard_batch(batch(), accumulation=1, num_devices=1)
    lowered = mapped.lower(self.state, self.batch)
    images = self.batch['image'][0, 0]
    self.flops = 3 * jax.jit(network.apply).lower(variables, images).cost_analysis()['flops']
    begun = time.perf_counter()
    self.program = lowered.compile() if plain else compilation.compile_lowered(lowered)
    self.compile_seconds = time.perf_counter() - begun
    planned = self.program.memory_analysis()
    self.memory = (planned.argument_size_in_bytes + planned.temp_size_in_bytes) / 2**20

  def __call__(self):
    self.state, metrics = self.program(self.state, self.batch)
    jax.block_until_ready((self.state, metrics))


class PyTorch:
  """The same in PyTorch, channels last."""

  def __init__(self, *, compiled):
    import torch
    from torch.nn import functional

    if NETWORK.value == 'alexnet':
      features = torch_reference.torchvision().models.alexnet().features[:-1]
      body, width = torch.nn.Sequential(features, torch.nn.AdaptiveAvgPool2d(1)), 256
      body.append(torch.nn.Flatten())
    else:
      name = NETWORK.value.replace('resnet', 'resnetv2_').removesuffix('v2')
      body = torch_reference.timm().create_model(name, num_classes=0)
      width = body.num_features
    heads = {domain: torch.nn.Linear(width, n) for domain, n in CLASSES.items()}
    network = torch.nn.ModuleDict({'body': body, **heads}).to(memory_format=torch.channels_last)
    network.train()
    solver = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)
    data = batch()
    images = torch.from_numpy(data['image']).permute(0, 3, 1, 2)
    labels = torch.from_numpy(data['label']).long()
    masks = {'target': ~data['is_source'], 'source': data['is_source']}
    masks = {domain: torch.from_numpy(mask) for domain, mask in masks.items()}
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)

    def loss():
      x = ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
      with torch.autocast('cpu', torch.bfloat16, enabled=DTYPE.value == 'bfloat16'):
        x = network['body'](x)
      x = x.float()
      return sum(
        0.5 * functional.cross_entropy(network[domain](x[mask]), labels[mask])
        for domain, mask in masks.items()
      )

    self.loss = torch.compile(loss) if compiled else loss
    self.solver = solver

  def __call__(self):
    self.solver.zero_grad()
    self.loss().backward()
    self.solver.step()


def products():
  """A square product by name, and the multiplications and additions of each."""
  side = 4096
  x = jnp.ones((side, side), DTYPE.value)
  program = compilation.compile_lowered(jax.jit(lambda x: x @ x).lower(x))
  works = {'product': lambda: jax.block_until_ready(program(x))}
  if DTYPE.value == 'float32':
    array = np.ones((side, side), np.float32)
    works['product by numpy'] = lambda: array @ array
  return works, 2 * side**3


def print_peak_memory():
  work = Ours() if MEMORY_OF.value == 'ours' else PyTorch(compiled=False)
  work()
  peak_memory.forget()
  work()
  print(peak_memory.since_forgotten())


def peaks():
  if jax.default_backend() != 'cpu':
    return {}
  flags = {f.name: f.value for f in (NETWORK, SIZE, BATCH, DTYPE)}
  return {
    key: peak_memory.of_process('experiments.bench_train_step', flags | {'memory_of': whose})
    for key, whose in (('peak_memory_mib', 'ours'), ('torch_peak_memory_mib', 'torch'))
  }


def main(argv):
  del argv
  if MEMORY_OF.value:
    return print_peak_memory()
  with tempfile.TemporaryDirectory() as cache:
    jax.config.update('jax_compilation_cache_dir', cache)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = cache  # For `peaks`.
    report(*measure())


def measure():
  contenders = {'ours': Ours()}
  jax.clear_caches()
  again = Ours().compile_seconds
  contenders['plain'] = Ours(plain=True)
  contenders['torch'] = PyTorch(compiled=False)
  if COMPILE.value:
    contenders['torch compiled'] = PyTorch(compiled=True)
  squares, product_flops = products()
  contenders |= squares
  times = in_turns(contenders, REPEATS.value, warm=True, at_least=0.5)
  return contenders['ours'], again, times, product_flops


def report(ours, again, times, product_flops):
  def speed(kind):
    return ratio([took for name, took in times.items() if kind in name], times['ours'])

  median = {name: statistics.median(took) for name, took in times.items()}
  result = {
    'network': NETWORK.value,
    'size': SIZE.value,
    'batch': BATCH.value,
    'dtype': DTYPE.value,
    'device': f'{jax.devices()[0].device_kind}, jax {jax.__version__}',
    'images_per_second': BATCH.value / median['ours'],
    'torch_images_per_second': BATCH.value / min(v for k, v in median.items() if 'torch' in k),
    'speedup_vs_torch': speed('torch'),
    'speedup_vs_plain': speed('plain'),
    'fraction_of_peak': ours.flops / product_flops * speed('product'),
    'compile_seconds': [ours.compile_seconds, again],
    'memory_mib': ours.memory,
    **peaks(),
  }
  show(result, JSON.value)


if __name__ == '__main__':
  launch.reexec_with_huge_pages()  # As the commands do; PyTorch profits too.
  app.run(main)
