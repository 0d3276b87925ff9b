"""Measure what the descriptor's options do to the selection and to held-out accuracy, one by one.

  python -m experiments.quality_knobs --output=experiments/quality_knobs.json

A variant is the task textures_imagenet (tasks.py) with some options of its sections `bank` and
`descriptors` changed, such as `num_bins=16`, `layers=conv1:conv3` or `tap=relu+smoothing=2`.
Measured are

- relevance, of the ranking for the whole target training set: which share of the selected source
  images comes from families that cannot help; the same in the deepest prefix that rounds can grow
  to; which share of each target image's K0 neighbours is a texture, as the target is; and, of the
  target's training images ranked against each other, which share of the nearest others is of the
  same class;
- accuracy of the arm `constant` on held-out target training images, after the last of the task's
  rounds, in ten crops. Seed s holds out fold s of `folds`, around and around: an even number of
  seeds counts every held-out image as often.

The test images are not looked at. Differences to the task's configuration are over the same seeds
and images; their standard error is over images, all seeds' answers about one image taken together.
Of twenty variants that change nothing, about one differs by two standard errors.

The output holds what is finished, which is not repeated.
"""

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict

from experiments.folds import FOLDS, fold_domains
from experiments.tasks import get_config as get_task
from sjft_jax import pipeline
from sjft_jax.config import arm_config
from sjft_jax.data import registry
from sjft_jax.data.dataset import Dataset
from sjft_jax.data.demo import DemoDiverse
from sjft_jax.descriptors import bank
from sjft_jax.ranking import DescriptorOptions, RankingInputs, rank_sources
from sjft_jax.results import load_predictions
from sjft_jax.runtime import artifacts
from sjft_jax.selection.growth import SelectionOptions

DEFAULT = 'default'
VARIANTS = (
  *('num_bins=8', 'num_bins=16', 'num_bins=64', 'num_bins=100'),
  *('smoothing=0.001', 'smoothing=0.1', 'smoothing=1', 'smoothing=2', 'smoothing=5'),
  *('smoothing=10', 'tap=relu'),
  *('layers=conv1', 'layers=conv2', 'layers=conv1:conv2:conv3:conv4:conv5'),
  *('layer_weights=2:1', 'layer_weights=1:2', 'layer_weights=4:1', 'layer_weights=1:4'),
  'name=gabor',
)
OUTPUT = flags.DEFINE_string('output', 'experiments/quality_knobs.json', 'File of the record.')
SEEDS = flags.DEFINE_list('seeds', '0,1,2,3', 'Seeds of the accuracy part; empty: none.')
WORKDIR = flags.DEFINE_string('workdir', '', 'Rankings and logs; empty: a temporary folder.')
CHOSEN = flags.DEFINE_list('variants', ','.join(VARIANTS), 'Variants to compare to the default.')
# Seconds that a job without and with a seed is expected to take, until this run has measured them.
RELEVANCE_SECONDS, ACCURACY_SECONDS = 40.0, 60.0

# What was measured, by variant and seed; the relevance, which needs no seed, under None.
Results = dict[tuple[str, int | None], dict[str, Any]]


def get_config(variant: str) -> ConfigDict:
  """Return the task's configuration with the variant's options and the arm `constant` alone."""
  config = get_task('textures_imagenet')
  config.arms = ('constant',)
  if variant == DEFAULT:
    return config
  for change in variant.split('+'):
    option, _, text = change.partition('=')
    section = next((s for s in (config.bank, config.descriptors) if option in s), None)
    if section is None:
      raise ValueError(f'variant {variant!r}: {option!r} is no option of bank or descriptors')
    if isinstance(section[option], tuple):
      parts = text.split(':')
      section[option] = tuple(map(float, parts) if option == 'layer_weights' else parts)
    else:
      section[option] = type(section[option])(text)
  return config


def rank_datasets(
  config: ConfigDict, target: Dataset, source: Dataset, depth: int, scratch: Path
) -> np.ndarray:
  """Return the indices [target, depth] of the ranking that the pipeline makes."""
  filters = bank.load(**config.bank)
  options = DescriptorOptions(**config.descriptors)
  partial = epath.Path(scratch) / 'ranking.partial.npz'
  result = rank_sources(partial, RankingInputs(target, source, filters, depth, options))
  return result.ranking.indices


