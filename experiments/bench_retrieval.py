"""Measure the ranking's speed and memory, beside a matrix product and beside other libraries.

  python -m experiments.bench_retrieval          # a table
  python -m experiments.bench_retrieval --json   # one JSON object
  python -m experiments.bench_retrieval --alone --targets=12000 --sources=1280000 --bins=100

With --alone only the ranking, timed once, beside the product that it is measured by, at any size
and on any device. All else needs the extra `reference` (torch, faiss-cpu, pynndescent). The
contenders of a comparison run in turns in the same process, each once before it is timed; figures
are medians over the turns. The sources arrive as JAX arrays in blocks of 1,024 images, as
`describe` makes them. Logarithms and all else that has to be made of them count for everyone,
except for faiss, which gets its vectors ready made.

- fraction_of_gemm_peak: FLOP/s of the whole, 2 · targets · sources · (2 · filters · bins) over the
  time of all of it, over those of the best square product of numpy and JAX on this machine, run
  right before and after in every turn, since other tenants slow the machine for seconds at a time.
- slowdown_large_k: time with k = 5,100 over the time with k = 100.
- speedup_vs_faiss_k100, _k1000: `faiss.contrib.exhaustive_search.knn_ground_truth`, inner product,
  on vectors whose product ranks the same.
- speedup_vs_torch: the same formula written in a straightforward way, in blocks with torch.topk.
- speedup_vs_numpy: Eq. 1 as users of scipy would write it, `rel_entr` both ways, for two targets;
  per target.
- speedup_vs_pynndescent, pynndescent_recall: building its index and querying it, k = 10, on a
  smaller problem (its time grows steeply with the dimension), and how many of the true neighbours
  it finds; not with --nopynndescent.
- peak_memory_ratio: peak resident memory of a process that ranks 400,000 sources over that of one
  that ranks 20,000.
"""

import importlib
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from absl import app, flags, logging

from experiments import peak_memory
from experiments.timing import Work, exclusive, print_result, race, seconds_per_call
from sjft_jax.retrieval import knn
from sjft_jax.runtime import launch

JSON = flags.DEFINE_bool('json', False, 'Print one JSON object and nothing else.')
TARGETS = flags.DEFINE_integer('targets', 1000, 'Target images.')
SOURCES = flags.DEFINE_integer('sources', 20_000, 'Source images.')
FILTERS = flags.DEFINE_integer('filters', 352, 'Filters.')
BINS = flags.DEFINE_integer('bins', 16, 'Bins per filter.')
K = flags.DEFINE_integer('k', 1000, 'Neighbours, where the figure does not say how many.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Turns of each contender.')
ALONE = flags.DEFINE_bool('alone', False, 'Only the ranking and the square product, no rivals.')
PYNNDESCENT = flags.DEFINE_bool(
  'pynndescent', True, 'Race pynndescent, too, which compiles for minutes.'
)
MEMORY_OF = flags.DEFINE_integer(
  'memory_of', 0, 'Only: rank so many sources, print the peak in MiB.'
)
BLOCK = 1024


def make_histograms(rng: np.random.Generator, images: int, num_bins: int = 0) -> np.ndarray:
  """Return random histograms, [image, filter, bin] float32."""
  x = rng.random((images, FILTERS.value, num_bins or BINS.value), dtype=np.float32)
  x += 0.05
  x /= x.sum(axis=-1, keepdims=True)
  return x


def filter_weights() -> np.ndarray:
  return np.full(FILTERS.value, 1 / FILTERS.value, np.float32)


def square_products(n: int = 4096) -> tuple[dict[str, Work], int]:
  """Return square products by name, and the multiplications and additions of each."""
  rng = np.random.default_rng(0)
  a, b = (rng.random((n, n), dtype=np.float32) for _ in range(2))
  on_device = jax.jit(lambda a, b: jnp.matmul(a, b, precision='highest'))
  left, right = jnp.asarray(a), jnp.asarray(b)
  return {
    'numpy square': lambda: np.matmul(a, b),
    'jax square': lambda: on_device(left, right),
  }, 2 * n**3


