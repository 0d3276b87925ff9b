"""Train a network: a `Trainer` holds what it takes, and its `TrainingSession` trains.

An example:

  make_trainer = TrainerFactory(workdir, fingerprint, domains, model, variables)
  trainer = make_trainer('arms/rounds', config)
  with trainer.open(variables) as session:  # It goes on from the newest checkpoint.
    session.train(trainer.batches(subset, round_=0), stop=3200)
    session.save_variables(directory)
"""

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from sjft_jax.data import transforms
from sjft_jax.data.batches import Batches
from sjft_jax.data.dataset import Dataset, Domains
from sjft_jax.data.loader import num_loaders, prefetch
from sjft_jax.data.sampler import Sampler
from sjft_jax.models.joint import Joint
from sjft_jax.runtime import console, distributed, memory
from sjft_jax.runtime.checkpoints import Checkpoints
from sjft_jax.runtime.compilation import CompiledFunction
from sjft_jax.runtime.option_names import name_overrides
from sjft_jax.selection.subset import Subset
from sjft_jax.training import optimizer, sharding, step
from sjft_jax.training.accumulation import Training, load_or_choose_accumulation, training_hint
from sjft_jax.training.evaluation import EvaluationOptions, Evaluator
from sjft_jax.training.freeze import frozen_layers
from sjft_jax.training.loop import Progress, fit
from sjft_jax.training.loss_guard import LossGuard
from sjft_jax.training.losses import LossOptions
from sjft_jax.training.metric_writer import LoggingOptions, MetricWriter
from sjft_jax.training.optimizer import SolverOptions
from sjft_jax.training.profile import StepProfile
from sjft_jax.training.throughput import ThroughputMeter, with_seconds


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
  """The section `training` of the configuration.

  Attributes:
    steps: optimizer updates of one round.
    batch_size: target images a step; each brings one neighbour along.
    accumulation: micro-batches in a step; 0: the fewest that fit in memory.
    class_balanced: draw every class equally often.
    class_cap: most images of a class in a micro-batch; 0: no limit.
    oversample_hard: draw an image K_i / K0 times an epoch.
    augment: kind of augmentation (see `transforms.augment`).
    freeze: which layers stay as they start (see `freeze.frozen_layers`).
    restart_schedule: start every round with a fresh optimizer and schedule.
    keep_rounds: keep the network that each round ends with.
    max_loss: nats; a step's loss above it ends the run. 0: no limit.
    checkpoint_every: steps between checkpoints.
    workers: processes that load batches; 0: threads of this one.
  """

  steps: int
  batch_size: int
  accumulation: int
  class_balanced: bool
  class_cap: int
  oversample_hard: bool
  augment: str
  freeze: str
  restart_schedule: bool
  keep_rounds: bool
  max_loss: float
  checkpoint_every: int
  workers: int

  def schedule_steps(self, rounds: int) -> int:
    """Return the length of the learning-rate schedule, in steps, in a training of `rounds`."""
    return self.steps if self.restart_schedule else self.steps * rounds


