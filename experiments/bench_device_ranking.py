"""Check and measure what depends on the device: a GPU's results, speed and memory.

  python -m experiments.bench_device --measure=rankings --images=512
  python -m experiments.bench_device --measure=describe_images --bank=gabor --images=32 --size=64

`experiments.bench` runs each measurement as a process of its own. Figures are printed as they are
known, a JSON object a line, whose union is the result. Sizes of rankings are set by the flags of
`bench_retrieval`.

- rankings: whether the device's rankings are those of the CPU, at every default precision of JAX's
  products: of given histograms, and from images on by both filter banks. `same_positions` and
  `same_neighbors` are shares; `error_in_tolerances` is the largest difference of two divergences of
  the same rank over `divergence.TOLERANCE` times the pair's scale, 1 or less if nothing is wrong.
- product: FLOP/s of the ranking, 4 · targets · sources · filters · bins over its time, over those
  of the device's own square product; time and memory for each number of sources, k and bins; the
  stages of a tile.
- describe_images: images described a second, from arrays and from JPEG files; images a second to
  which bins are fitted.
- loading: JPEG files decoded and cut a second, in threads and in processes.
- pmap: what the mapped call of a step costs the host, beside `jax.jit`'s, on a network's state.
- accumulation: what training.accumulation=0 chooses, and whether its step then fits.
- out_of_memory: the line that ends a run when memory runs out.
- resume: whether a training that is killed and resumed ends like one that is not, to the last bit.
"""

import contextlib
import functools
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl import app, flags, logging

from experiments import bench_retrieval, peak_memory
from experiments.bench_retrieval import BINS, BLOCK, FILTERS, SOURCES, TARGETS, K
from experiments.class_folders import write_class_folders
from experiments.timing import exclusive, seconds_per_call
from sjft_jax.data import loader, transforms
from sjft_jax.data.dataset import SubsetDataset
from sjft_jax.data.folder import ClassFolder
from sjft_jax.descriptors import bank, describe
from sjft_jax.ranking import pipelined
from sjft_jax.retrieval import backends, divergence, knn
from sjft_jax.runtime import launch, memory

BANKS = ('alexnet', 'gabor')
MEASURE = flags.DEFINE_string('measure', None, 'What to measure; see the description.')
IMAGES = flags.DEFINE_integer('images', 2048, 'Images that are described or loaded in a turn.')
SIZE = flags.DEFINE_integer('size', 224, 'Pixels a side.')
BATCHES = flags.DEFINE_multi_integer('batch', [64, 256], 'Images described at once; repeatable.')
BANK = flags.DEFINE_enum('bank', 'alexnet', BANKS, 'Of `describe_images`.')
NETWORK = flags.DEFINE_string('network', 'resnet152v2', 'The trunk, with random weights.')
PAIRS = flags.DEFINE_integer('pairs', 32, 'Target images a step, as many of the source beside.')
KS = flags.DEFINE_multi_integer('ks', [100, 1000, 5100], 'Neighbours of `product`; repeatable.')
SWEPT_BINS = flags.DEFINE_multi_integer('swept_bins', [16, 100], 'Bins of `product`; repeatable.')
SWEPT_SOURCES = flags.DEFINE_multi_integer(
  'swept_sources', [16_384, 49_152, 98_304], 'Sources of `product`; repeatable.'
)
SIDE = flags.DEFINE_integer('side', 8192, 'Of the square product.')
OUTPUT = flags.DEFINE_string('output', None, 'Folder of a measurement that starts itself again.')
flags.DEFINE_bool('traceback', False, 'Show where in the code an error arose.')

Figures = dict[str, Any]
LAYERS = ('conv1', 'conv2')
PRECISIONS = (None, 'highest', 'tensorfloat32', 'bfloat16')
MEASUREMENTS: dict[str, Callable[[], Iterator[Figures]]] = {}


def measurement(function: Callable[[], Iterator[Figures]]) -> Callable[[], Iterator[Figures]]:
  """Enter a generator of figures under its name."""
  MEASUREMENTS[function.__name__] = function
  return function


