import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import trunk_checks

from sjft_jax.models import convnext, perceptron
from sjft_jax.models.convnext import ConvNeXt, Variant

SMALL = [ConvNeXt(Variant((1, 2), 8, is_v2)) for is_v2 in (False, True)]


# With 1000-way heads, as the papers give them.
@pytest.mark.parametrize(
  ('name', 'millions'),
  [
    ('convnext_tiny', 28.589128 - 0.769),
    ('convnext_large', 197.767336 - 1.537),
    ('convnextv2_atto', 3.7 - 0.321),
    ('convnextv2_base', 88.7 - 1.025),
  ],
)
def test_parameter_counts_are_the_published_ones(name, millions):
  count = trunk_checks.count_parameters(ConvNeXt(convnext.VARIANTS[name]))
  assert count / 1e6 == pytest.approx(millions, abs=0.06 if 'v2' in name else 1e-5)


@pytest.mark.slow
def test_remat_changes_nothing():
  trunk_checks.assert_remat_changes_nothing(ConvNeXt(Variant((1,), 8, True)), 32)


@pytest.mark.parametrize('model', SMALL, ids=['v1', 'v2'])
def test_low_precision_is_of_activations_only(model):
  trunk_checks.assert_low_precision_is_of_activations_only(model, 32, 0.03)


def test_response_norm_has_a_finite_gradient_where_all_channels_are_silent():
  model = perceptron.ResponseNorm()
  params = {'params': {'scale': jnp.ones(3), 'bias': jnp.ones(3)}}
  x = jnp.zeros((2, 4, 3))
  np.testing.assert_array_equal(model.apply(params, x), 1)
  gradient = jax.grad(lambda x: model.apply(params, x).sum())(x)
  assert np.isfinite(gradient).all()


def test_response_norm_scales_by_the_share_of_the_response():
  x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
  scale, bias = np.float32([1, -2, 0.5]), np.float32([0.1, 0, 3])
  out = perceptron.ResponseNorm().apply({'params': {'scale': scale, 'bias': bias}}, x)
  response = np.sqrt((x**2).sum(axis=1, keepdims=True))
  expected = x + scale * x * response / response.mean(axis=-1, keepdims=True) + bias
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_too_small_images_are_refused():
  model = SMALL[0]
  variables = trunk_checks.random_variables(model, 32)
  with pytest.raises(ValueError, match='31×31 images are too small for ConvNeXt, .* 32 pixels'):
    model.apply(variables, trunk_checks.draw_images(31))
