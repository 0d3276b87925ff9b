import itertools
import re

import numpy as np
import pytest

from sjft_jax import config, inputs, option_checks
from sjft_jax.data.dataset import Domains
from sjft_jax.training.optimizer import SolverOptions, sgd
from sjft_jax.training.trainer import TrainingOptions


class Images:
  """A data set as far as checks look at one: labels of ten classes in turn."""

  classes = tuple('abcdefghij')

  def __init__(self, size):
    self.labels = np.arange(size, dtype=np.int32) % 10

  def __len__(self):
    return len(self.labels)


DOMAINS = Domains(Images(100), Images(10), Images(10_000))


def make_config(**changes):
  """Return the defaults with some changes, named section__option."""
  c = config.default()
  for name, value in changes.items():
    *sections, option = name.split('__')
    (c[sections[0]] if sections else c)[option] = value
  return c


def check(c, domains=DOMAINS, num_devices=1):
  option_checks.check_values(c, domains, num_devices=num_devices)


def test_every_option_has_a_consumer_and_the_defaults_are_possible():
  c = config.default()
  option_checks.check_consumers(c, inputs.CONSUMERS)
  check(c)
  for arm in c.overrides:
    check(config.arm_config(c, arm))


def test_an_option_that_nothing_reads_is_an_error_with_a_suggestion():
  c = config.default()
  with c.unlocked():
    c.solver.learning_rat = 0.1
  with pytest.raises(ValueError, match=r'solver\.learning_rat is .* did you mean learning_rate'):
    option_checks.check_consumers(c, inputs.CONSUMERS)


def test_a_missing_option_is_an_error():
  c = config.default()
  with c.unlocked():
    del c.solver.momentum
  with pytest.raises(ValueError, match=r'solver\.momentum is missing'):
    option_checks.check_consumers(c, inputs.CONSUMERS)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'selection__rounds': 0}, r'selection\.rounds=0 is impossible; it must be above 0'),
    ({'selection__num_neighbors': 1000}, r'can grow to 17000 .* 10000 source images.* 588 or less'),
    ({'selection__delta': -0.1}, r'selection\.delta=-0\.1 .* 0 or more'),
    ({'descriptors__num_bins': 1}, r'num_bins=1 .* use 2 or more'),
    ({'descriptors__smoothing': 0.0}, r'smoothing=0\.0 is impossible'),
    ({'descriptors__crop': 300}, r'descriptors\.crop=300 exceeds descriptors\.resize=256'),
    ({'images__crop': 300}, r'images\.crop=300 exceeds images\.resize=256'),
    ({'target__test_share': 1.0}, r'target\.test_share=1\.0 must lie between 0 and 1'),
    ({'screening__max_bad_share': 1.5}, r'screening\.max_bad_share=1\.5 .* 1 or less'),
    ({'screening__max_bad_share': -0.5}, r'screening\.max_bad_share=-0\.5 .* 0 or more'),
    ({'repeats': 0}, r'repeats=0 is impossible; it must be above 0'),
    ({'training__augment': 'flip'}, r"training\.augment='flip' is unknown"),
    ({'selection__method': 'near'}, r"selection\.method='near' is unknown; did you mean 'nearest'"),
    ({'evaluation__views': ('corner',)}, r"evaluation\.views='corner' is unknown; .*ten_crop"),
    ({'evaluation__views': ()}, r'evaluation\.views is empty'),
    ({'solver__learning_rate': float('nan')}, r'solver\.learning_rate=nan is impossible'),
    ({'solver__warmup_steps': -1}, r'solver\.warmup_steps=-1 .* 0 or more'),
    ({'solver__warmup_steps': 16000}, r'warmup_steps=16000 leaves none of the 16000 steps'),
    (
      {'solver__warmup_steps': 80_000, 'training__restart_schedule': False},
      r'solver\.warmup_steps=80000 leaves none of the 80000 steps of its schedule',
    ),
    (
      {'pretrain__warmup_steps': 50, 'pretrain__steps': 50},
      r'pretrain\.warmup_steps=50 leaves none of the 50 steps of its schedule',
    ),
    ({'solver__schedule': 'linear'}, r"solver\.schedule='linear' is unknown"),
    ({'solver__momentum_style': 'nesterov'}, r"solver\.momentum_style='nesterov' is unknown"),
    ({'solver__ema': None}, r'solver\.ema=None is no value; leave it out for the default'),
    ({'solver__momentum': 9.0}, r'solver\.momentum=9\.0 is impossible; it must be below 1'),
    ({'solver__ema': 1.0}, r'solver\.ema=1\.0 is impossible; it must be below 1'),
    ({'solver__layer_decay': 1.5}, r'solver\.layer_decay=1\.5 is impossible; it must be 1 or less'),
    ({'solver__head_rate': 0.0}, r'solver\.head_rate=0\.0 .* above 0'),
    ({'solver__l2_sp': -0.1}, r'solver\.l2_sp=-0\.1 .* 0 or more'),
    ({'loss__label_smoothing': 1.0}, r'loss\.label_smoothing=1\.0 .* below 1'),
    ({'training__class_cap': -2}, r'training\.class_cap=-2 .* 0 or more'),
    (
      {'training__class_cap': 1, 'training__accumulation': 5},
      r'training\.class_cap=1 with 10 classes .* raise it to 2',
    ),
  ],
)
def test_impossible_values_are_named_with_their_limit(change, message):
  with pytest.raises(ValueError, match=message):
    check(make_config(**change))


