"""One arm of a comparison: rounds of select → train → score, each resumable."""

import codecs
import contextlib
import csv
import functools
import json
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import IO, Any

import jax
import numpy as np
import optax
from etils import epath
from PIL import Image

from sjft_jax import artifacts, processes
from sjft_jax.compilation import Compiled
from sjft_jax.data import transforms
from sjft_jax.data.dataset import Dataset, class_names
from sjft_jax.data.order import Order, levels
from sjft_jax.data.pairs import Pairs, SourceOnly, loaders, prefetched, views
from sjft_jax.ranking import Ranking
from sjft_jax.report import terminal
from sjft_jax.report.journal import Journal
from sjft_jax.report.neighbors import sheet
from sjft_jax.selection.hardness import entropy
from sjft_jax.selection.schedule import grow
from sjft_jax.selection.subset import Subset, select
from sjft_jax.training import evaluate, finite, memory, metrics, optimizer, step
from sjft_jax.training.checkpoints import Checkpoints
from sjft_jax.training.loop import Sums, fit
from sjft_jax.training.meter import Meter, timed


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
  """A state, replicated over the devices, the steps it has taken, and what a checkpoint of it
  knows beside (see `fit`)."""

  state: step.TrainState
  step: int
  known: dict[str, Any]

  @property
  def seconds(self) -> float:
    return float(self.known['seconds'])


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
    start, stop = processes.share(len(data))
    with (
      terminal.progress(f'scoring {data.name}, {view}', stop - start) as advance,
      memory.explained(
        f'scoring {self.batch_size} images at once',
        memory.batch_remedy('evaluation.batch_size', self.batch_size, 'lower images.crop'),
      ),
    ):
      loaded = views(data, crops[view], self.batch_size, side=side, start=start, stop=stop)
      p = evaluate.predict(self.predict_step, state, terminal.counted(loaded, advance))
    return processes.joined(p, len(data))


@dataclass(frozen=True)
class Arm:
  """One training run: what it trains with, how, and where it leaves its artifacts."""

  directory: epath.Path
  made_from: str  # Fingerprint of everything that decides the artifacts.
  domains: Domains
  train_step: Compiled
  optimizer: optax.GradientTransformation
  score: Scorer
  seed: int
  options: dict[str, Any]  # All that are configured, by section.
  _: KW_ONLY
  steps: int
  batch_size: int
  accumulation: int
  class_balanced: bool
  class_cap: int
  oversample_hard: bool
  augment: str
  restart_schedule: bool
  max_loss: float
  checkpoint_every: int
  workers: int

  def __post_init__(self) -> None:
    if self.accumulation:
      self.pairs(None, 0)  # Refuses an impossible class cap, before any work.

  def pairs(self, subset: Subset | None, round_: int, levels: np.ndarray | None = None) -> Pairs:
    return Pairs(
      self.domains.target,
      self.domains.source,
      subset,
      Order(
        self.domains.target.labels,
        self.seed,
        self.batch_size // self.accumulation,
        self.class_balanced,
        self.class_cap,
        levels if self.oversample_hard else None,
      ),
      functools.partial(transforms.augment, kind=self.augment, **self.score.image_size),
      transforms.needed_side(self.augment, self.score.image_size['resize']),
      self.seed,
      round_,
      self.batch_size,
      step.places(self.batch_size, self.accumulation),
    )

  def of_round(self, number: int) -> epath.Path:
    return self.directory / 'rounds' / str(number + 1)

  def load(self, number: int) -> Round | None:
    """A round that is done."""
    return _load(self.of_round(number) / 'round.npz', self.made_from)

  def checkpoints(self) -> Checkpoints:
    return Checkpoints(self.directory / 'checkpoints', self.made_from)

  def restore(self, checkpoints: Checkpoints, variables: dict[str, Any]) -> Progress:
    """The newest checkpoint, or `variables` before the first step."""
    fresh = step.create_state(**variables, optimizer=self.optimizer)
    state, known = checkpoints.newest(like=fresh) or (fresh, {'seconds': 0.0, 'untold': []})
    return Progress(step.replicate(state), int(state.step), known)

  def journal(self, start: int) -> Journal:
    """What is told from step `start` on."""
    return Journal(
      self.directory,
      self.directory.name,
      start,
      processes.is_first(),
      self.options,
      **self.options['logging'],
    )

  def train(
    self, progress: Progress, pairs: Pairs, stop: int, checkpoints: Checkpoints, journal: Journal
  ) -> Progress:
    """Trains on up to step `stop` and leaves a checkpoint there."""
    meter = Meter(pairs.images, loaders(self.workers))
    loaded = prefetched(timed(pairs), progress.step, stop, workers=self.workers)

    def examine(number: int, metrics: Sums) -> None:
      bad = finite.first_bad([(number, metrics)], max_loss=self.max_loss)
      if bad:
        raise finite.error(
          bad,
          max_loss=self.max_loss,
          checkpoints=checkpoints.steps(),
          images=pairs.names,
          directory=self.directory,
        )

    what = f'training in {self.accumulation} micro-batches of {self.batch_size} pairs a step'
    remedy = memory.training_remedy(
      accumulation=self.accumulation,
      batch_size=self.batch_size,
      num_devices=jax.device_count(),
      **{name: self.options['model'][name] for name in ('name', 'remat', 'dtype')},
    )
    train_step = memory.watched(self.train_step, what=what, remedy=remedy)
    with (
      terminal.progress('training', stop, progress.step) as advance,
      memory.explained(what, remedy),
    ):
      state, known = fit(
        meter.step(train_step),
        progress.state,
        (
          step.shard_batch(batch, accumulation=self.accumulation) for batch in meter.batches(loaded)
        ),
        start=progress.step,
        stop=stop,
        progress=progress.known,
        checkpoints=checkpoints,
        checkpoint_every=self.checkpoint_every,
        journal=journal,
        meter=meter,
        examine=examine,
        advance=advance,
      )
    return Progress(state, stop, known)

  def restart(self, progress: Progress) -> Progress:
    """The same network with a fresh optimizer, its schedule at the beginning."""
    state = progress.state
    restart = functools.partial(optimizer.restarted, self.optimizer)
    opt_state = jax.pmap(restart, axis_name='batch')(state.opt_state, state.params)
    return replace(progress, state=state.replace(opt_state=opt_state))


