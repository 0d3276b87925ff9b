"""The method on one page: describe → rank → (select → train → score) per round → report.

Every stage leaves its artifact in the work directory; what is there already is not made again.
"""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sjft_jax import artifacts
from sjft_jax.arm import Arm, Domains, Round, Scorer, run_rounds
from sjft_jax.config import arm_config, check_read, check_values, depth_of
from sjft_jax.data import registry, transforms
from sjft_jax.data.dataset import Dataset, Part, class_names
from sjft_jax.data.pairs import SourceOnly
from sjft_jax.descriptors import bank as banks
from sjft_jax.models import joint, trunk
from sjft_jax.models.weights import convert, own
from sjft_jax.ranking import Ranking, rank_sources
from sjft_jax.report import terminal
from sjft_jax.report.neighbors import sheet
from sjft_jax.screening import screen
from sjft_jax.training import metrics, optimizer, step
from sjft_jax.training.checkpoints import Checkpoints

ARM_NAMES = {
  'none': 'no source',
  'random': 'random source',
  'all': 'all source',
  'selected': 'selected',
  'rounds': 'selected, growing',
}


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
  """Everything from images to results; called again, goes on from where it was stopped.

  Returns:
    What results.json holds.

  Raises:
    ValueError: an impossible option or input, before any work where that can be known.
  """
  check_read(config, READERS)
  opened: list[Dataset] = []
  for section, load in (
    ('target', registry.open_target),
    ('source', lambda **options: (registry.load(**options),)),
  ):
    try:
      opened += load(**config[section])
    except ValueError as error:
      raise ValueError(f'config.{section}: {error}') from error
  domains = Domains(*opened)
  return run_on(domains, config, workdir)


def run_on(domains: Domains, config: ConfigDict, workdir: Path) -> dict[str, Any]:
  """`run` on data sets that are open already."""
  arms = {name: arm_config(config, name) for name in config.arms}

  def check(domains: Domains) -> None:
    for options in arms.values():
      check_values(
        options,
        num_target=len(domains.target),
        num_source=len(domains.source),
        num_devices=jax.local_device_count(),
      )

  check(domains)
  bank = banks.load(**config.bank)
  network, variables, which = build_network(
    domains, config.seed, config.images.crop, **config.model
  )
  predict_step = step.make_predict(network.apply)
  made_from = artifacts.fingerprint(
    json.loads(config.to_json()), *(data.fingerprint for data in vars(domains).values())
  )

  compiled: dict[str, tuple[Any, Any]] = {}

  def arm(directory: str, options: ConfigDict) -> Arm:
    key = options.solver.to_json() + options.loss.to_json()
    if key not in compiled:  # Arms that differ in their source images alone share a step.
      solver = optimizer.sgd(**options.solver)
      compiled[key] = (
        step.make_train_step(network.apply, solver, config.seed, **options.loss),
        solver,
      )
    train_step, solver = compiled[key]
    return Arm(
      workdir / directory,
      made_from,
      domains,
      train_step,
      solver,
      Scorer(predict_step, options.images.to_dict(), **options.evaluation),
      options.seed,
      **options.training,
    )

  pretraining = arm('pretrain', config)
  runs = {name: arm(f'arms/{name}', options) for name, options in arms.items()}
  refuse_changes(config, workdir)

  finished = workdir / 'results.json'
  if finished.exists():
    results = json.loads(finished.read_text())
    if results['made_from'] != made_from:
      raise ValueError(f'{finished} was made from other data; use a new --workdir')
    terminal.say(f'{workdir} is finished, nothing is repeated; a new --workdir starts a new run.')
    terminal.table(results)
    return results

  write_split(workdir / 'split.csv', domains)
  terminal.stage('Looking at every image')
  domains = Domains(*screen(workdir, *vars(domains).values(), **config.screening))
  check(domains)
  # Not before: an option that proves impossible here can be changed in the same work directory.
  record(config, workdir)
  own.describe(workdir, which)
  pretraining = replace(pretraining, domains=domains)
  runs = {name: replace(run, domains=domains) for name, run in runs.items()}
  target, test, source = vars(domains).values()
  terminal.say(
    f'Target: {len(target):,} training and {len(test):,} test images in {len(target.classes):,} '
    f'classes. Source: {len(source):,} images in {len(source.classes):,} classes.'
  )
  ranking, seconds = Ranking(*np.zeros((2, len(target), 0), np.int32)), {}
  depth = max((depth_of(options) for options in arms.values()), default=0)
  if depth:
    terminal.stage('Ranking the source by its filter responses')
    kept = workdir / 'ranking.npz'
    decides = json.loads(config.bank.to_json()), json.loads(config.descriptors.to_json()), depth
    ranked_from = artifacts.fingerprint(
      domains.target.fingerprint, domains.source.fingerprint, *decides
    )
    found = artifacts.load(kept, ranked_from)
    if found is not None:
      terminal.say('  done before')
      ranking = Ranking(found['indices'], found['divergences'])
      seconds['rank'] = float(found['seconds'])
    else:
      partial = workdir / 'ranking.partial.npz'
      data = domains.target, domains.source
      ranked = rank_sources(partial, ranked_from, *data, bank, depth, **config.descriptors)
      ranking, seconds['rank'] = ranked.ranking, ranked.seconds
      artifacts.save(kept, ranked_from, **vars(ranking), edges=ranked.edges, seconds=ranked.seconds)
      ranked.partial.unlink(missing_ok=True)
    draw_neighbors(workdir / 'neighbors.png', domains, ranking)
  if config.pretrain.steps:
    terminal.stage('Pretraining the trunk on the source')
    variables, seconds['pretrain'] = pretrain_trunk(pretraining, variables, **config.pretrain)
  rounds = {}
  for number, (name, options) in enumerate(arms.items(), 1):
    terminal.stage(f'Arm {number} of {len(arms)}: {ARM_NAMES.get(name, name)}')
    rounds[name] = run_rounds(runs[name], variables, ranking, **options.selection)
    seconds[f'train {name}'] = rounds[name][-1].seconds

  results = {'made_from': made_from, 'seed': config.seed, 'device': _device(), 'seconds': seconds}
  results |= summarise(rounds, test, config.evaluation.views)
  artifacts.write_json(finished, results)
  terminal.table(results)
  terminal.say(f'Look at {workdir}: results.json, neighbors.png, arms/*/rounds/*/selection.csv')
  return results


