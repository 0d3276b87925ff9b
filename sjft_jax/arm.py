"""One arm of a comparison: rounds of select → train → score, each resumable."""

import codecs
import csv
import functools
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
import optax

from sjft_jax import artifacts
from sjft_jax.data import transforms
from sjft_jax.data.dataset import Dataset
from sjft_jax.data.pairs import Batch, Pairs, prefetched, views
from sjft_jax.ranking import Ranking
from sjft_jax.report import terminal
from sjft_jax.selection.hardness import entropy
from sjft_jax.selection.schedule import grow
from sjft_jax.selection.subset import Subset, select
from sjft_jax.training import evaluate, step
from sjft_jax.training.checkpoints import Checkpoints
from sjft_jax.training.loop import fit


@dataclass(frozen=True)
class Domains:
  """The data sets of a run."""

  target: Dataset
  test: Dataset
  source: Dataset


@dataclass(frozen=True)
class Round:
  """What a round did and how well the network did after it.

  Attributes:
    num_neighbors: [target], K_i.
    source_images: distinct source images that could be drawn.
    hardness: [target], entropy in nats on the deterministic view (Eq. 2).
    is_correct: [target], on the same view.
    test: class probabilities of the test images by view.
    seconds: of training, of all rounds so far.
  """

  num_neighbors: np.ndarray
  source_images: int
  hardness: np.ndarray
  is_correct: np.ndarray
  test: dict[str, np.ndarray]
  seconds: float


@dataclass(frozen=True)
class Progress:
  """A state, replicated over the devices, the steps it has taken, and the seconds they took."""

  state: step.TrainState
  step: int
  seconds: float


@dataclass(frozen=True)
class Scorer:
  """Class probabilities of a data set: `score(state, data, view)`."""

  predict_step: Callable[..., jax.Array]
  image_size: dict[str, Any]  # The keywords resize and crop.
  _: KW_ONLY
  views: tuple[str, ...]
  batch_size: int

  def __call__(self, state: step.TrainState, data: Dataset, view: str) -> np.ndarray:
    crops: dict[str, Callable[[np.ndarray], tuple[np.ndarray, ...]]] = {
      'center': lambda image: (transforms.center_crop(image, **self.image_size)[None],),
      'ten_crop': lambda image: (transforms.ten_crop(image, **self.image_size),),
      'multi_scale': functools.partial(transforms.multi_scale, **self.image_size),
    }
    side = self.image_size['resize']
    if view == 'multi_scale':
      side = max(transforms.scaled_sides(self.image_size['crop']))
    with terminal.progress(f'scoring {data.name}, {view}', len(data)) as advance:
      batches = terminal.counted(views(data, crops[view], self.batch_size, side=side), advance)
      return evaluate.predict(self.predict_step, state, batches)


@dataclass(frozen=True)
class Arm:
  """One training run: what it trains with, how, and where it leaves its artifacts."""

  directory: Path
  made_from: str  # Fingerprint of everything that decides the artifacts.
  domains: Domains
  train_step: Callable[..., tuple[step.TrainState, step.Metrics]]
  optimizer: optax.GradientTransformation
  score: Scorer
  seed: int
  _: KW_ONLY
  steps: int
  batch_size: int
  accumulation: int
  augment: str
  restart_schedule: bool
  checkpoint_every: int
  workers: int

  def pairs(self, subset: Subset | None, round_: int) -> Pairs:
    return Pairs(
      self.domains.target,
      self.domains.source,
      subset,
      functools.partial(transforms.augment, kind=self.augment, **self.score.image_size),
      transforms.needed_side(self.augment, self.score.image_size['resize']),
      self.seed,
      round_,
      self.batch_size,
    )

  def restore(self, checkpoints: Checkpoints, variables: dict[str, Any]) -> Progress:
    """The newest checkpoint, or `variables` before the first step."""
    fresh = step.create_state(**variables, optimizer=self.optimizer)
    state, progress = checkpoints.newest(like=fresh) or (fresh, {'seconds': 0.0})
    return Progress(step.replicate(state), int(state.step), progress['seconds'])

  def train(
    self, progress: Progress, batches: Callable[[int], Batch], stop: int, checkpoints: Checkpoints
  ) -> Progress:
    """Trains on up to step `stop` and leaves a checkpoint there."""
    with terminal.progress('training', stop, progress.step) as advance:
      state, seconds = fit(
        self.train_step,
        progress.state,
        (
          step.shard_batch(batch, accumulation=self.accumulation)
          for batch in prefetched(batches, progress.step, stop, workers=self.workers)
        ),
        start=progress.step,
        stop=stop,
        seconds=progress.seconds,
        checkpoints=checkpoints,
        checkpoint_every=self.checkpoint_every,
        log=self.directory / 'log.jsonl',
        advance=advance,
      )
    return Progress(state, stop, seconds)

  def restart(self, progress: Progress) -> Progress:
    """The same network with a fresh optimizer, its schedule at the beginning."""
    fresh = jax.pmap(self.optimizer.init, axis_name='batch')(progress.state.params)
    return replace(progress, state=progress.state.replace(opt_state=fresh))


