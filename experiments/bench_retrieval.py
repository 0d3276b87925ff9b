"""Speed and memory of the ranking, beside a matrix product and beside other libraries.

  python -m experiments.bench_retrieval          # a table
  python -m experiments.bench_retrieval --json   # one JSON object
  python -m experiments.bench_retrieval --alone --targets=12000 --sources=1280000 --bins=100

With --alone only the ranking, timed once, beside the product that it is measured by, at any size
and on any device. All else needs the extra `reference` (torch, faiss-cpu, pynndescent). The
contenders of a comparison run in turns in the same process, each once before it is timed; figures
are medians over the turns. The sources arrive as JAX arrays in blocks of 1,024 images, as
`describe` makes them. Logarithms and all else that has to be made of them count for everyone,
except for faiss, which gets its vectors ready made.

- fraction_of_gemm_peak: FLOP/s of `rank`, 2 · targets · sources · (2 · filters · bins) over the
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
  it finds.
- peak_memory_ratio: peak resident memory of a process that ranks 400,000 sources over that of one
  that ranks 20,000.
"""

import importlib
import json
import statistics
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from absl import app, flags, logging

from experiments import peak_memory
from experiments.turns import in_turns, seconds, show
from sjft_jax.retrieval import knn
from sjft_jax.runtime import console, launch

JSON = flags.DEFINE_bool('json', False, 'Print one JSON object and nothing else.')
TARGETS = flags.DEFINE_integer('targets', 1000, 'Target images.')
SOURCES = flags.DEFINE_integer('sources', 20_000, 'Source images.')
FILTERS = flags.DEFINE_integer('filters', 352, 'Filters.')
BINS = flags.DEFINE_integer('bins', 16, 'Bins per filter.')
K = flags.DEFINE_integer('k', 1000, 'Neighbours, where none are named.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Turns of each contender.')
ALONE = flags.DEFINE_bool('alone', False, 'Only the ranking and the square product, no rivals.')
MEMORY_OF = flags.DEFINE_integer(
  'memory_of', 0, 'Only: rank so many sources, print the peak in MiB.'
)
BLOCK = 1024


def histograms(rng, images, filters=None, bins=None):
  x = rng.random((images, filters or FILTERS.value, bins or BINS.value), dtype=np.float32) + 0.05
  return x / x.sum(axis=-1, keepdims=True)


def weights():
  return np.full(FILTERS.value, 1 / FILTERS.value, np.float32)


def squares(n=4096):
  rng = np.random.default_rng(0)
  a, b = (rng.random((n, n), dtype=np.float32) for _ in range(2))
  on_device = jax.jit(lambda a, b: jnp.matmul(a, b, precision='highest'))
  left, right = jnp.asarray(a), jnp.asarray(b)
  return {
    'numpy square': lambda: np.matmul(a, b),
    'jax square': lambda: on_device(left, right).block_until_ready(),
  }, 2 * n**3


def rivals(targets, sources):
  """The same ranking by faiss, by torch and, for a few targets, by scipy."""
  import faiss
  import torch
  from faiss.contrib.exhaustive_search import knn_ground_truth

  w = weights()[:, None]
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
    of = [torch.from_numpy(x) for x in (targets, weights()[:, None])]
    p, w = of
    log_p = p.log()
    left, right = (w * p).flatten(1), (w * log_p).flatten(1)
    own = (w * p * log_p).sum(dim=(1, 2))
    best, indices = torch.full((len(p), 0), 0.0), torch.zeros((len(p), 0), dtype=torch.int64)
    for start in range(0, len(sources), BLOCK):
      q = torch.from_numpy(sources[start : start + BLOCK])
      log_q = q.log()
      d = own[:, None] + (w * q * log_q).sum(dim=(1, 2)) - left @ log_q.flatten(1).T
      d = torch.cat([best, d - right @ q.flatten(1).T], dim=1)
      new = torch.arange(start, start + len(q)).expand(len(p), -1)
      best, chosen = torch.topk(d, min(k, d.shape[1]), largest=False)
      indices = torch.cat([indices, new], dim=1).gather(1, chosen)
    return best, indices

  def by_scipy(few):
    for p in targets[:few]:
      terms = scipy.special.rel_entr(p[None], sources) + scipy.special.rel_entr(sources, p[None])
      np.argpartition((terms.sum(axis=2) * weights()[None]).sum(axis=1), K.value)

  return by_faiss, by_torch, by_scipy


def against_pynndescent():
  """Its time and ours on 4,000 sources and 200 targets of 256 dimensions, and its recall."""
  import pynndescent

  rng, filters, k = np.random.default_rng(1), 16, 10
  # Around 100 centers, as images of as many classes lie; without structure no index can help.
  centers = rng.dirichlet(np.ones(16), (100, filters))
  counts = rng.multinomial(200, centers[rng.integers(0, 100, 4200)]) + 0.5
  data = (counts / counts.sum(axis=-1, keepdims=True)).astype(np.float32)
  targets, sources = data[:200], data[200:]
  flat = sources.reshape(len(sources), -1) / filters
  queries = targets.reshape(len(targets), -1) / filters
  w = np.full(filters, 1 / filters, np.float32)

  def theirs():
    index = pynndescent.NNDescent(flat, metric='symmetric_kl', n_neighbors=60, random_state=0)
    return index.query(queries, k)[0]

  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    theirs()  # Compiles.
    begun = time.perf_counter()
    found = theirs()
    took = time.perf_counter() - begun
  knn.rank(targets, [sources], weights=w, k=k)
  begun = time.perf_counter()
  exact, _ = knn.rank(targets, [sources], weights=w, k=k)
  ours = time.perf_counter() - begun
  recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(found, exact, strict=True)])
  return took / ours, float(recall)


