"""What the descriptor's options do to the selection and to held-out accuracy, one at a time.

  python -m experiments.quality_knobs --output=experiments/quality_knobs.json

A variant is the demo's configuration with some options of its sections `bank` and `descriptors`
changed, such as `num_bins=16`, `layers=conv1:conv3` or `tap=relu+smoothing=2`. Measured are

- relevance, of the ranking for the whole target training set: which share of the selected source
  images comes from families that cannot help; the same in the max_num_neighbors prefix that rounds
  can grow to; which share of each target image's K0 neighbours is a texture, as the target is; and,
  of the target's training images ranked against each other, which share of the nearest others is of
  the same class;
- accuracy of the arm `selected` on held-out target training images, trained and scored as in the
  demo. Seed s holds out fold s of `tune_demo`, around and around: an even number of seeds counts
  every held-out image as often.

The test images are not looked at. Differences to the demo's configuration are over the same seeds
and images; their standard error is over images, all seeds' answers about one image taken together.
Of twenty variants that change nothing, about one differs by two standard errors.

What is finished is in the output and is not repeated.
"""

import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging

from configs import demo
from experiments import tune_demo
from sjft_jax import pipeline
from sjft_jax.config import arm_config, ranking_depth
from sjft_jax.data import registry
from sjft_jax.data.dataset import SubsetDataset
from sjft_jax.data.demo import DemoDiverse
from sjft_jax.descriptors import bank
from sjft_jax.runtime import artifacts

DEFAULT = 'default'
VARIANTS = (
  *('num_bins=8', 'num_bins=16', 'num_bins=64', 'num_bins=100'),
  *('smoothing=0.001', 'smoothing=0.1', 'smoothing=1', 'smoothing=2', 'smoothing=5'),
  *('smoothing=10', 'tap=relu'),
  *('layers=conv1', 'layers=conv2', 'layers=conv1:conv2:conv3:conv4:conv5'),
  *('layer_weights=2:1', 'layer_weights=1:2', 'layer_weights=4:1', 'layer_weights=1:4'),
  'name=gabor',
)
OUTPUT = flags.DEFINE_string(
  *('output', 'experiments/quality_knobs.json', 'Where the record goes.'),
  allow_override=True,  # tune_demo, imported above, has one of this name too.
)
SEEDS = flags.DEFINE_list('seeds', '0,1,2,3', 'Seeds of the accuracy part; empty: none.')
WORKDIR = flags.DEFINE_string('workdir', '', 'Rankings and logs; empty: a temporary folder.')
CHOSEN = flags.DEFINE_list('variants', ','.join(VARIANTS), 'Beside the default.')
# Seconds of a job without and with a seed, until this run knows better.
RELEVANCE_GUESS, ACCURACY_GUESS = 40.0, 60.0


def settings(variant):
  """The demo's configuration with the variant's options."""
  config = demo.get_config()
  config.arms = ('selected',)
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


def rank(config, train, source, depth, workdir):
  """The ranking that the pipeline makes for these data sets."""
  config.overrides.selected = {
    'selection': {'rounds': 1, 'num_neighbors': depth},
    'training': {'steps': 1},  # Training is not asked for, but it takes no options for none.
  }
  config.evaluation.views = ('center',)
  pipeline.run_on_datasets(pipeline.Domains(train, train, source), config, workdir)
  with np.load(workdir / 'ranking.npz') as ranking:
    return ranking['indices']


def relevance(variant, scratch):
  config = settings(variant)
  k0, depth = config.selection.num_neighbors, ranking_depth(arm_config(config, 'rounds'))
  source = DemoDiverse()
  train, _ = registry.open_target(**config.target)
  indices = rank(config, train, source, depth, scratch / 'source')
  per_class = int(np.bincount(train.labels).max())
  # As a source of its own, a data set has to be another object.
  own = SubsetDataset(train, np.arange(len(train)))
  others = rank(settings(variant), train, own, per_class, scratch / 'itself')
  is_other = others != np.arange(len(train))[:, None]
  same = train.labels[others] == train.labels[:, None]
  first, max_num_neighbors = np.unique(indices[:, :k0]), np.unique(indices)
  irrelevant = np.isin(source.families, source.irrelevant)
  pairs = source.families[indices[:, :k0]]
  return {
    'selected': len(first),
    'irrelevant': float(irrelevant[first].mean()),
    'max_num_neighbors': len(max_num_neighbors),
    'irrelevant_deepest': float(irrelevant[max_num_neighbors].mean()),
    'families': {f: float((pairs == f).mean()) for f in np.unique(source.families).tolist()},
    'same_class': float(same[is_other].mean()),
  }


