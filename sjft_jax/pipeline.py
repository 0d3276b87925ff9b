"""The method on one page (Ge & Yu 2017, Figure 1): screen → rank → (pretrain) → rounds → results.

Every stage leaves its artifact in the work directory; what is there already is not made again.
"""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from sjft_jax import config as configs
from sjft_jax import features, option_checks, round_files
from sjft_jax import inputs as run_inputs
from sjft_jax import ranking as rankings
from sjft_jax import results as result_files
from sjft_jax import workdir as workdirs
from sjft_jax.arms import run_arms
from sjft_jax.data.dataset import Dataset, Domains
from sjft_jax.inputs import Inputs
from sjft_jax.models.weights import run_checkpoint
from sjft_jax.report import summary
from sjft_jax.report.draw import RunReport
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.rounds import resolve_num_neighbors
from sjft_jax.runtime import artifacts, console, distributed
from sjft_jax.runtime.choice import choose
from sjft_jax.runtime.lock import lock
from sjft_jax.screening.screen import ScreeningResult, screen
from sjft_jax.selection.growth import SelectionOptions
from sjft_jax.training.accumulation import copy_accumulation
from sjft_jax.training.pretrain import pretrain_trunk
from sjft_jax.training.profile import StepProfile
from sjft_jax.training.trainer import TrainerFactory

# The stages that a run can end after.
STAGES = ('screen', 'rank', 'pretrain')


