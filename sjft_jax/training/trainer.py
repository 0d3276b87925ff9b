"""One training run: its step, its batches, its checkpoints and its log."""

import contextlib
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from sjft_jax.data import transforms
from sjft_jax.data.dataset import Domains
from sjft_jax.data.loader import num_loaders, prefetch
from sjft_jax.data.pairs import Pairs
from sjft_jax.data.sampler import Sampler
from sjft_jax.models.joint import Joint
from sjft_jax.runtime import artifacts, console, distributed, memory
from sjft_jax.runtime.compilation import CompiledFunction
from sjft_jax.selection.subset import Subset
from sjft_jax.training import loss_guard, optimizer, step
from sjft_jax.training.accumulation import choose_accumulation, training_hint
from sjft_jax.training.checkpoints import Checkpoints
from sjft_jax.training.evaluation import EvaluationOptions, Evaluator
from sjft_jax.training.loop import Progress, Sums, fit
from sjft_jax.training.losses import LossOptions
from sjft_jax.training.metric_writer import LoggingOptions, MetricWriter
from sjft_jax.training.optimizer import SolverOptions
from sjft_jax.training.throughput import ThroughputMeter, with_seconds


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
  """The section `training` of the configuration (see `config.default`)."""

  steps: int
  batch_size: int
  accumulation: int
  class_balanced: bool
  class_cap: int
  oversample_hard: bool
  augment: str
  restart_schedule: bool
  keep_rounds: bool
  max_loss: float
  checkpoint_every: int
  workers: int


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
  """The section `pretrain` of the configuration."""

  steps: int


@dataclass(frozen=True)
class Trainer:
  """What one run trains with, and where it leaves its artifacts.

  Attributes:
    directory: of its checkpoints and its log.
    fingerprint: of everything that decides these.
    domains: the data sets.
    train_step: see `step.make_train_step`.
    optimizer: the one in `train_step`.
    evaluator: predicts data sets.
    options: how it trains.
    config: all options by section, for the log and for messages.
    seed: of order, neighbours and augmentation.
  """

  directory: epath.Path
  fingerprint: str
  domains: Domains
  train_step: CompiledFunction
  optimizer: optax.GradientTransformation
  evaluator: Evaluator
  options: TrainingOptions
  config: dict[str, Any]
  seed: int

  def pairs(
    self,
    subset: Subset | None,
    round_: int,
    repeats: np.ndarray | None = None,
    batches: type[Pairs] = Pairs,
  ) -> Pairs:
    """Return the batches of a round, of the class `batches`.

    Args:
      subset: the source images that may be drawn; None: target images alone.
      round_: the round's number, from 0.
      repeats: [target], how often an epoch repeats each image where hard ones are oversampled.
    """
    options, size = self.options, self.evaluator.size
    return batches(
      target=self.domains.target,
      source=self.domains.source,
      subset=subset,
      sampler=Sampler(
        self.domains.target.labels,
        self.seed,
        options.batch_size // options.accumulation,
        options.class_balanced,
        options.class_cap,
        repeats if options.oversample_hard else None,
      ),
      augment=functools.partial(
        transforms.augment, kind=options.augment, resize=size.resize, crop=size.crop
      ),
      min_side=transforms.augmentation_side(options.augment, size.resize),
      seed=self.seed,
      round_=round_,
      batch_size=options.batch_size,
      local_pairs=step.local_pairs(options.batch_size, options.accumulation),
    )

  @contextlib.contextmanager
  def open(self, variables: dict[str, Any]) -> Iterator['OpenRun']:
    """Open the run's checkpoints and log, and restore the newest checkpoint.

    Args:
      variables: 'params' and 'batch_stats' to start from if there is no checkpoint.
    """
    with Checkpoints(self.directory / 'checkpoints', self.fingerprint) as checkpoints:
      initial = step.create_state(**variables, optimizer=self.optimizer)
      state, extra = checkpoints.load_newest(like=initial) or (initial, {})
      progress = Progress(step.replicate(state), int(state.step), **extra)
      with MetricWriter(
        self.directory,
        name=self.directory.name,
        step=progress.step,
        is_writing=distributed.is_lead_host(),
        config=self.config,
        options=LoggingOptions(**self.config['logging']),
      ) as writer:
        yield OpenRun(self, progress, checkpoints, writer)


