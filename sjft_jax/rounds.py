"""The paper's loop: select → train → score → grow, once per round (Ge & Yu 2017, Section 3)."""

import contextlib
import dataclasses
from typing import Any

import numpy as np

from sjft_jax import results
from sjft_jax.data.sampler import repeats
from sjft_jax.results import Round
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.runtime import console
from sjft_jax.selection.coverage import choose_num_neighbors
from sjft_jax.selection.hardness import entropy
from sjft_jax.selection.schedule import SelectionOptions, grow
from sjft_jax.selection.subset import Subset, select
from sjft_jax.training import step
from sjft_jax.training.trainer import OpenRun, Trainer


def run_rounds(
  trainer: Trainer, variables: dict[str, Any], ranking: Ranking, options: SelectionOptions
) -> list[Round]:
  """Train one network through all rounds; hard target images get more neighbours in the next.

  Each round goes on from the network of the one before. Rounds that are in the work directory are
  not run again.

  Args:
    trainer: how to train.
    variables: 'params' and 'batch_stats' to start from.
    ranking: deep enough for the last round (`SelectionOptions.ranking_depth`).
    options: what is selected.
  """
  options = resolve_num_neighbors(options, ranking)
  target, source = trainer.domains.target, trainer.domains.source
  num_neighbors = np.full(len(target), options.num_neighbors)
  earlier = [results.load_round(trainer, number) for number in range(options.rounds)]
  rounds: list[Round] = []
  with contextlib.ExitStack() as stack:
    # A finished arm needs no network; else rounds whose checkpoints are damaged are trained again.
    run = stack.enter_context(trainer.open(variables)) if None in earlier else None
    for number in range(options.rounds):
      subset = select(
        options.method,
        ranking=ranking.indices,
        num_neighbors=num_neighbors,
        num_source=len(source),
        seed=trainer.seed,
      )
      title = f'  round {number + 1} of {options.rounds}: {len(subset or ()):,} source images'
      round_ = earlier[number]
      console.say(title if round_ is None else f'{title}, done before')
      if run is not None:
        round_ = _run_round(run, number, subset, num_neighbors, ranking, options, round_)
      assert round_ is not None
      rounds.append(round_)
      num_neighbors = grow(
        num_neighbors,
        round_.hardness,
        round_.is_correct,
        delta=options.delta,
        **options.increments,
      )
  return rounds


def resolve_num_neighbors(options: SelectionOptions, ranking: Ranking) -> SelectionOptions:
  """Return the options with the K0 that `min_source_images` leads to, and print it.

  Args:
    options: what is selected.
    ranking: at least as deep as `SelectionOptions.ranking_depth`.
  """
  if not options.min_source_images or not options.ranking_depth:
    return options
  k0, source_images = choose_num_neighbors(
    ranking.indices[:, : options.num_neighbors], options.min_source_images
  )
  line = f'  K0 = {k0:,} reaches {source_images:,} of {options.min_source_images:,} source images'
  if source_images < options.min_source_images:
    line += '; raise selection.num_neighbors to reach more'
  console.say(line)
  return dataclasses.replace(options, num_neighbors=k0)


def _run_round(
  run: OpenRun,
  number: int,
  subset: Subset | None,
  num_neighbors: np.ndarray,
  ranking: Ranking,
  options: SelectionOptions,
  earlier: Round | None,
) -> Round:
  """Train and score one round; where it was scored `earlier`, train what its checkpoint lacks."""
  trainer = run.trainer
  first, stop = (trainer.options.steps * n // options.rounds for n in (number, number + 1))
  if earlier is None:
    results.save_selection(trainer, number, subset, ranking)
  if run.progress.step < stop:
    if trainer.options.restart_schedule and run.progress.step == first:
      run.reset_optimizer()
    pairs = trainer.pairs(subset, number, repeats(num_neighbors, options.num_neighbors))
    run.train(pairs, stop)
  round_ = earlier
  if round_ is None:
    run.checkpoints.wait()
    round_ = _score(run, num_neighbors, len(subset or ()))
  if run.progress.step == stop:
    run.writer.log(stop, results.round_metrics(trainer.domains, round_, ranking))
    run.writer.flush()
  if earlier is None:
    if trainer.options.keep_rounds:
      run.save_network(results.round_dir(trainer, number) / results.NETWORK)
    # Last: a round counts as done once its scores are there, and neither its checkpoint nor its
    # log is looked at again.
    results.save_round(trainer, number, round_)
  return round_


def _score(run: OpenRun, num_neighbors: np.ndarray, source_images: int) -> Round:
  """Predict the target's training images, for Eq. 2, and its test images, in every view."""
  trainer = run.trainer
  target, test = trainer.domains.target, trainer.domains.test
  state = step.with_ema_params(run.progress.state)
  p = trainer.evaluator(state, target, 'center')
  views = trainer.evaluator.options.views
  return Round(
    num_neighbors=num_neighbors,
    source_images=source_images,
    hardness=entropy(p),
    is_correct=p.argmax(axis=1) == target.labels,
    test={view: trainer.evaluator(state, test, view) for view in views},
    seconds=run.progress.seconds,
  )
