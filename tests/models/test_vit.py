import jax
import numpy as np
import pytest
from models import torch_reference, trunk_checks

from sjft_jax.models import vit
from sjft_jax.models.vit import Tokens, Variant, ViT

SMALL = [
  ViT(Variant(16, 2, 2, 8, 4, num_registers, scales))
  for num_registers, scales in ((0, False), (3, True))
]


# Without heads, and DINOv2 without the token that stands for hidden patches.
@pytest.mark.parametrize(
  ('name', 'count'),
  [
    ('vit_tiny_patch16_224', 5_524_416),
    ('vit_base_patch16_224', 85_798_656),
    ('vit_large_patch16_384', 303_690_752),
    ('vit_small_patch14_dinov2', 22_056_576 - 384),
  ],
)
def test_parameter_counts_are_the_published_ones(name, count):
  assert trunk_checks.count_parameters(ViT(vit.VARIANTS[name])) == count


@pytest.mark.slow
@pytest.mark.parametrize('model', SMALL, ids=['plain', 'dinov2'])
def test_remat_changes_nothing(model):
  trunk_checks.assert_remat_changes_nothing(model, 24)


@pytest.mark.parametrize('model', SMALL, ids=['plain', 'dinov2'])
def test_low_precision_is_of_activations_only(model):
  trunk_checks.assert_low_precision_is_of_activations_only(model, 32, 0.03)


def test_pixels_beyond_the_last_patch_do_not_count():
  model = SMALL[0]
  variables, images = trunk_checks.random_variables(model, 32), trunk_checks.draw_images(31)
  np.testing.assert_array_equal(
    model.apply(variables, images), model.apply(variables, images[:, :24, :24])
  )


def test_images_below_a_patch_are_refused():
  model = SMALL[0]
  variables = trunk_checks.random_variables(model, 32)
  with pytest.raises(ValueError, match='7×7 images are too small for this transformer.* 8 pixels'):
    model.apply(variables, trunk_checks.draw_images(7))


@pytest.mark.reference
@pytest.mark.parametrize('num_registers', [0, 4])
@pytest.mark.parametrize('grid', [(6, 9), (7, 7), (14, 14), (3, 20)])
def test_positions_are_resampled_as_in_timm(grid, num_registers):
  import torch

  torch_reference.timm()
  from timm.layers import resample_abs_pos_embed

  prefix = 0 if num_registers else 1
  model = Tokens(7, num_registers)
  patches = np.zeros((1, *grid, 5), np.float32)
  params = jax.tree.map(
    lambda leaf: np.random.default_rng(0).standard_normal(leaf.shape, np.float32),
    jax.eval_shape(model.init, jax.random.key(0), patches)['params'],
  )
  expected = resample_abs_pos_embed(
    torch.from_numpy(params['positions']), [*grid], num_prefix_tokens=prefix
  ).numpy()
  tokens = model.apply({'params': params}, patches)
  assert tokens.shape == (1, 1 + num_registers + grid[0] * grid[1], 5)
  np.testing.assert_allclose(
    tokens[:, 1 + num_registers :], expected[:, prefix:], rtol=1e-4, atol=1e-5
  )
  first = params['class_token'] + (expected[:, :1] if prefix else 0)
  np.testing.assert_allclose(tokens[:, :1], first, rtol=1e-5)
