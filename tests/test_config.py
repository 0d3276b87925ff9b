import pytest

from sjft_jax import config, pipeline


def options(**changes):
  c = config.default()
  for name, value in changes.items():
    section, option = name.split('__')
    c[section][option] = value
  return c


def check(c, num_devices=1):
  config.check_values(c, num_target=100, num_source=10_000, num_devices=num_devices)


def test_every_option_is_read_and_the_defaults_are_possible():
  c = config.default()
  config.check_consumers(c, pipeline.CONSUMERS)
  check(c)
  for arm in c.overrides:
    check(config.arm_config(c, arm))


def test_an_option_that_nothing_reads_is_an_error_with_a_suggestion():
  c = config.default()
  with c.unlocked():
    c.solver.learning_rat = 0.1
  with pytest.raises(ValueError, match=r'solver\.learning_rat is .* did you mean learning_rate'):
    config.check_consumers(c, pipeline.CONSUMERS)


def test_a_missing_option_is_an_error():
  c = config.default()
  with c.unlocked():
    del c.solver.momentum
  with pytest.raises(ValueError, match=r'solver\.momentum is missing'):
    config.check_consumers(c, pipeline.CONSUMERS)


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
    ({'training__steps': 3}, r'training\.steps=3 leaves'),
    ({'training__augment': 'flip'}, r"training\.augment='flip' is unknown"),
    ({'selection__method': 'near'}, r"selection\.method='near' is unknown"),
    ({'evaluation__views': ('corner',)}, r"evaluation\.views has 'corner'"),
    ({'evaluation__views': ()}, r'evaluation\.views is empty'),
    ({'solver__learning_rate': float('nan')}, r'solver\.learning_rate=nan is impossible'),
    ({'solver__warmup_steps': -1}, r'solver\.warmup_steps=-1 .* 0 or more'),
    ({'solver__ema': 1.0}, r'solver\.ema=1\.0 is impossible; it must be below 1'),
    ({'solver__layer_decay': 1.5}, r'solver\.layer_decay=1\.5 is impossible; it must be 1 or less'),
    ({'solver__head_rate': 0.0}, r'solver\.head_rate=0\.0 .* above 0'),
    ({'solver__pull_to_start': -0.1}, r'solver\.pull_to_start=-0\.1 .* 0 or more'),
    ({'loss__label_smoothing': 1.0}, r'loss\.label_smoothing=1\.0 .* below 1'),
    ({'training__class_cap': -2}, r'training\.class_cap=-2 .* 0 or more'),
  ],
)
def test_impossible_values_are_named_with_their_limit(change, message):
  with pytest.raises(ValueError, match=message):
    check(options(**change))


def test_a_batch_must_divide_over_devices_and_micro_batches():
  check(options(), num_devices=5)
  with pytest.raises(ValueError, match=r'batch_size=100 .* on 8 devices; use a multiple of 80'):
    check(options(), num_devices=8)


def test_most_possible_neighbours_are_accepted():
  check(options(selection__num_neighbors=588))  # 588 + 4·4·588 = 9,996 of 10,000.
  with pytest.raises(ValueError, match='lower selection.num_neighbors'):
    check(options(selection__num_neighbors=589))
  check(options(selection__num_neighbors=10_000, selection__rounds=1))


def test_arms_differ_by_their_overrides_only():
  c = config.default()
  c.overrides.none.solver = {'learning_rate': 0.5}
  arm = config.arm_config(c, 'none')
  assert (arm.selection.method, arm.selection.rounds, arm.solver.learning_rate) == ('none', 1, 0.5)
  assert config.arm_config(c, 'rounds').solver.learning_rate == 0.01
  with pytest.raises(ValueError, match="'noone', which is unknown; known: all, none"):
    config.arm_config(c, 'noone')
  c.overrides.none.solver = {'learning_rat': 0.5}
  with pytest.raises(ValueError, match=r'overrides\.none: .*learning_rate'):
    config.arm_config(c, 'none')
  c.overrides.none = {'bank': {'name': 'gabor'}}
  with pytest.raises(ValueError, match=r'overrides\.none\.bank: arms can differ in selection'):
    config.arm_config(c, 'none')
