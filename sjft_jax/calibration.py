"""Measure each stage of a run for a moment, and extrapolate it to the whole.

Each stage is run for a second or two on a part of the run's own images, by the code of the run and
in a temporary folder.
"""

import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from sjft_jax import config as configs
from sjft_jax import ranking as rankings
from sjft_jax import results, round_files
from sjft_jax.data.batches import Batches, SourceBatches
from sjft_jax.data.dataset import Dataset, SubsetDataset
from sjft_jax.inputs import Inputs, ranking_depth
from sjft_jax.output import tables
from sjft_jax.report import draw
from sjft_jax.retrieval import knn
from sjft_jax.runtime import artifacts, memory
from sjft_jax.runtime.host_memory import peak_bytes
from sjft_jax.runtime.stopwatch import Cost, Stopwatch
from sjft_jax.screening import perceptual_hash, scan
from sjft_jax.selection.growth import SelectionOptions
from sjft_jax.selection.subset import select
from sjft_jax.training.trainer import Trainer, TrainerFactory

# The most targets in a measured product; its time grows as their number.
_TARGETS = 256
# Neighbours that are measured together.
_RUN = 16
# Bytes of a row in a table of selected images: about that of its texts, and compressed.
_CSV_ROW, _PARQUET_ROW = 70, 8


class Stage(NamedTuple):
  """A stage of a run.

  Attributes:
    name: what is done.
    work: how much of it.
    seconds: that it takes, extrapolated.
  """

  name: str
  work: str
  seconds: float


class Calibration(NamedTuple):
  """What the stages of a run take, each of them measured for a moment.

  Attributes:
    screening: of the images that no earlier run has looked at.
    ranking: None: there is none.
    training: the stages of pretraining, of every arm and of the report, in their order.
    compile_seconds: that the measurements spent on programs which the run needs too.
    device_bytes: that the largest program takes on each device; 0: it does not say.
    host_bytes: of memory that the process takes, on a CPU with its programs.
    disk_bytes: that the training leaves in the work directory.
  """

  screening: Stage
  ranking: Stage | None
  training: list[Stage]
  compile_seconds: float
  device_bytes: int
  host_bytes: int
  disk_bytes: int


def calibrate(config: ConfigDict, inputs: Inputs) -> Calibration:
  """Measure the stages of one repeat of a run; files go to a temporary folder.

  Args:
    config: all options.
    inputs: what the run starts from.
  """
  with tempfile.TemporaryDirectory(prefix='sjft_jax-plan-') as folder:
    return _Calibrator(config, inputs, epath.Path(folder)).measure()