def run(config: ConfigDict, workdir: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
  """Run everything from images to results; called again, go on from where it was stopped.

  Args:
    config: starts from `config.default`.
    workdir: a path, or gs://bucket/path.
    options: those of `run_on_datasets`.

  Returns:
    What results.json holds (see `results.summarize`); nothing if it ended after a stage.

  Raises:
    ValueError: an impossible option or input, before any work where that can be known.
  """
  directory = workdirs.resolve(workdir)
  option_checks.check_consumers(config, run_inputs.CONSUMERS)
  option_checks.check_method(config)
  domains = run_inputs.open_domains(config)
  run_inputs.check_outside_data(config, directory)
  results = run_on_datasets(domains, config, directory, **options)
  if results:
    names = ('report.html', 'results.json', 'neighbors.png', 'arms/*/rounds/*/selection.*')
    files = [name for name in names if any(artifacts.glob(directory, name))]
    console.say(f'Look at {directory}: {", ".join(files)}')
  return results


def run_on_datasets(
  domains: Domains,
  config: ConfigDict,
  workdir: epath.Path,
  *,
  resume_with_changes: bool = False,
  earlier_runs: Sequence[epath.Path] = (),
  stop_after: str = '',
  profile_steps: int = 0,
) -> dict[str, Any]:
  """Do what `run` does, with data sets that are open already.

  Args:
    domains: the data sets.
    config, workdir: as for `run`.
    resume_with_changes: accept other values of options that change no result.
    earlier_runs: other work directories, whose ranking is taken if it would be the same, and the
      numbers of micro-batches that were chosen there.
    stop_after: one of `STAGES`, after which to end; '': run all.
    profile_steps: steps of the first arm to trace (see `StepProfile`); 0: none.
  """
  choose('stop_after', stop_after or STAGES[0], STAGES)
  inputs = run_inputs.load_inputs(config, domains)
  trained = [arm for arm in inputs.arms if arm not in configs.FROZEN_ARMS]
  if profile_steps and (stop_after or not trained):
    reason = f'stop_after={stop_after} ends before' if stop_after else 'arms has none of'
    raise ValueError(
      f'profile_steps={profile_steps} traces a training of target images, but {reason} these; '
      'leave it out'
    )
  available = min(options.training.steps for options in inputs.arms.values())
  profile = StepProfile(workdir / 'profile', profile_steps, available=available)
  workdirs.check_unchanged(config, workdir, resume_with_changes=resume_with_changes)
  results = result_files.load_results(workdir, inputs.fingerprint)
  # As process 0 sees it: it may make a missing file anew before another process looks.
  if distributed.broadcast(np.array(results is not None, np.int32)):
    if results is None:
      raise ValueError(f'{workdir} is finished, but not all processes can read its results.json')
    console.say(f'{workdir} is finished, nothing is repeated; a new --workdir starts a new run.')
    summary.print_table(results)
    profile.report_missing()
    return results
  with lock(workdir) if distributed.is_primary_process() else artifacts.suppress_writes(workdir):
    # Again, since another run may just have ended here.
    workdirs.check_unchanged(config, workdir, resume_with_changes=resume_with_changes)
    results = run_stages(inputs, config, workdir, earlier_runs, stop_after, profile)
  if not results:
    console.say(f'Stopped after {stop_after}; without stop_after, {workdir} goes on from there.')
    return results
  profile.report_missing()
  summary.print_table(results)
  return results


def run_stages(
  inputs: Inputs,
  config: ConfigDict,
  workdir: epath.Path,
  earlier_runs: Sequence[epath.Path],
  stop_after: str,
  profile: StepProfile,
) -> dict[str, Any]:
  """Run the stages of Figure 1, one after the other, and return the results."""
  seconds: dict[str, float] = {}
  selections = {
    name: SelectionOptions(**options.selection) for name, options in inputs.arms.items()
  }
  depth = run_inputs.ranking_depth(inputs.arms.values())
  descriptors = rankings.DescriptorOptions(**config.descriptors)
  workdirs.check_start(inputs.fingerprint, workdir)
  domains, left_out = screen_images(inputs, config, workdir)
  distributed.check_same(
    {
      'options, images or weights': inputs.fingerprint,
      'readable images': artifacts.fingerprint(*(data.fingerprint for data in domains)),
    }
  )
  workdirs.check_screened(domains, workdir)
  # Not before: it says which images have trained the networks that are there.
  result_files.save_split(workdir / 'split.csv', inputs.domains, domains)
  run_inputs.save_inputs(inputs, config, workdir, domains)
  if stop_after == 'screen':
    return {}
  workdirs.save_screened(domains, workdir, inputs.fingerprint)

  # All trainers before the ranking, which can take hours: a step may be too large for the memory.
  network, fingerprint, arms = inputs.network, inputs.fingerprint, inputs.arms
  make_trainer = TrainerFactory(workdir, fingerprint, domains, network.model, network.variables)
  copy_accumulation(earlier_runs, workdir)
  make_trainer.share_accumulation(configs.training_configs(config))
  pretrainer, trainers = None, {}
  if config.pretrain.steps:
    options = configs.pretrain_config(config)
    pretrainer = make_trainer('pretrain', options, fingerprint=inputs.pretrain_fingerprint)
  for arm, options in arms.items():
    with configs.arm_options(config, arm):
      trainers[arm] = make_trainer(f'arms/{arm}', options, profile)

  ranking = Ranking.empty(len(domains.target))
  if depth:
    ranking_inputs = rankings.RankingInputs(
      domains.target, domains.source, inputs.bank, depth, descriptors
    )
    ranking, seconds['rank'] = reuse_or_rank(ranking_inputs, workdir / 'ranking.npz', earlier_runs)
    round_files.save_neighbor_figure(workdir / 'neighbors.png', domains, ranking)
  selections = resolve_num_neighbors(
    selections, ranking, len(domains.source), config.overrides.to_dict()
  )
  if stop_after == 'rank':
    return {}

  variables = network.variables
  if pretrainer is not None:
    variables = pretrain_trunk(pretrainer, variables, seconds)
  if stop_after == 'pretrain':
    return {}

  by_arm = dict.fromkeys(arms, ranking) | features.rank_arms(trainers, variables, selections)
  report = RunReport(workdir, fingerprint, config, domains, ranking)
  # What is made anew here, since its file was missing, may differ from what these scores are of.
  artifacts.remove(workdir / result_files.RESULTS)
  rounds = run_arms(trainers, variables, by_arm, selections, report.update)
  seconds |= {f'train {name}': arm_rounds[-1].seconds for name, arm_rounds in rounds.items()}

  device = result_files.devices(itertools.chain.from_iterable(rounds.values()))
  results = {'fingerprint': fingerprint, 'seed': config.seed, 'device': device}
  results |= {'left_out': left_out, 'seconds': seconds}
  results |= result_files.summarize(
    rounds,
    domains.test,
    config.evaluation.views,
    [arm for arm, selection in selections.items() if not selection.has_own_neighbors],
  )
  artifacts.write_json(workdir / result_files.RESULTS, results)
  report.update()
  return results


def screen_images(inputs: Inputs, config: ConfigDict, workdir: epath.Path) -> ScreeningResult:
  """Leave out unreadable images and copies of test images, and check that enough are left."""
  console.stage('Looking at every image')
  result = screen(workdir, *inputs.domains, **config.screening)
  for arm, options in inputs.arms.items():
    with configs.arm_options(config, arm):
      option_checks.check_sizes(options, result.domains)
  target, test, source = result.domains
  console.say(
    f'Target: {len(target):,} training and {len(test):,} test images in {len(target.classes):,} '
    f'classes. Source: {len(source):,} images in {len(source.classes):,} classes.'
  )
  _warn_of_earlier_training(config.model.pretrained, test)
  return result


def _warn_of_earlier_training(pretrained: str, test: Dataset) -> None:
  """Print a line if the run that the weights are from has drawn test images for its training."""
  workdir = run_checkpoint.find_target_workdir(pretrained)
  if workdir is None:
    return
  split = workdir / 'split.csv'
  if count := result_files.count_trained(split, (test.key(i) for i in range(len(test)))):
    console.say(
      f'  warning: {count:,} of {len(test):,} test images are called like training images of '
      f'model.pretrained={pretrained} ({split}); all scores are too good if they are the same'
    )


def reuse_or_rank(
  inputs: rankings.RankingInputs, path: epath.Path, earlier_runs: Sequence[epath.Path]
) -> tuple[Ranking, float]:
  """Rank the source, or reuse an earlier ranking; return the seconds that it took, too."""
  console.stage('Ranking the source by its filter responses')
  if distributed.is_primary_process():
    rankings.copy_ranking([run / path.name for run in earlier_runs], path, inputs)
  result = rankings.load_or_rank(path, inputs)
  return result.ranking, result.seconds
