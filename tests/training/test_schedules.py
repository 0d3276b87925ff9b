import jax
import numpy as np
import pytest

from sjft_jax.models import joint, trunk
from sjft_jax.training.schedules import depth_groups, learning_rate_schedule

OPTIONS = {
  'learning_rate': 0.01,
  'schedule': 'step',
  'warmup_steps': 0,
  'drop_every': 3,
  'drop_factor': 0.5,
}


def rates(steps, **changes):
  schedule = learning_rate_schedule(steps, **OPTIONS | changes)
  return np.array([float(schedule(t)) for t in range(steps + 1)])


def test_step_schedule_drops_every_so_many_steps():
  expected = [0.01] * 3 + [0.005] * 3 + [0.0025] * 3 + [0.00125]
  np.testing.assert_allclose(rates(9), expected, rtol=1e-6)


@pytest.mark.parametrize('drop_every', [47, 55, 850, 3850])
def test_compiled_schedule_drops_at_the_very_step(drop_every):
  """XLA divides by a constant by multiplying with its reciprocal, which can be just too small."""
  schedule = learning_rate_schedule(10**4, **OPTIONS | {'drop_every': drop_every})
  steps = np.array([1, drop_every, 2 * drop_every], np.int32)
  compiled = jax.jit(lambda steps: jax.vmap(schedule)(steps))
  np.testing.assert_allclose(compiled(steps), [0.01, 0.005, 0.0025], rtol=1e-6)
  np.testing.assert_allclose(compiled(steps - 1), [0.01, 0.01, 0.005], rtol=1e-6)


def test_warmup_rises_linearly_and_does_not_move_the_drops():
  warm = rates(12, warmup_steps=4)
  np.testing.assert_allclose(warm[:3], 0.01 * np.array([0.2, 0.4, 0.6]), rtol=1e-6)
  np.testing.assert_allclose(warm[3], 0.005 * 0.8, rtol=1e-6)
  np.testing.assert_allclose(warm[4:], rates(12)[4:], rtol=1e-6)


def test_cosine_falls_from_the_full_rate_to_zero():
  warm = rates(20, schedule='cosine', warmup_steps=5)
  np.testing.assert_allclose(warm[:5], 0.01 * np.arange(1, 6) / 6, rtol=1e-6)
  expected = 0.005 * (1 + np.cos(np.pi * np.arange(16) / 15))
  np.testing.assert_allclose(warm[5:], expected, rtol=1e-5, atol=1e-9)
  assert warm[20] == 0
  assert (warm[:20] > 0).all()
  assert rates(20, schedule='cosine')[0] == pytest.approx(0.01)


@pytest.mark.reference
@pytest.mark.parametrize('warmup_steps', [0, 7])
@pytest.mark.parametrize('schedule', ['step', 'cosine'])
def test_rates_match_torch(schedule, warmup_steps):
  import torch
  from torch.optim import lr_scheduler

  optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.01)
  warmup = lr_scheduler.LinearLR(optimizer, 1 / (warmup_steps + 1), total_iters=warmup_steps)
  if schedule == 'step':
    scheduler = lr_scheduler.ChainedScheduler([warmup, lr_scheduler.StepLR(optimizer, 3, 0.5)])
  else:
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, 30 - warmup_steps)
    scheduler = lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [warmup_steps])
  expected = []
  for _ in range(30):
    expected += scheduler.get_last_lr()
    optimizer.step()
    scheduler.step()
  actual = rates(30, schedule=schedule, warmup_steps=warmup_steps)[:30]
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
  ('name', 'groups'),
  [
    ('alexnet', 'conv1|conv2|conv3|conv4|conv5|fc6|fc7'),
    (
      'vgg16_bn',
      '|'.join(
        f'conv{i}_{j} norm{i}_{j}'
        for i, n in enumerate((2, 2, 3, 3, 3), 1)
        for j in range(1, n + 1)
      )
      + '|fc6|fc7',
    ),
    (
      'resnet18v1',
      'stem stem_norm|' + '|'.join(f'stage{i}_block{j}' for i in range(1, 5) for j in (1, 2)),
    ),
    (
      'resnet18v2',
      'stem stem_norm|'
      + '|'.join(f'stage{i}_block{j}' for i in range(1, 5) for j in (1, 2))
      + ' norm',
    ),
    (
      'mobilenetv2_035',
      'stem stem_norm|'
      + '|'.join(
        f'stage{i}_block{j}'
        for i, n in enumerate((1, 2, 3, 4, 3, 3, 1), 1)
        for j in range(1, n + 1)
      )
      + ' head head_norm',
    ),
    # What halves the map is of the block that it precedes, as in timm.
    (
      'convnextv2_atto',
      'stem stem_norm|'
      + '|'.join(
        f'stage{i}_block{j}' for i, n in enumerate((2, 2, 6, 2), 1) for j in range(1, n + 1)
      )
      + ' norm',
    ),
    (
      'vit_tiny_patch16_224',
      'stem stem_tokens|' + '|'.join(f'block{i}' for i in range(1, 13)) + ' norm',
    ),
  ],
)
def test_depth_groups_rise_from_the_image_to_the_heads(name, groups):
  model = joint.Joint(trunk.build_trunk(name=name), 2, 2)
  params = joint.variable_shapes(model, 224)['params']
  assert set(params) == {'trunk', 'target', 'source'}
  expected = {layer: i for i, group in enumerate(groups.split('|')) for layer in group.split()}
  assert depth_groups(params['trunk']) == expected


def test_depth_groups_order_the_tenth_block_after_the_ninth():
  names = [f'stage3_block{j}' for j in range(1, 37)] + ['stage4_block1', 'stem']
  assert depth_groups(names) == dict(zip(names, [*range(1, 38), 0], strict=True))
