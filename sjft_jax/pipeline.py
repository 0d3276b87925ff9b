"""The method on one page: describe → rank → (select → train → score) per round → report.

Every stage leaves its artifact in the work directory; what is there already is not made again.
"""

import csv
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from sjft_jax import artifacts, processes
from sjft_jax import workdir as workdirs
from sjft_jax.arm import Arm, Domains, Round, Scorer, fitted, neighbor_sheet, run_rounds
from sjft_jax.config import arm_config, check_read, check_values, depth_of, pretrain_config
from sjft_jax.data import registry, transforms
from sjft_jax.data.dataset import Dataset, Part
from sjft_jax.data.pairs import SourceOnly
from sjft_jax.descriptors import bank as banks
from sjft_jax.models import joint, trunk
from sjft_jax.models.weights import convert, own
from sjft_jax.ranking import Ranking, rank_sources
from sjft_jax.report import journal, terminal
from sjft_jax.screening import screen
from sjft_jax.training import metrics, optimizer, step

ARM_NAMES = {
  'none': 'no source',
  'random': 'random source',
  'all': 'all source',
  'selected': 'selected',
  'rounds': 'selected, growing',
}


def run(
  config: ConfigDict, workdir: str | os.PathLike[str], *, resume_with_changes: bool = False
) -> dict[str, Any]:
  """Everything from images to results; called again, goes on from where it was stopped.

  Args:
    workdir: a path, or gs://bucket/path.
    resume_with_changes: go on where other values of harmless options were used before.

  Returns:
    What results.json holds.

  Raises:
    ValueError: an impossible option or input, before any work where that can be known.
  """
  directory = workdirs.at(workdir)
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
  return run_on(domains, config, directory, resume_with_changes=resume_with_changes)


def run_on(
  domains: Domains, config: ConfigDict, workdir: epath.Path, *, resume_with_changes: bool = False
) -> dict[str, Any]:
  """`run` on data sets that are open already."""
  arms = {name: arm_config(config, name) for name in config.arms}

  def check(domains: Domains) -> None:
    for options in arms.values():
      check_values(
        options,
        num_target=len(domains.target),
        num_source=len(domains.source),
        num_devices=jax.device_count(),
      )

  check(domains)
  if processes.is_first():
    journal.check(config.logging.wandb)
  bank = banks.load(**config.bank)
  network, variables, which = build_network(
    domains, config.seed, config.images.crop, **config.model
  )
  made_from = artifacts.fingerprint(
    workdirs.deciding(config), *(data.fingerprint for data in vars(domains).values())
  )
  make = ArmMaker(workdir, made_from, domains, network)
  pretraining = make('pretrain', pretrain_config(config))
  runs = {name: make(f'arms/{name}', options) for name, options in arms.items()}
  workdirs.refuse_changes(config, workdir, resume_with_changes=resume_with_changes)

  finished = workdir / 'results.json'
  if finished.exists():
    results: dict[str, Any] = json.loads(finished.read_text())
    if results['made_from'] != made_from:
      raise ValueError(f'{finished} was made from other data; use a new --workdir')
    terminal.say(f'{workdir} is finished, nothing is repeated; a new --workdir starts a new run.')
    terminal.table(results)
    return results

  with workdirs.lock(workdir) if processes.is_first() else artifacts.discarded(workdir):
    write_split(workdir / 'split.csv', domains)
    terminal.stage('Looking at every image')
    domains = Domains(*screen(workdir, *vars(domains).values(), **config.screening))
    check(domains)
    # Not before: an option that proves impossible here can be changed in the same work directory.
    # Again, since another run may just have ended here.
    workdirs.refuse_changes(config, workdir, resume_with_changes=resume_with_changes)
    workdirs.record(config, workdir)
    own.describe(workdir, which | {'classes': list(domains.target.classes)})
    target, test, source = vars(domains).values()
    terminal.say(
      f'Target: {len(target):,} training and {len(test):,} test images in {len(target.classes):,} '
      f'classes. Source: {len(source):,} images in {len(source.classes):,} classes.'
    )
    pretraining, *ready = (
      fitted(replace(run, domains=domains), workdir, variables)
      for run in (pretraining, *runs.values())
    )
    runs = dict(zip(runs, ready, strict=True))

    seconds: dict[str, float] = {}
    ranking = Ranking(*np.zeros((2, len(target), 0), np.int32))
    depth = max((depth_of(options) for options in arms.values()), default=0)
    if depth:
      terminal.stage('Ranking the source by its filter responses')
      decides = workdirs.deciding(config, 'bank', 'descriptors'), depth
      ranking, seconds['rank'] = rank(workdir, domains, bank, decides, config.descriptors)
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


