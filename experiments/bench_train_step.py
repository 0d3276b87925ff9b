"""Measure how fast the joint training step is, against the same step in PyTorch.

  python -m experiments.bench_train_step                          # ResNet-152 v2 at 224 pixels
  python -m experiments.bench_train_step --network=alexnet --size=64 --batch=32   # the demo's
  python -m experiments.bench_train_step --dtype=bfloat16 [--json] [--compile]
  python -m experiments.bench_train_step --only=ours --batch=64     # or torch, or compiled

A step is forward, backward and update of a network with two heads, on `batch` images of which half
are the source's: SGD with momentum and weight decay, batch norm over all images. PyTorch runs
timm's resnetv2 (channels last), or torchvision's AlexNet up to conv5, with the same losses; with
--compile, its step under torch.compile as well, and the faster of the two counts. Both take turns
in one process, and every turn times steps for half a second after a first one, as in a training,
where one step follows the other; figures are medians over the turns, ratios medians of each turn's
ratio, since other tenants slow the machine for seconds at a time.

On a GPU the images come from the host in every step, both may use TF32 for float32, PyTorch runs
bfloat16 by autocast, and the next step is handed over before the last one has ended.

- images_per_second; speedup_vs_torch: PyTorch's time over ours.
- speedup_vs_plain: the time of the same step compiled without `sjft_jax.runtime.compilation` over
  ours.
- fraction_of_peak: multiplications and additions, three times those of a forward pass (by XLA's
  count of it), over those of a square product in the same precision, numpy's or JAX's, whichever
  is the faster.
- compile_seconds: of the first call, and of one with what the user's cache keeps from before.
- memory_mib: what XLA plans for the step, parameters and optimizer included.
- device_peak_mib, torch_device_peak_mib: the most that each has allocated on a GPU.
- peak_memory_mib, torch_peak_memory_mib: on a CPU, most resident memory of a process of its own
  during its second step, libraries and what came before included; ours was compiled before.

Needs the extra `reference`.
"""

import functools
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments import peak_memory, torch_packages
from experiments.timing import print_result, race, speedup
from sjft_jax import config
from sjft_jax.models import joint, trunk
from sjft_jax.runtime import compilation, launch
from sjft_jax.training import sharding, step
from sjft_jax.training.losses import LossOptions
from sjft_jax.training.optimizer import SolverOptions, sgd

NETWORK = flags.DEFINE_string('network', 'resnet152v2', 'A ResNet v2, or alexnet.')
SIZE = flags.DEFINE_integer('size', 224, 'Pixels a side.')
BATCH = flags.DEFINE_integer('batch', 8, "Images a step, half of them the source's.")
DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Type of the activations.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Turns of each.')
SIDE = flags.DEFINE_integer('side', 0, 'Of the square product; 0: one that fits the device.')
COMPILE = flags.DEFINE_bool('compile', False, 'Let PyTorch compile its step too.')
ONLY = flags.DEFINE_enum(
  'only', None, ['ours', 'torch', 'compiled'], "Time this one alone; compiled: PyTorch's."
)
MEMORY_OF = flags.DEFINE_enum(
  'memory_of', None, ['ours', 'torch'], 'Only: make a step, print the peak in MiB.'
)
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object and nothing else.')
CLASSES = {'target': 100, 'source': 1000}

# Hands a step over to the device; returns what waits for its end.
Step = Callable[[], Callable[[], Any]]


def make_batch() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  is_source = np.arange(BATCH.value) % 2 == 1
  return {
    'image': rng.integers(0, 256, (BATCH.value, SIZE.value, SIZE.value, 3), np.uint8),
    'label': rng.integers(0, CLASSES['target'], BATCH.value).astype(np.int32),
    'is_source': is_source,
  }


class OurStep:
  """The step of this package; `plain`: compiled as XLA does it by itself."""

  def __init__(self, *, plain: bool = False):
    model = joint.Joint(
      trunk.build_trunk(name=NETWORK.value, fully_connected=False, dtype=DTYPE.value),
      CLASSES['target'],
      CLASSES['source'],
    )
    with jax.default_device(jax.local_devices(backend='cpu')[0]):  # Compiles sooner than a GPU's.
      variables = jax.tree.map(np.asarray, joint.init(model, jax.random.key(0), SIZE.value))
      images = make_batch()['image']
      forward = jax.jit(model.apply).lower(variables, images)
      self.flops = 3 * forward.cost_analysis()['flops']
    options = config.default()
    options.solver.update(learning_rate=1e-3, momentum_style='torch')
    optimizer = sgd(options.training.steps, SolverOptions(**options.solver))
    loss_options = LossOptions(**options.loss)
    mapped = step.make_train_step(model.apply, optimizer, 0, loss_options).mapped
    self.state = sharding.replicate(step.create_state(**variables, optimizer=optimizer), 1)
    self.batch = sharding.shard_batch(make_batch(), accumulation=1, num_devices=1)
    lowered = mapped.lower(self.state, self.batch)
    start_time = time.perf_counter()
    self.program = lowered.compile() if plain else compilation.compile_lowered(lowered)
    self.compile_seconds = time.perf_counter() - start_time
    planned = self.program.memory_analysis()
    self.memory_mib = (planned.argument_size_in_bytes + planned.temp_size_in_bytes) / 2**20

  def __call__(self) -> Callable[[], Any]:
    self.state, metrics = self.program(self.state, self.batch)
    return functools.partial(jax.block_until_ready, metrics)