def test_a_pretraining_without_a_loss_is_refused():
  with pytest.raises(ValueError, match=r'loss\.source_weight=0 leaves the 5 steps .* above 0, and'):
    option_checks.check_pretraining(make_config(pretrain__steps=5, loss__source_weight=0.0))
  option_checks.check_pretraining(make_config(loss__source_weight=0.0))
  # An arm's own weight is not that of pretraining.
  c = make_config(pretrain__steps=5)
  c.overrides.rounds.loss = {'source_weight': 0.0}
  option_checks.check_pretraining(c)


def test_an_impossible_seed_is_named():
  c = config.default()
  c.seed = -1
  with pytest.raises(ValueError, match=r'seed=-1 is impossible; it must be 0 or more'):
    check(c)
  c.seed = 2**63
  with pytest.raises(ValueError, match=rf'seed={2**63} is impossible; .* {2**63 - 1} or less'):
    check(c)
  c.seed, c.repeats = 2**63 - 2, 3  # The last repeat's is too large.
  with pytest.raises(ValueError, match=r'all repeats'):
    check(c)


def test_an_empty_training_set_is_an_error():
  with pytest.raises(ValueError, match='the target training set is empty'):
    check(config.default(), DOMAINS._replace(target=Images(0)))


def test_a_batch_must_divide_over_devices_and_micro_batches():
  check(make_config(), num_devices=5)
  with pytest.raises(ValueError, match=r'batch_size=100 .* on 8 devices; use a multiple of 80'):
    check(make_config(), num_devices=8)


def test_the_most_neighbours_that_the_source_allows_are_accepted():
  check(make_config(selection__num_neighbors=588))  # 588 + 4·4·588 = 9,996 of 10,000.
  with pytest.raises(ValueError, match='lower selection.num_neighbors'):
    check(make_config(selection__num_neighbors=589))
  check(make_config(selection__num_neighbors=10_000, selection__rounds=1))


