"""The method on one page (Ge & Yu 2017, Figure 1): screen → rank → rounds of every arm → results.

Every stage leaves its artifact in the work directory; what is there already is not made again.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from sjft_jax import ranking as rankings
from sjft_jax import results as result_files
from sjft_jax import workdir as workdirs
from sjft_jax.config import (
  arm_config,
  check_consumers,
  check_values,
  option_section,
  pretrain_config,
)
from sjft_jax.data import registry, transforms
from sjft_jax.data.dataset import Domains
from sjft_jax.data.pairs import SourcePairs
from sjft_jax.descriptors import bank as banks
from sjft_jax.models.build import ModelOptions, build_network
from sjft_jax.models.weights import run_checkpoint
from sjft_jax.report import summary
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.rounds import run_rounds
from sjft_jax.runtime import artifacts, console, distributed
from sjft_jax.runtime.lock import lock
from sjft_jax.screening.screen import screen
from sjft_jax.selection.schedule import SelectionOptions
from sjft_jax.training import losses, metric_writer, optimizer
from sjft_jax.training.evaluation import EvaluationOptions
from sjft_jax.training.trainer import PretrainOptions, Trainer, TrainerFactory, TrainingOptions

# What takes the options of each section, as keywords.
CONSUMERS: dict[str, Callable[..., Any]] = {
  'target': registry.open_target,
  'source': registry.load,
  'screening': screen,
  'bank': banks.load,
  'descriptors': rankings.DescriptorOptions,
  'selection': SelectionOptions,
  'model': ModelOptions,
  'pretrain': PretrainOptions,
  'images': transforms.ImageSize,
  'training': TrainingOptions,
  'loss': losses.LossOptions,
  'solver': optimizer.SolverOptions,
  'evaluation': EvaluationOptions,
  'logging': metric_writer.LoggingOptions,
}


def run(
  config: ConfigDict, workdir: str | os.PathLike[str], *, resume_with_changes: bool = False
) -> dict[str, Any]:
  """Run everything from images to results; called again, go on from where it was stopped.

  Args:
    config: starts from `config.default`.
    workdir: a path, or gs://bucket/path.
    resume_with_changes: go on where other values of harmless options were used before.

  Returns:
    What results.json holds.

  Raises:
    ValueError: an impossible option or input, before any work where that can be known.
  """
  directory = workdirs.resolve(workdir)
  check_consumers(config, CONSUMERS)
  with option_section('config.target'):
    target, test = registry.open_target(**config.target)
  with option_section('config.source'):
    source = registry.load(**config.source)
  return run_on_datasets(
    Domains(target, test, source), config, directory, resume_with_changes=resume_with_changes
  )


def run_on_datasets(
  domains: Domains, config: ConfigDict, workdir: epath.Path, *, resume_with_changes: bool = False
) -> dict[str, Any]:
  """Do `run` on data sets that are open already."""
  arms = {name: arm_config(config, name) for name in config.arms}
  for options in arms.values():
    check_values(options, domains, num_devices=jax.device_count())
  if distributed.is_lead_host():
    metric_writer.check_wandb(config.logging.wandb)
  with option_section('bank'):
    bank = banks.load(**config.bank)
  with option_section('model'):
    network = build_network(
      ModelOptions(**config.model),
      num_target_classes=len(domains.target.classes),
      num_source_classes=len(domains.source.classes),
      image_size=config.images.crop,
      seed=config.seed,
    )
  fingerprint = artifacts.fingerprint(
    workdirs.result_options(config), bank.fingerprint, *(data.fingerprint for data in domains)
  )
  workdirs.check_unchanged(config, workdir, resume_with_changes=resume_with_changes)
  results = load_results(workdir, fingerprint)
  if results is not None:
    console.say(f'{workdir} is finished, nothing is repeated; a new --workdir starts a new run.')
    summary.print_table(results)
    return results

  with lock(workdir) if distributed.is_lead_host() else artifacts.suppress_writes(workdir):
    # Another run may just have ended here.
    workdirs.check_unchanged(config, workdir, resume_with_changes=resume_with_changes)
    result_files.save_split(workdir / 'split.csv', domains)
    console.stage('Looking at every image')
    domains, left_out = screen(workdir, *domains, **config.screening)
    # Not before: an option that proves impossible here can be changed in the same work directory.
    workdirs.save_config(config, workdir)
    run_checkpoint.save_description(
      workdir, network.description | {'classes': list(domains.target.classes)}
    )
    _print_sizes(domains)
    make_trainer = TrainerFactory(workdir, fingerprint, domains, network.model, network.variables)

    seconds: dict[str, float] = {}
    depth = max(SelectionOptions(**options.selection).ranking_depth for options in arms.values())
    ranking = rank(workdir, domains, bank, depth, config, seconds)
    variables = network.variables
    if config.pretrain.steps:
      console.stage('Pretraining the trunk on the source')
      trainer = make_trainer('pretrain', pretrain_config(config))
      variables = pretrain_trunk(trainer, variables, config.pretrain.steps, seconds)
    rounds = {}
    for number, (name, options) in enumerate(arms.items(), 1):
      title = result_files.ARM_TITLES.get(name, name)
      console.stage(f'Arm {number} of {len(arms)}: {title}')
      trainer = make_trainer(f'arms/{name}', options)
      rounds[name] = run_rounds(trainer, variables, ranking, SelectionOptions(**options.selection))
      seconds[f'train {name}'] = rounds[name][-1].seconds

    results = result_files.summarize(
      rounds,
      domains.test,
      config.evaluation.views,
      fingerprint=fingerprint,
      seed=config.seed,
      seconds=seconds,
    )
    results['left_out'] = left_out
    artifacts.write_json(workdir / 'results.json', results)
  summary.print_table(results)
  console.say(f'Look at {workdir}: results.json, neighbors.png, arms/*/rounds/*/selection.*')
  return results


def load_results(workdir: epath.Path, fingerprint: str) -> dict[str, Any] | None:
  """Load the results of a finished run, or None.

  Raises:
    ValueError: they were made from other data.
  """
  path = workdir / 'results.json'
  if not path.exists():
    return None
  results: dict[str, Any] = json.loads(path.read_text())
  if results['fingerprint'] != fingerprint:
    raise ValueError(f'{path} was made from other data; use a new --workdir')
  return results


def rank(
  workdir: epath.Path,
  domains: Domains,
  bank: banks.FilterBank,
  depth: int,
  config: ConfigDict,
  seconds: dict[str, float],
) -> Ranking:
  """Rank the source for every target image and draw Figure 2; note the seconds that it took."""
  target, _, source = domains
  if not depth:
    empty = np.zeros((len(target), 0))
    return Ranking(empty.astype(np.int32), empty.astype(np.float32))
  console.stage('Ranking the source by its filter responses')
  fingerprint = artifacts.fingerprint(
    target.fingerprint,
    source.fingerprint,
    bank.fingerprint,
    workdirs.result_options(config, 'descriptors'),
    depth,
  )
  options = rankings.DescriptorOptions(**config.descriptors)
  path = workdir / 'ranking.npz'
  result = rankings.load_or_rank(path, fingerprint, target, source, bank, depth, options)
  seconds['rank'] = result.seconds
  result_files.save_neighbor_figure(workdir / 'neighbors.png', domains, result.ranking)
  return result.ranking


def pretrain_trunk(
  trainer: Trainer, variables: dict[str, Any], steps: int, seconds: dict[str, float]
) -> dict[str, Any]:
  """Train the trunk on the source alone; return the variables with it, and note the seconds."""
  with trainer.open(variables) as run:
    run.train(trainer.pairs(None, 0, batches=SourcePairs), steps)
    trained = run.network()
  seconds['pretrain'] = run.progress.seconds
  params = {**variables['params'], 'trunk': trained['params']['trunk']}
  return {'params': params, 'batch_stats': trained['batch_stats']}


def _print_sizes(domains: Domains) -> None:
  target, test, source = domains
  console.say(
    f'Target: {len(target):,} training and {len(test):,} test images in {len(target.classes):,} '
    f'classes. Source: {len(source):,} images in {len(source.classes):,} classes.'
  )
