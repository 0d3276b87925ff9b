"""What the loop around the training step costs: data, logging and checkpoints against steps alone.

  python -m experiments.bench_loop                                              # the demo
  python -m experiments.bench_loop --network=resnet50v2 --size=224 --pairs=4 --steps=40
  python -m experiments.bench_loop --devices=4 [--json]            # on forced devices of this host

Images are JPEGs of 400×500 pixels (--size=224) or the demo's own. A turn is `steps` steps by
themselves, with one batch that is there already and nothing between them, and then as many in the
loop of a run: pairs loaded and augmented, a line and TensorBoard events every 10 steps, and a
checkpoint in the middle. The checkpoint at the end, which a run of any length has once, is not
counted. Medians over the turns.

- idle: share of the loop's time in which no step was under way: what the devices wait.
- loop_over_alone: time of a step in the loop over that alone; on CPUs loading takes processor time
  from the step, which is no waiting.
"""

import contextlib
import json
import os
import statistics
import tempfile
from pathlib import Path

import cv2
import jax
import numpy as np
from absl import app, flags, logging
from etils import epath

from configs import demo
from experiments.turns import in_turns, ratio, show
from sjft_jax import pipeline
from sjft_jax.data import registry
from sjft_jax.runtime import console, launch
from sjft_jax.selection.subset import select
from sjft_jax.training import step

NETWORK = flags.DEFINE_string('network', 'alexnet', 'The trunk, with random weights.')
SIZE = flags.DEFINE_integer('size', 64, 'Pixels a side.')
PAIRS = flags.DEFINE_integer('pairs', 16, 'Target images a step, as many of the source beside.')
STEPS = flags.DEFINE_integer('steps', 50, 'Of a turn.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Turns of each.')
DEVICES = flags.DEFINE_integer('devices', 1, 'CPU devices to force.', lower_bound=1)
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object and nothing else.')


def config(folder):
  c = demo.get_config()
  if SIZE.value != c.images.crop:
    c.target.update(dataset='folder', path=str(folder), train_per_class=8)
    c.source.update(dataset='folder', path=str(folder))
    c.images.update(resize=SIZE.value * 8 // 7, crop=SIZE.value)
  c.model.update(name=NETWORK.value, pretrained='')
  c.training.update(batch_size=PAIRS.value, checkpoint_every=STEPS.value // 2)
  return c


def write_photographs(folder):
  rng = np.random.default_rng(0)
  for label in range(4):
    (folder / str(label)).mkdir()
    for number in range(16):
      coarse = rng.integers(0, 256, (40, 50, 3), np.uint8)
      image = cv2.resize(coarse, (500, 400), interpolation=cv2.INTER_CUBIC)
      cv2.imwrite(str(folder / str(label) / f'{number}.jpg'), image)


class Alone:
  """Steps on one batch, each handed over as soon as the one before it is."""

  def __init__(self, arm, variables, pairs):
    self.step = arm.train_step
    self.state = step.replicate(step.create_state(**variables, optimizer=arm.optimizer))
    self.batch = step.shard_batch(pairs(0), accumulation=arm.accumulation)

  def __call__(self):
    metrics = []
    for _ in range(STEPS.value):
      self.state, told = self.step(self.state, self.batch)
      metrics.append(told)
      jax.block_until_ready(metrics[:-1])
    jax.block_until_ready((self.state, metrics))


class Loop:
  """Training as a run does it, `steps` more at every call."""

  def __init__(self, arm, variables, pairs, stack):
    self.arm, self.pairs = arm, pairs
    self.checkpoints = stack.enter_context(arm.checkpoints())
    self.progress = arm.restore(self.checkpoints, variables)
    self.journal = stack.enter_context(arm.journal(0))
    self.seconds, self.idle, self.rates = [], [], {}

  def __call__(self):
    begun, seconds = self.progress.step, self.progress.seconds
    stop = begun + STEPS.value
    self.progress = self.arm.train(self.progress, self.pairs, stop, self.checkpoints, self.journal)
    self.checkpoints.wait()
    self.seconds.append(self.progress.seconds - seconds)
    busy = 0.0
    for line in map(json.loads, (self.arm.directory / 'log.jsonl').read_text().splitlines()):
      if line['step'] > begun:
        self.rates = {name: rate for name, rate in line.items() if name.endswith('per_second')}
        busy += (line['step'] - begun) * self.pairs.images / line['step_images_per_second']
        begun = line['step']
    self.idle.append(1 - busy / self.seconds[-1])


def main(argv):
  del argv
  logging.set_verbosity(logging.WARNING)
  console.set_quiet(JSON.value)
  with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
    folder = Path(scratch) / 'images'
    folder.mkdir()
    if SIZE.value != 64:
      write_photographs(folder)
    c = config(folder)
    target, test = registry.open_target(**c.target)
    domains = pipeline.Domains(target, test, registry.load(**c.source))
    network, variables, _ = pipeline.build_network(domains, c.seed, c.images.crop, **c.model)
    arm = pipeline.TrainerFactory(epath.Path(scratch), 'bench', domains, network)('arm', c)
    subset = select(
      'all',
      ranking=np.zeros((len(target), 0), np.int64),
      num_neighbors=np.zeros(len(target), np.int64),
      num_source=len(domains.source),
      seed=0,
    )
    pairs = arm.pairs(subset, 0)
    loop = Loop(arm, variables, pairs, stack)
    times = in_turns({'alone': Alone(arm, variables, pairs), 'loop': loop}, REPEATS.value)
  alone = statistics.median(times['alone']) / STEPS.value
  result = {
    'network': NETWORK.value,
    'device': f'{jax.device_count()} × {jax.devices()[0].device_kind}, jax {jax.__version__}',
    'images_a_step': pairs.images,
    'step_ms': 1000 * alone,
    'images_per_second': pairs.images / alone,
    'idle': statistics.median(loop.idle[1:]),
    'loop_over_alone': 1 / ratio([times['alone']], loop.seconds[1:]),
    'last_line': loop.rates,
  }
  show(result, JSON.value)


def parse(argv):
  rest = flags.FLAGS(argv)
  if DEVICES.value > 1:  # Before JAX looks for devices.
    os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={DEVICES.value}'
  return rest


if __name__ == '__main__':
  launch.reexec_with_huge_pages()
  app.run(main, flags_parser=parse)
