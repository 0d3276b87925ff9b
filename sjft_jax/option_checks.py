"""Check that options are possible: alone, with one another, with the data sets and the devices."""

import bisect
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from sjft_jax.config import arm_configs, default
from sjft_jax.data.dataset import Domains
from sjft_jax.data.sampler import Sampler
from sjft_jax.data.transforms import AUGMENTATIONS, VIEWS
from sjft_jax.runtime.choice import choose
from sjft_jax.selection.growth import SelectionOptions
from sjft_jax.selection.subset import METHODS

# JAX takes seeds of 64 bits with a sign.
_MAX_SEED = 2**63 - 1
# Limits of numbers, by section.
_POSITIVE = {
  'descriptors': ('resize', 'crop', 'num_bins', 'smoothing', 'batch_size', 'checkpoint_minutes'),
  'selection': ('num_neighbors', 'rounds'),
  'pretrain': ('learning_rate', 'drop_every', 'drop_factor'),
  'model': ('width',),
  'images': ('resize', 'crop'),
  'training': ('steps', 'batch_size', 'checkpoint_every'),
  'solver': ('learning_rate', 'drop_every', 'drop_factor', 'layer_decay', 'head_rate'),
  'evaluation': ('batch_size',),
  'logging': ('every',),
}
_NOT_NEGATIVE = {
  'target': ('train_per_class', 'split_seed'),
  'screening': ('max_bad_share',),
  'descriptors': ('workers',),
  'selection': ('min_source_images', 'delta', 'sigma0', 'sigma1'),
  'pretrain': ('steps', 'warmup_steps'),
  'training': ('accumulation', 'class_cap', 'max_loss', 'workers'),
  'loss': ('target_weight', 'source_weight', 'label_smoothing'),
  'solver': ('warmup_steps', 'momentum', 'weight_decay', 'l2_sp', 'ema'),
}
_BELOW_1 = {'loss': ('label_smoothing',), 'solver': ('momentum', 'ema')}
_AT_MOST_1 = {'screening': ('max_bad_share',), 'solver': ('layer_decay',)}


def check_consumers(config: ConfigDict, consumers: Mapping[str, Callable[..., Any]]) -> None:
  """Check that every section has a consumer that takes exactly its options, as keywords.

  Args:
    config: any sections of `default`.
    consumers: the function or class that takes the options of each section.

  Raises:
    ValueError: an option that nothing reads, or that a consumer needs and is not there.
  """
  for section, options in config.items():
    if not isinstance(options, ConfigDict) or section == 'overrides':
      continue
    parameters = inspect.signature(consumers[section]).parameters.values()
    names = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    for name in options:
      if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f'; did you mean {close[0]}?' if close else ''
        raise ValueError(f'{section}.{name} is an option that nothing reads{hint}')
    for name in names - set(options):
      raise ValueError(f'{section}.{name} is missing; start from sjft_jax.config.default()')


def check_method(config: ConfigDict) -> None:
  """Check that the method that is common to all arms is not replaced in each of them.

  Raises:
    ValueError: no arm has it.
  """
  method, arms = config.selection.method, arm_configs(config)
  if method != default().selection.method and all(
    options.selection.method != method for options in arms.values()
  ):
    raise ValueError(
      f'selection.method={method!r} is the method of none of the arms {", ".join(arms)}, which '
      'have their own: leave it out, and name in arms what to run'
    )


def check_pretraining(config: ConfigDict) -> None:
  """Check that a pretraining, if there is one, has a loss; it has the options common to all arms.

  Raises:
    ValueError: the loss of source images weighs nothing.
  """
  if config.pretrain.steps and not config.loss.source_weight:
    raise ValueError(
      f'loss.source_weight=0 leaves the {config.pretrain.steps} steps of pretraining nothing to '
      'learn; set it above 0, and to 0 for arms alone, such as overrides.rounds.loss.source_weight'
    )


def check_values(config: ConfigDict, domains: Domains, *, num_devices: int) -> None:
  """Check that the values are possible, alone and together with the data sets and devices.

  Args:
    config: the options of one arm.
    domains: the data sets.
    num_devices: the devices that share a batch, of all processes.

  Raises:
    ValueError: the first value that is impossible, with its limit and what to change.
  """
  check_ranges(config)
  _check_items(config)
  _check_choices(config)
  if not config.evaluation.views:
    raise ValueError(f'evaluation.views is empty; use any of {", ".join(VIEWS)}')
  for view in config.evaluation.views:
    choose('evaluation.views', view, VIEWS)
  _check_training(config, num_devices)
  check_sizes(config, domains)


def _check_items(config: ConfigDict) -> None:
  """Check that tuples hold texts and numbers of Python, which config.json can keep."""
  for section, options in config.items():
    for name, value in options.items() if isinstance(options, ConfigDict) else ():
      for item in value if isinstance(value, tuple) else ():
        if not isinstance(item, str | int | float):
          raise ValueError(
            f'{section}.{name} holds {item!r} of the type {type(item).__name__}; give texts or '
            "numbers of Python, as NumPy's tolist() returns them"
          )


