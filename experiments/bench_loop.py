"""Measure what the loop around the training step costs: data, logging and checkpoints.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict

from experiments.class_folders import write_class_folders
from experiments.tasks import get_config as get_task
from experiments.timing import print_result, race, speedup
from sjft_jax import inputs
from sjft_jax.data.batches import Batches
from sjft_jax.runtime import console, launch
from sjft_jax.selection.subset import select
from sjft_jax.training import sharding, step
from sjft_jax.training.trainer import Trainer, TrainerFactory, TrainingSession

NETWORK = flags.DEFINE_string('network', 'alexnet', 'The trunk, with random weights.')
SIZE = flags.DEFINE_integer('size', 64, 'Pixels a side.')
PAIRS = flags.DEFINE_integer('pairs', 16, 'Target images a step, as many of the source beside.')
DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Type of the activations.')
STEPS = flags.DEFINE_integer('steps', 50, 'Steps of a turn.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Turns of each.')
DEVICES = flags.DEFINE_integer('devices', 1, 'CPU devices to force.', lower_bound=1)
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object and nothing else.')


def get_config(folder: Path) -> ConfigDict:
  """Return a task's configuration with the flags' options; images of its own are in `folder`."""
  c = get_task('textures_imagenet')
  if SIZE.value != c.images.crop:
    write_class_folders(folder, 4, 16, seed=0, height=400, width=500, suffix='.jpg')
    c.target.update(dataset='folder', path=str(folder), train_per_class=8)
    c.source.update(dataset='folder', path=str(folder))
    c.images.update(resize=SIZE.value * 8 // 7, crop=SIZE.value)
    c.selection.update(num_neighbors=1, rounds=1)  # They are few, and not selected.
  c.bank.name = 'gabor'  # It is not used, and needs no weights.
  c.model.update(name=NETWORK.value, pretrained='', dtype=DTYPE.value)
  c.training.update(batch_size=PAIRS.value, checkpoint_every=STEPS.value // 2)
  return c


class StepsAlone:
  """Steps on one batch, each handed over as soon as the one before it is."""

  def __init__(self, trainer: Trainer, variables: dict[str, Any], batches: Batches):
    self.train_step = trainer.train_step
    self.state = sharding.replicate(step.create_state(**variables, optimizer=trainer.optimizer))
    self.batch = sharding.shard_batch(batches(0), accumulation=trainer.options.accumulation)

  def __call__(self) -> None:
    metrics: list[Any] = []
    for _ in range(STEPS.value):
      self.state, step_metrics = self.train_step(self.state, self.batch)
      metrics.append(step_metrics)
      jax.block_until_ready(metrics[:-1])
    jax.block_until_ready((self.state, metrics))


class StepsInLoop:
  """Training as a run does it, `steps` more with every call.

  Attributes:
    seconds: of every call, less the checkpoint at its end.
    idle: share of them in which no step was under way, of every call.
    rates: images a second, as the newest line of the log has them.
  """

  def __init__(self, run: TrainingSession, batches: Batches):
    self.run, self.batches = run, batches
    self.seconds: list[float] = []
    self.idle: list[float] = []
    self.rates: dict[str, float] = {}

  def __call__(self) -> None:
    before = self.run.progress
    self.run.train(self.batches, before.step + STEPS.value)
    self.run.checkpoints.wait()
    self.seconds.append(self.run.progress.seconds - before.seconds)
    busy, last_step = 0.0, before.step
    log = self.run.trainer.directory / 'log.jsonl'
    for line in map(json.loads, log.read_text().splitlines()):
      if line['step'] > last_step:
        self.rates = {name: rate for name, rate in line.items() if name.endswith('per_second')}
        images = (line['step'] - last_step) * self.batches.images_per_batch
        busy += images / line['step_images_per_second']
        last_step = line['step']
    self.idle.append(1 - busy / self.seconds[-1])


def main(_: object) -> None:
  logging.set_verbosity(logging.WARNING)
  console.set_quiet(JSON.value)
  with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
    config = get_config(Path(scratch) / 'images')
    domains = inputs.open_domains(config)
    network = inputs.load_inputs(config, domains).network
    make_trainer = TrainerFactory(
      epath.Path(scratch), 'bench', domains, network.model, network.variables
    )
    trainer = make_trainer('run', config)
    subset = select(
      'all',
      ranking=np.zeros((len(domains.target), 0), np.int64),
      num_neighbors=np.zeros(len(domains.target), np.int64),
      source_labels=domains.source.labels,
      seed=0,
    )
    batches = trainer.batches(subset, 0)
    run = stack.enter_context(trainer.open(network.variables))
    in_loop = StepsInLoop(run, batches)
    alone = StepsAlone(trainer, network.variables, batches)
    seconds = race({'alone': alone, 'loop': in_loop}, REPEATS.value)
  step_seconds = statistics.median(seconds['alone']) / STEPS.value
  result = {
    'network': NETWORK.value,
    'dtype': DTYPE.value,
    'device': f'{jax.device_count()} × {jax.devices()[0].device_kind}, jax {jax.__version__}',
    'images_a_step': batches.images_per_batch,
    'step_ms': 1000 * step_seconds,
    'images_per_second': batches.images_per_batch / step_seconds,
    'idle': statistics.median(in_loop.idle[1:]),
    'loop_over_alone': 1 / speedup([seconds['alone']], in_loop.seconds[1:]),
    'last_line': in_loop.rates,
  }
  print_result(result, as_json=JSON.value)


def parse_flags(argv: Sequence[str]) -> list[str]:
  arguments = flags.FLAGS(argv)
  if DEVICES.value > 1:  # Before JAX looks for devices.
    os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={DEVICES.value}'
  return arguments


if __name__ == '__main__':
  launch.reexec_with_huge_pages()
  app.run(main, flags_parser=parse_flags)
