"""Check and measure what depends on the device in training: a GPU's results, speed and memory.

  python -m experiments.bench_device_training --measure=resume --size=64 --pairs=8
  python -m experiments.bench_device_training --measure=pmap --network=alexnet

`experiments.bench` runs each measurement as a process of its own; see `device_measurements`.

- pmap: what the mapped call of a step costs the host, beside `jax.jit`'s, on a network's state.
- accumulation: what training.accumulation=0 chooses, and whether its step then fits.
- out_of_memory: the line that ends a run when memory runs out.
- resume: whether a training that is killed and resumed ends like one that is not, to the last bit.
"""

import functools
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from configs import folder as folder_config
from experiments.artifact_digests import digest_artifacts, find_differences, newest_checkpoint
from experiments.class_folders import write_class_folders
from experiments.device_measurements import (
  OUTPUT,
  SIZE,
  Figures,
  device_peak_mib,
  make_command,
  measurement,
  run,
  start_again,
)
from experiments.timing import exclusive
from sjft_jax import config, inputs
from sjft_jax.models import joint, trunk
from sjft_jax.runtime import cli, compilation, memory
from sjft_jax.selection.subset import select
from sjft_jax.training import sharding, step
from sjft_jax.training.accumulation import choose_accumulation
from sjft_jax.training.losses import LossOptions
from sjft_jax.training.optimizer import SolverOptions, sgd
from sjft_jax.training.trainer import TrainerFactory

NETWORK = flags.DEFINE_string('network', 'resnet152v2', 'The trunk, with random weights.')
PAIRS = flags.DEFINE_integer('pairs', 32, 'Target images a step, as many of the source beside.')
flags.DEFINE_bool('traceback', False, 'Show where in the code an error arose.')


def make_state(network_name: str, size: int) -> tuple[Any, Any, Any]:
  """Return a joint network, its optimizer and its state."""
  body = trunk.build_trunk(name=network_name, fully_connected=False)
  model = joint.Joint(body, 100, 1000)
  with jax.default_device(jax.local_devices(backend='cpu')[0]):  # Compiles sooner.
    variables = jax.tree.map(np.asarray, joint.init(model, jax.random.key(0), size))
  options = config.default()
  optimizer = sgd(options.training.steps, SolverOptions(**options.solver))
  return model, optimizer, step.create_state(**variables, optimizer=optimizer)


@measurement
def pmap() -> Iterator[Figures]:
  """Time a trivial update of a network's state, mapped as the step is, and by `jax.jit`."""
  _, _, state = make_state(NETWORK.value, 64)
  state = jax.tree.map(np.asarray, state)

  def update(state: Any) -> Any:
    return jax.tree.map(lambda x: x + 1, state)

  contenders = {
    'pmap': (
      compilation.CompiledFunction(jax.pmap(update, axis_name='batch', donate_argnums=0)),
      sharding.replicate(state, 1),
    ),
    'jit': (jax.jit(update, donate_argnums=0), jax.device_put(state)),
  }
  figures: Figures = {'arrays': len(jax.tree.leaves(state))}
  for name, (function, initial) in contenders.items():
    argument = jax.block_until_ready(function(initial))
    dispatches, calls = [], []
    with exclusive():
      for _ in range(20):
        start_time = time.perf_counter()
        argument = function(argument)
        dispatches.append(time.perf_counter() - start_time)
        jax.block_until_ready(argument)
        calls.append(time.perf_counter() - start_time)
    figures[f'{name}_dispatch_ms'] = 1000 * statistics.median(dispatches)
    figures[f'{name}_call_ms'] = 1000 * statistics.median(calls)
  yield figures


@measurement
def accumulation() -> Iterator[Figures]:
  """Let the number of micro-batches be chosen for a step that does not fit at once; run it."""
  model, optimizer, state = make_state(NETWORK.value, SIZE.value)
  train_step = step.make_train_step(model.apply, optimizer, 0, LossOptions(**config.default().loss))
  images = 2 * PAIRS.value
  shapes = {
    'image': jax.ShapeDtypeStruct((images, SIZE.value, SIZE.value, 3), jnp.uint8),
    'label': jax.ShapeDtypeStruct((images,), jnp.int32),
    'is_source': jax.ShapeDtypeStruct((images,), jnp.bool_),
  }
  start_time = time.perf_counter()
  # A CPU's memory is not what is tested: a fifth of it may be more than the whole step needs.
  is_cpu = jax.default_backend() == 'cpu'
  limit = (memory.tree_bytes(state) * 3 + 2**20 * images) if is_cpu else memory.available_bytes()
  chosen = choose_accumulation(
    [(train_step, state)], shapes, batch_size=PAIRS.value, num_devices=1, limit=limit
  )
  programs = [memory.planned_bytes(program) for program in train_step.programs]
  yield {
    'limit_mib': limit / 2**20,
    'accumulation': chosen,
    'largest_micro_batch': images // chosen,
    'planned_mib': [planned / 2**20 for planned in programs],
    'seconds': time.perf_counter() - start_time,
  }
  batch = {name: np.zeros(x.shape, x.dtype) for name, x in shapes.items()}
  batch['is_source'][1::2] = True
  shard = sharding.shard_batch(batch, accumulation=chosen, num_devices=1)
  with exclusive():
    replicated, metrics = train_step(sharding.replicate(state, 1), shard)
    jax.block_until_ready(metrics)
    start_time = time.perf_counter()
    _, metrics = train_step(replicated, shard)
    jax.block_until_ready(metrics)
    seconds = time.perf_counter() - start_time
  yield {'images_per_second': images / seconds, 'device_peak_mib': device_peak_mib()}