def rank_synthetic(num_sources):
  """Ranks sources of which only one block is there at a time, made by each device in turn."""
  rng = np.random.default_rng(0)
  targets, block = histograms(rng, TARGETS.value), histograms(rng, BLOCK)
  devices = jax.local_devices()
  first = [jax.device_put(block, device) for device in devices]
  turned = jax.jit(lambda block, by: jnp.roll(block, by, axis=2))
  blocks = (
    turned(first[number % len(devices)], number)[: num_sources - number * BLOCK]
    for number in range(-(-num_sources // BLOCK))
  )
  knn.rank(targets, blocks, weights=weights(), k=min(K.value, num_sources))


def print_peak_memory():
  rank_synthetic(MEMORY_OF.value)
  print(peak_memory.since_forgotten())


def alone():
  square, square_flop = squares()
  devices = jax.local_devices()
  rank_synthetic(2 * BLOCK * len(devices))  # Compiles.
  before = in_turns(square, REPEATS.value)
  took = seconds(lambda: rank_synthetic(SOURCES.value))
  after = in_turns(square, REPEATS.value)
  best = min(statistics.median(before[name] + after[name]) for name in square)
  flop = 4 * TARGETS.value * SOURCES.value * FILTERS.value * BINS.value
  result = {
    'fraction_of_gemm_peak': flop / took * best / square_flop / len(devices),
    'gemm_peak_gflops': square_flop / best / 1e9,
    'seconds': took,
    'sources_per_second': SOURCES.value / took,
    'device': f'{len(devices)} × {devices[0].device_kind}',
    'jax': jax.__version__,
  }
  show(result, JSON.value)


def main(_):
  if MEMORY_OF.value:
    return print_peak_memory()
  if ALONE.value:
    return alone()
  for package in ('faiss', 'torch', 'pynndescent'):
    try:
      importlib.import_module(package)
    except ModuleNotFoundError:
      sys.exit(f"error: {package} is missing; pip install -e '.[reference]'")
  console.use_stderr()
  logging.set_verbosity(logging.WARNING)  # faiss tells of every block.
  rng = np.random.default_rng(0)
  targets, sources = histograms(rng, TARGETS.value), histograms(rng, SOURCES.value)
  blocks = [jnp.asarray(sources[i : i + BLOCK]) for i in range(0, len(sources), BLOCK)]
  large_k = min(5100, len(sources))
  by_faiss, by_torch, by_scipy = rivals(targets, sources)

  def ours(k):
    return lambda: knn.rank(targets, blocks, weights=weights(), k=k)

  square, square_flop = squares()
  few = 2
  turns = in_turns(
    {
      **square,
      'ours': ours(K.value),
      **{f'{name} again': work for name, work in square.items()},
      'ours 100': ours(100),
      'ours large': ours(large_k),
      'faiss 100': lambda: by_faiss(100),
      'faiss': lambda: by_faiss(K.value),
      'torch': lambda: by_torch(K.value),
      'scipy': lambda: by_scipy(few),
    },
    REPEATS.value,
    warm=True,
  )
  flop = 2 * len(targets) * len(sources) * 2 * FILTERS.value * BINS.value
  best = np.minimum.reduce(
    [np.add(turns[name], turns[f'{name} again']) / 2 for name in square]
  )  # Of every turn.
  fractions = flop / np.array(turns['ours']) * best / square_flop
  times = {name: statistics.median(taken) for name, taken in turns.items()}
  console.say(f'  seconds: {times}')
  speedup, recall = against_pynndescent()
  few_sources, many_sources = len(sources), 20 * len(sources)
  sizes = {f.name: f.value for f in (TARGETS, FILTERS, BINS, K)}
  memory = {
    n: peak_memory.of_process('experiments.bench_retrieval', sizes | {'memory_of': n})
    for n in (few_sources, many_sources)
  }
  results = {
    'fraction_of_gemm_peak': statistics.median(fractions),
    'slowdown_large_k': times['ours large'] / times['ours 100'],
    'speedup_vs_faiss_k100': times['faiss 100'] / times['ours 100'],
    f'speedup_vs_faiss_k{K.value}': times['faiss'] / times['ours'],
    'speedup_vs_pynndescent': speedup,
    'pynndescent_recall': recall,
    'speedup_vs_torch': times['torch'] / times['ours'],
    'speedup_vs_numpy': times['scipy'] * len(targets) / few / times['ours'],
    'peak_memory_ratio': memory[many_sources] / memory[few_sources],
  }
  details = {
    'gemm_peak_gflops': square_flop / statistics.median(best) / 1e9,
    'seconds': times,
    'fractions_of_gemm_peak': list(fractions),
    'peak_memory_mib': memory,
    'device': f'{jax.local_device_count()} × {jax.local_devices()[0].device_kind}',
    'jax': jax.__version__,
  }
  if JSON.value:
    print(json.dumps(results | details))
  else:
    for name, value in results.items():
      print(f'{name:26}{value:10.3f}')
    print(json.dumps(details, indent=1))


if __name__ == '__main__':
  launch.reexec_with_huge_pages()  # As the commands do.
  app.run(main)