def fitted(arm: Arm, workdir: epath.Path, variables: dict[str, Any]) -> Arm:
  """The arm; where it leaves the number of micro-batches open, with the fewest that fit in memory.

  That decides batch statistics, so the choice is kept in the work directory; arms with batches of
  one size share it.
  """
  if arm.accumulation:
    return arm
  path = workdir / f'accumulation.{arm.batch_size}.json'
  if path.exists():
    return replace(arm, accumulation=json.loads(path.read_text()))
  # Of pretraining, since none is larger.
  batch = SourceOnly(**vars(replace(arm, accumulation=1).pairs(None, 0)))(0)
  chosen = memory.choose_accumulation(
    arm.train_step,
    jax.eval_shape(lambda: step.create_state(**variables, optimizer=arm.optimizer)),
    batch,
    batch_size=arm.batch_size,
    num_devices=jax.device_count(),
    limit=float(processes.of_all(np.array(memory.budget(), np.float32)).min()),
  )
  artifacts.write_json(path, chosen)
  processes.meet()  # All find it there, or none.
  return replace(arm, accumulation=chosen)


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
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(arm.checkpoints())
    # A finished arm needs no network; else rounds whose checkpoints are damaged are trained again.
    progress, journal = None, None
    if any(round_ is None for round_ in map(arm.load, range(rounds))):
      progress = arm.restore(checkpoints, variables)
      journal = stack.enter_context(arm.journal(progress.step))
    for number in range(rounds):
      directory = arm.of_round(number)
      subset = select(
        method,
        ranking=ranking.indices,
        num_neighbors=counts,
        num_source=len(arm.domains.source),
        seed=arm.seed,
      )
      title = f'  round {number + 1} of {rounds}: {len(subset or ()):,} source images'
      first, stop = (arm.steps * n // rounds for n in (number, number + 1))
      round_ = arm.load(number)
      terminal.say(title if round_ is None else f'{title}, done before')
      if round_ is None:
        with artifacts.written(directory / 'selection.csv') as file:
          write_selection(file, arm.domains, subset, ranking)
      if progress and journal:
        if progress.step < stop:
          if arm.restart_schedule and progress.step == first:
            progress = arm.restart(progress)
          pairs = arm.pairs(subset, number, levels(counts, num_neighbors))
          progress = arm.train(progress, pairs, stop, checkpoints, journal)
        is_scored = round_ is not None
        if round_ is None:
          checkpoints.wait()
          round_ = _score(arm, progress, counts, len(subset or ()))
        if progress.step == stop:
          journal.log(stop, _told(arm, round_, ranking))
          journal.flush()
        if not is_scored:
          # Last: a round counts as done once its scores are there, and neither its checkpoint nor
          # the journal is looked at again.
          _save(directory / 'round.npz', arm.made_from, round_)
      assert round_ is not None
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
  state = step.evaluated(progress.state)
  p = arm.score(state, target, 'center')
  return Round(
    num_neighbors=counts,
    source_images=source_images,
    hardness=entropy(p),
    is_correct=p.argmax(axis=1) == target.labels,
    test={view: arm.score(state, test, view) for view in arm.score.views},
    seconds=progress.seconds,
  )


def _told(arm: Arm, round_: Round, ranking: Ranking) -> dict[str, Any]:
  """What the journal shows of a round: scores, histograms, and the hardest images' neighbours."""
  test = arm.domains.test
  told: dict[str, Any] = {
    f'test_accuracy_{view}': metrics.mean_class_accuracy(p, test.labels, len(test.classes))
    for view, p in round_.test.items()
  }
  told |= {'hardness': round_.hardness}
  if ranking.indices.shape[1]:
    hardest = np.argsort(-round_.hardness, kind='stable')[:6]
    told |= {
      'num_neighbors': round_.num_neighbors,
      'hardest': neighbor_sheet(arm.domains, ranking, hardest),
    }
  return told


def neighbor_sheet(domains: Domains, ranking: Ranking, targets: np.ndarray) -> Image.Image:
  """Target images and some of their neighbours (Figure 2)."""
  places = [place for place in (1, 10, 20, 30, 40) if place <= ranking.indices.shape[1]]

  def cell(data: Dataset, index: int, line: str) -> tuple[np.ndarray, str, str]:
    return data[index], class_names(data, index), line

  rows = []
  for target in targets:
    row = [cell(domains.target, int(target), domains.target.key(int(target)))]
    for place in places:
      source, divergence = (a[target, place - 1] for a in vars(ranking).values())
      row.append(cell(domains.source, int(source), f'divergence {divergence:.3g}'))
    rows.append(row)
  ordinals = [f'{place}{"st" if place == 1 else "th"} neighbour' for place in places]
  return sheet(rows, ['target image', *ordinals])


def _save(path: epath.Path, made_from: str, round_: Round) -> None:
  arrays = vars(round_) | {f'test/{view}': p for view, p in round_.test.items()}
  del arrays['test']
  artifacts.save(path, made_from, **arrays)


def _load(path: epath.Path, made_from: str) -> Round | None:
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
