"""Run every arm: the rounds of those that train, and classifiers on the features of the start."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from sjft_jax import results, round_files
from sjft_jax.config import FROZEN_ARMS
from sjft_jax.data.dataset import Dataset
from sjft_jax.data.folds import assign_folds
from sjft_jax.features import load_or_compute
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.round_files import Round
from sjft_jax.rounds import predict_round, run_rounds
from sjft_jax.runtime import console
from sjft_jax.screening.near_duplicates import group_images
from sjft_jax.selection.growth import SelectionOptions
from sjft_jax.training import probe, sharding, step
from sjft_jax.training.trainer import Trainer, TrainingSession

# On so many parts of the training images, regularisation and k are chosen.
_NUM_FOLDS = 5


def run_arms(
  trainers: Mapping[str, Trainer],
  variables: dict[str, Any],
  rankings: Mapping[str, Ranking],
  selections: Mapping[str, SelectionOptions],
  after_round: Callable[[], None] = lambda: None,
) -> dict[str, list[Round]]:
  """Run the rounds of every arm; return them in the order of the trainers.

  Args:
    trainers: that of each arm.
    variables: 'params' and 'batch_stats' to start from.
    rankings: of each arm, as for `run_rounds`.
    selections: the options of each arm.
    after_round: is called once a round is saved.
  """
  rounds: dict[str, list[Round]] = {}
  # The cheap ones first, then the growing one: the random one has as many source images as it,
  # round by round.
  order = sorted(trainers, key=lambda arm: (arm not in FROZEN_ARMS, arm != 'rounds'))
  for number, name in enumerate(order, 1):
    title = results.arm_title(name, selections[name].rounds, trainers)
    console.stage(f'Arm {number} of {len(trainers)}: {title}')
    if name in FROZEN_ARMS:
      rounds[name] = [run_frozen(name, trainers[name], variables, after_round)]
      continue
    sizes = [round_.source_images for round_ in rounds.get('rounds', ())]
    rounds[name] = run_rounds(
      trainers[name], variables, rankings[name], selections[name], sizes, after_round
    )
  return {name: rounds[name] for name in trainers}


def run_frozen(
  arm: str,
  trainer: Trainer,
  variables: dict[str, Any],
  after_round: Callable[[], None] = lambda: None,
) -> Round:
  """Classify by the features of the trunk that training would start from, in one round.

  The features are the trunk's for the central crop of each training image. 'probe' fits a logistic
  regression to them; it is the target head of the network that is saved. 'knn' takes the nearest
  training images. Test images are seen in the same views as in other arms.

  Args:
    arm: one of `config.FROZEN_ARMS`.
    trainer: has the data sets and the network.
    variables, after_round: as for `run_arms`.
  """
  round_ = round_files.load_round(trainer.directory, 0, trainer.fingerprint)
  if round_ is not None:
    console.say('  done before')
    return round_
  start_time = time.monotonic()
  with trainer.open(variables) as session:
    target = trainer.domains.target
    data = (
      load_or_compute(trainer, variables),
      target.labels,
      _assign_folds(target, trainer.seed),
      len(target.classes),
    )
    if arm == 'probe':
      head = probe.fit_probe(*data)
      console.say(f'  C = {head.strength:g}')
      _replace_head(session, head)
    else:
      knn = probe.fit_knn(*data)
      console.say(f'  k = {knn.num_neighbors}')
      trainer = _with_prediction(trainer, knn.predict)
    session.progress = replace(session.progress, seconds=time.monotonic() - start_time)
    is_pretrained = trainer.config['pretrain']['steps']
    remedy = 'lower pretrain.learning_rate' if is_pretrained else 'use another model.pretrained'
    num_neighbors = np.zeros(len(target), int)
    round_ = predict_round(trainer, session.progress, 0, num_neighbors, remedy=remedy)
    if arm == 'probe':
      state = sharding.unreplicate(session.progress.state)
      session.checkpoints.save(session.progress.step, state, {'seconds': session.progress.seconds})
      session.checkpoints.wait()
      if trainer.options.keep_rounds:
        directory = round_files.round_dir(trainer.directory, 0)
        session.save_variables(directory / round_files.NETWORK)
    round_files.save_round(trainer, 0, round_)
  after_round()
  return round_


def _assign_folds(target: Dataset, seed: int) -> probe.Labels:
  try:
    return assign_folds(target.labels, group_images(target), _NUM_FOLDS, seed)
  except ValueError:  # With one picture of each class, none can be held out.
    return np.full(len(target), -1)


def _replace_head(session: TrainingSession, head: probe.Head) -> None:
  """Replace the target head of a network that has not been trained."""
  variables = session.variables()
  variables['params'] |= {'target': {'kernel': head.kernel, 'bias': head.bias}}
  state = step.create_state(**variables, optimizer=session.trainer.optimizer)
  session.progress = replace(session.progress, state=sharding.replicate(state))


def _with_prediction(
  trainer: Trainer, predict: Callable[[np.ndarray], Float[np.ndarray, 'image category']]
) -> Trainer:
  """Return a trainer whose evaluator predicts by a function of features instead of a head."""

  def predict_step(state: step.TrainState, images: np.ndarray) -> np.ndarray:
    features = np.asarray(trainer.feature_step(state, images))
    p = predict(features.reshape(-1, features.shape[-1]))
    return p.reshape(*features.shape[:2], -1)

  return replace(trainer, evaluator=replace(trainer.evaluator, predict_step=predict_step))