@dataclass
class OpenRun:
  """A run with its checkpoints and its log open: `progress` moves on with every `train`."""

  trainer: Trainer
  progress: Progress
  checkpoints: Checkpoints
  writer: MetricWriter

  def train(self, pairs: Pairs, stop: int) -> None:
    """Train up to step `stop` and leave a checkpoint there.

    Raises:
      FloatingPointError: a loss is not finite or too large (see `loss_guard`).
      OutOfMemoryError: with the option to change.
      Stopped: the process was asked to stop.
    """
    trainer, options = self.trainer, self.trainer.options
    meter = ThroughputMeter(pairs.images_per_batch, num_loaders(options.workers))
    loaded = prefetch(with_seconds(pairs), self.progress.step, stop, workers=options.workers)

    def check_metrics(number: int, metrics: Sums) -> None:
      bad = loss_guard.first_nonfinite([(number, metrics)], max_loss=options.max_loss)
      if bad:
        raise loss_guard.bad_step_error(
          bad,
          max_loss=options.max_loss,
          checkpoints=self.checkpoints.steps(),
          images=pairs.names,
          directory=trainer.directory,
        )

    what = f'training in {options.accumulation} micro-batches of {options.batch_size} pairs a step'
    hint = training_hint(
      accumulation=options.accumulation,
      batch_size=options.batch_size,
      num_devices=jax.device_count(),
      **{name: trainer.config['model'][name] for name in ('name', 'remat', 'dtype')},
    )
    train_step = memory.warn_if_too_large(trainer.train_step, what=what, hint=hint)
    with (
      console.progress('training', stop, self.progress.step) as advance,
      memory.explain_oom(what, hint),
    ):
      self.progress = fit(
        meter.step(train_step),
        self.progress,
        (
          step.shard_batch(batch, accumulation=options.accumulation)
          for batch in meter.batches(loaded)
        ),
        stop=stop,
        checkpoints=self.checkpoints,
        checkpoint_every=options.checkpoint_every,
        writer=self.writer,
        meter=meter,
        check_metrics=check_metrics,
        advance=advance,
      )

  def network(self) -> dict[str, Any]:
    """Return 'params' (their moving average, if there is one) and 'batch_stats' as numpy arrays."""
    trained = step.unreplicate(step.with_ema_params(self.progress.state))
    return {'params': trained.params, 'batch_stats': trained.batch_stats}

  def save_network(self, directory: epath.Path) -> None:
    """Save the network of this moment as a checkpoint of its own."""
    with Checkpoints(directory, self.trainer.fingerprint) as checkpoints:
      checkpoints.save(self.progress.step, self.network(), {})

  def reset_optimizer(self) -> None:
    """Keep the network and start the optimizer and its schedule anew."""
    state = self.progress.state
    reset = functools.partial(optimizer.reset_opt_state, self.trainer.optimizer)
    opt_state = jax.pmap(reset, axis_name='batch')(state.opt_state, state.params)
    self.progress = replace(self.progress, state=state.replace(opt_state=opt_state))


class TrainerFactory:
  """Makes the trainers of one network; those with the same solver and loss share a compiled step.

  Args:
    workdir: the work directory of the whole run.
    fingerprint: of the options and data sets that decide its results.
    domains: the data sets.
    network: the joint network.
    variables: its initial 'params' and 'batch_stats'.
  """

  def __init__(
    self,
    workdir: epath.Path,
    fingerprint: str,
    domains: Domains,
    network: Joint,
    variables: dict[str, Any],
  ):
    self._workdir, self._fingerprint, self._domains = workdir, fingerprint, domains
    self._network, self._variables = network, variables
    self._predict = step.make_predict(network.apply)
    self._steps: dict[Any, Any] = {}

  def __call__(self, directory: str, config: ConfigDict) -> Trainer:
    """Return the trainer for `directory` below the work directory, with these options.

    Raises:
      OutOfMemoryError: training.accumulation=0, and no number of micro-batches fits.
    """
    options = TrainingOptions(**config.training)
    solver_options, loss = SolverOptions(**config.solver), LossOptions(**config.loss)
    rounds = config.selection.rounds if options.restart_schedule else 1
    schedule_steps = -(-options.steps // rounds)
    solver = optimizer.sgd(schedule_steps, solver_options)
    # Only a cosine depends on the number of steps.
    key = solver_options, loss, schedule_steps if solver_options.schedule == 'cosine' else 0
    if key not in self._steps:
      self._steps[key] = step.make_train_step(self._network.apply, solver, config.seed, loss)
    size = transforms.ImageSize(**config.images)
    if not options.accumulation:
      chosen = self._choose_accumulation(self._steps[key], solver, options.batch_size, size)
      options = replace(options, accumulation=chosen)
    return Trainer(
      directory=self._workdir / directory,
      fingerprint=self._fingerprint,
      domains=self._domains,
      train_step=self._steps[key],
      optimizer=solver,
      evaluator=Evaluator(self._predict, size, EvaluationOptions(**config.evaluation)),
      options=options,
      config=json.loads(config.to_json()),
      seed=config.seed,
    )

  def _choose_accumulation(
    self,
    train_step: CompiledFunction,
    solver: optax.GradientTransformation,
    batch_size: int,
    size: transforms.ImageSize,
  ) -> int:
    """Return the fewest micro-batches that fit in memory.

    They decide batch statistics, so the choice is kept in the work directory; trainers with batches
    of one size share it.
    """
    path = self._workdir / f'accumulation.{batch_size}.json'
    if path.exists():
      chosen: int = json.loads(path.read_text())
      return chosen
    chosen = choose_accumulation(
      train_step,
      jax.eval_shape(lambda: step.create_state(**self._variables, optimizer=solver)),
      self._batch_shapes(2 * batch_size // jax.process_count(), size),
      batch_size=batch_size,
      num_devices=jax.device_count(),
      limit=float(distributed.all_gather(np.array(memory.available_bytes(), np.float32)).min()),
    )
    artifacts.write_json(path, chosen)
    distributed.barrier()  # All processes find it there, or none does.
    return chosen

  def _batch_shapes(
    self, images: int, size: transforms.ImageSize
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a joint batch; no other batch is larger."""
    shapes = {
      'image': jax.ShapeDtypeStruct((images, size.crop, size.crop, 3), jnp.uint8),
      'label': jax.ShapeDtypeStruct((images,), jnp.int32),
      'is_source': jax.ShapeDtypeStruct((images,), jnp.bool_),
    }
    source = self._domains.source
    if source.labels.ndim > 1:
      shown = (images, len(source.classes))
      shapes['multi_hot'] = jax.ShapeDtypeStruct(shown, jnp.bool_)
    return shapes
