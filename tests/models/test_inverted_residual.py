import functools

import jax
import numpy as np
import pytest
from models import trunk_checks

from sjft_jax.models.inverted_residual import STYLES, InvertedResidualNet, Stage, inverted_residual

SMALL = InvertedResidualNet((Stage(1, 3, 1, 1, 8), Stage(2, 5, 2, 6, 16)), 8, 24)


# With 1000-way heads: torchvision's mobilenet_v2, timm's mobilenetv2_120d, and TensorFlow's
# EfficientNet-Lite as its README gives them.
@pytest.mark.parametrize(
  ('name', 'millions'),
  [
    ('mobilenetv2_100', 3.504872 - 1.281),
    ('mobilenetv2_120d', 5.831 - 1.281),
    ('efficientnet_lite0', 4.7 - 1.281),
    ('tf_efficientnet_lite2', 6.1 - 1.281),
    ('tf_efficientnet_lite4', 13.0 - 1.281),
  ],
)
def test_parameter_counts_are_the_published_ones(name, millions):
  count = trunk_checks.count_parameters(inverted_residual(name))
  assert count / 1e6 == pytest.approx(millions, abs=0.06 if 'lite' in name else 1e-3)


def test_lite_networks_grow_in_width_and_depth():
  variants = [inverted_residual(f'efficientnet_lite{i}') for i in range(5)]
  blocks = [[stage.num_blocks for stage in variant.stages] for variant in variants]
  assert blocks[0] == [1, 2, 2, 3, 3, 4, 1]
  assert blocks[4] == [1, 4, 4, 6, 6, 8, 1]
  features = [[stage.features for stage in variant.stages] for variant in variants]
  assert features[0] == features[1] == [16, 24, 40, 80, 112, 192, 320]
  assert features[2] == [16, 24, 48, 88, 120, 208, 352]
  assert {variant.stem_features for variant in variants} == {32}


def test_a_block_adds_its_input_unless_it_changes_the_map():
  variables = trunk_checks.random_variables(SMALL, 16)
  images = trunk_checks.draw_images(16)
  for block, is_residual in (
    ('stage1_block1', True),
    ('stage2_block1', False),
    ('stage2_block2', True),
  ):
    params = jax.tree.map(np.copy, variables)
    last = params['params'][block]['project_norm']
    last['scale'][:], last['bias'][:] = 0, 0  # The branch gives nothing.
    apply = functools.partial(
      SMALL.apply,
      capture_intermediates=lambda module, _, block=block: module.name == block,
      mutable=['intermediates'],
    )
    _, captured = jax.jit(apply)(params, images)
    assert np.any(captured['intermediates'][block]['__call__'][0]) == is_residual


@pytest.mark.parametrize('batch_norm', ['mixed', 'per_domain', 'frozen'])
def test_every_norm_follows_the_mode(batch_norm):
  model = SMALL.clone(batch_norm=batch_norm, batch_norm_momentum=0.5)
  variables = trunk_checks.random_variables(model, 16)
  _, updates = trunk_checks.training_pass(model, variables, trunk_checks.draw_images(16))
  moved = jax.tree.map(
    lambda new, old: np.abs(new[0] - old).max(), updates['batch_stats'], variables['batch_stats']
  )
  leaves = jax.tree.leaves(moved)
  assert len(leaves) == (4 if batch_norm == 'per_domain' else 2) * (1 + 2 + 3 + 3 + 1)
  assert all((leaf > 0) == (batch_norm != 'frozen') for leaf in leaves)


@pytest.mark.slow
def test_remat_changes_nothing():
  trunk_checks.assert_remat_changes_nothing(SMALL, 16)


def test_low_precision_is_of_activations_only():
  trunk_checks.assert_low_precision_is_of_activations_only(SMALL, 16, 0.03)


def test_styles_pad_and_normalise_differently():
  variables, images = trunk_checks.random_variables(SMALL, 16), trunk_checks.draw_images(16)
  torch, keras = (
    jax.jit(SMALL.clone(style=STYLES[name]).apply)(variables, images) for name in STYLES
  )
  assert np.abs(torch - keras).max() > 1e-3