def measure_relevance(variant: str, scratch: Path) -> dict[str, Any]:
  """Rank the demo's source, and its target training set against itself; see above."""
  config = get_config(variant)
  k0 = config.selection.num_neighbors
  depth = SelectionOptions(**arm_config(config, 'rounds').selection).ranking_depth
  source = DemoDiverse()
  train, _ = registry.open_target(**config.target)
  indices = rank_datasets(config, train, source, depth, scratch / 'source')
  per_class = int(np.bincount(train.labels).max())
  others = rank_datasets(config, train, train, per_class, scratch / 'itself')
  is_other = others != np.arange(len(train))[:, None]
  is_same_class = train.labels[others] == train.labels[:, None]
  selected, deepest = np.unique(indices[:, :k0]), np.unique(indices)
  is_irrelevant = np.isin(source.families, source.irrelevant)
  families = source.families[indices[:, :k0]]
  return {
    'selected': len(selected),
    'irrelevant': float(is_irrelevant[selected].mean()),
    'deepest': len(deepest),
    'irrelevant_deepest': float(is_irrelevant[deepest].mean()),
    'families': {f: float((families == f).mean()) for f in np.unique(source.families).tolist()},
    'same_class': float(is_same_class[is_other].mean()),
  }


def measure_accuracy(variant: str, seed: int, rankings: Path, scratch: Path) -> dict[str, Any]:
  """Train on one fold and score its held-out images.

  Args:
    variant: the options.
    seed: of the run; it decides the fold.
    rankings: folder of the rankings, which later seeds of the same fold use again.
    scratch: a new work directory.
  """
  fold = seed % len(FOLDS)
  domains = fold_domains(fold)
  config = get_config(variant)
  config.seed = seed
  config.evaluation.views = ('ten_crop',)
  ranking = rankings / f'{variant} fold {fold}.npz'
  scratch.mkdir(parents=True)
  if ranking.exists():
    shutil.copy(ranking, scratch / 'ranking.npz')
  results = pipeline.run_on_datasets(domains, config, epath.Path(scratch))
  ranking.parent.mkdir(exist_ok=True)
  (scratch / 'ranking.npz').replace(ranking)
  # After the last round, as in a closing table.
  test = load_predictions(str(scratch / 'arms' / 'constant'), 'ten_crop')
  p, labels = test.probabilities, test.labels
  loss = -np.log(np.maximum(p[np.arange(len(p)), labels], 1e-30))
  return {
    'fold': fold,
    **results['arms']['constant']['rounds'][-1]['test']['ten_crop'],
    'is_correct': (p.argmax(axis=1) == labels).astype(int).tolist(),
    'loss': [round(float(x), 4) for x in loss],
  }


def paired_difference(
  rows: Mapping[int, Mapping[str, Any]], baseline: Mapping[int, Mapping[str, Any]], key: str
) -> tuple[float, float]:
  """Return the mean difference over seeds and images, and its standard error over images."""
  differences: dict[tuple[int, int], list[float]] = {}
  for seed in rows.keys() & baseline.keys():
    pairs = zip(rows[seed][key], baseline[seed][key], strict=True)
    for image, (ours, theirs) in enumerate(pairs):
      differences.setdefault((rows[seed]['fold'], image), []).append(ours - theirs)
  count = sum(map(len, differences.values()))
  mean = sum(map(sum, differences.values())) / count
  # Seeds of one image are not independent: their deviations add up before they are squared.
  squares = sum((sum(d) - len(d) * mean) ** 2 for d in differences.values())
  images = len(differences)
  return mean, float(np.sqrt(squares * images / (images - 1))) / count