def write_split(path: Path, domains: Domains) -> None:
  """Which images of the target train and which test, if that was drawn here."""
  if not isinstance(domains.target, Part):
    return
  text = io.StringIO()
  rows = csv.writer(text)
  rows.writerow(['image', 'class', 'set'])
  for name, data in (('train', domains.target), ('test', domains.test)):
    rows.writerows([data.key(i), data.classes[data.labels[i]], name] for i in range(len(data)))
  with artifacts.written(path) as file:
    file.write(text.getvalue().encode())


def build_network(
  domains: Domains,
  seed: int,
  image_size: int,
  *,
  name: str,
  width: float,
  style: str,
  fully_connected: bool,
  batch_norm: str,
  batch_norm_momentum: float,
  dtype: str,
  remat: bool,
  pretrained: str,
  normalization: str,
) -> tuple[joint.Joint, dict[str, Any], dict[str, Any]]:
  """The joint network, its first variables (heads at random, trunk at random or pretrained), and
  which network it is, for those who read its checkpoints."""
  which: dict[str, Any] = {'name': name, 'width': width, 'fully_connected': fully_connected}
  load = own.load if Path(pretrained).is_dir() else convert.load
  weights = load(pretrained, style=style, **which) if pretrained else None
  if weights is not None:
    style = weights.style
  if normalization == 'auto':
    normalization = weights.normalization if weights is not None else 'imagenet'
  body = trunk.build(
    **which,
    style=style,
    batch_norm=batch_norm,
    batch_norm_momentum=batch_norm_momentum,
    dtype=dtype,
    remat=remat,
  )
  num_classes = len(domains.target.classes), len(domains.source.classes)
  network = joint.Joint(body, *num_classes, normalization)
  variables = joint.init(network, jax.random.key(seed), image_size)
  if weights is not None:
    variables = joint.with_trunk(variables, weights.params, weights.batch_stats)
  return network, variables, which | {'style': style, 'normalization': normalization}


def draw_neighbors(path: Path, domains: Domains, ranking: Ranking) -> None:
  """Six target images of different classes and some of their neighbours (Figure 2)."""
  _, firsts = np.unique(domains.target.labels, return_index=True)
  chosen = firsts[np.linspace(0, len(firsts) - 1, min(6, len(firsts))).astype(int)]
  places = [place for place in (1, 10, 20, 30, 40) if place <= ranking.indices.shape[1]]

  def cell(data: Dataset, index: int, line: str) -> tuple[np.ndarray, str, str]:
    return data[index], class_names(data, index), line

  rows = []
  for target in chosen:
    row = [cell(domains.target, int(target), domains.target.key(int(target)))]
    for place in places:
      source, divergence = (a[target, place - 1] for a in vars(ranking).values())
      row.append(cell(domains.source, int(source), f'divergence {divergence:.3g}'))
    rows.append(row)
  ordinals = [f'{place}{"st" if place == 1 else "th"} neighbour' for place in places]
  with artifacts.written(path) as file:
    sheet(rows, ['target image', *ordinals]).save(file, 'PNG')