class ArmMaker:
  """Arms of one network; those that differ in their source images alone share a compiled step."""

  def __init__(self, workdir: epath.Path, made_from: str, domains: Domains, network: joint.Joint):
    self._workdir, self._made_from, self._domains = workdir, made_from, domains
    self._network, self._predict = network, step.make_predict(network.apply)
    self._steps: dict[Any, Any] = {}

  def __call__(self, directory: str, options: ConfigDict) -> Arm:
    training = options.training
    rounds = options.selection.rounds if training.restart_schedule else 1
    steps = -(-training.steps // rounds)
    solver = optimizer.sgd(steps, **options.solver)
    shared = (
      *(json.dumps(json.loads(options[section].to_json())) for section in ('solver', 'loss')),
      steps if options.solver.schedule == 'cosine' else 0,
    )
    if shared not in self._steps:
      self._steps[shared] = step.make_train_step(
        self._network.apply, solver, options.seed, **options.loss
      )
    return Arm(
      self._workdir / directory,
      self._made_from,
      self._domains,
      self._steps[shared],
      solver,
      Scorer(self._predict, options.images.to_dict(), **options.evaluation),
      options.seed,
      json.loads(options.to_json()),
      **training,
    )


def rank(
  workdir: epath.Path, domains: Domains, bank: banks.FilterBank, decides: Any, options: ConfigDict
) -> tuple[Ranking, float]:
  """The ranking, and the seconds it took; `decides`: the options on which it depends."""
  target, _, source = vars(domains).values()
  made_from = artifacts.fingerprint(target.fingerprint, source.fingerprint, *decides)
  kept, partial = workdir / 'ranking.npz', workdir / 'ranking.partial.npz'
  found = artifacts.load(kept, made_from)
  if found is not None:
    terminal.say('  done before')
    ranking, seconds = Ranking(found['indices'], found['divergences']), float(found['seconds'])
  else:
    ranked = rank_sources(partial, made_from, target, source, bank, decides[-1], **options)
    ranking, seconds = ranked.ranking, ranked.seconds
    artifacts.save(kept, made_from, **vars(ranking), edges=ranked.edges, seconds=seconds)
    processes.meet()  # Only then is what it could go on from not needed.
  artifacts.of_process(partial, jax.process_index(), jax.process_count()).unlink(missing_ok=True)
  _, firsts = np.unique(target.labels, return_index=True)
  chosen = firsts[np.linspace(0, len(firsts) - 1, min(6, len(firsts))).astype(int)]
  with artifacts.written(workdir / 'neighbors.png') as file:
    neighbor_sheet(domains, ranking, chosen).save(file, 'PNG')
  return ranking, seconds


def write_split(path: epath.Path, domains: Domains) -> None:
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
  load = own.load if workdirs.at(pretrained).is_dir() else convert.load
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


def pretrain_trunk(
  arm: Arm, variables: dict[str, Any], *, steps: int
) -> tuple[dict[str, Any], float]:
  """The variables with a trunk trained on the source alone, and the seconds that took."""
  with arm.checkpoints() as checkpoints:
    progress = arm.restore(checkpoints, variables)
    with arm.journal(progress.step) as told:
      pairs = SourceOnly(**vars(arm.pairs(None, 0)))
      progress = arm.train(progress, pairs, steps, checkpoints, told)
  trained = step.unreplicate(step.evaluated(progress.state))
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
  'logging': journal.Journal,
}
