"""Layers that stay as they start: their names, and what a training leaves of them."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sjft_jax.models import joint
from sjft_jax.models.resnet import ResNet
from sjft_jax.training import freeze, optimizer
from sjft_jax.training.losses import LossOptions
from sjft_jax.training.optimizer import SolverOptions
from sjft_jax.training.sharding import replicate, shard_batch, unreplicate
from sjft_jax.training.step import create_state, make_train_step, with_ema_params

RESNET = ('stem', 'stem_norm', 'stage1_block1', 'stage1_block2', 'stage2_block1', 'norm')
SIDE, PAIRS = 32, 4
# Everything that moves parameters without a gradient, too.
SOLVER = SolverOptions(
  learning_rate=0.1,
  drop_every=10,
  drop_factor=0.1,
  momentum=0.9,
  weight_decay=0.1,
  l2_sp=0.0,
  layer_decay=0.5,
  ema=0.9,
)


@pytest.mark.parametrize(
  ('value', 'layers', 'frozen'),
  [
    ('', RESNET, set()),
    ('trunk', RESNET, set(RESNET)),
    ('below:stage1_block1', RESNET, {'stem', 'stem_norm'}),
    ('below:stage2_block1', RESNET, set(RESNET[:4])),
    # It is of the last block.
    ('below:norm', RESNET, set(RESNET[:4])),
    ('below:conv3_1', ('conv3_1', 'norm3_1', 'conv2_2', 'norm2_2'), {'conv2_2', 'norm2_2'}),
    ('below:fc6', ('fc7', 'fc6', 'conv5'), {'conv5'}),
  ],
)
def test_layers_below_another_are_those_nearer_to_the_image(value, layers, frozen):
  assert freeze.frozen_layers(value, layers) == frozen


@pytest.mark.parametrize(
  'value', ['all', 'below', 'below:', 'below:stem', 'below:stage3_block1', 'stage1_block1']
)
def test_other_values_are_an_error_that_names_the_layers(value):
  message = f"freeze='{value}' is impossible.*'below:<layer>' with one of stage1_block1, stage1_bl"
  with pytest.raises(ValueError, match=message) as error:
    freeze.frozen_layers(value, RESNET)
  assert 'stem' not in str(error.value).partition('one of')[2]


def make_batch():
  random = np.random.default_rng(0)
  is_source = np.arange(2 * PAIRS) % 2 == 1
  return {
    'image': random.integers(0, 256, (2 * PAIRS, SIDE, SIDE, 3)).astype(np.uint8),
    'label': random.integers(0, 3, 2 * PAIRS).astype(np.int32),
    'is_source': is_source,
  }


@pytest.mark.slow
@pytest.mark.parametrize(
  ('value', 'options', 'solver'),
  [
    ('below:stage2_block1', {}, SOLVER),
    ('below:stage2_block1', {'batch_norm': 'per_domain', 'remat': True}, SOLVER),
    ('trunk', {}, dataclasses.replace(SOLVER, l2_sp=0.1)),
  ],
)
def test_frozen_layers_and_their_statistics_stay_to_the_bit(value, options, solver):
  trunk = ResNet((1, 1), bottleneck=False, width=0.125, batch_norm_momentum=0.5, **options)
  model = joint.Joint(trunk, 3, 3)
  variables = joint.init(model, jax.random.key(0), SIDE)
  frozen = freeze.frozen_layers(value, variables['params']['trunk'])
  sgd = optimizer.sgd(10, solver, frozen)
  train_step = make_train_step(
    model.apply, sgd, 0, LossOptions(target_weight=1, source_weight=1), frozen
  )
  initial = jax.device_get(create_state(**variables, optimizer=sgd))
  state = replicate(initial, 2)
  for _ in range(3):
    state, metrics = train_step(state, shard_batch(make_batch(), accumulation=1, num_devices=2))
  final = unreplicate(with_ema_params(state))
  num_frozen = 0
  for before, after in (
    (initial.params, final.params),
    (initial.params, unreplicate(state.params)),
    (initial.batch_stats, final.batch_stats),
  ):
    before, after = flatten_dict(before), flatten_dict(after)
    assert before.keys() == after.keys()
    for path, value in before.items():
      is_frozen = path[0] == 'trunk' and path[1] in frozen
      assert np.array_equal(value, after[path]) == is_frozen, path
      num_frozen += is_frozen
  assert num_frozen > 10
  assert np.isfinite(metrics['gradient_norm'][0])


@pytest.mark.slow
def test_frozen_trunk_computes_in_training_what_it_does_in_evaluation():
  model = joint.Joint(ResNet((1, 1), bottleneck=False, width=0.125), 3, 3)
  variables = joint.init(model, jax.random.key(0), SIDE)
  layers = frozenset(variables['params']['trunk'])
  apply = freeze.with_frozen_statistics(model.apply, layers)
  batch = make_batch()

  def train(images, is_source):
    return apply(variables, images, True, is_source, mutable=['batch_stats'])

  logits, updates = jax.vmap(train, axis_name='batch')(
    batch['image'][None], batch['is_source'][None]
  )
  expected = model.apply(variables, batch['image'])
  np.testing.assert_allclose(logits['target'][0], expected['target'], rtol=1e-5, atol=1e-7)
  jax.tree.map(
    lambda new, old: np.testing.assert_array_equal(new[0], old),
    updates['batch_stats'],
    variables['batch_stats'],
  )