class _Calibrator:
  """Measures the stages of a run.

  Args:
    config, inputs: as for `calibrate`.
    folder: for the files of the measured stages.
  """

  def __init__(self, config: ConfigDict, inputs: Inputs, folder: epath.Path):
    self._config, self._inputs, self._folder = config, inputs, folder
    self._watch = Stopwatch()
    self._domains = inputs.domains
    network = inputs.network
    self._make_trainer = TrainerFactory(
      folder, inputs.fingerprint, inputs.domains, network.model, network.variables
    )
    self._selections = {
      name: SelectionOptions(**options.selection) for name, options in inputs.arms.items()
    }
    self._depth = ranking_depth(inputs.arms.values())
    self._trained: dict[Any, tuple[Cost, int, int]] = {}
    self._saving_seconds = 0.0

  def measure(self) -> Calibration:
    """Measure everything."""
    screening = self._screen()
    ranking, host_bytes = self._rank() if self._depth else (None, 0)
    training, disk_bytes = self._train()
    programs = self._make_trainer.programs()
    return Calibration(
      screening,
      ranking,
      training,
      compile_seconds=self._watch.compile_seconds,
      device_bytes=max(memory.planned_bytes(program) or 0 for program in programs),
      host_bytes=peak_bytes() + host_bytes,
      disk_bytes=disk_bytes,
    )

  def _screen(self) -> Stage:
    """Measure the look at the images that no earlier run has looked at."""
    unscanned = scan.find_unscanned(self._domains)
    seconds = 0.0
    nowhere = Path(self._folder / 'none.npz')
    for data in unscanned:

      def look(n: int, data: Dataset = data) -> None:
        scan.scan_images(_sample(data, 16 * n), nowhere, '')

      cost = self._watch.measure(f'screening {data.name}', look, math.ceil(len(data) / 16))
      seconds += cost.seconds(len(data) / 16)
    if unscanned:
      num_test, num_source = len(self._domains.test), len(self._domains.source)
      rng = np.random.default_rng(0)
      hashes = [
        rng.integers(2**32, size=(count, perceptual_hash.WORDS), dtype=np.uint32)
        for count in (num_test, min(num_source, 2**16))
      ]
      cost = self._watch.measure(
        'comparing hashes',
        lambda n: perceptual_hash.find_near_pairs(hashes[1][: 1024 * n], hashes[0]),
        math.ceil(len(hashes[1]) / 1024),
      )
      seconds += cost.seconds(num_source / 1024)
    count = sum(map(len, unscanned))
    return Stage('screening', f'{count:,} images' if count else 'done before', seconds)

  def _rank(self) -> tuple[Stage, int]:
    """Measure the ranking; also return the bytes that it takes above what was measured."""
    target, source, bank = self._domains.target, self._domains.source, self._inputs.bank
    options = rankings.DescriptorOptions(**self._config.descriptors)
    describer = rankings.Describer(bank, options)
    batch = options.batch_size
    edges = np.zeros((0, 0), np.float32)

    def fit(n: int) -> None:
      nonlocal edges
      edges = describer.fit_edges(_sample(target, batch * n))

    def describe(data: Dataset, n: int) -> None:
      blocks = describer.describe(describer.batches(_sample(data, batch * n)), edges)
      for block in rankings.pipelined(blocks):
        block.block_until_ready()

    batches, source_batches = math.ceil(len(target) / batch), math.ceil(len(source) / batch)
    measure = self._watch.measure
    seconds = measure('fitting the bins', fit, batches).seconds(batches)
    # Longer than others: images are decoded ahead, which the first batches wait for.
    described = measure('describing the source', lambda n: describe(source, n), source_batches, 0.8)
    seconds += described.seconds(batches)

    count = min(len(target), _TARGETS)
    shape = sum(bank.num_filters), options.num_bins
    rng = np.random.default_rng(0)
    histograms = rng.random((knn.TILE, *shape), np.float32) + np.float32(0.5)
    histograms /= histograms.sum(axis=-1, keepdims=True)

    def multiply(n: int) -> None:
      search = knn.Search(histograms[::-1][:count], weights=bank.weights, k=self._depth)
      for _ in range(n):
        search.add(histograms)
      search.flush()
      search.keys()

    tiles = len(source) / knn.TILE
    multiplied = measure('the product', multiply, math.ceil(tiles)).each * tiles
    streamed = described.seconds(source_batches)
    multiplied *= len(target) / count
    # On an accelerator the product hides behind the decoding on the host, or the other way around.
    is_shared = jax.default_backend() == 'cpu'
    seconds += streamed + multiplied if is_shared else max(streamed, multiplied)
    work = f'{len(target):,} × {len(source):,} images, {self._depth:,} neighbours'
    # Descriptors and their factors; keys of the search; divergences of the tiles under way.
    each = 12 * math.prod(shape) + 8 * (self._depth + max(self._depth, 4 * knn.TILE))
    each += 4 * knn.TILE * ((os.cpu_count() or 1) + 1)
    return Stage('ranking', work, seconds), (len(target) - count) * each

  def _train(self) -> tuple[list[Stage], int]:
    """Measure steps and scoring; also return the bytes on the disk."""
    config, arms = self._config, self._inputs.arms
    stages, disk_bytes = [], 0
    trainers: dict[str, Trainer] = {}
    self._make_trainer.share_accumulation(configs.training_configs(config))
    if config.pretrain.steps:
      trainer = self._trainer('pretrain', configs.pretrain_config(config))
      cost, checkpoint, _ = self._measure_steps('pretraining', trainer, SourceBatches, None)
      seconds = _training_seconds(cost, trainer)
      stages.append(Stage('pretraining', f'{config.pretrain.steps:,} steps', seconds))
      disk_bytes += 2 * checkpoint
    scoring = None
    for name, options in arms.items():
      trainer, rounds = self._trainer(f'arms/{name}', options), options.selection.rounds
      trainers[name] = trainer
      method = options.selection.method
      title = results.arm_title(name, rounds, arms)
      if scoring is None:
        scoring, views = self._measure_scoring(trainer)
      if name in configs.FROZEN_ARMS:
        # The fit itself takes little beside the features.
        stages.append(Stage(f'fitting and scoring, {title}', views, scoring))
        continue
      if method == 'similar':
        num_images = len(self._domains.target) + len(self._domains.source)
        seconds = self._feature_cost.seconds(num_images / trainer.evaluator.options.batch_size)
        stages.append(Stage('ranking by features', f'{num_images:,} images', seconds))
      cost, checkpoint, network = self._measure_steps(title, trainer, Batches, method)
      seconds = rounds * _training_seconds(cost, trainer)
      if trainer.options.keep_rounds:
        seconds += rounds * self._saving_seconds
      stages += [
        Stage(f'training, {title}', f'{rounds} × {trainer.options.steps:,} steps', seconds),
        Stage(f'scoring, {title}', f'{rounds} × {views}', rounds * scoring),
      ]
      disk_bytes += 2 * checkpoint + (rounds * network if trainer.options.keep_rounds else 0)
      disk_bytes += self._table_bytes(self._selections[name])
      test = self._domains.test
      predictions = 4 * len(test) * len(test.classes) * len(config.evaluation.views)
      disk_bytes += rounds * predictions
    if config.logging.report:
      stages.append(self._measure_report(trainers))
      disk_bytes += artifacts.file_size(self._folder / draw.FILE)
    return stages, disk_bytes

  def _trainer(self, directory: str, options: ConfigDict) -> Trainer:
    """Make the trainer of an arm, which logs nothing elsewhere."""
    options = options.copy_and_resolve_references()
    options.logging.update(wandb='', tensorboard=False)
    return self._make_trainer(directory, options)

  def _measure_steps(
    self, name: str, trainer: Trainer, cls: type[Batches], method: str | None
  ) -> tuple[Cost, int, int]:
    """Measure steps of a training; return the bytes of a checkpoint and of a network, too.

    Trainings that differ in nothing that takes time are measured once.
    """
    key = trainer.train_step, trainer.options, cls, method == 'none'
    if key in self._trained:
      return self._trained[key]
    source, target = self._domains.source, self._domains.target
    subset = None
    if cls is Batches:
      subset = select(
        'none' if method == 'none' else 'all',
        ranking=np.zeros((len(target), 0), np.int32),
        num_neighbors=np.zeros(len(target), np.int64),
        source_labels=source.labels,
        seed=trainer.seed,
      )
    batches = trainer.batches(subset, 0, np.ones(len(target)), cls)
    with trainer.open(self._inputs.network.variables) as run:
      cost = self._watch.measure(
        f'training, {name}',
        lambda n: run.train(batches, run.progress.step + n),
        trainer.options.steps,
        0.4,
      )
      start_time = time.perf_counter()
      run.save_variables(trainer.directory / 'network')
      self._saving_seconds = time.perf_counter() - start_time
      run.checkpoints.wait()
      kept = len(run.checkpoints.steps())
    checkpoint = _folder_bytes(trainer.directory / 'checkpoints') // max(kept, 1)
    network = _folder_bytes(trainer.directory / 'network')
    self._trained[key] = cost, checkpoint, network
    return self._trained[key]

  def _measure_scoring(self, trainer: Trainer) -> tuple[float, str]:
    """Measure how long the predictions after a round take; return the seconds and a description."""
    test, num_train = self._domains.test, len(self._domains.target)
    evaluator = trainer.evaluator
    batch, views = evaluator.options.batch_size, evaluator.options.views
    seconds = 0.0
    with trainer.open(self._inputs.network.variables) as run:
      for view in dict.fromkeys(('center', *views)):

        def score(n: int, view: str = view) -> None:
          evaluator(run.progress.state, _sample(test, batch * n), view)

        cost = self._watch.measure(f'scoring, {view}', score, math.ceil(len(test) / batch))
        if view == 'center':
          self._feature_cost = cost  # That of features, too.
          seconds += cost.seconds(math.ceil(num_train / batch))
        if view in views:
          seconds += cost.seconds(math.ceil(len(test) / batch))
    tested = ', '.join(views).replace('_', ' ')
    return seconds, f'{num_train:,} images, center; {len(test):,}, {tested}'

  def _measure_report(self, trainers: dict[str, Trainer]) -> Stage:
    """Measure a report with half of all rounds, whose predictions are random."""
    domains, rng = self._domains, np.random.default_rng(0)
    num_target, rounds = len(domains.target), 0
    for name, trainer in trainers.items():
      options = self._selections[name]
      rounds += options.rounds
      for number in range(math.ceil(options.rounds / 2)):
        shape = len(domains.test), len(domains.test.classes)
        p = {
          view: rng.dirichlet(np.ones(shape[1]), shape[0]) for view in self._config.evaluation.views
        }
        round_ = round_files.Round(
          num_neighbors=np.full(num_target, options.num_neighbors),
          source_images=len(domains.source),
          hardness=rng.random(num_target),
          is_correct=rng.random(num_target) < 0.5,
          test={view: each.astype(np.float32) for view, each in p.items()},
          seconds=1.0,
        )
        round_files.save_round(trainer, number, round_)
    shape = num_target, self._depth
    ranking = knn.Ranking(
      rng.integers(len(domains.source), size=shape, dtype=np.int32),
      np.sort(rng.random(shape, np.float32), axis=1),
    )
    report = draw.RunReport(self._folder, self._inputs.fingerprint, self._config, domains, ranking)
    cost = self._watch.measure('the report', lambda _: report.write(), 1)
    return Stage('drawing the report', f'{rounds + 1:,} times', (rounds + 1) * cost.each)

  def _table_bytes(self, options: SelectionOptions) -> int:
    """Return about the bytes of an arm's tables of selected images."""
    num_target, num_source = len(self._domains.target), len(self._domains.source)
    total = 0
    for number in range(options.rounds):
      # How many images stay hard is not known; here every other one.
      neighbors = options.num_neighbors + number * max(options.increments.values()) // 2
      num_pairs = num_target * neighbors
      rows = {'none': 0, 'nearest': num_pairs, 'similar': num_pairs}.get(options.method, num_source)
      total += rows * (_CSV_ROW if rows <= tables.MAX_CSV_ROWS else _PARQUET_ROW)
    return total


def _sample(data: Dataset, count: int) -> SubsetDataset:
  """Return so many images from all over a data set, some more than once if it has fewer.

  They are runs of neighbours, as a whole pass over the data has them: what an image shares with the
  next ones, such as a file that holds them all, is read once for a run.
  """
  distinct = np.arange(min(count, len(data)))
  run = distinct // _RUN
  distinct += run * (len(data) - len(distinct)) // max(run[-1], 1)
  return SubsetDataset(data, np.resize(distinct, count))


def _training_seconds(cost: Cost, trainer: Trainer) -> float:
  """Return the seconds of a round's steps, whose checkpoints take what its start and end do."""
  steps = trainer.options.steps
  saves = math.ceil(steps / trainer.options.checkpoint_every)
  return saves * cost.start + steps * cost.each


def _folder_bytes(folder: epath.Path) -> int:
  return sum(file.stat().st_size for file in Path(folder).rglob('*') if file.is_file())