def _check_choices(config: ConfigDict) -> None:
  # Here, since these modules load JAX: whoever reads options should not wait for it.
  from sjft_jax.output.tables import FORMATS
  from sjft_jax.screening.screen import DUPLICATES_OF
  from sjft_jax.training.optimizer import MOMENTUM_STYLES
  from sjft_jax.training.schedules import SCHEDULES

  for section, name, known in (
    ('screening', 'exclude_duplicates_of', DUPLICATES_OF),
    ('selection', 'method', METHODS),
    ('training', 'augment', AUGMENTATIONS),
    ('pretrain', 'schedule', SCHEDULES),
    ('solver', 'schedule', SCHEDULES),
    ('solver', 'momentum_style', MOMENTUM_STYLES),
    ('logging', 'selection_format', FORMATS),
  ):
    choose(f'{section}.{name}', config[section][name], known)


def check_ranges(config: ConfigDict) -> None:
  """Check that every option has a value, and that every number lies within its limits.

  Raises:
    ValueError: the first option for which this is not so.
  """
  for section, options in config.items():
    for name, value in options.items() if isinstance(options, ConfigDict) else ():
      if value is None:  # ConfigDict takes it for a value of any type.
        raise ValueError(f'{section}.{name}=None is no value; leave it out for the default')
  if config.seed < 0:
    raise ValueError(f'seed={config.seed} is impossible; it must be 0 or more')
  if config.seed + config.repeats - 1 > _MAX_SEED:
    raise ValueError(
      f'seed={config.seed} is impossible; with those of all repeats it must be {_MAX_SEED} or less'
    )
  if config.repeats < 1:
    raise ValueError(f'repeats={config.repeats} is impossible; it must be above 0')
  for limits, is_possible, limit in (
    (_POSITIVE, lambda x: x > 0, 'above 0'),
    (_NOT_NEGATIVE, lambda x: x >= 0, '0 or more'),
    (_BELOW_1, lambda x: x < 1, 'below 1'),
    (_AT_MOST_1, lambda x: x <= 1, '1 or less'),
  ):
    for section, names in limits.items():
      for name in names:
        value = config[section][name]
        if not is_possible(value):  # Not a number is never possible.
          raise ValueError(f'{section}.{name}={value} is impossible; it must be {limit}')
  if config.descriptors.num_bins < 2:
    raise ValueError('descriptors.num_bins=1 describes nothing; use 2 or more')
  if not 0 < config.target.test_share < 1:
    raise ValueError(f'target.test_share={config.target.test_share} must lie between 0 and 1')
  for section in ('descriptors', 'images'):
    crop, resize = config[section].crop, config[section].resize
    if crop > resize:
      raise ValueError(f'{section}.crop={crop} exceeds {section}.resize={resize}')


def check_sizes(config: ConfigDict, domains: Domains) -> None:
  """Check that the data sets have enough images for the options of one arm.

  Raises:
    ValueError: they have not; the message says what to change.
  """
  if not len(domains.target):
    raise ValueError('the target training set is empty')
  if len(domains.target.classes) < 2:
    raise ValueError(
      f'the target has one class, {domains.target.classes[0]!r}, which every image would be '
      'assigned to; give it two or more'
    )
  t = config.training
  if t.accumulation:
    Sampler(
      domains.target.labels,
      config.seed,
      t.batch_size // t.accumulation,
      t.class_balanced,
      t.class_cap,
    )
  k0, num_source = config.selection.num_neighbors, len(domains.source)
  depth = _selection_depth(config, k0)
  if depth > num_source:
    # The largest number that fits: σ0 and σ1 are rounded, so a proportion can be off.
    fitting = bisect.bisect(range(k0), num_source, key=lambda k: _selection_depth(config, k)) - 1
    remedy = f'lower selection.num_neighbors to {fitting} or less'
    if fitting < 1:
      remedy = 'lower selection.sigma0 and sigma1, or selection.rounds, or add source images'
    raise ValueError(
      f'selection.num_neighbors={k0} can grow to {depth} in {config.selection.rounds} rounds, '
      f'which exceeds the {num_source} source images; {remedy}'
    )
  source = domains.source
  is_used = config.selection.method != 'none' or config.pretrain.steps
  if is_used and len(source.classes) < 2 and source.labels.ndim == 1:
    raise ValueError(
      f'the source has one class, {source.classes[0]!r}, of which its head has nothing to learn; '
      'give it two or more, or where it has none use sjft_jax.retrieve, which needs no labels'
    )


def _selection_depth(config: ConfigDict, num_neighbors: int) -> int:
  """Return how many neighbours an image can come to have if it starts with so many."""
  selection = SelectionOptions(**{**config.selection, 'num_neighbors': num_neighbors})
  return max(selection.ranking_depth, selection.feature_depth)


def _check_training(config: ConfigDict, num_devices: int) -> None:
  t = config.training
  micro_batches = t.accumulation or 1
  if t.batch_size % (micro_batches * num_devices):
    raise ValueError(
      f'training.batch_size={t.batch_size} does not divide into training.accumulation='
      f'{t.accumulation} micro-batches on {num_devices} devices; use a multiple of '
      f'{micro_batches * num_devices}'
    )
  schedule_steps = t.steps * (1 if t.restart_schedule else config.selection.rounds)
  for section, steps in (('solver', schedule_steps), ('pretrain', config.pretrain.steps)):
    warmup_steps = config[section].warmup_steps
    if steps and warmup_steps >= steps:
      raise ValueError(
        f'{section}.warmup_steps={warmup_steps} leaves none of the {steps} steps of its schedule; '
        'lower it'
      )
