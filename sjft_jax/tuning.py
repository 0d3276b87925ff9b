"""Choose the settings of every arm, and the arm, on held-out training images of the target."""

import itertools
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from sjft_jax import config as configs
from sjft_jax import inputs, option_checks, pipeline, tuned_settings
from sjft_jax import results as result_files
from sjft_jax import workdir as workdirs
from sjft_jax.data.dataset import Dataset, Domains, SubsetDataset
from sjft_jax.data.folds import assign_folds
from sjft_jax.report import summary
from sjft_jax.runtime import artifacts, console
from sjft_jax.runtime.lock import lock
from sjft_jax.screening.exact_duplicates import exclude_test_files
from sjft_jax.screening.near_duplicates import group_images
from sjft_jax.screening.screen import exclude_unreadable
from sjft_jax.training import metrics, search, significance
from sjft_jax.training.search import Setting, TuningOptions

# From cheap to expensive, and last those of one's own; of arms that are as good as each other, the
# first is chosen.
_COSTS = (*configs.FROZEN_ARMS, 'none', 'random', 'all', 'similar', 'classes', 'constant', 'rounds')


class Trial(NamedTuple):
  """What an arm with one setting predicts for the images of a fold, after training on the others.

  Attributes:
    probabilities: of each class, of every held-out image.
    labels: their classes.
    seconds: that the training took.
    pretrain_seconds: that the pretraining of the fold took, if this was its first training.
  """

  probabilities: Float[np.ndarray, 'image category']
  labels: Int[np.ndarray, ' image']
  seconds: float
  pretrain_seconds: float = 0.0