@dataclass(frozen=True, kw_only=True)
class Trainer:
  """What one network is trained with, and where its artifacts are.

  Attributes:
    directory: where its checkpoints and its log are.
    fingerprint: hash of the options and data that determine these.
    domains: the data sets.
    train_step: see `step.make_train_step`.
    optimizer: equal to the one in `train_step`; makes the initial state.
    learning_rates: of every step of its schedule, which starts anew once they are taken.
    evaluator: predicts the class probabilities of data sets.
    feature_step: see `step.make_features`.
    options: how it trains; the number of micro-batches is never 0 here.
    logging: where metrics go.
    config: all options by section, for the log and for messages.
    seed: of order, neighbours and augmentation.
    profile: traces some of the first steps that are trained.
  """

  directory: epath.Path
  fingerprint: str
  domains: Domains
  train_step: CompiledFunction
  optimizer: optax.GradientTransformation
  learning_rates: np.ndarray
  evaluator: Evaluator
  feature_step: CompiledFunction
  options: TrainingOptions
  logging: LoggingOptions
  config: dict[str, Any]
  seed: int
  profile: StepProfile | None = None

  def batches(
    self,
    subset: Subset | None,
    round_: int,
    repeats: np.ndarray | None = None,
    cls: type[Batches] = Batches,
  ) -> Batches:
    """Return the batches of a round.

    Args:
      subset: the source images that may be drawn; None: target images alone.
      round_: the number of the round, from 0.
      repeats: [target], how often each image comes in an epoch, if hard images are oversampled.
      cls: their class.
    """
    options, size = self.options, self.evaluator.size
    return cls(
      target=self.domains.target,
      source=self.domains.source,
      subset=subset,
      sampler=self.sampler(repeats),
      augment=functools.partial(
        transforms.augment, kind=options.augment, resize=size.resize, crop=size.crop
      ),
      min_side=transforms.augmentation_side(options.augment, size.resize),
      seed=self.seed,
      round_=round_,
      batch_size=options.batch_size,
      local_pairs=sharding.local_pairs(options.batch_size, options.accumulation),
    )

  def name_options(self, text: str) -> str:
    """Return a text in which options that only this arm has have the names of its overrides."""
    return name_overrides(text, self.directory.name, self.config['overrides'])

  @property
  def learning_rate_option(self) -> str:
    """Return the name of the option that it has its learning rate from."""
    if self.directory.name == 'pretrain':
      return 'pretrain.learning_rate'
    return self.name_options('solver.learning_rate')

  def sampler(self, repeats: np.ndarray | None = None) -> Sampler:
    """Return the order of the target images.

    Args:
      repeats: as for `batches`.

    Raises:
      ValueError: training.class_cap leaves places of a micro-batch empty.
    """
    options = self.options
    return Sampler(
      self.domains.target.labels,
      self.seed,
      options.batch_size // options.accumulation,
      options.class_balanced,
      options.class_cap,
      repeats if options.oversample_hard else None,
    )

  @contextlib.contextmanager
  def open(self, variables: dict[str, Any]) -> Iterator['TrainingSession']:
    """Open the checkpoints and the log, and restore the newest checkpoint.

    Args:
      variables: 'params' and 'batch_stats' to start from if there is no checkpoint.
    """
    with Checkpoints(self.directory / 'checkpoints', self.fingerprint) as checkpoints:
      initial = step.create_state(**variables, optimizer=self.optimizer)
      state, extra = checkpoints.load_newest(like=initial) or (initial, {})
      progress = Progress(sharding.replicate(state), int(state.step), **extra)
      with MetricWriter(
        self.directory,
        name=self.directory.name,
        step=progress.step,
        options=self.logging,
        is_writing=distributed.is_primary_process(),
        config=self.config,
      ) as writer:
        yield TrainingSession(self, progress, checkpoints, writer)