def print_table(results: Results, variants: Sequence[str], seeds: Sequence[int]) -> None:
  """Print a line for each variant."""
  width = max(16, 6 * len(seeds))
  print(
    f'{"":<38}{"irrelevant":>11}{"deepest":>9}{"texture":>9}{"same class":>11}'
    f'  {"accuracy by seed":<{width}}{"gain, points":>14}{"cross-entropy":>20}'
  )
  baseline = {s: results[DEFAULT, s] for s in seeds if (DEFAULT, s) in results}
  for variant in variants:
    relevance = results[variant, None]
    line = f'{variant:<38}{relevance["irrelevant"]:>11.1%}{relevance["irrelevant_deepest"]:>9.1%}'
    line += f'{relevance["families"]["texture"]:>9.1%}{relevance["same_class"]:>11.1%}  '
    rows = {s: results[variant, s] for s in seeds if (variant, s) in results}
    scores = (f'{100 * row["mean_class_accuracy"]:6.1f}' for row in rows.values())
    line += f'{"".join(scores):<{width}}'
    if rows and variant != DEFAULT:
      gain, error = paired_difference(rows, baseline, 'is_correct')
      loss, loss_error = paired_difference(rows, baseline, 'loss')
      line += f'{100 * gain:+8.1f} ± {100 * error:.1f}{loss:+12.3f} ± {loss_error:.3f}'
    print(line)


def load_results(path: Path, made_from: str) -> Results:
  """Load what an earlier run has measured, if there was one.

  Raises:
    ValueError: it measured other defaults or data.
  """
  if not path.exists():
    return {}
  record = json.loads(path.read_text())
  if record['made_from'] != made_from:
    raise ValueError(f'{path} is of other defaults or data; use another --output')
  return {(row['variant'], row['seed']): row for row in record['results']}


def save_results(path: Path, header: Mapping[str, Any], results: Results) -> None:
  """Write JSON with a line for every result."""
  rows = ',\n'.join(f'    {json.dumps(row)}' for row in results.values())
  start = json.dumps(header, indent=2)[:-2]
  with artifacts.atomic_write(path) as file:
    file.write(f'{start},\n  "results": [\n{rows}\n  ]\n}}\n'.encode())


def main(_: object) -> None:
  logging.set_verbosity(logging.WARNING)
  output = Path(OUTPUT.value)
  seeds = [int(seed) for seed in SEEDS.value]
  variants = list(dict.fromkeys((DEFAULT, *CHOSEN.value)))
  config = get_config(DEFAULT)
  options = json.loads(config.to_json())
  datasets = [*registry.open_target(**config.target), registry.load(**config.source)]
  header = {
    'made_from': artifacts.fingerprint(options, [d.fingerprint for d in datasets], FOLDS),
    'device': f'{jax.local_device_count()} × {jax.local_devices()[0].device_kind}',
    'jax': jax.__version__,
    DEFAULT: {section: options[section] for section in ('bank', 'descriptors')},
  }
  results = load_results(output, header['made_from'])
  for variant in variants:
    bank.load(**get_config(variant).bank)  # What is impossible shows before any work.

  jobs = [(v, s) for s in (None, *seeds) for v in variants if (v, s) not in results]
  job_seconds: dict[bool, list[float]] = {True: [], False: []}  # By whether it is without a seed.
  with contextlib.ExitStack() as stack:
    workdir = Path(WORKDIR.value or stack.enter_context(tempfile.TemporaryDirectory()))
    workdir.mkdir(parents=True, exist_ok=True)
    scratch = workdir / 'now'
    for number, (variant, seed) in enumerate(jobs, 1):
      shutil.rmtree(scratch, ignore_errors=True)
      start_time = time.monotonic()
      with (workdir / 'log.txt').open('a') as log, contextlib.redirect_stdout(log):
        if seed is None:
          measured = measure_relevance(variant, scratch)
        else:
          measured = measure_accuracy(variant, seed, workdir / 'rankings', scratch)
      seconds = time.monotonic() - start_time
      row = {'variant': variant, 'seed': seed, 'seconds': round(seconds, 1), **measured}
      results[variant, seed] = row
      save_results(output, header, results)
      job_seconds[seed is None].append(seconds)
      expected = {
        True: np.mean(job_seconds[True] or RELEVANCE_SECONDS),
        False: np.mean(job_seconds[False] or ACCURACY_SECONDS),
      }
      remaining = sum(expected[s is None] for _, s in jobs[number:])
      title = 'relevance' if seed is None else f'accuracy, seed {seed}'
      print(
        f'{number}/{len(jobs)} {variant}: {title}, {seconds:.0f} s; {remaining / 60:.0f} min to go',
        flush=True,
      )
    shutil.rmtree(scratch, ignore_errors=True)
  print_table(results, variants, seeds)


if __name__ == '__main__':
  app.run(main)