@dataclass
class ArmSearch:
  """The settings of one arm and what is known of them.

  Attributes:
    config: the options of the arm.
    settings: the settings to try.
    trials: by the number of the setting, that of every fold up to the last one tried.
  """

  config: ConfigDict
  settings: list[Setting]
  trials: dict[int, list[Trial]] = field(default_factory=dict)

  def num_trials(self, folds: int) -> int:
    """Return how many trainings so many folds take."""
    counts = [len(self.settings)]
    while len(counts) < folds:
      counts.append(math.ceil(counts[-1] / 2))
    return sum(counts)

  def survivors(self, fold: int) -> list[int]:
    """Return the numbers of the settings that are tried on a fold: of each, the better half."""
    numbers = list(range(len(self.settings)))
    for earlier in range(fold):
      numbers = search.survivors({n: self.score(n, earlier + 1)[0] for n in numbers})
    return numbers

  def score(self, number: int, folds: int) -> tuple[float, float]:
    """Return cross-entropy at the best temperature (nats) and accuracy over the first folds."""
    return _score(*self.predictions(number, folds))

  def predictions(self, number: int, folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and labels of the images of the first folds."""
    p, labels, *_ = zip(*self.trials[number][:folds], strict=True)
    return np.concatenate(p), np.concatenate(labels)

  def num_completed_folds(self) -> int:
    """Return on how many folds everything that was to be tried was."""
    folds = 0
    while all(len(self.trials.get(n, ())) > folds for n in self.survivors(folds)):
      folds += 1
    return folds


def tune(
  config: ConfigDict, workdir: str | os.PathLike[str], *, minutes: float = 0.0
) -> dict[str, Any]:
  """Choose the settings of every arm on held-out training images; called again, go on.

  The target's training images are dealt to `tuning.folds` folds, copies and groups of images to one
  fold. Every arm is trained without the first fold with each of its settings (see
  `search.draw_settings`) and predicts it; the better half goes on to the next fold, and so on. The
  score is the cross-entropy at the best temperature, of all held-out images so far. Of the arms
  with their best settings, the one with the highest accuracy is chosen, or the cheapest of those
  within one standard error of it. Of the test images only the stored bytes are read, to leave out
  training images that are copies of them, as a run does.

  Args:
    config: starts from `config.default`; its arms are tuned.
    workdir: where everything is kept.
    minutes: start no training after so many minutes, and choose among what was tried; 0: no limit.

  Returns:
    What tuned.json in the work directory holds: 'arm', the chosen one; 'arms', for each its
    'setting', 'accuracy', 'cross_entropy', and 'gain' over plain fine-tuning; 'tried';
    'num_folds' and, of these, 'num_completed_folds', which all arms are compared on.

  Raises:
    ValueError: an impossible option or input, before any work where that can be known.
  """
  if not minutes >= 0:  # Not a number, too.
    raise ValueError(f'minutes={minutes} must be 0 or more')
  directory = workdirs.resolve(workdir)
  if artifacts.is_remote(directory):
    raise ValueError(f'{directory} is no path; tune works in a folder on a disk')
  with configs.option_section('tuning'):
    options = TuningOptions(**config.tuning)
  option_checks.check_consumers(config, inputs.CONSUMERS)
  option_checks.check_method(config)
  tuned_settings.check_repeats(config, 'tune would see')
  workdirs.check_unchanged(config, directory, resume_with_changes=True)
  _check_trials(config, directory)
  _check_no_run(directory)
  domains = inputs.open_domains(config)
  inputs.check_outside_data(config, directory)
  opened = inputs.load_inputs(config, domains)
  start, weights = opened.fingerprint, tuned_settings.weight_fingerprints(config, opened)
  target, test, source = domains
  arms = {
    name: ArmSearch(
      arm_config,
      # Those that train nothing choose for themselves, on folds of their training images.
      [{}]
      if name in configs.FROZEN_ARMS
      else search.draw_settings(arm_config, options, config.seed),
    )
    for name, arm_config in configs.arm_configs(config).items()
  }
  with lock(directory):
    console.stage('Looking at every training image')
    (target,) = exclude_unreadable(
      (target,), directory / 'bad_images.csv', max_bad_share=config.screening.max_bad_share
    )
    keep = config.screening.exclude_duplicates_of == 'none'
    target = exclude_test_files(target, test, directory / 'train_test_copies.csv', keep=keep)
    folds = _assign_folds(target.labels, group_images(target), options.folds, config.seed)
    workdirs.save_config(config, directory)
    is_complete = _try_settings(directory, config, arms, target, source, folds, start, minutes)
    record = _choose(arms) | {
      'complete': is_complete,
      'num_folds': options.folds,
      'options': workdirs.result_options(config, *tuned_settings.SECTIONS),
      'images': tuned_settings.image_fingerprints(domains),
      'weights': weights,
    }
    artifacts.write_json(directory / 'tuned.json', record)
  summary.print_tuning(record)
  console.say(f'Train with what was chosen: --tuned={directory / "tuned.json"}')
  return record


def _check_trials(config: ConfigDict, directory: epath.Path) -> None:
  """Check the options that change no result of a run, but those of the trainings that are kept.

  Raises:
    ValueError: one has changed.
  """
  earlier = workdirs.load_config(directory)
  if earlier is None or not any(artifacts.glob(directory, 'fold*/*-*.npz')):
    return
  for section, option in (('tuning', 'folds'), ('training', 'max_loss')):
    then, now = earlier[section].get(option), config[section][option]
    if then not in (None, now):
      raise ValueError(
        f'{directory} has trainings with {section}.{option}={then}, now {now}: use a new '
        f'--workdir, or {section}.{option}={then}'
      )


def _check_no_run(directory: epath.Path) -> None:
  """Check that a work directory is none of a run, whose lists of images would be replaced.

  Raises:
    ValueError: it is one.
  """
  is_run = any((directory / name).exists() for name in (workdirs.SCREENED, result_files.RESULTS))
  if is_run and not any(artifacts.glob(directory, 'fold*/*-*.npz')):
    raise ValueError(
      f'{directory} is the work directory of a run, whose lists of images that were left out would '
      'be replaced; give another --workdir'
    )


def _assign_folds(
  labels: Int[np.ndarray, ' image'], groups: Int[np.ndarray, ' image'], num_folds: int, seed: int
) -> Int[np.ndarray, ' image']:
  """Deal images to folds as `assign_folds` does.

  Raises:
    ValueError: a fold is empty, which would be found only once all others were tried.
  """
  folds = assign_folds(labels, groups, num_folds, seed)
  if len(np.unique(folds[folds >= 0])) < num_folds:
    num_groups = len(np.unique(groups[folds >= 0]))
    remedy = f'lower it to {num_groups}, or ' if 1 < num_groups < num_folds else ''
    raise ValueError(
      f'tuning.folds={num_folds} leaves a fold empty: the training images that can be held out are '
      f'{num_groups} groups, copies of a picture counted as one; {remedy}add images of other groups'
    )
  return folds


def _try_settings(
  directory: epath.Path,
  config: ConfigDict,
  arms: Mapping[str, ArmSearch],
  target: Dataset,
  source: Dataset,
  folds: Int[np.ndarray, ' image'],
  start: str,
  minutes: float,
) -> bool:
  """Train what has to be tried and is not yet; return whether time was enough for all.

  `start` is the fingerprint of what a run of `config` starts from.
  """
  start_time = time.monotonic()
  # The arm with the deepest ranking first: those of the others are its beginning.
  names = sorted(arms, key=lambda name: -inputs.ranking_depth([arms[name].config]))
  num_folds = config.tuning.folds
  total, finished = sum(arm.num_trials(num_folds) for arm in arms.values()), 0
  for fold in range(num_folds):
    fold_directory = directory / f'fold{fold + 1}'
    domains = Domains(
      SubsetDataset(target, np.flatnonzero(folds != fold)),
      SubsetDataset(target, np.flatnonzero(folds == fold)),
      source,
    )
    for name, number in _order({name: arms[name].survivors(fold) for name in names}):
      arm = arms[name]
      setting = arm.settings[number]
      path = fold_directory / f'{name}-{artifacts.fingerprint(setting)}.npz'
      seconds = time.monotonic() - start_time
      if not path.exists() and minutes and seconds > 60 * minutes:
        console.say(f'{minutes:g} minutes are over; {finished:,} of {total:,} trainings are done')
        return False
      finished += 1
      if not path.exists():
        values = [name, *(f'{n.partition(".")[2]} {v:g}' for n, v in setting.items())]
        to_go = _seconds_to_go(arms.values(), num_folds)
        if minutes:
          to_go = min(to_go, 60 * minutes - seconds)
        remaining = f', about {console.format_duration(to_go)} to go' if to_go else ''
        console.say(f'{finished:,} of {total:,}, fold {fold + 1}: {", ".join(values)}{remaining}')
      trial = _load_or_train(path, domains, _trial_config(config, name, setting), start)
      arm.trials.setdefault(number, []).append(trial)
    shutil.rmtree(fold_directory / 'pretrain', ignore_errors=True)
  return True


def _seconds_to_go(arms: Iterable[ArmSearch], folds: int) -> float:
  """Estimate the time of the trainings that are left; 0 if there was none yet.

  Those of an arm take as long as the ones it had, in earlier starts of `tune` too. Arms differ:
  with a source, a step has twice the images. Each fold has one pretraining, if any.
  """
  numbers, seconds, pretrain_seconds = [], [], []
  for arm in arms:
    trials = list(itertools.chain.from_iterable(arm.trials.values()))
    pretrain_seconds += [trial.pretrain_seconds for trial in trials if trial.pretrain_seconds]
    numbers.append(arm.num_trials(folds) - len(trials))
    # A training that diverged says nothing.
    seconds.append([trial.seconds for trial in trials if trial.seconds])
  of_all = list(itertools.chain.from_iterable(seconds))
  if not of_all:
    return 0.0
  means = [np.mean(of_arm or of_all) for of_arm in seconds]
  left = max(folds - len(pretrain_seconds), 0)
  return float(np.dot(numbers, means) + left * np.mean(pretrain_seconds or [0.0]))


def _order(numbers: Mapping[str, list[int]]) -> list[tuple[str, int]]:
  """Return arms and settings in turn, so that a stop leaves every arm about as far."""
  longest = max(map(len, numbers.values()))
  return [
    (name, chosen[position])
    for position in range(longest)
    for name, chosen in numbers.items()
    if position < len(chosen)
  ]


def _trial_config(config: ConfigDict, arm: str, setting: Setting) -> ConfigDict:
  """Return the options of a training of one arm that keeps and reports nothing but its scores."""
  result = config.copy_and_resolve_references()
  result.arms, result.repeats = (arm,), 1
  result.evaluation.views = ('center',)
  result.training.keep_rounds = False
  result.logging.update(tensorboard=False, wandb='', report=False)
  if setting:
    result.overrides[arm] = tuned_settings.merge(config.overrides.get(arm, {}), setting)
  return result


def _load_or_train(path: epath.Path, domains: Domains, config: ConfigDict, start: str) -> Trial:
  """Load a trial, or train and save it; the rest of the training's files are deleted."""
  (options,) = configs.arm_configs(config).values()
  fingerprint = artifacts.fingerprint(
    workdirs.result_options(config),
    start,
    options.training.max_loss,  # It changes no result of a run, but ends a training.
    *(data.fingerprint for data in domains),
  )
  arrays = artifacts.load(path, fingerprint)
  if arrays is None:
    # Ranking and pretraining, by the first training of a fold, take long enough to be shown.
    stages = {'ranking.npz': inputs.ranking_depth([options]), 'pretrain': options.pretrain.steps}
    needed = [name for name, amount in stages.items() if amount]
    console.set_quiet(all((path.parent / name).exists() for name in needed))
    try:
      trial = _train(path.with_suffix(''), domains, config)
    finally:
      console.set_quiet(False)
    if not trial.seconds:
      console.say('  it diverged: this setting counts as knowing nothing')
    arrays = {name: np.asarray(value) for name, value in trial._asdict().items()}
    artifacts.save(path, fingerprint, **arrays)
  shutil.rmtree(path.with_suffix(''), ignore_errors=True)
  seconds = (float(arrays.get(name, 0)) for name in ('seconds', 'pretrain_seconds'))
  return Trial(arrays['probabilities'], arrays['labels'], *seconds)


def _train(workdir: epath.Path, domains: Domains, config: ConfigDict) -> Trial:
  """Train one arm; one whose loss is not finite or too large gets uniform probabilities.

  Raises:
    FloatingPointError: no setting is to blame, since the arm has none or its pretraining diverged.
  """
  (arm,) = config.arms
  fold, whole = workdir.parent, workdir.parent.parent
  # The first training of a fold pretrains for all.
  pretrained, own = fold / 'pretrain', workdir / 'pretrain'
  is_first = not pretrained.exists()
  if not is_first and not own.exists():
    workdir.mkdir(parents=True, exist_ok=True)
    os.replace(pretrained, own)
  try:
    results = pipeline.run_on_datasets(
      domains, config, workdir, resume_with_changes=True, earlier_runs=[fold, whole]
    )
  except FloatingPointError:
    if arm in configs.FROZEN_ARMS or not (workdir / 'arms' / arm).exists():
      raise
    classes = len(domains.test.classes)
    uniform = np.full((len(domains.test), classes), 1 / classes, np.float32)
    return Trial(uniform, np.asarray(domains.test.labels), 0.0)
  finally:
    # The trainings that follow take these from there: of the fold, or of the whole tuning.
    if (workdir / 'ranking.npz').exists() and not (fold / 'ranking.npz').exists():
      os.replace(workdir / 'ranking.npz', fold / 'ranking.npz')
    # Where it cannot be read, it stays where the error says that it is.
    if own.exists() and not pretrained.exists() and not isinstance(sys.exception(), ValueError):
      os.replace(own, pretrained)
    for chosen in workdir.glob('accumulation.*.json'):
      os.replace(chosen, whole / chosen.name)
  predictions = result_files.load_predictions(os.fspath(workdir / 'arms' / arm))
  seconds = results['seconds']
  return Trial(
    predictions.probabilities,
    predictions.labels,
    seconds[f'train {arm}'],
    seconds.get('pretrain', 0.0) if is_first else 0.0,
  )


def _choose(arms: Mapping[str, ArmSearch]) -> dict[str, Any]:
  """Choose a setting for every arm, and the arm, from what was tried.

  Arms are compared on as many folds as all of them have completed, or on the settings of the first
  fold that were tried where none has.
  """
  folds = min(arm.num_completed_folds() for arm in arms.values())
  # An arm with fewer settings than others has nothing more to try.
  unfinished = [len(arm.trials) for arm in arms.values() if len(arm.trials) < len(arm.settings)]
  tried = min(unfinished, default=1)
  if not tried:
    raise ValueError('the time was too short for one training of every arm; give more')
  trials = [
    trial
    for name, arm in arms.items()
    if name not in configs.FROZEN_ARMS
    for number in arm.trials
    for trial in arm.trials[number]
  ]
  if trials and not any(trial.seconds for trial in trials):
    raise ValueError(
      'every training diverged; lower solver.learning_rate, or raise training.max_loss, in a '
      'new --workdir'
    )
  chosen: dict[str, dict[str, Any]] = {}
  correct: dict[str, np.ndarray] = {}
  labels = np.zeros(0, np.int32)
  for name, arm in arms.items():
    numbers = arm.survivors(folds - 1) if folds else list(arm.trials)[:tried]
    used = max(folds, 1)
    scores = {number: arm.score(number, used) for number in numbers}
    best = min(scores, key=lambda number: (scores[number][0], number))
    p, labels = arm.predictions(best, used)
    correct[name] = p.argmax(axis=1) == labels
    chosen[name] = {
      'setting': arm.settings[best],
      'cross_entropy': scores[best][0],
      'accuracy': scores[best][1],
      'seconds': float(np.mean([trial.seconds for trial in arm.trials[best]])),
    }
  if 'none' in arms:
    for name in chosen.keys() - {'none'}:
      gain = significance.paired_gain(correct[name], correct['none'], labels)
      chosen[name]['gain'] = gain._asdict()
  return {
    'arm': _choose_arm(chosen, correct, labels),
    'held_out_images': len(labels),
    'num_completed_folds': folds,
    'arms': chosen,
    'tried': [
      {'arm': name, **arm.settings[number], 'fold': fold + 1}
      | dict(zip(('cross_entropy', 'accuracy'), _score(*trial[:2]), strict=True))
      | {'seconds': trial.seconds}
      for name, arm in arms.items()
      for number, trials in arm.trials.items()
      for fold, trial in enumerate(trials)
    ],
  }


def _choose_arm(
  chosen: Mapping[str, Mapping[str, Any]], correct: Mapping[str, np.ndarray], labels: np.ndarray
) -> str:
  """Return the most accurate arm, or the cheapest that is within one standard error of it."""
  by_cost = sorted(chosen, key=lambda arm: (*_COSTS, arm).index(arm))
  best = max(by_cost, key=lambda name: chosen[name]['accuracy'])
  for name in by_cost:
    gain = significance.paired_gain(correct[best], correct[name], labels)
    if gain.gain <= gain.standard_error:
      return name
  return best


def _score(p: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
  accuracy = metrics.mean_class_accuracy(p, labels, p.shape[1])
  return metrics.calibrated_cross_entropy(p, labels), accuracy