@dataclass
class TrainingSession:
  """A training, with its checkpoints and its log open.

  Attributes:
    trainer: what it trains with.
    progress: the state and how far it has come; `train` replaces it.
    checkpoints: where states are saved.
    writer: logs metrics.
  """

  trainer: Trainer
  progress: Progress
  checkpoints: Checkpoints
  writer: MetricWriter

  def train(self, batches: Batches, stop: int) -> None:
    """Train up to step `stop` and save a checkpoint there.

    Raises:
      FloatingPointError: a loss is not finite or too large (see `loss_guard`).
      OutOfMemoryError: memory ran out; the message says which option to change.
      Stopped: the process was asked to stop.
    """
    trainer, options, rates = self.trainer, self.trainer.options, self.trainer.learning_rates
    meter = ThroughputMeter(batches.images_per_batch, num_loaders(options.workers))
    loaded = prefetch(with_seconds(batches), self.progress.step, stop, workers=options.workers)
    shards = (
      sharding.shard_batch(batch, accumulation=options.accumulation)
      for batch in meter.watch_batches(loaded)
    )
    source = trainer.domains.source
    guard = LossGuard(
      max_loss=options.max_loss,
      checkpoints=self.checkpoints.steps,
      images=batches.names,
      directory=trainer.directory,
      learning_rate=trainer.learning_rate_option,
      max_loss_option=trainer.name_options('training.max_loss'),
      source_terms=len(source.classes) if source.labels.ndim > 1 else 1,
    )
    what = f'training in {options.accumulation} micro-batches of {options.batch_size} pairs a step'
    hint = training_hint(
      accumulation=options.accumulation,
      batch_size=options.batch_size,
      num_devices=jax.device_count(),
      **{name: trainer.config['model'][name] for name in ('name', 'remat', 'dtype')},
    )
    hint = trainer.name_options(hint)
    train_step = memory.warn_if_too_large(trainer.train_step, what=what, hint=hint)
    profile = trainer.profile or contextlib.nullcontext
    with (
      profile(train_step) as train_step,
      console.progress('training', stop, self.progress.step) as advance,
      memory.explain_oom(what, hint),
    ):
      self.progress = fit(
        meter.watch_step(train_step),
        self.progress,
        shards,
        stop=stop,
        checkpoints=self.checkpoints,
        checkpoint_every=options.checkpoint_every,
        writer=self.writer,
        learning_rate=lambda number: float(rates[number % len(rates)]),
        meter=meter,
        check_metrics=guard,
        advance=advance,
      )

  def variables(self) -> dict[str, Any]:
    """Return 'params' (their moving average, if there is one) and 'batch_stats' as numpy arrays."""
    state = step.with_ema_params(self.progress.state)
    return sharding.unreplicate({'params': state.params, 'batch_stats': state.batch_stats})

  def save_variables(self, directory: epath.Path) -> None:
    """Save the variables of this moment as a checkpoint of their own."""
    with Checkpoints(directory, self.trainer.fingerprint) as checkpoints:
      checkpoints.save(self.progress.step, self.variables(), {'seconds': self.progress.seconds})

  def load_progress(self, directory: epath.Path, number: int) -> Progress:
    """Load what `save_variables` has saved after step `number`, without an optimizer.

    Raises:
      ValueError: it is not there, or damaged.
    """
    saved = None
    if directory.exists():
      with Checkpoints(directory, self.trainer.fingerprint) as checkpoints:
        saved = checkpoints.load_newest(like=self.variables())
    if saved is None:
      raise ValueError(
        f'{directory} holds no network of step {number}, and the training has gone on; delete '
        f'{self.trainer.directory} and run the same command, which trains it anew'
      )
    variables, extra = saved
    state = step.TrainState(jnp.int32(number), **variables, opt_state=())
    return Progress(sharding.replicate(state), number, extra['seconds'])

  def reset_optimizer(self) -> None:
    """Start the optimizer and its schedule anew, from the parameters of this moment."""
    state = self.progress.state
    reset = functools.partial(optimizer.reset_opt_state, self.trainer.optimizer)
    opt_state = jax.pmap(reset, axis_name='batch')(state.opt_state, state.params)
    self.progress = replace(self.progress, state=state.replace(opt_state=opt_state))