def run_rounds(
  arm: Arm,
  variables: dict[str, Any],
  ranking: Ranking,
  *,
  method: str,
  num_neighbors: int,
  rounds: int,
  delta: float,
  sigma0: float,
  sigma1: float,
) -> list[Round]:
  """Trains one network through all rounds; hard target images get more neighbours in the next.

  Each round goes on from the network of the one before. Rounds that are in the work directory are
  not run again.

  Args:
    arm: how to train.
    variables: 'params' and 'batch_stats' to start from.
    ranking: deep enough for the last round.
    method: see `select`.
    num_neighbors: K0.
    rounds: that share the arm's steps evenly.
    delta: δ of Eq. 3, nats.
    sigma0: σ0 of Eq. 3, in multiples of K0.
    sigma1: σ1 of Eq. 3, in multiples of K0.
  """
  counts = np.full(len(arm.domains.target), num_neighbors)
  done: list[Round] = []
  progress = None
  with Checkpoints(arm.directory / 'checkpoints') as checkpoints:
    for number in range(rounds):
      directory = arm.directory / 'rounds' / str(number + 1)
      subset = select(
        method,
        ranking=ranking.indices,
        num_neighbors=counts,
        num_source=len(arm.domains.source),
        seed=arm.seed,
      )
      title = f'  round {number + 1} of {rounds}: {len(subset or ()):,} source images'
      round_ = _load(directory / 'round.npz', arm.made_from)
      if round_ is not None:
        terminal.say(f'{title}, done before')
      else:
        terminal.say(title)
        with artifacts.written(directory / 'selection.csv') as file:
          write_selection(file, arm.domains, subset, ranking)
        first, stop = (arm.steps * n // rounds for n in (number, number + 1))
        progress = progress or arm.restore(checkpoints, variables)
        if arm.restart_schedule and progress.step == first:
          progress = arm.restart(progress)
        progress = arm.train(progress, arm.pairs(subset, number), stop, checkpoints)
        # A round counts as done once its scores are there: only then is its checkpoint not needed.
        checkpoints.wait()
        round_ = _score(arm, progress, counts, len(subset or ()))
        _save(directory / 'round.npz', arm.made_from, round_)
      done.append(round_)
      counts = grow(
        counts,
        round_.hardness,
        round_.is_correct,
        delta=delta,
        sigma0=round(sigma0 * num_neighbors),
        sigma1=round(sigma1 * num_neighbors),
      )
  return done


def _score(arm: Arm, progress: Progress, counts: np.ndarray, source_images: int) -> Round:
  target, test = arm.domains.target, arm.domains.test
  p = arm.score(progress.state, target, 'center')
  return Round(
    num_neighbors=counts,
    source_images=source_images,
    hardness=entropy(p),
    is_correct=p.argmax(axis=1) == target.labels,
    test={view: arm.score(progress.state, test, view) for view in arm.score.views},
    seconds=progress.seconds,
  )


def _save(path: Path, made_from: str, round_: Round) -> None:
  arrays = vars(round_) | {f'test/{view}': p for view, p in round_.test.items()}
  del arrays['test']
  artifacts.save(path, made_from, **arrays)


def _load(path: Path, made_from: str) -> Round | None:
  arrays: dict[str, Any] | None = artifacts.load(path, made_from)
  if arrays is None:
    return None
  test = {name[5:]: arrays.pop(name) for name in [*arrays] if name.startswith('test/')}
  source_images, seconds = int(arrays.pop('source_images')), float(arrays.pop('seconds'))
  return Round(test=test, source_images=source_images, seconds=seconds, **arrays)


def write_selection(
  file: IO[bytes], domains: Domains, subset: Subset | None, ranking: Ranking
) -> None:
  """CSV of who is paired with whom: target, source, rank (from 1), divergence in nats.

  A pool that all targets share has no target, rank or divergence to tell.
  """
  writer = csv.writer(codecs.getwriter('utf-8')(file))
  writer.writerow(['target', 'source', 'rank', 'divergence'])
  if subset is not None and subset.is_shared:
    writer.writerows(['', domains.source.key(int(i)), '', ''] for i in subset.distinct())
  elif subset is not None:
    for target, count in enumerate(subset.num_neighbors):
      key = domains.target.key(target)
      for rank in range(count):
        source = domains.source.key(int(ranking.indices[target, rank]))
        writer.writerow([key, source, rank + 1, f'{ranking.divergences[target, rank]:.7g}'])