class TorchStep:
  """The same in PyTorch, channels last."""

  def __init__(self, *, compiled: bool):
    import torch
    from torch.nn import functional

    is_cuda = torch.cuda.is_available() and os.environ.get('JAX_PLATFORMS') != 'cpu'
    self.device = torch.device('cuda' if is_cuda else 'cpu')
    if is_cuda:
      torch.set_float32_matmul_precision('high')  # TF32, as XLA uses it.
      torch.backends.cudnn.benchmark = True  # XLA compares algorithms too.
    if NETWORK.value == 'alexnet':
      features = torch_packages.torchvision().models.alexnet().features[:-1]
      body, width = torch.nn.Sequential(features, torch.nn.AdaptiveAvgPool2d(1)), 256
      body.append(torch.nn.Flatten())
    else:
      name = NETWORK.value.replace('resnet', 'resnetv2_').removesuffix('v2')
      body = torch_packages.timm().create_model(name, num_classes=0)
      width = body.num_features
    heads = {domain: torch.nn.Linear(width, n) for domain, n in CLASSES.items()}
    network = torch.nn.ModuleDict({'body': body, **heads})
    network.to(self.device, memory_format=torch.channels_last).train()
    self.optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)
    batch = make_batch()
    self.images = torch.from_numpy(batch['image']).permute(0, 3, 1, 2)
    self.labels = torch.from_numpy(batch['label']).long()
    if is_cuda:
      self.images, self.labels = self.images.pin_memory(), self.labels.pin_memory()
    # The images of a domain by number: a mask would make the host wait for the device.
    members = {'target': ~batch['is_source'], 'source': batch['is_source']}
    members = {
      domain: torch.from_numpy(np.flatnonzero(mask)).to(self.device)
      for domain, mask in members.items()
    }
    mean = torch.tensor([0.485, 0.456, 0.406], device=self.device).reshape(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], device=self.device).reshape(1, 3, 1, 1)

    def loss(images, labels):
      x = ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
      with torch.autocast(self.device.type, torch.bfloat16, enabled=DTYPE.value == 'bfloat16'):
        x = network['body'](x)
      x = x.float()
      return sum(
        0.5 * functional.cross_entropy(network[domain](x[indices]), labels[indices])
        for domain, indices in members.items()
      )

    self.loss = torch.compile(loss) if compiled else loss

  def __call__(self) -> Callable[[], Any]:
    import torch

    batch = [x.to(self.device, non_blocking=True) for x in (self.images, self.labels)]
    self.optimizer.zero_grad()
    self.loss(*batch).backward()
    self.optimizer.step()
    if self.device.type == 'cpu':
      return lambda: None
    end = torch.cuda.Event()
    end.record()
    return end.synchronize


class Measurements(NamedTuple):
  """What a race has measured.

  Attributes:
    ours: our step, unless PyTorch's is alone.
    cached_compile_seconds: seconds of its compilation when the cache has it.
    seconds: of each contender in every turn.
    product_flops: multiplications and additions of a square product.
  """

  ours: OurStep | None
  cached_compile_seconds: float | None
  seconds: dict[str, list[float]]
  product_flops: int


def make_products() -> tuple[dict[str, Step], int]:
  """Return square products by name, and the multiplications and additions of each."""
  is_cpu = jax.default_backend() == 'cpu'
  side = SIDE.value or (4096 if is_cpu else 8192)
  x = jnp.ones((side, side), DTYPE.value)
  program = compilation.compile_lowered(jax.jit(lambda x: x @ x).lower(x))
  products: dict[str, Step] = {
    'product': lambda: functools.partial(jax.block_until_ready, program(x))
  }
  if is_cpu and DTYPE.value == 'float32':
    array = np.ones((side, side), np.float32)

    def multiply() -> Callable[[], Any]:
      array @ array
      return lambda: None

    products['product by numpy'] = multiply
  return products, 2 * side**3