def test_number_of_neighbours_that_is_suggested_fits():
  options = {'selection__sigma0': 0.25, 'selection__sigma1': 0.0, 'selection__rounds': 5}
  # σ0 is rounded: 2 neighbours stay 2, but 3 become 3 + 4·1 = 7.
  for k0, num_source in itertools.product((6, 7, 40), range(1, 10)):
    domains = DOMAINS._replace(source=Images(num_source))
    with pytest.raises(ValueError, match='lower selection.num_neighbors to') as refusal:
      check(make_config(**options, selection__num_neighbors=k0), domains)
    fitting = int(re.search(r'(\d+) or less', str(refusal.value))[1])
    check(make_config(**options, selection__num_neighbors=fitting), domains)
    with pytest.raises(ValueError, match='exceeds'):
      check(make_config(**options, selection__num_neighbors=fitting + 1), domains)
  with pytest.raises(ValueError, match=r'lower selection\.sigma0 and sigma1, or selection\.rounds'):
    check(make_config(), DOMAINS._replace(source=Images(16)))  # 1 neighbour becomes 17.


@pytest.mark.parametrize(
  ('section', 'option', 'value', 'message'),
  [
    ('selection', 'num_neighbors', 1000, 'lower overrides.rounds.selection.num_neighbors to 588'),
    ('solver', 'learning_rate', -1.0, 'overrides.rounds.solver.learning_rate=-1.0 is impossible'),
    ('solver', 'schedule', 'linear', "overrides.rounds.solver.schedule='linear' is unknown"),
    ('training', 'accumulation', 3, 'divide into overrides.rounds.training.accumulation=3'),
    ('training', 'class_cap', -1, 'overrides.rounds.training.class_cap=-1 is impossible'),
  ],
)
def test_override_that_is_at_fault_is_named(section, option, value, message):
  c = config.default()
  c.overrides.rounds = {section: {option: value}}
  with pytest.raises(ValueError, match=re.escape(message)), config.arm_options(c, 'rounds'):
    check(config.arm_config(c, 'rounds'))
  with config.arm_options(c, 'constant'):
    check(config.arm_config(c, 'constant'))


def test_arms_differ_by_their_overrides_only():
  c = config.default()
  c.overrides.none.solver = {'learning_rate': 0.5}
  arm = config.arm_config(c, 'none')
  assert (arm.selection.method, arm.selection.rounds, arm.solver.learning_rate) == ('none', 5, 0.5)
  assert config.arm_config(c, 'rounds').solver.learning_rate == 0.01


def test_impossible_overrides_are_named():
  c = config.default()
  with pytest.raises(
    ValueError,
    match="arms='noone' is unknown; did you mean 'none'.*knn, probe, similar, classes, all",
  ):
    config.arm_config(c, 'noone')
  c.overrides.none.solver = {'learning_rat': 0.5}
  with pytest.raises(ValueError, match=r'overrides\.none: .*learning_rate'):
    config.arm_config(c, 'none')
  c.overrides.none = {'bank': {'name': 'gabor'}}
  with pytest.raises(ValueError, match=r'overrides\.none\.bank: arms can differ in selection'):
    config.arm_config(c, 'none')


def test_arms_have_the_same_rounds():
  c = config.default()
  c.overrides.none.selection.rounds = 5
  assert config.arm_config(c, 'none').selection.rounds == 5
  c.selection.rounds = 3
  with pytest.raises(ValueError, match=r'overrides\.none: selection\.rounds=5, but all arms'):
    config.arm_configs(c)


def test_arms_that_train_nothing_have_one_round_and_no_options():
  c = config.default()
  c.arms = ('probe', 'rounds')
  arms = config.arm_configs(c)
  assert (arms['probe'].selection.method, arms['probe'].selection.rounds) == ('none', 1)
  assert arms['rounds'].selection.rounds == 5
  c.overrides.similar = {'selection': {'sigma0': 2.0}}
  similar = config.arm_config(c, 'similar').selection
  assert (similar.method, similar.sigma0, similar.sigma1) == ('similar', 2.0, 0.0)
  c.overrides.probe = {'solver': {'learning_rate': 0.5}}
  with pytest.raises(ValueError, match=r'overrides\.probe: this arm trains nothing; remove'):
    config.arm_configs(c)


