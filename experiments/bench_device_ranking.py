"""Check and measure what depends on the device in ranking: a GPU's results, speed and memory.

  python -m experiments.bench_device_ranking --measure=rankings --images=512
  python -m experiments.bench_device_ranking --measure=describe_images --bank=gabor --images=32

`experiments.bench` runs each measurement as a process of its own; see `device_measurements`. Sizes
of rankings are set by the flags of `bench_retrieval`.

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
"""

import contextlib
import functools
import itertools
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl import flags

from experiments import bench_retrieval, peak_memory
from experiments.bench_retrieval import BINS, BLOCK, FILTERS, SOURCES, TARGETS, K
from experiments.class_folders import write_class_folders
from experiments.device_measurements import (
  OUTPUT,
  SIZE,
  Figures,
  device_peak_mib,
  measurement,
  run,
  start_again,
)
from experiments.timing import exclusive, seconds_per_call
from sjft_jax.data import loader, transforms
from sjft_jax.data.dataset import SubsetDataset
from sjft_jax.data.folder import ClassFolder
from sjft_jax.descriptors import bank, describe
from sjft_jax.ranking import pipelined
from sjft_jax.retrieval import backends, divergence, knn

BANKS = ('alexnet', 'gabor')
IMAGES = flags.DEFINE_integer('images', 2048, 'Images that are described or loaded in a turn.')
BATCHES = flags.DEFINE_multi_integer('batch', [64, 256], 'Images described at once; repeatable.')
BANK = flags.DEFINE_enum('bank', 'alexnet', BANKS, 'Of `describe_images`.')
KS = flags.DEFINE_multi_integer('ks', [100, 1000, 5100], 'Neighbours of `product`; repeatable.')
SWEPT_BINS = flags.DEFINE_multi_integer('swept_bins', [16, 100], 'Bins of `product`; repeatable.')
SWEPT_SOURCES = flags.DEFINE_multi_integer(
  'swept_sources', [16_384, 49_152, 98_304], 'Sources of `product`; repeatable.'
)
SIDE = flags.DEFINE_integer('side', 8192, 'Of the square product.')

LAYERS = ('conv1', 'conv2')
PRECISIONS = (None, 'highest', 'tensorfloat32', 'bfloat16')


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


if __name__ == '__main__':
  run()
