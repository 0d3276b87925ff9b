"""The method on one page (Ge & Yu 2017, Figure 1): screen → rank → (pretrain) → rounds → results.

Every stage leaves its artifact in the work directory; what is there already is not made again.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from sjft_jax import config as configs
from sjft_jax import ranking as rankings
from sjft_jax import results as result_files
from sjft_jax import workdir as workdirs
from sjft_jax.arms import run_arms
from sjft_jax.data import registry, transforms
from sjft_jax.data.dataset import Domains
from sjft_jax.descriptors import bank as banks
from sjft_jax.models.build import ModelOptions, build_network
from sjft_jax.models.weights import run_checkpoint
from sjft_jax.report import summary
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.rounds import resolve_num_neighbors
from sjft_jax.run_report.draw import RunReport
from sjft_jax.runtime import artifacts, console, distributed
from sjft_jax.runtime.lock import lock
from sjft_jax.screening.screen import ScreeningResult, screen
from sjft_jax.selection.growth import SelectionOptions
from sjft_jax.training import evaluation, losses, metric_writer, optimizer
from sjft_jax.training.freeze import frozen_layers
from sjft_jax.training.pretrain import PretrainOptions, pretrain_trunk
from sjft_jax.training.search import TuningOptions
from sjft_jax.training.trainer import TrainerFactory, TrainingOptions

# The callable that receives the options of each section as keyword arguments.
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
  'evaluation': evaluation.EvaluationOptions,
  'logging': metric_writer.LoggingOptions,
  'tuning': TuningOptions,
}


def run(
  config: ConfigDict,
  workdir: str | os.PathLike[str],
  *,
  resume_with_changes: bool = False,
  earlier_runs: Sequence[epath.Path] = (),
) -> dict[str, Any]:
  """Run everything from images to results; called again, go on from where it was stopped.

  Args:
    config: starts from `config.default`.
    workdir: a path, or gs://bucket/path.
    resume_with_changes: accept other values of options that change no result.
    earlier_runs: other work directories, whose ranking is taken if it would be the same.

  Returns:
    What results.json holds (see `results.summarize`).

  Raises:
    ValueError: an impossible option or input, before any work where that can be known.
  """
  directory = workdirs.resolve(workdir)
  configs.check_consumers(config, CONSUMERS)
  with configs.option_section('config.target'):
    target, test = registry.open_target(**config.target)
  with configs.option_section('config.source'):
    source = registry.load(**config.source)
  t = config.target
  for place in (
    {'dataset': t.dataset, 'path': t.path, 'split': t.train_split},
    {'dataset': t.dataset, 'path': t.path, 'split': t.test_split or t.train_split},
    config.source,
  ):
    registry.check_outside_classes(os.fspath(directory), **place)
  domains = Domains(target, test, source)
  return run_on_datasets(
    domains,
    config,
    directory,
    resume_with_changes=resume_with_changes,
    earlier_runs=earlier_runs,
  )


def run_on_datasets(
  domains: Domains,
  config: ConfigDict,
  workdir: epath.Path,
  *,
  resume_with_changes: bool = False,
  earlier_runs: Sequence[epath.Path] = (),
) -> dict[str, Any]:
  """Do what `run` does, with data sets that are open already."""
  arms = configs.arm_configs(config)
  for options in arms.values():
    configs.check_values(options, domains, num_devices=jax.device_count())
  if distributed.is_primary_process():
    metric_writer.check_wandb(config.logging.wandb)
  with configs.option_section('bank'):
    bank = banks.load(**config.bank)
  with configs.option_section('model'):
    network = build_network(
      ModelOptions(**config.model),
      num_target_classes=len(domains.target.classes),
      num_source_classes=len(domains.source.classes),
      image_size=config.images.crop,
      seed=config.seed,
    )
  for options in arms.values():
    with configs.option_section('training'):
      frozen_layers(options.training.freeze, network.variables['params']['trunk'])
  fingerprint = workdirs.run_fingerprint(
    config, bank.fingerprint, network.description['weights_digest'], domains
  )
  workdirs.check_unchanged(config, workdir, resume_with_changes=resume_with_changes)
  results = result_files.load_results(workdir, fingerprint)
  # As process 0 sees it: it may make a missing file anew before another process looks.
  if distributed.broadcast(np.array(results is not None, np.int32)) and results is not None:
    console.say(f'{workdir} is finished, nothing is repeated; a new --workdir starts a new run.')
    summary.print_table(results)
    return results

  with lock(workdir) if distributed.is_primary_process() else artifacts.suppress_writes(workdir):
    # Again, since another run may just have ended here.
    workdirs.check_unchanged(config, workdir, resume_with_changes=resume_with_changes)
    domains, left_out = screen_images(workdir, domains, config, arms)
    result_files.save_test_images(workdir, fingerprint, domains.test)
    # Not before: an option that proves impossible here can be changed in the same work directory.
    workdirs.save_config(config, workdir)
    classes = list(domains.target.classes)
    run_checkpoint.save_description(workdir, network.description | {'classes': classes})
    # All trainers before the ranking, which can take hours: a step may be too large for the memory.
    make_trainer = TrainerFactory(workdir, fingerprint, domains, network.model, network.variables)
    pretrain_options = configs.pretrain_config(config)
    pretrainer = make_trainer('pretrain', pretrain_options) if config.pretrain.steps else None
    trainers = {name: make_trainer(f'arms/{name}', options) for name, options in arms.items()}

    seconds: dict[str, float] = {}
    selections = {name: SelectionOptions(**options.selection) for name, options in arms.items()}
    depth = max((selection.ranking_depth for selection in selections.values()), default=0)
    ranking = rank(workdir, domains, bank, depth, config, seconds, earlier_runs)
    selections = resolve_num_neighbors(selections, ranking)
    variables = network.variables
    if pretrainer is not None:
      variables = pretrain_trunk(pretrainer, variables, seconds)
    report = RunReport(workdir, fingerprint, config, domains, ranking)
    rounds = run_arms(trainers, variables, ranking, selections, report.update)
    seconds |= {f'train {name}': arm_rounds[-1].seconds for name, arm_rounds in rounds.items()}
    results = {'fingerprint': fingerprint, 'seed': config.seed, 'device': result_files.device()}
    results |= {'left_out': left_out, 'seconds': seconds}
    results |= result_files.summarize(rounds, domains.test, config.evaluation.views)
    artifacts.write_json(workdir / result_files.RESULTS, results)
    report.update()
  summary.print_table(results)
  console.say(
    f'Look at {workdir}: report.html, results.json, neighbors.png, arms/*/rounds/*/selection.*'
  )
  return results


def screen_images(
  workdir: epath.Path, domains: Domains, config: ConfigDict, arms: dict[str, ConfigDict]
) -> ScreeningResult:
  """Leave out unreadable images and copies of test images, and check that enough are left."""
  result_files.save_split(workdir / 'split.csv', domains)
  console.stage('Looking at every image')
  result = screen(workdir, *domains, **config.screening)
  for options in arms.values():
    configs.check_sizes(options, result.domains)
  target, test, source = result.domains
  console.say(
    f'Target: {len(target):,} training and {len(test):,} test images in {len(target.classes):,} '
    f'classes. Source: {len(source):,} images in {len(source.classes):,} classes.'
  )
  return result


def rank(
  workdir: epath.Path,
  domains: Domains,
  bank: banks.FilterBank,
  depth: int,
  config: ConfigDict,
  seconds: dict[str, float],
  earlier_runs: Sequence[epath.Path],
) -> Ranking:
  """Rank the source for every target image and draw Figure 2; note the seconds that it took."""
  target, _, source = domains
  if not depth:
    empty = np.zeros((len(target), 0))
    return Ranking(empty.astype(np.int32), empty.astype(np.float32))
  console.stage('Ranking the source by its filter responses')
  options, path = rankings.DescriptorOptions(**config.descriptors), workdir / 'ranking.npz'
  inputs = rankings.RankingInputs(target, source, bank, depth, options)
  if distributed.is_primary_process():
    rankings.copy_ranking([run / 'ranking.npz' for run in earlier_runs], path, inputs)
  ranking, _, seconds['rank'] = rankings.load_or_rank(path, inputs)
  result_files.save_neighbor_figure(workdir / 'neighbors.png', domains, ranking)
  return ranking