class TrainerFactory:
  """Make the trainers of one network; those with equal solver and loss share a compiled step.

  Args:
    workdir: the work directory of the whole run.
    fingerprint: hash of the options and data sets that determine its results.
    domains: the data sets.
    model: the joint network.
    variables: its initial 'params' and 'batch_stats'.
  """

  def __init__(
    self,
    workdir: epath.Path,
    fingerprint: str,
    domains: Domains,
    model: Joint,
    variables: dict[str, Any],
  ):
    self._workdir, self._fingerprint, self._domains = workdir, fingerprint, domains
    self._model, self._variables = model, variables
    self._predict_step = step.make_predict(model.apply)
    self._feature_step = step.make_features(model.apply)
    # With their optimizers, whose states one program makes for all trainers that share the step.
    self._train_steps: dict[
      tuple[SolverOptions, LossOptions, int, frozenset[str]],
      tuple[CompiledFunction, optax.GradientTransformation],
    ] = {}

  def programs(self) -> list[Any]:
    """Return the compiled programs of all steps and predictions so far."""
    functions = *(train_step for train_step, _ in self._train_steps.values()), self._predict_step
    return [program for function in functions for program in function.programs]

  def share_accumulation(self, configs: Iterable[ConfigDict]) -> None:
    """Choose the micro-batches of all trainings with training.accumulation=0, before any is made.

    Those with batches of one size share the number, which fits each of them in whatever order they
    come: other micro-batches are other batch statistics, and arms that differ in these would not
    be compared fairly.

    Args:
      configs: all options of each training.

    Raises:
      OutOfMemoryError: no number of micro-batches fits.
    """
    by_size: dict[int, list[ConfigDict]] = {}
    for config in configs:
      if not config.training.accumulation:
        by_size.setdefault(config.training.batch_size, []).append(config)
    for trainings in by_size.values():
      self._load_or_choose_accumulation(trainings)

  def _load_or_choose_accumulation(self, configs: Sequence[ConfigDict]) -> int:
    """Load or choose the number of micro-batches of trainings with batches of one size."""
    batch_size, crop = configs[0].training.batch_size, configs[0].images.crop
    # Each further step takes a compilation, and the weights of the loss are numbers: they do not
    # change its memory.
    trainings: dict[Any, Training] = {}
    for config in configs:
      train_step, solver, frozen = self._make_train_step(config)
      key = SolverOptions(**config.solver), frozen, bool(config.loss.label_smoothing)
      state = functools.partial(step.create_state, **self._variables, optimizer=solver)
      trainings.setdefault(key, (train_step, jax.eval_shape(state)))
    return load_or_choose_accumulation(
      self._workdir / f'accumulation.{batch_size}.json',
      list(trainings.values()),
      _batch_shapes(self._domains.source, batch_size, crop),
      batch_size=batch_size,
    )

  def _make_train_step(
    self, config: ConfigDict
  ) -> tuple[CompiledFunction, optax.GradientTransformation, frozenset[str]]:
    """Return the compiled step of a training, its optimizer, and the frozen layers."""
    options = TrainingOptions(**config.training)
    solver_options, loss_options = SolverOptions(**config.solver), LossOptions(**config.loss)
    schedule_steps = options.schedule_steps(config.selection.rounds)
    frozen = frozen_layers(options.freeze, self._variables['params']['trunk'])
    # Only a cosine depends on the number of steps.
    cosine_steps = schedule_steps if solver_options.schedule == 'cosine' else 0
    key = solver_options, loss_options, cosine_steps, frozen
    if key not in self._train_steps:
      solver = optimizer.sgd(schedule_steps, solver_options, frozen)
      train_step = step.make_train_step(
        self._model.apply, solver, config.seed, loss_options, frozen
      )
      self._train_steps[key] = train_step, solver
    return *self._train_steps[key], frozen

  def __call__(
    self,
    directory: str,
    config: ConfigDict,
    profile: StepProfile | None = None,
    *,
    fingerprint: str = '',
  ) -> Trainer:
    """Make a trainer.

    Args:
      directory: of its artifacts, below the work directory.
      config: all options; see `config.default`.
      profile: traces some of the first steps; trainers may share it.
      fingerprint: of what determines the results of this training; '': what determines the run's.

    Raises:
      OutOfMemoryError: training.accumulation=0, and no number of micro-batches fits.
      ValueError: training.freeze names no layer of the trunk, or the number of micro-batches that
        was chosen does not suit training.class_cap or the devices.
    """
    options = TrainingOptions(**config.training)
    train_step, solver, _ = self._make_train_step(config)
    if not options.accumulation:
      # Trainers with batches of one size share the number (see `share_accumulation`).
      options = replace(options, accumulation=self._load_or_choose_accumulation([config]))
    schedule_steps = options.schedule_steps(config.selection.rounds)
    trainer = Trainer(
      directory=self._workdir / directory,
      fingerprint=fingerprint or self._fingerprint,
      domains=self._domains,
      train_step=train_step,
      optimizer=solver,
      learning_rates=optimizer.learning_rates(schedule_steps, SolverOptions(**config.solver)),
      evaluator=Evaluator(
        self._predict_step,
        transforms.ImageSize(**config.images),
        EvaluationOptions(**config.evaluation),
      ),
      feature_step=self._feature_step,
      options=options,
      logging=LoggingOptions(**config.logging),
      config=json.loads(config.to_json()),
      seed=config.seed,
      profile=profile,
    )
    # Before any training: only now is the number of micro-batches known wherever it is chosen.
    trainer.sampler()
    return trainer


def _batch_shapes(source: Dataset, pairs: int, crop: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Return the shapes of this process's part of a joint batch; no other batch is larger."""
  images = 2 * pairs // jax.process_count()
  shapes = {
    'image': jax.ShapeDtypeStruct((images, crop, crop, 3), jnp.uint8),
    'label': jax.ShapeDtypeStruct((images,), jnp.int32),
    'is_source': jax.ShapeDtypeStruct((images,), jnp.bool_),
  }
  if source.labels.ndim > 1:
    shapes['multi_hot'] = jax.ShapeDtypeStruct((images, len(source.classes)), jnp.bool_)
  return shapes