def pretrain_trunk(
  arm: Arm, variables: dict[str, Any], *, steps: int
) -> tuple[dict[str, Any], float]:
  """The variables with a trunk trained on the source alone, and the seconds that took."""
  batches = SourceOnly(**vars(arm.pairs(None, 0)))
  with Checkpoints(arm.directory / 'checkpoints') as checkpoints:
    progress = arm.train(arm.restore(checkpoints, variables), batches, steps, checkpoints)
  trained = step.unreplicate(progress.state)
  params = {**variables['params'], 'trunk': trained.params['trunk']}
  return {'params': params, 'batch_stats': trained.batch_stats}, progress.seconds


def summarise(
  rounds: dict[str, list[Round]], test: Dataset, views: tuple[str, ...]
) -> dict[str, Any]:
  """Every score of every arm, and the rows of the closing table."""

  def scores(p: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {
      view: {
        'mean_class_accuracy': metrics.mean_class_accuracy(p[view], test.labels, len(test.classes)),
        'top1': metrics.top1(p[view], test.labels),
        'cross_entropy': metrics.cross_entropy(p[view], test.labels),
      }
      for view in views
    }

  arms: dict[str, Any] = {}
  table: dict[str, tuple[int, dict[str, np.ndarray]]] = {}
  for name, done in rounds.items():
    title = ARM_NAMES.get(name, name)
    arms[name] = {
      'rounds': [
        {
          'source_images': r.source_images,
          'num_neighbors': {
            'mean': float(r.num_neighbors.mean()),
            'max': int(r.num_neighbors.max()),
          },
          'hardness': float(r.hardness.mean()),
          'training_accuracy': float(r.is_correct.mean()),
          'seconds': r.seconds,
          'test': scores(r.test),
        }
        for r in done
      ]
    }
    table[title] = (done[-1].source_images, done[-1].test)
    if len(done) > 1:
      fused = {view: np.mean([r.test[view] for r in done], axis=0) for view in views}
      arms[name]['fused'] = scores(fused)
      table[f'{title}, fused'] = (done[-1].source_images, fused)
  baseline = rounds['none'][-1].test[views[0]] if 'none' in rounds else None
  rows = []
  for title, (source_images, p) in table.items():
    row = {'name': title, 'source_images': source_images, **scores(p)[views[0]]}
    if baseline is not None and p[views[0]] is not baseline:
      gain = metrics.paired_gain(p[views[0]], baseline, test.labels)
      row |= dict(zip(('gain', 'standard_error'), gain, strict=True))
    rows.append(row)
  return {'test_images': len(test), 'view': views[0], 'table': rows, 'arms': arms}


def refuse_changes(config: ConfigDict, workdir: Path) -> None:
  """A work directory has one set of options.

  Raises:
    ValueError: this one was made with other options.
  """
  path = workdir / 'config.json'
  if not path.exists():
    return
  then = _flat(json.loads(path.read_text()))
  changed = [
    f'{key} was {then.get(key)!r}, now {value!r}'
    for key, value in _flat(json.loads(config.to_json())).items()
    if then.get(key) != value
  ]
  if changed:
    raise ValueError(
      f'{workdir} was made with other options ({"; ".join(changed)}): use a new '
      '--workdir, or the same options'
    )


def record(config: ConfigDict, workdir: Path) -> None:
  """Writes the options and the versions of all packages."""
  artifacts.write_json(workdir / 'config.json', json.loads(config.to_json()))
  packages = sorted({(d.name, d.version) for d in metadata.distributions()}, key=str)
  artifacts.write_json(workdir / 'versions.json', dict(packages))


def _flat(options: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for key, value in options.items():
    flat |= _flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
  return flat


def _device() -> str:
  return f'{jax.local_device_count()} × {jax.local_devices()[0].device_kind}, jax {jax.__version__}'


# Which function takes which section of the configuration, option by option.
READERS: dict[str, Callable[..., Any]] = {
  'target': registry.open_target,
  'source': registry.load,
  'screening': screen,
  'bank': banks.load,
  'descriptors': rank_sources,
  'selection': run_rounds,
  'model': build_network,
  'pretrain': pretrain_trunk,
  'images': transforms.center_crop,
  'training': Arm,
  'loss': step.make_train_step,
  'solver': optimizer.sgd,
  'evaluation': Scorer,
}