def accuracy(variant, seed, rankings, scratch):
  fold = seed % len(tune_demo.FOLDS)
  domains = tune_demo.fold_domains(tune_demo.FOLDS[fold])
  config = settings(variant)
  config.seed = seed
  config.evaluation.views = ('ten_crop',)
  kept = rankings / f'{variant} fold {fold}.npz'
  scratch.mkdir(parents=True)
  if kept.exists():  # It depends on the fold only.
    shutil.copy(kept, scratch / 'ranking.npz')
  results = pipeline.run_on_datasets(domains, config, scratch)
  kept.parent.mkdir(exist_ok=True)
  (scratch / 'ranking.npz').replace(kept)
  with np.load(scratch / 'arms' / 'selected' / 'rounds' / '1' / 'round.npz') as round_:
    p = round_['test/ten_crop']
  labels = domains.test.labels
  loss = -np.log(np.maximum(p[np.arange(len(p)), labels], 1e-30))
  return {
    'fold': fold,
    **results['arms']['selected']['rounds'][0]['test']['ten_crop'],
    'is_correct': (p.argmax(axis=1) == labels).astype(int).tolist(),
    'loss': [round(float(x), 4) for x in loss],
  }


def paired(rows, baseline, key):
  """Mean difference over seeds and images, and its standard error over images."""
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


def table(done, variants, seeds):
  width = max(16, 6 * len(seeds))
  print(
    f'{"":<38}{"irrelevant":>11}{"max_num_neighbors":>9}{"texture":>9}{"same class":>11}'
    f'  {"accuracy by seed":<{width}}{"gain, points":>14}{"cross-entropy":>20}'
  )
  baseline = {s: done[DEFAULT, s] for s in seeds if (DEFAULT, s) in done}
  for variant in variants:
    found = done[variant, None]
    line = f'{variant:<38}{found["irrelevant"]:>11.1%}{found["irrelevant_deepest"]:>9.1%}'
    line += f'{found["families"]["texture"]:>9.1%}{found["same_class"]:>11.1%}  '
    rows = {s: done[variant, s] for s in seeds if (variant, s) in done}
    scores = (f'{100 * row["mean_class_accuracy"]:6.1f}' for row in rows.values())
    line += f'{"".join(scores):<{width}}'
    if rows and variant != DEFAULT:
      gain, error = paired(rows, baseline, 'is_correct')
      loss, loss_error = paired(rows, baseline, 'loss')
      line += f'{100 * gain:+8.1f} ± {100 * error:.1f}{loss:+12.3f} ± {loss_error:.3f}'
    print(line)


def write(path, record, done):
  """As JSON, a line for every result."""
  rows = ',\n'.join(f'    {json.dumps(row)}' for row in done.values())
  head = json.dumps(record, indent=2)[:-2]
  with artifacts.atomic_write(path) as file:
    file.write(f'{head},\n  "results": [\n{rows}\n  ]\n}}\n'.encode())


def main(_):
  logging.set_verbosity(logging.WARNING)
  output = Path(OUTPUT.value)
  seeds = [int(seed) for seed in SEEDS.value]
  variants = list(dict.fromkeys((DEFAULT, *CHOSEN.value)))
  config = settings(DEFAULT)
  data = [*registry.open_target(**config.target), registry.load(**config.source)]
  everything = json.loads(config.to_json()), [d.fingerprint for d in data], tune_demo.FOLDS
  record = {
    'fingerprint': artifacts.fingerprint(*everything),
    'device': f'{jax.local_device_count()} × {jax.local_devices()[0].device_kind}',
    'jax': jax.__version__,
    DEFAULT: {section: everything[0][section] for section in ('bank', 'descriptors')},
  }
  done = {}
  if output.exists():
    before = json.loads(output.read_text())
    if before['fingerprint'] != record['made_from']:
      raise ValueError(f'{output} is of other defaults or data; use another --output')
    done = {(row['variant'], row['seed']): row for row in before['results']}
  for variant in variants:
    bank.load(**settings(variant).bank)  # What is impossible shows before any work.

  jobs = [(v, s) for s in (None, *seeds) for v in variants if (v, s) not in done]
  spent: dict[bool, list[float]] = {True: [], False: []}
  with contextlib.ExitStack() as stack:
    workdir = Path(WORKDIR.value or stack.enter_context(tempfile.TemporaryDirectory()))
    workdir.mkdir(parents=True, exist_ok=True)
    scratch = workdir / 'now'
    for number, (variant, seed) in enumerate(jobs, 1):
      shutil.rmtree(scratch, ignore_errors=True)
      begun = time.monotonic()
      with (workdir / 'log.txt').open('a') as log, contextlib.redirect_stdout(log):
        if seed is None:
          measured = relevance(variant, scratch)
        else:
          measured = accuracy(variant, seed, workdir / 'rankings', scratch)
      seconds = time.monotonic() - begun
      row = {'variant': variant, 'seed': seed, 'seconds': round(seconds, 1), **measured}
      done[variant, seed] = row
      write(output, record, done)
      spent[seed is None].append(seconds)
      relevance_time = np.mean(spent[True] or RELEVANCE_GUESS)
      accuracy_time = np.mean(spent[False] or ACCURACY_GUESS)
      rest = sum(relevance_time if s is None else accuracy_time for _, s in jobs[number:])
      what = 'relevance' if seed is None else f'accuracy, seed {seed}'
      print(
        f'{number}/{len(jobs)} {variant}: {what}, {seconds:.0f} s; {rest / 60:.0f} min to go',
        flush=True,
      )
    shutil.rmtree(scratch, ignore_errors=True)
  table(done, variants, seeds)


if __name__ == '__main__':
  app.run(main)