def make_rivals(
  targets: np.ndarray, sources: np.ndarray
) -> tuple[Callable[[int], Any], Callable[[int], Any], Callable[[int], Any]]:
  """Return the same ranking by faiss and by torch for k neighbours, by scipy for few targets."""
  import faiss
  import torch
  from faiss.contrib.exhaustive_search import knn_ground_truth

  w = filter_weights()[:, None]
  p, q = targets.astype(np.float64), sources
  queries = np.concatenate([w * p, w * np.log(p)], axis=2).reshape(len(p), -1)
  queries = np.concatenate([queries, -np.ones((len(p), 1))], axis=1).astype(np.float32)
  self_terms = (w[:, 0] * (q * np.log(q)).sum(axis=2)).sum(axis=1, keepdims=True)
  vectors = np.concatenate(
    [np.concatenate([np.log(q), q], axis=2).reshape(len(q), -1), self_terms], 1
  )
  vectors = vectors.astype(np.float32)

  def by_faiss(k):
    blocks = (vectors[i : i + 4 * BLOCK] for i in range(0, len(vectors), 4 * BLOCK))
    return knn_ground_truth(queries, blocks, k, faiss.METRIC_INNER_PRODUCT)

  def by_torch(k):
    p, w = torch.from_numpy(targets), torch.from_numpy(filter_weights()[:, None])
    log_p = p.log()
    left, right = (w * p).flatten(1), (w * log_p).flatten(1)
    self_terms = (w * p * log_p).sum(dim=(1, 2))
    best, indices = torch.full((len(p), 0), 0.0), torch.zeros((len(p), 0), dtype=torch.int64)
    for start in range(0, len(sources), BLOCK):
      q = torch.from_numpy(sources[start : start + BLOCK])
      log_q = q.log()
      d = self_terms[:, None] + (w * q * log_q).sum(dim=(1, 2)) - left @ log_q.flatten(1).T
      d = torch.cat([best, d - right @ q.flatten(1).T], dim=1)
      new = torch.arange(start, start + len(q)).expand(len(p), -1)
      best, chosen = torch.topk(d, min(k, d.shape[1]), largest=False)
      indices = torch.cat([indices, new], dim=1).gather(1, chosen)
    return best, indices

  def by_scipy(few):
    for p in targets[:few]:
      terms = scipy.special.rel_entr(p[None], sources) + scipy.special.rel_entr(sources, p[None])
      np.argpartition((terms.sum(axis=2) * filter_weights()[None]).sum(axis=1), K.value)

  return by_faiss, by_torch, by_scipy


def race_pynndescent() -> dict[str, float]:
  """Return pynndescent's time over ours, and its recall.

  4,000 sources and 200 targets of 256 dimensions, 10 neighbours.
  """
  import pynndescent

  rng, filters, k = np.random.default_rng(1), 16, 10
  # Around 100 centers, as images of as many classes lie; without structure no index can help.
  centers = rng.dirichlet(np.ones(16), (100, filters))
  counts = rng.multinomial(200, centers[rng.integers(0, 100, 4200)]) + 0.5
  data = (counts / counts.sum(axis=-1, keepdims=True)).astype(np.float32)
  targets, sources = data[:200], data[200:]
  flat = sources.reshape(len(sources), -1) / filters
  queries = targets.reshape(len(targets), -1) / filters
  weights = np.full(filters, 1 / filters, np.float32)

  def by_index() -> np.ndarray:
    index = pynndescent.NNDescent(flat, metric='symmetric_kl', n_neighbors=60, random_state=0)
    return index.query(queries, k)[0]

  def by_search() -> np.ndarray:
    return knn.rank_histograms(targets, [sources], weights=weights, k=k).indices

  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    approximate, exact = by_index(), by_search()  # Both compile.
    with exclusive():
      speedup = seconds_per_call(by_index) / seconds_per_call(by_search)
  recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(approximate, exact, strict=True)])
  return {'speedup_vs_pynndescent': speedup, 'pynndescent_recall': float(recall)}


class SyntheticRanking:
  """A ranking of sources of which only one block is there at a time, made by each device in turn.

  Attributes:
    targets: their histograms.
  """

  def __init__(self, num_bins: int):
    rng = np.random.default_rng(0)
    self.targets, block = (make_histograms(rng, n, num_bins) for n in (TARGETS.value, BLOCK))
    self._copies = [jax.device_put(block, device) for device in jax.local_devices()]
    self._roll = jax.jit(lambda block, by: jnp.roll(block, by, axis=2))

  def blocks(self, num_sources: int) -> Iterator[jax.Array]:
    """Yield so many sources."""
    for number, start in enumerate(range(0, num_sources, BLOCK)):
      block = self._roll(self._copies[number % len(self._copies)], number)
      yield block if start + BLOCK <= num_sources else block[: num_sources - start]

  def __call__(self, num_sources: int, k: int) -> knn.Ranking:
    """Rank so many sources."""
    blocks = self.blocks(num_sources)
    return knn.rank_histograms(
      self.targets, blocks, weights=filter_weights(), k=min(k, num_sources)
    )


