import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.models.joint import Joint, init, replace_trunk, variable_shapes
from sjft_jax.models.preprocess import normalize
from sjft_jax.models.resnet import ResNet


class MeanColor(nn.Module):
  @nn.compact
  def __call__(self, images, train, is_source):
    return nn.Dense(400)(images.mean(axis=(1, 2)))


@pytest.mark.parametrize('normalization', ['imagenet', 'inception'])
def test_both_heads_read_the_trunk_of_the_normalised_images(normalization):
  images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
  model = Joint(MeanColor(), 3, 5, normalization)
  params = init(model, jax.random.key(0), 8)['params']
  assert set(params) == {'trunk', 'target', 'source'}
  x = normalize(images, normalization)
  features = MeanColor().apply({'params': params['trunk']}, x, train=False, is_source=None)
  outputs = model.apply({'params': params}, images)
  assert set(outputs) == {'target', 'source'}
  for domain, num_classes in (('target', 3), ('source', 5)):
    assert outputs[domain].shape == (2, num_classes)
    np.testing.assert_allclose(
      outputs[domain], features @ params[domain]['kernel'], rtol=1e-4, atol=1e-6
    )


def test_the_source_head_can_be_left_out():
  images = jnp.zeros((2, 8, 8, 3), jnp.uint8)
  both, target = Joint(MeanColor(), 3, 5), Joint(MeanColor(), 3, 0)
  params = init(both, jax.random.key(0), 8)['params']
  assert set(init(target, jax.random.key(0), 8)['params']) == {'trunk', 'target'}
  outputs = target.apply({'params': params}, images)
  assert set(outputs) == {'target'}
  np.testing.assert_array_equal(outputs['target'], both.apply({'params': params}, images)['target'])


def test_heads_start_small():
  params = init(Joint(MeanColor(), 200, 300), jax.random.key(0), 8)['params']
  for domain in ('target', 'source'):
    np.testing.assert_allclose(params[domain]['kernel'].std(), 0.01, rtol=0.02)
    assert not params[domain]['bias'].any()


def test_the_trunk_receives_the_mode_and_the_domains():
  class Witness(nn.Module):
    @nn.compact
    def __call__(self, images, train, is_source):
      assert train
      return is_source[:, None].astype(jnp.float32)

  images, is_source = jnp.zeros((2, 8, 8, 3), jnp.uint8), jnp.array([False, True])
  params = {
    name: {'kernel': jnp.ones((1, 2)), 'bias': jnp.zeros(2)} for name in ('target', 'source')
  }
  outputs = Joint(Witness(), 2, 2).apply({'params': params}, images, True, is_source)
  np.testing.assert_array_equal(outputs['target'], [[0, 0], [1, 1]])


def test_heads_are_float32_on_a_low_precision_trunk():
  model = Joint(ResNet((), bottleneck=False, width=0.125, dtype=jnp.bfloat16), 3, 5)
  outputs, variables = jax.eval_shape(
    model.init_with_output, jax.random.key(0), jnp.ones((1, 32, 32, 3), jnp.uint8)
  )
  for leaf in jax.tree.leaves((outputs, variables)):
    assert leaf.dtype == jnp.float32


@pytest.mark.slow
def test_init_equals_flax_init():
  model = Joint(ResNet((1,), bottleneck=True, width=0.125), 3, 5)
  expected = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 32, 32, 3), jnp.uint8))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    init(model, jax.random.key(3), 32),
    expected,
  )


def test_init_draws_what_each_initialiser_draws_alone():
  """The compiler may multiply two constants of one program first."""
  model = Joint(MeanColor(), 2, 3)
  images, key = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8), jax.random.key(3)
  alone = {'batch_stats': {}, **model.lazy_init(key, images)}
  assert_close = functools.partial(np.testing.assert_allclose, rtol=5e-7)
  jax.tree.map(assert_close, init(model, key, 8), alone)
  heads = init(model, key, 8, heads_only=True)
  del alone['params']['trunk']
  jax.tree.map(assert_close, heads, alone)


def test_shapes_are_those_of_init():
  model = Joint(ResNet((1,), False, width=0.125), 2, 3)
  drawn = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), init(model, jax.random.key(0), 32))
  shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variable_shapes(model, 32))
  assert shapes == drawn


@pytest.mark.parametrize('batch_norm', ['mixed', 'per_domain'])
def test_replaced_trunk_has_the_statistics_for_both_domains(batch_norm):
  model = Joint(ResNet((1,), False, width=0.125, batch_norm=batch_norm), 3, 5)
  variables = jax.tree.map(np.asarray, init(model, jax.random.key(0), 32))
  trunk = ResNet((1,), False, width=0.125)
  trunk = jax.jit(trunk.init)(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))
  stats = jax.tree.map(lambda leaf: leaf + 7, trunk['batch_stats'])
  joint = replace_trunk(variables, trunk['params'], stats)
  assert jax.tree.map(jnp.shape, joint) == jax.tree.map(jnp.shape, variables)
  assert joint['params']['trunk'] is trunk['params']
  for head in ('target', 'source'):
    assert joint['params'][head] is variables['params'][head]
  for path, leaf in jax.tree.leaves_with_path(joint['batch_stats']['trunk']):
    layer, name = '/'.join(key.key for key in path[:-1]), path[-1].key
    expected = stats
    for key in layer.split('/'):
      expected = expected[key]
    np.testing.assert_array_equal(leaf, expected[name.removeprefix('source_')])
