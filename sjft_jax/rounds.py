"""The paper's loop: select → train → score → grow, once per round (Ge & Yu 2017, Section 3)."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sjft_jax import round_files
from sjft_jax.data.dataset import Dataset
from sjft_jax.data.sampler import repeats
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.round_files import Round
from sjft_jax.runtime import console, distributed
from sjft_jax.runtime.option_names import name_overrides
from sjft_jax.selection.coverage import Coverage, choose_num_neighbors
from sjft_jax.selection.growth import SelectionOptions, grow
from sjft_jax.selection.hardness import entropy
from sjft_jax.selection.subset import Subset, select
from sjft_jax.training import step
from sjft_jax.training.loop import Progress
from sjft_jax.training.trainer import Trainer, TrainingSession

NumNeighbors = Int[np.ndarray, ' target']


def resolve_num_neighbors(
  selections: Mapping[str, SelectionOptions],
  ranking: Ranking,
  num_source: int,
  overrides: Mapping[str, Any] | None = None,
) -> dict[str, SelectionOptions]:
  """Return the options of every arm with the K0 that `min_source_images` leads to, and print it.

  K0 depends only on `num_neighbors`, `min_source_images` and the ranking, so arms that share these
  share K0, even if they do not use the ranking. Where the ranking is not as deep as the largest K0
  allowed, or there is none, no arm uses that K0, and it stays as it is.

  Args:
    selections: the options of each arm.
    ranking: at least as deep as the `SelectionOptions.ranking_depth` of every arm.
    num_source: the source images that there are.
    overrides: the options that arms have of their own, for the message.
  """
  coverages: dict[tuple[int, int], Coverage] = {}
  resolved = dict(selections)
  for name, options in selections.items():
    largest, minimum = options.num_neighbors, options.min_source_images
    if not minimum or ranking.indices.shape[1] < largest:
      continue
    limits = largest, minimum
    if limits not in coverages:
      coverages[limits] = choose_num_neighbors(ranking.indices[:, :largest], minimum)
      k0, reached = coverages[limits]
      can_grow = reached < min(minimum, num_source)
      option = name_overrides('selection.num_neighbors', name, overrides or {})
      remedy = f'; raise {option} to reach more' if can_grow else ''
      console.say(f'  K0 = {k0:,} reaches {reached:,} of {minimum:,} source images{remedy}')
    resolved[name] = replace(options, num_neighbors=coverages[limits].num_neighbors)
  return resolved


def run_rounds(
  trainer: Trainer,
  variables: dict[str, Any],
  ranking: Ranking,
  options: SelectionOptions,
  random_sizes: Sequence[int] = (),
  after_round: Callable[[], None] = lambda: None,
) -> list[Round]:
  """Train one network through all rounds; hard target images get more neighbours in the next.

  Each round goes on from the network of the one before. Rounds that are saved in the work directory
  are not run again.

  Args:
    trainer: trains the network and predicts with it.
    variables: 'params' and 'batch_stats' to start from.
    ranking: at least as deep as `SelectionOptions.ranking_depth`.
    options: which source images are selected, and in how many rounds.
    random_sizes: how many source images the method 'random' draws in each round, those of the
      growing arm that it is compared with; (): as many as its own growth would select.
    after_round: is called once a round is saved.
  """
  rounds = []
  num_neighbors = np.full(len(trainer.domains.target), options.num_neighbors)
  with _open_arm(trainer, variables, ranking, options) as arm:
    for number in range(options.rounds):
      subset = select(
        options.method,
        ranking=ranking.indices,
        num_neighbors=num_neighbors,
        source_labels=trainer.domains.source.labels,
        seed=trainer.seed,
        random_size=random_sizes[number] if number < len(random_sizes) else None,
      )
      arm.train(number, subset, num_neighbors)
      round_ = arm.score(number, subset, num_neighbors)
      num_neighbors = grow(
        num_neighbors, round_.hardness, round_.is_correct, delta=options.delta, **options.increments
      )
      rounds.append(round_)
      if arm.saved_rounds[number] is None:
        after_round()
  return rounds


@dataclass(frozen=True)
class _Arm:
  """The rounds of one arm, of which the first may be saved in the work directory.

  Attributes:
    trainer, ranking, options: as for `run_rounds`.
    saved_rounds: each round, or None where it is not saved.
    session: the training, or None if all rounds are saved: a finished arm needs no network.
  """

  trainer: Trainer
  ranking: Ranking
  options: SelectionOptions
  saved_rounds: list[Round | None]
  session: TrainingSession | None

  def train(self, number: int, subset: Subset | None, num_neighbors: NumNeighbors) -> None:
    """Train up to the end of a round, if the newest checkpoint is from before it.

    That can be a saved round too, where later checkpoints are damaged: the next round needs it.
    """
    trainer, options, session = self.trainer, self.options, self.session
    is_saved = self.saved_rounds[number] is not None
    title = f'  round {number + 1} of {options.rounds}: {len(subset or ()):,} source images'
    console.say(f'{title}, done before' if is_saved else title)
    if session is None:
      return
    if not is_saved:
      round_files.save_selection(trainer, number, subset, self.ranking)
    first, stop = self._first_step(number), self._first_step(number + 1)
    if session.progress.step < stop:
      if trainer.options.restart_schedule and session.progress.step == first:
        session.reset_optimizer()
      batches = trainer.batches(subset, number, repeats(num_neighbors, options.num_neighbors))
      session.train(batches, stop)

  def score(self, number: int, subset: Subset | None, num_neighbors: NumNeighbors) -> Round:
    """Predict the target's training images, for Eq. 2, and its test images; save the round.

    A saved round is returned as it is; it is logged again where the training goes on from its end,
    since a kill may have come between.
    """
    round_, session = self.saved_rounds[number], self.session
    if session is None:
      assert round_ is not None
      return round_
    stop = self._first_step(number + 1)
    # False where a checkpoint from after this round was restored, since the round's file was lost.
    is_newest = session.progress.step == stop
    network_dir = round_files.round_dir(self.trainer.directory, number) / round_files.NETWORK
    if round_ is None:
      session.checkpoints.wait()
      progress = session.progress if is_newest else session.load_progress(network_dir, stop)
      round_ = predict_round(
        session.trainer,
        progress,
        len(subset or ()),
        num_neighbors,
        remedy=f'lower {session.trainer.learning_rate_option}',
      )
    if is_newest:
      domains = self.trainer.domains
      # In other arms K_i and the ranking decide no draw.
      own = self.options.has_own_neighbors
      ranking = self.ranking if own else Ranking.empty(len(domains.target))
      metrics = round_files.round_metrics(domains, round_, ranking)
      session.writer.log(stop, metrics)
      session.writer.flush()
    if self.saved_rounds[number] is None:
      if is_newest and self.trainer.options.keep_rounds:
        session.save_variables(network_dir)
      # Last: once a round is saved, neither its network nor its log is looked at again.
      round_files.save_round(self.trainer, number, round_)
    return round_

  def _first_step(self, number: int) -> int:
    return self.trainer.options.steps * number


@contextlib.contextmanager
def _open_arm(
  trainer: Trainer, variables: dict[str, Any], ranking: Ranking, options: SelectionOptions
) -> Iterator[_Arm]:
  saved_rounds = [
    round_files.load_round(trainer.directory, number, trainer.fingerprint)
    for number in range(options.rounds)
  ]
  if None not in saved_rounds:
    yield _Arm(trainer, ranking, options, saved_rounds, None)
    return
  with trainer.open(variables) as session:
    yield _Arm(trainer, ranking, options, saved_rounds, session)


def predict_round(
  trainer: Trainer,
  progress: Progress,
  source_images: int,
  num_neighbors: NumNeighbors,
  *,
  remedy: str,
) -> Round:
  """Predict the target's training images and, in every view, its test images.

  Args:
    trainer: predicts.
    progress: of the training, whose parameters or their average are taken.
    source_images, num_neighbors: what the round selected, as in `Round`.
    remedy: what to do where the network predicts nothing, for the message.

  Raises:
    FloatingPointError: a probability is not finite, as where the last update overflowed: losses
      are those before an update.
  """
  target, test = trainer.domains.target, trainer.domains.test
  evaluator, state = trainer.evaluator, step.with_ema_params(progress.state)

  def predict(data: Dataset, view: str) -> Float[np.ndarray, 'image category']:
    p = evaluator(state, data, view)
    bad = np.count_nonzero(~np.isfinite(p).all(axis=1))
    if bad:
      raise FloatingPointError(
        f'the probabilities of {bad:,} of {len(p):,} images of {data.name} are not finite after '
        f'step {progress.step}; {remedy}'
      )
    return p

  p = predict(target, 'center')
  return Round(
    num_neighbors=num_neighbors,
    source_images=source_images,
    hardness=entropy(p),
    is_correct=p.argmax(axis=1) == target.labels,
    test={view: predict(test, view) for view in evaluator.options.views},
    seconds=progress.seconds,
    device=distributed.describe_devices(),
  )