def train(workdir: Path, *, size: int, pairs: int, steps: int) -> None:
  """Train a small network in a work directory, as a run does; go on there from a checkpoint."""
  c = folder_config.get_config()
  images = str(workdir.parent / 'images')
  c.target.update(path=images, train_per_class=8)
  c.source.path = images
  c.images.update(resize=size, crop=size)
  c.bank.name = 'gabor'
  c.model.update(name='alexnet', pretrained='', fully_connected=False)
  c.training.update(batch_size=pairs, accumulation=1, steps=steps, checkpoint_every=4)
  c.arms = ('all',)
  domains = inputs.open_domains(c)
  network = inputs.load_inputs(c, domains).network
  make_trainer = TrainerFactory(
    epath.Path(workdir), 'bench', domains, network.model, network.variables
  )
  trainer = make_trainer('run', c)
  none = np.zeros(len(domains.target), np.int64)
  subset = select(
    'all',
    ranking=none[:, None][:, :0],
    num_neighbors=none,
    source_labels=domains.source.labels,
    seed=0,
  )
  with trainer.open(network.variables) as session:
    session.train(trainer.batches(subset, 0), steps)
    session.checkpoints.wait()


@measurement
def train_small() -> Iterator[Figures]:
  """Train in the given folder; part of `resume` and of `out_of_memory`."""
  compilation.enable_cache()
  work = functools.partial(train, Path(OUTPUT.value), size=SIZE.value, pairs=PAIRS.value, steps=40)
  cli.run_command(work, 'Stopped.')
  yield {}


@measurement
def resume() -> Iterator[Figures]:
  """Kill a training, resume it, and compare it with one that was left alone."""
  # Sums in a fixed order, so that two runs can be compared bit by bit.
  flags_ = os.environ.get('XLA_FLAGS', '')
  if jax.default_backend() == 'gpu':
    flags_ += ' --xla_gpu_deterministic_ops=true'
  with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch)
    write_class_folders(folder / 'images', 2, 20, seed=0, height=70, width=70, suffix='.png')
    start = functools.partial(start_again, 'train_small', XLA_FLAGS=flags_)
    if start(folder / 'undisturbed').wait():
      raise RuntimeError('the undisturbed training failed')
    yield {'undisturbed': 'ended'}
    expected = digest_artifacts(folder / 'undisturbed')
    process = start(folder / 'killed')
    checkpoints = folder / 'killed' / 'run' / 'checkpoints'
    while newest_checkpoint(checkpoints) is None and process.poll() is None:
      time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    status = process.wait()
    killed_after = newest_checkpoint(checkpoints)
    if start(folder / 'killed').wait():
      raise RuntimeError('the resumed training failed')
    yield {
      'status_of_killed': status,
      'resumed_from_step': killed_after.name if killed_after else None,
      'differences': find_differences(folder / 'killed', expected),
      'compared': len(expected),
    }


@measurement
def out_of_memory() -> Iterator[Figures]:
  """Train with too little memory and record how that ends."""
  with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch)
    write_class_folders(folder / 'images', 2, 20, seed=0, height=70, width=70, suffix='.png')
    command = make_command('train_small', folder / 'run')
    # A hundredth of the device: 1.4 GiB of 140. A CPU has no such limit, and the training ends.
    environment = os.environ | {
      'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.01',
      'XLA_PYTHON_CLIENT_PREALLOCATE': 'true',
    }
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    errors = [line for line in ended.stderr.splitlines() if line.startswith('error: ')]
    yield {
      'status': ended.returncode,
      'line': errors[-1] if errors else None,
      'last_lines': ended.stderr.splitlines()[-3:],
    }


if __name__ == '__main__':
  run()