def measure_alone() -> dict[str, Any]:
  """Time the ranking once, beside the square product."""
  products, product_flops = square_products()
  devices = jax.local_devices()
  rank = SyntheticRanking(BINS.value)
  rank(2 * BLOCK * len(devices), K.value)  # Compiles.
  before = race(products, REPEATS.value)
  with exclusive():
    seconds = seconds_per_call(lambda: rank(SOURCES.value, K.value))
  after = race(products, REPEATS.value)
  best = min(statistics.median(before[name] + after[name]) for name in products)
  flops = 4 * TARGETS.value * SOURCES.value * FILTERS.value * BINS.value
  return {
    'fraction_of_gemm_peak': flops / seconds * best / product_flops / len(devices),
    'gemm_peak_gflops': product_flops / best / 1e9,
    'seconds': seconds,
    'sources_per_second': SOURCES.value / seconds,
    'device': f'{len(devices)} × {devices[0].device_kind}',
    'jax': jax.__version__,
  }


def measure() -> tuple[dict[str, float], dict[str, Any]]:
  """Let all contenders race; return the figures that are explained above, and the details."""
  rng = np.random.default_rng(0)
  targets, sources = make_histograms(rng, TARGETS.value), make_histograms(rng, SOURCES.value)
  blocks = [jnp.asarray(sources[i : i + BLOCK]) for i in range(0, len(sources), BLOCK)]
  large_k = min(5100, len(sources))
  by_faiss, by_torch, by_scipy = make_rivals(targets, sources)

  def rank(k: int) -> knn.Ranking:
    return knn.rank_histograms(targets, blocks, weights=filter_weights(), k=k)

  products, product_flops = square_products()
  few_targets = 2
  turns = race(
    {
      **products,
      'ours': lambda: rank(K.value),
      **{f'{name} again': work for name, work in products.items()},
      'ours 100': lambda: rank(100),
      'ours large': lambda: rank(large_k),
      'faiss 100': lambda: by_faiss(100),
      'faiss': lambda: by_faiss(K.value),
      'torch': lambda: by_torch(K.value),
      'scipy': lambda: by_scipy(few_targets),
    },
    REPEATS.value,
    warm=True,
  )
  flops = 2 * len(targets) * len(sources) * 2 * FILTERS.value * BINS.value
  # The best product of every turn, each the mean of its times before and after the ranking.
  best = np.minimum.reduce([np.add(turns[name], turns[f'{name} again']) / 2 for name in products])
  fractions = flops / np.array(turns['ours']) * best / product_flops
  seconds = {name: statistics.median(values) for name, values in turns.items()}
  few_sources, many_sources = len(sources), 20 * len(sources)
  sizes = {flag.name: flag.value for flag in (TARGETS, FILTERS, BINS, K)}
  memory = {
    n: peak_memory.run_process('experiments.bench_retrieval', sizes | {'memory_of': n})
    for n in (few_sources, many_sources)
  }
  results = {
    'fraction_of_gemm_peak': float(np.median(fractions)),
    'slowdown_large_k': seconds['ours large'] / seconds['ours 100'],
    'speedup_vs_faiss_k100': seconds['faiss 100'] / seconds['ours 100'],
    f'speedup_vs_faiss_k{K.value}': seconds['faiss'] / seconds['ours'],
    'speedup_vs_torch': seconds['torch'] / seconds['ours'],
    'speedup_vs_numpy': seconds['scipy'] * len(targets) / few_targets / seconds['ours'],
    'peak_memory_ratio': memory[many_sources] / memory[few_sources],
  }
  if PYNNDESCENT.value:
    results |= race_pynndescent()
  details = {
    'gemm_peak_gflops': product_flops / float(np.median(best)) / 1e9,
    'seconds': seconds,
    'fractions_of_gemm_peak': fractions.tolist(),
    'peak_memory_mib': memory,
    'device': f'{jax.local_device_count()} × {jax.local_devices()[0].device_kind}',
    'jax': jax.__version__,
  }
  return results, details


def main(_: object) -> None:
  if MEMORY_OF.value:
    SyntheticRanking(BINS.value)(MEMORY_OF.value, K.value)
    print(peak_memory.peak_mib())
    return
  if ALONE.value:
    print_result(measure_alone(), as_json=JSON.value)
    return
  for package in ('faiss', 'torch', 'pynndescent'):
    try:
      importlib.import_module(package)
    except ModuleNotFoundError:
      sys.exit(f"error: {package} is missing; pip install -e '.[reference]'")
  logging.set_verbosity(logging.WARNING)  # faiss logs every block.
  results, details = measure()
  if JSON.value:
    print(json.dumps(results | details))
  else:
    for name, value in results.items():
      print(f'{name:26}{value:10.3f}')
    print(json.dumps(details, indent=1))


if __name__ == '__main__':
  launch.reexec_with_huge_pages()  # As the commands do.
  app.run(main)