def seconds_per_step(step: Step, at_least: float = 0.5) -> float:
  """Return the mean seconds of steps that follow each other, after a first one."""
  step()()
  start_time, steps = time.perf_counter(), 0
  ends: deque[Callable[[], Any]] = deque()
  # Half a second: a single step may be the one that waits for memory.
  while not steps or time.perf_counter() - start_time < at_least:
    ends.append(step())
    steps += 1
    if len(ends) > 1:  # One is handed over before the last one has ended, as in a training.
      ends.popleft()()
  while ends:
    ends.popleft()()
  seconds = (time.perf_counter() - start_time) / steps
  release_memory()
  return seconds


def release_memory() -> None:
  """Give back what PyTorch keeps of a GPU's memory, for those that have the next turn."""
  if ONLY.value in ('torch', 'compiled'):
    import torch

    torch.cuda.empty_cache()  # Does nothing without a GPU.


def measure() -> Measurements:
  ours, cached_compile_seconds, product_flops = None, None, 0
  contenders: dict[str, Step] = {}
  if ONLY.value in (None, 'ours'):
    contenders['ours'] = ours = OurStep()
    products, product_flops = make_products()
    contenders |= products
  if not ONLY.value:
    jax.clear_caches()
    cached_compile_seconds = OurStep().compile_seconds
    if jax.default_backend() == 'cpu':  # Elsewhere it is the same step.
      contenders['plain'] = OurStep(plain=True)
  if ONLY.value in (None, 'torch'):
    contenders['torch'] = TorchStep(compiled=False)
  if ONLY.value == 'compiled' or (COMPILE.value and not ONLY.value):
    contenders['torch compiled'] = TorchStep(compiled=True)
    contenders['torch compiled']()()  # Compiles.
    release_memory()
  # Several networks need not fit a device at the same time.
  seconds = race(contenders, REPEATS.value, measure=seconds_per_step, first_is_exclusive=True)
  return Measurements(ours, cached_compile_seconds, seconds, product_flops)


def print_peak_memory() -> None:
  train_step = OurStep() if MEMORY_OF.value == 'ours' else TorchStep(compiled=False)
  train_step()()
  peak_memory.reset_peak()
  train_step()()
  print(peak_memory.peak_mib())


def measure_peaks() -> dict[str, float]:
  """Return the peak memory of each step: on a CPU, of a process of its own."""
  whose = {'ours': ['ours'], None: ['ours', 'torch']}.get(ONLY.value, ['torch'])
  prefixes = {'ours': '', 'torch': 'torch_'}
  peaks = {}
  if 'torch' in whose:
    import torch

    if torch.cuda.is_initialized():
      peaks['torch_device_peak_mib'] = torch.cuda.max_memory_allocated() / 2**20
  if 'ours' in whose and (stats := jax.local_devices()[0].memory_stats()):
    peaks['device_peak_mib'] = stats['peak_bytes_in_use'] / 2**20
  if peaks:
    return peaks
  options = {flag.name: flag.value for flag in (NETWORK, SIZE, BATCH, DTYPE)}
  return {
    f'{prefixes[name]}peak_memory_mib': peak_memory.run_process(
      'experiments.bench_train_step', options | {'memory_of': name}
    )
    for name in whose
  }


def print_measurements(measurements: Measurements) -> None:
  ours, seconds = measurements.ours, measurements.seconds

  def turns_of(kind: str) -> Sequence[Sequence[float]]:
    return [turns for name, turns in seconds.items() if kind in name]

  def speed(kind: str) -> float:
    return speedup(turns_of(kind), seconds['ours'])

  result: dict[str, Any] = {
    'network': NETWORK.value,
    'size': SIZE.value,
    'batch': BATCH.value,
    'dtype': DTYPE.value,
  }
  if ours:
    result |= {
      'device': f'{jax.devices()[0].device_kind}, jax {jax.__version__}',
      'images_per_second': BATCH.value / statistics.median(seconds['ours']),
      'fraction_of_peak': ours.flops / measurements.product_flops * speed('product'),
      'compile_seconds': [ours.compile_seconds, measurements.cached_compile_seconds],
      'memory_mib': ours.memory_mib,
    }
  if turns_of('torch'):
    fastest = min(map(statistics.median, turns_of('torch')))
    result['torch_images_per_second'] = BATCH.value / fastest
  result |= {
    f'speedup_vs_{rival}': speed(rival) for rival in ('torch', 'plain') if ours and turns_of(rival)
  }
  print_result(result | {'seconds': seconds} | measure_peaks(), as_json=JSON.value)


def main(_: object) -> None:
  if MEMORY_OF.value:
    print_peak_memory()
    return
  with tempfile.TemporaryDirectory() as cache:
    jax.config.update('jax_compilation_cache_dir', cache)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = cache  # For the processes of `measure_peaks`.
    print_measurements(measure())


if __name__ == '__main__':
  launch.reexec_with_huge_pages()  # As the commands do; PyTorch profits too.
  app.run(main)
