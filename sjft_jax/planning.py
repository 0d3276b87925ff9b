"""Plan a run before any work: its stages and their seconds, its memory and its room on the disk."""

import math
import os
import time
from dataclasses import dataclass
from typing import NamedTuple

import jax
from ml_collections import ConfigDict
from rich.table import Table

from sjft_jax import config as configs
from sjft_jax import inputs as run_inputs
from sjft_jax import option_checks
from sjft_jax.calibration import Stage, calibrate
from sjft_jax.data import registry
from sjft_jax.inputs import Inputs
from sjft_jax.runtime import console, memory
from sjft_jax.runtime.host_memory import format_bytes, free_host_bytes


class Counts(NamedTuple):
  """Images or classes of a run's data sets, as they are opened."""

  target: int
  test: int
  source: int


@dataclass(frozen=True, kw_only=True)
class Plan:
  """What a run takes.

  Attributes:
    images: of each data set.
    classes: of each data set.
    descriptor_size: numbers that describe an image.
    depth: neighbours of each target image that are ranked; 0: there is no ranking.
    product_flops: floating-point operations of the ranking's matrix product.
    steps: optimizer updates of all arms, rounds and repeats.
    stages: all of them, in their order; those of all repeats together.
    compile_seconds: that the calibration spent on programs which the run needs too.
    calibration_seconds: that it took in all.
    device_bytes: that the largest program takes on each device; 0: it does not say.
    host_bytes: of memory that the process takes, on a CPU with its programs.
    disk_bytes: of the work directory.
  """

  images: Counts
  classes: Counts
  descriptor_size: int
  depth: int
  product_flops: float
  steps: int
  stages: tuple[Stage, ...]
  compile_seconds: float
  calibration_seconds: float
  device_bytes: int
  host_bytes: int
  disk_bytes: int

  @property
  def seconds(self) -> float:
    """Return the seconds of all stages."""
    return sum(stage.seconds for stage in self.stages)


def plan(config: ConfigDict) -> Plan:
  """Plan a run of all its repeats from the beginning; nothing is written into its work directory.

  Args:
    config: starts from `config.default`.

  Raises:
    ValueError: as `pipeline.run` does before any work; or several processes would work together.
  """
  if jax.process_count() > 1:
    raise ValueError('a plan is made by one process: start it without --distributed')
  start_time = time.monotonic()
  option_checks.check_consumers(config, run_inputs.CONSUMERS)
  option_checks.check_method(config)
  inputs = run_inputs.load_inputs(config, run_inputs.open_domains(config))
  start = Stage('opening the data, building the network', '', time.monotonic() - start_time)
  console.stage('Measuring each stage for a moment')
  start_time = time.monotonic()
  calibration = calibrate(config, inputs)
  calibration_seconds = time.monotonic() - start_time
  domains, repeats, num_target = inputs.domains, config.repeats, len(inputs.domains.target)
  depth = run_inputs.ranking_depth(inputs.arms.values())
  size = sum(inputs.bank.num_filters) * config.descriptors.num_bins
  stages = [start, calibration.screening]
  if calibration.ranking:
    # Repeats differ in the target's training images only where these are drawn.
    is_drawn = bool(config.target.train_per_class) or registry.draws_test(**config.target)
    stages.append(_repeat(calibration.ranking, repeats if is_drawn else 1))
  stages += [_repeat(stage, repeats) for stage in calibration.training]
  stages.append(
    Stage('compiling', 'less where it was kept from before', calibration.compile_seconds)
  )
  return Plan(
    images=Counts(*map(len, domains)),
    classes=Counts(*(len(data.classes) for data in domains)),
    descriptor_size=size,
    depth=depth,
    product_flops=4.0 * size * num_target * len(domains.source) if depth else 0.0,
    steps=repeats * _num_steps(config, inputs),
    stages=tuple(stages),
    compile_seconds=calibration.compile_seconds,
    calibration_seconds=calibration_seconds,
    device_bytes=calibration.device_bytes,
    host_bytes=calibration.host_bytes,
    disk_bytes=repeats * (calibration.disk_bytes + 8 * num_target * depth),
  )


def _repeat(stage: Stage, times: int) -> Stage:
  return stage._replace(seconds=times * stage.seconds)


def _num_steps(config: ConfigDict, inputs: Inputs) -> int:
  steps = sum(
    options.training.steps * options.selection.rounds
    for name, options in inputs.arms.items()
    if name not in configs.FROZEN_ARMS
  )
  return config.pretrain.steps + steps


def print_plan(plan: Plan) -> None:
  """Print a plan as two tables."""
  table = Table(title=f'Plan: about {console.format_duration(plan.seconds)}')
  for heading in ('stage', 'work', 'about'):
    table.add_column(heading, justify='right' if heading == 'about' else 'left')
  for stage in plan.stages:
    table.add_row(stage.name, stage.work, console.format_duration(stage.seconds))
  console.print_table(table)
  table = Table()
  for heading in ('needs', 'how much'):
    table.add_column(heading)
  images, classes = plan.images, plan.classes
  device = format_bytes(plan.device_bytes) if plan.device_bytes else 'not known'
  available = memory.available_bytes()
  may_use = f' of {format_bytes(available)} that may be used' if available < math.inf else ''
  rows = {
    'target': f'{images.target:,} training and {images.test:,} test images, '
    f'{classes.target:,} classes',
    'source': f'{images.source:,} images, {classes.source:,} classes',
    'descriptor': f'{plan.descriptor_size:,} numbers',
    'ranking': f'{plan.depth:,} neighbours of each target image, {plan.product_flops:.2g} FLOPs',
    'steps': f'{plan.steps:,}',
    'memory of each device': f'about {device}{may_use}',
    'memory of the host': f'about {format_bytes(plan.host_bytes)}, of which this process has some; '
    f'{format_bytes(free_host_bytes())} are free',
    'disk': f'about {format_bytes(plan.disk_bytes)}',
  }
  for name, value in rows.items():
    table.add_row(name, value)
  console.print_table(table)
  console.say(
    f'The calibration took {console.format_duration(plan.calibration_seconds)}, '
    f'{console.format_duration(plan.compile_seconds)} of it to compile. The images that screening '
    'will leave out are counted here.'
  )
  load, cores = os.getloadavg()[0], os.cpu_count() or 1
  if load > 2 * cores:
    console.say(
      f'warning: other work keeps the {cores} cores busy (load {load:.1f}); the seconds are those '
      'of so busy a machine'
    )