def test_a_warm_up_of_more_than_one_round_is_refused_for_no_arm():
  c = make_config(solver__warmup_steps=20_000, training__restart_schedule=False)
  for arm in config.arm_configs(c).values():
    check(arm)
    steps = TrainingOptions(**arm.training).schedule_steps(arm.selection.rounds)
    sgd(steps, SolverOptions(**arm.solver))
  assert config.arm_config(c, 'none').solver.warmup_steps == 20_000


def test_pretraining_has_its_own_steps_and_no_start_to_keep():
  c = make_config(pretrain__steps=70, solver__l2_sp=0.1, training__freeze='trunk')
  c.solver.layer_decay = 0.7
  pretraining = config.pretrain_config(c)
  assert pretraining.training.steps == 70
  assert (pretraining.solver.l2_sp, pretraining.solver.layer_decay) == (0.0, 1.0)
  assert (pretraining.training.freeze, c.training.freeze) == ('', 'trunk')
  assert (c.training.steps, c.solver.l2_sp, c.solver.layer_decay) == (16000, 0.1, 0.7)


def test_changes_are_checked_by_name_and_type():
  c = config.default()
  changed = config.with_changes(c, {'bank': {'layers': ['conv1']}, 'loss': {'source_weight': 1}})
  assert (changed.bank.layers, changed.loss.source_weight) == (('conv1',), 1.0)
  assert c.bank.layers == ('conv1', 'conv2')
  with pytest.raises(ValueError, match=r'"nme" does not exist.* Did you mean "name"'):
    config.with_changes(c, {'bank': {'nme': 'gabor'}})
  with pytest.raises(ValueError, match="Could not override field 'resize'"):
    config.with_changes(c, {'descriptors': {'resize': 'large'}})


def test_pretraining_keeps_nothing_of_its_start():
  options = config.default()
  options.pretrain.steps, options.training.freeze = 7, 'trunk'
  options.solver.update(l2_sp=0.1, layer_decay=0.5, head_rate=10.0, momentum=0.8)
  made = config.pretrain_config(options)
  assert (made.training.steps, made.training.freeze) == (7, '')
  assert (made.solver.l2_sp, made.solver.layer_decay, made.solver.head_rate) == (0.0, 1.0, 1.0)
  assert made.solver.momentum == 0.8


def test_a_method_that_every_arm_replaces_is_refused():
  c = config.default()
  option_checks.check_method(c)
  c.selection.method = 'random'
  with pytest.raises(ValueError, match="method='random' is the method of none of the arms"):
    option_checks.check_method(c)
  c.arms = ('none', 'random')
  option_checks.check_method(c)


@pytest.mark.parametrize('arm', config.FROZEN_ARMS)
def test_arms_that_train_nothing_choose_no_micro_batches(arm):
  c = config.default()
  c.training.accumulation, c.training.class_cap = 0, 2
  training = config.arm_config(c, arm).training
  assert (training.accumulation, training.class_cap) == (1, 0)


def test_a_source_of_one_class_is_refused_where_it_is_trained_on():
  source = Images(10_000)
  source.classes, source.labels = ('a',), np.zeros(10_000, np.int32)
  domains = DOMAINS._replace(source=source)
  c = config.default()
  for arm in ('rounds', 'random'):
    with pytest.raises(ValueError, match="the source has one class, 'a'"):
      check(config.arm_config(c, arm), domains)
  check(config.arm_config(c, 'none'), domains)
  with pytest.raises(ValueError, match='the source has one class'):
    check(config.arm_config(make_config(pretrain__steps=5), 'none'), domains)
  source.labels = np.ones((10_000, 1), bool)  # Each image shows it or not.
  check(config.arm_config(c, 'rounds'), domains)


def test_numbers_of_numpy_in_a_tuple_are_refused_before_config_json_is_written():
  c = make_config(bank__layer_weights=[np.int64(1)])
  with pytest.raises(ValueError, match=r'bank.layer_weights holds np.int64\(1\) of the type int64'):
    check(c)
  check(make_config(tuning__learning_rates=list(np.geomspace(0.1, 1, 3))))