def start_again(measure: str, folder: str | os.PathLike, **environment: str) -> subprocess.Popen:
  """Start another measurement of this module, with the same flags, that writes to a folder."""
  command = [sys.executable, '-m', 'experiments.bench_device', *sys.argv[1:]]
  command += [f'--measure={measure}', f'--output={folder}']
  # Standard output is for this one's figures.
  return subprocess.Popen(command, stdout=sys.stderr, env=os.environ | environment)


def load_bank(name: str, folder: Path) -> bank.FilterBank:
  """Return a bank; AlexNet's filters are random, since no machine has to have its weights."""
  if name == 'gabor':
    return bank.load(name=name, layers=(), tap='', pretrained='')
  rng = np.random.default_rng(0)
  shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
  tensors = {}
  for number, (features, channels, side) in shapes.items():
    shape = (features, channels, side, side)
    tensors[f'features.{number}.weight'] = rng.normal(0, 0.05, shape).astype(np.float32)
    tensors[f'features.{number}.bias'] = np.zeros(features, np.float32)
  file = folder / 'alexnet.safetensors'
  safetensors.numpy.save_file(tensors, file)
  return bank.load(name=name, layers=LAYERS, tap='linear', pretrained=str(file))


def make_images(number: int, side: int) -> np.ndarray:
  """Return noise whose statistics differ from image to image, [image, side, side, 3]."""
  rng = np.random.default_rng(0)
  images = np.empty((number, side, side, 3), np.uint8)
  for i, image in enumerate(images):
    grain = 2 ** (1 + i % 5)
    coarse = rng.integers(0, 256, (side // grain + 1, side // grain + 1, 3), np.uint8)
    image[:] = coarse.repeat(grain, 0).repeat(grain, 1)[:side, :side]
  return images


# Rankings.


def rank_all(folder: Path) -> dict[str, knn.Ranking]:
  """Rank given histograms, and images by each bank, on the default device."""
  rng = np.random.default_rng(0)
  targets = bench_retrieval.make_histograms(rng, TARGETS.value)
  blocks = (
    bench_retrieval.make_histograms(rng, min(BLOCK, SOURCES.value - start))
    for start in range(0, SOURCES.value, BLOCK)
  )
  k = min(K.value, SOURCES.value)
  rankings = {
    'histograms': knn.rank_histograms(
      targets, blocks, weights=bench_retrieval.filter_weights(), k=k
    )
  }
  images = make_images(IMAGES.value, SIZE.value)
  few = images[: max(len(images) // 16, 4)]
  for name in BANKS:
    filters = load_bank(name, folder)
    edges = describe.fit_edges(filters, [few], num_bins=BINS.value)
    batches = np.array_split(images, -(-len(images) // 64))
    blocks = [np.asarray(x) for x in describe.describe(filters, edges, batches, smoothing=0.5)]
    targets = np.concatenate(blocks)[: len(few)]
    k = min(K.value, len(images))
    rankings[name] = knn.rank_histograms(targets, blocks, weights=filters.weights, k=k)
  return rankings


@measurement
def reference() -> Iterator[Figures]:
  """Write the rankings that `rankings` compares with, of a process that sees no GPU."""
  folder = Path(OUTPUT.value)
  arrays = {}
  for name, ranking in rank_all(folder).items():
    arrays |= {f'{name} {field}': array for field, array in ranking._asdict().items()}
  np.savez(folder / 'rankings.npz', **arrays)
  yield {}


def compare(ours: knn.Ranking, indices: np.ndarray, divergences: np.ndarray) -> Figures:
  """Compare a ranking with the reference's."""
  pairs = zip(ours.indices, indices, strict=True)
  common = sum(len(np.intersect1d(a, b, assume_unique=True)) for a, b in pairs)
  difference = np.abs(ours.divergences - divergences)
  return {
    'same_positions': float((ours.indices == indices).mean()),
    'same_neighbors': common / indices.size,
    'largest_difference': float(difference.max()),
    'largest_relative_difference': float((difference / np.maximum(divergences, 1e-9)).max()),
  }


def tolerance() -> float:
  """Return how far off a divergence of `rank_all`'s given histograms may be."""
  rng, weights = np.random.default_rng(0), bench_retrieval.filter_weights()
  p = bench_retrieval.make_histograms(rng, TARGETS.value)
  q = bench_retrieval.make_histograms(rng, min(BLOCK, SOURCES.value))
  center = divergence.make_center(p, weights)
  sides = divergence.target_factors(p, center), divergence.source_factors(q, center)
  return divergence.TOLERANCE * sum(float(side.self_terms.min()) for side in sides)


@measurement
def rankings() -> Iterator[Figures]:
  """Compare the rankings with the CPU's."""
  figures: Figures = {}
  with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch)
    process = start_again('reference', folder, JAX_PLATFORMS='cpu')
    for precision in PRECISIONS:
      with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
        ours = rank_all(folder)
      if process.wait():
        raise RuntimeError(f'the reference ended with status {process.returncode}')
      with np.load(folder / 'rankings.npz') as expected:
        for kind, ranking in ours.items():
          arrays = (expected[f'{kind} {name}'] for name in ('indices', 'divergences'))
          figures[f'{kind}, {precision or "default"}'] = row = compare(ranking, *arrays)
          if kind == 'histograms':
            row['error_in_tolerances'] = row['largest_difference'] / tolerance()
      yield {'rankings': figures}


# The product.


def measure_peaks() -> Figures:
  """Return FLOP/s of the device's square products, by how they are computed."""
  x = jnp.ones((SIDE.value, SIDE.value), jnp.float32)
  products: dict[str, tuple[Any, Any]] = {
    'float32': (x, 'highest'),
    'tensorfloat32': (x, 'tensorfloat32'),
    # What `divergence` might use instead: three products of parts that hold 21 bits together.
    'three of tensorfloat32': (x, jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3),
    'bfloat16': (x.astype(jnp.bfloat16), None),
  }
  peaks = {}
  for name, (x, precision) in products.items():
    with contextlib.suppress(Exception):  # Not every device has all of them.
      multiply = jax.jit(functools.partial(jnp.matmul, precision=precision))
      jax.block_until_ready(multiply(x, x))

      def work(multiply: Any = multiply, x: jax.Array = x) -> list[jax.Array]:
        return [multiply(x, x) for _ in range(4)]

      with exclusive():
        peaks[name] = 8 * SIDE.value**3 / seconds_per_call(work, at_least=0.3)
  return peaks


def measure_tile(synthetic: bench_retrieval.SyntheticRanking, k: int) -> Figures:
  """Return the milliseconds that the stages of a tile of sources take, each by itself."""
  weights = bench_retrieval.filter_weights()
  backend = backends.make_backend(synthetic.targets, weights, knn.TILE, None)
  tiles = list(synthetic.blocks(4 * knn.TILE))
  backend.start(tiles[:1]).result()
  top_k = knn.TopK(len(synthetic.targets), k)
  with exclusive():
    start_time = time.perf_counter()
    pending = [backend.start([tile]) for tile in tiles]
    while not pending[-1].done():
      time.sleep(1e-4)
    computed_time = time.perf_counter()
    results = [tile.result() for tile in pending]
    received_time = time.perf_counter()
    for result in results:
      result.view(np.uint32).max()
    checked_time = time.perf_counter()
    for _ in range(3):
      for number, result in enumerate(results):
        top_k.add(np.abs(result), number * knn.TILE)
    end_time = time.perf_counter()
  backend.close()
  return {
    'k': k,
    'compute_ms': 250 * (computed_time - start_time),
    'to_host_ms': 250 * (received_time - computed_time),
    'check_ms': 250 * (checked_time - received_time),
    'top_k_ms': 1000 / 12 * (end_time - checked_time),
  }


def device_peak_mib() -> float | None:
  """Return the most memory that was allocated on the device so far, MiB; None for a CPU."""
  stats = jax.local_devices()[0].memory_stats()
  return stats['peak_bytes_in_use'] / 2**20 if stats else None


@measurement
def product() -> Iterator[Figures]:
  """Time the ranking for each number of sources, k and bins."""
  peaks = measure_peaks()
  yield {'peak_flops': peaks, 'targets': TARGETS.value, 'filters': FILTERS.value}
  rows: list[Figures] = []
  many, k = max(SWEPT_SOURCES.value), K.value
  for bins in sorted(SWEPT_BINS.value, reverse=True):
    synthetic = bench_retrieval.SyntheticRanking(bins)
    synthetic(2 * BLOCK * jax.local_device_count(), 1)  # Compiles.
    points = [(n, k) for n in SWEPT_SOURCES.value]
    if bins == max(SWEPT_BINS.value):
      points += [(sorted(SWEPT_SOURCES.value)[-2], k) for k in KS.value if k != K.value]
    for sources, k_ in points:
      with contextlib.suppress(OSError):  # Not every system lets a process reset it.
        peak_memory.reset_peak()
      with exclusive():
        seconds = seconds_per_call(functools.partial(synthetic, sources, k_))
      rows.append(
        {
          'bins': bins,
          'sources': sources,
          'k': k_,
          'seconds': seconds,
          'device_peak_mib': device_peak_mib(),
          'host_peak_mib': peak_memory.peak_mib(),
        }
      )
      yield {'rows': rows}
    if bins == max(SWEPT_BINS.value):
      few = min(SWEPT_SOURCES.value)
      times = {row['sources']: row['seconds'] for row in rows if row['k'] == k}
      rate = (many - few) / (times[many] - times[few])
      flops = 4 * TARGETS.value * FILTERS.value * bins * rate
      fraction = flops / peaks['float32'] / jax.local_device_count()
      yield {'sources_per_second': rate, 'flops': flops, 'fraction_of_peak': fraction}
      yield {'tile': measure_tile(synthetic, K.value)}


# Description and loading.


def write_jpegs(folder: Path, number: int) -> ClassFolder:
  """Write JPEG files of 400 × 500 pixels and open them."""
  write_class_folders(folder, 4, max(number // 4, 1), seed=0, height=400, width=500, suffix='.jpg')
  return ClassFolder(str(folder), '')


def repeat(dataset: Any, number: int) -> SubsetDataset:
  return SubsetDataset(dataset, np.arange(number) % len(dataset))


@measurement
def describe_images() -> Iterator[Figures]:
  """Time the description of images by a bank."""
  resize = SIZE.value * 8 // 7
  view = functools.partial(transforms.describe_view, resize=resize, crop=SIZE.value)
  with tempfile.TemporaryDirectory() as scratch:
    files = write_jpegs(Path(scratch) / 'images', min(IMAGES.value, 256))
    arrays = make_images(min(IMAGES.value, 1024), SIZE.value)
    filters = load_bank(BANK.value, Path(scratch))
    edges = describe.fit_edges(filters, [arrays[:32]], num_bins=BINS.value)

    def work(batches: Iterable[np.ndarray], size: int) -> None:
      blocks = describe.describe(filters, edges, batches, smoothing=0.5, batch_size=size)
      for block in pipelined(blocks):
        block.block_until_ready()

    for size in BATCHES.value:
      per_turn = max(IMAGES.value // size, 1)
      images = per_turn * size
      batches = list(itertools.islice(itertools.cycle(split(arrays, size)), per_turn))
      work(batches[:1], size)  # Compiles.
      dataset = repeat(files, images)
      with exclusive():
        seconds = seconds_per_call(functools.partial(work, batches, size), at_least=0.5)
        loaded = loader.views(dataset, view, size, min_side=resize)
        file_seconds = seconds_per_call(functools.partial(work, loaded, size))
      yield {
        f'{size} at once': {
          'images_per_second': images / seconds,
          'images_per_second_from_files': images / file_seconds,
          'device_peak_mib': device_peak_mib(),
        }
      }
    fit = functools.partial(describe.fit_edges, filters, [arrays[:64]], num_bins=BINS.value)
    fit()
    with exclusive():
      seconds = seconds_per_call(fit)
    yield {'bins fitted': {'images_per_second': len(arrays[:64]) / seconds}}


def split(images: np.ndarray, size: int) -> list[np.ndarray]:
  """Cut images into whole batches."""
  repeated = images[np.arange(-(-len(images) // size) * size) % len(images)]
  return list(repeated.reshape(-1, size, *images.shape[1:]))


@measurement
def loading() -> Iterator[Figures]:
  """Time the decoding and cutting of JPEG files, the rate of a loader in its stride."""
  resize = SIZE.value * 8 // 7
  view = functools.partial(transforms.center_crop, resize=resize, crop=SIZE.value)
  with tempfile.TemporaryDirectory() as scratch:
    files = write_jpegs(Path(scratch) / 'images', min(IMAGES.value, 256))
    stride, size = loader.BUFFER_SIZE + 1, 32
    batches = -(-IMAGES.value // size)
    dataset = repeat(files, (batches + 2 * stride) * size)
    for name, workers in (('threads', 0), ('processes', os.cpu_count() or 1)):
      stream = loader.views(dataset, view, size, min_side=resize, workers=workers)
      next(stream)  # Its processes have started.
      with exclusive():
        for _ in range(stride):
          next(stream)
        start_time = time.perf_counter()
        for _ in range(batches):
          next(stream)
        seconds = time.perf_counter() - start_time
      del stream
      yield {name: {'images_per_second': batches * size / seconds}}
  yield {'cores': os.cpu_count()}


# The step.


def make_state(network_name: str, size: int) -> tuple[Any, Any, Any]:
  """Return a joint network, its optimizer and its state."""
  from sjft_jax import config
  from sjft_jax.models import joint, trunk
  from sjft_jax.training import step
  from sjft_jax.training.optimizer import SolverOptions, sgd

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
  from sjft_jax.runtime.compilation import CompiledFunction
  from sjft_jax.training import sharding

  _, _, state = make_state(NETWORK.value, 64)
  state = jax.tree.map(np.asarray, state)

  def update(state: Any) -> Any:
    return jax.tree.map(lambda x: x + 1, state)

  contenders = {
    'pmap': (
      CompiledFunction(jax.pmap(update, axis_name='batch', donate_argnums=0)),
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
  from sjft_jax import config
  from sjft_jax.training import sharding, step
  from sjft_jax.training.accumulation import choose_accumulation
  from sjft_jax.training.losses import LossOptions

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
    train_step, state, shapes, batch_size=PAIRS.value, num_devices=1, limit=limit
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
  from etils import epath

  from configs import folder as folder_config
  from sjft_jax import inputs
  from sjft_jax.selection.subset import select
  from sjft_jax.training.trainer import TrainerFactory

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
    num_source=len(domains.source),
    seed=0,
  )
  with trainer.open(network.variables) as session:
    session.train(trainer.batches(subset, 0), steps)
    session.checkpoints.wait()


@measurement
def train_small() -> Iterator[Figures]:
  """Train in the given folder; part of `resume` and of `out_of_memory`."""
  from sjft_jax.runtime import cli, compilation

  compilation.enable_cache()
  work = functools.partial(train, Path(OUTPUT.value), size=SIZE.value, pairs=PAIRS.value, steps=40)
  cli.run_command(work, 'Stopped.')
  yield {}


@measurement
def resume() -> Iterator[Figures]:
  """Kill a training, resume it, and compare it with one that was left alone."""
  from experiments.artifact_digests import digest_artifacts, find_differences, newest_checkpoint

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
    command = [sys.executable, '-m', 'experiments.bench_device', *sys.argv[1:]]
    command += ['--measure=train_small', f'--output={folder / "run"}']
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


def main(_: object) -> None:
  logging.set_verbosity(logging.WARNING)
  if MEASURE.value not in MEASUREMENTS:
    sys.exit(f'error: --measure={MEASURE.value!r} must be one of {", ".join(MEASUREMENTS)}')
  for figures in MEASUREMENTS[MEASURE.value]():
    print(json.dumps(figures), flush=True)


if __name__ == '__main__':
  launch.reexec_with_huge_pages()
  app.run(main)
