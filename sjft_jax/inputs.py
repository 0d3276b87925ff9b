"""What a run starts from, as its options name it: the data sets, the filters and the network."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from sjft_jax import config as configs
from sjft_jax import option_checks, ranking, results
from sjft_jax import workdir as workdirs
from sjft_jax.data import registry, transforms
from sjft_jax.data.dataset import Domains
from sjft_jax.data.walk import is_visible
from sjft_jax.descriptors import bank as banks
from sjft_jax.descriptors.alexnet import USUAL, Variant
from sjft_jax.models.build import ModelOptions, Network, build_network
from sjft_jax.models.weights import run_checkpoint
from sjft_jax.runtime import console, distributed
from sjft_jax.screening.screen import screen
from sjft_jax.selection.growth import SelectionOptions
from sjft_jax.training import evaluation, losses, metric_writer, optimizer
from sjft_jax.training.freeze import frozen_layers
from sjft_jax.training.pretrain import PretrainOptions
from sjft_jax.training.search import TuningOptions
from sjft_jax.training.trainer import TrainingOptions

# The callable that receives the options of each section as keyword arguments.
CONSUMERS: dict[str, Callable[..., Any]] = {
  'target': registry.open_target,
  'source': registry.load,
  'screening': screen,
  'bank': banks.load,
  'descriptors': ranking.DescriptorOptions,
  'selection': SelectionOptions,
  'model': ModelOptions,
  'pretrain': PretrainOptions,
  'images': transforms.ImageSize,
  'training': TrainingOptions,
  'loss': losses.LossOptions,
  'solver': optimizer.SolverOptions,
  'evaluation': evaluation.EvaluationOptions,
  'logging': metric_writer.LoggingOptions,
  'tuning': TuningOptions,
}


class Inputs(NamedTuple):
  """What a run starts from.

  Attributes:
    domains: the data sets as they are opened, before any image is left out.
    arms: the options of each arm.
    bank: the filters that describe images.
    network: the joint network and its initial variables.
    fingerprint: of everything that decides the results.
    pretrain_fingerprint: of what decides the pretraining, which is all but the arms.
  """

  domains: Domains
  arms: dict[str, ConfigDict]
  bank: banks.FilterBank
  network: Network
  fingerprint: str
  pretrain_fingerprint: str


def open_domains(config: ConfigDict) -> Domains:
  """Open the data sets; no image is decoded.

  Raises:
    ValueError: they are not there, or an option does not fit them.
  """
  with configs.option_section('config.target'):
    target, test = registry.open_target(**config.target)
  with configs.option_section('config.source'):
    source = registry.load(**config.source)
  return Domains(target, test, source)


def check_outside_data(config: ConfigDict, workdir: epath.Path) -> None:
  """Check that work directory and source lie in no folder whose folders are the target's classes.

  Nor may the work directory lie in such a folder of the source; where the target does, a line is
  printed.

  Raises:
    ValueError: one does, so that its files would be taken for images of a class.
  """
  t = config.target
  places = [
    {'dataset': t.dataset, 'path': t.path, 'split': t.train_split},
    {'dataset': t.dataset, 'path': t.path, 'split': t.test_split or t.train_split},
  ]
  for place in (*places, config.source):
    registry.check_outside_classes(os.fspath(workdir), **place)
  targets = dict.fromkeys(folder for place in places for folder in registry.class_roots(**place))
  for source in registry.class_roots(**config.source):
    for target in targets:
      if _lies_in(source, target):
        raise ValueError(
          f'the source {source} lies in {target}, where it is taken for a class of the target; '
          'move it out'
        )
      if _lies_in(target, source):
        console.say(
          f'  warning: the target {target} lies in {source}, where it is a part of a class of the '
          'source; if it is not meant to be, move it out'
        )


def _lies_in(inner: str, outer: str) -> bool:
  """Return whether a walk of a folder comes to another one, which may be or lie below a link."""
  if not (os.path.isdir(inner) and os.path.isdir(outer)) or os.path.samefile(inner, outer):
    return False
  for path in (Path(os.path.abspath(inner)), Path(os.path.realpath(inner))):
    for parent in filter(os.path.exists, path.parents):
      if os.path.samefile(parent, outer) and all(map(is_visible, path.relative_to(parent).parts)):
        return True
  return False


def load_bank(config: ConfigDict) -> banks.FilterBank:
  """Load the filters that describe images; those of 'trunk' are of the network that is trained.

  Raises:
    ValueError: as for `bank.load`, or the network has no weights to take filters from.
  """
  options, variant = dict(config.bank), USUAL
  with configs.option_section('bank'):
    if options['name'] == 'trunk':
      if options['pretrained'] == 'auto':
        options['pretrained'] = config.model.pretrained
      if not options['pretrained']:
        raise ValueError(
          "name='trunk' takes the filters of model.pretrained, which is empty; set it, or another "
          'bank'
        )
      model = config.model
      options['name'] = model.name
      # The filters respond as the network's own layers do.
      variant = Variant(model.width, model.style, model.normalization)
    return banks.load(variant, **options)


def ranking_depth(arms: Iterable[ConfigDict]) -> int:
  """Return how deep the ranking by filter responses has to be for arms with these options."""
  return max(SelectionOptions(**options.selection).ranking_depth for options in arms)


def load_inputs(config: ConfigDict, domains: Domains) -> Inputs:
  """Check all options, load the filters and build the network.

  Raises:
    ValueError: an option is impossible, alone or together with the data sets and devices.
  """
  arms = configs.arm_configs(config)
  option_checks.check_pretraining(config)
  for arm, options in arms.items():
    with configs.arm_options(config, arm):
      option_checks.check_values(options, domains, num_devices=jax.device_count())
  if distributed.is_primary_process():
    metric_writer.check_wandb(config.logging.wandb)
  bank = load_bank(config)
  if ranking_depth(arms.values()):
    with configs.option_section('descriptors'):
      ranking.check_crop(bank, config.descriptors.crop)
  with configs.option_section('model'):
    network = build_network(
      ModelOptions(**config.model),
      num_target_classes=len(domains.target.classes),
      num_source_classes=len(domains.source.classes),
      image_size=config.images.crop,
      seed=config.seed,
    )
  for arm, options in arms.items():
    with configs.arm_options(config, arm), configs.option_section('training'):
      frozen_layers(options.training.freeze, network.variables['params']['trunk'])
  fingerprint, pretrain_fingerprint = (
    workdirs.run_fingerprint(options, bank.fingerprint, network.description, domains)
    for options in (config, configs.pretrain_config(config))
  )
  return Inputs(domains, arms, bank, network, fingerprint, pretrain_fingerprint)


def save_inputs(inputs: Inputs, config: ConfigDict, workdir: epath.Path, domains: Domains) -> None:
  """Save what a reader of the run needs: the test images, the options and the trunk's layout.

  Not before the screening: an option that proves impossible there can be changed in the same work
  directory.
  """
  results.save_test_images(workdir, inputs.fingerprint, domains.test)
  workdirs.save_config(config, workdir)
  description = inputs.network.description | {'classes': list(domains.target.classes)}
  run_checkpoint.save_description(workdir, description)
