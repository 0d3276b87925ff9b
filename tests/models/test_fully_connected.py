import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.models.fully_connected import Dropout, FullyConnected


def drop(x, key, devices=1, mapped=jax.vmap):
  """Run a training pass over `x`, split evenly over the devices of an axis 'batch'."""

  def run(part):
    return Dropout().apply({}, part, True, rngs={'dropout': key})

  parts = jnp.reshape(x, (devices, -1, *x.shape[1:]))
  return np.asarray(mapped(run, axis_name='batch')(parts)).reshape(x.shape)


def test_half_of_the_values_are_dropped_and_the_rest_doubled():
  x = np.random.default_rng(0).uniform(1, 2, (8, 3, 3, 512)).astype(np.float32)
  y = drop(x, jax.random.key(0))
  mask = y != 0
  np.testing.assert_array_equal(y[mask], 2 * x[mask])
  # Four standard deviations of a fair coin's mean, over all and within each image.
  assert abs(mask.mean() - 0.5) < 4 * 0.5 / np.sqrt(mask.size)
  np.testing.assert_allclose(mask.mean((1, 2, 3)), 0.5, atol=4 * 0.5 / np.sqrt(mask[0].size))


def test_masks_differ_between_images_and_keys():
  x = np.ones((4, 1, 1, 64), np.float32)
  masks = np.concatenate([drop(x, jax.random.key(seed)) for seed in range(2)])
  assert len({mask.tobytes() for mask in masks}) == 8


@pytest.mark.parametrize(
  ('devices', 'mapped'), [(2, jax.vmap), (4, jax.vmap), (8, jax.vmap), (4, jax.pmap)]
)
def test_masks_do_not_depend_on_the_devices(devices, mapped):
  x = np.ones((8, 2, 1, 32), np.float32)
  one = drop(x, jax.random.key(3))
  np.testing.assert_array_equal(drop(x, jax.random.key(3), devices, mapped), one)


def test_nothing_is_dropped_in_evaluation():
  x = jnp.arange(6.0).reshape(2, 1, 1, 3)
  np.testing.assert_array_equal(Dropout().apply({}, x, False), x)


def test_a_larger_map_gives_the_average_over_the_positions_of_fc6():
  random = np.random.default_rng(0)
  x = random.normal(size=(2, 3, 4, 2)).astype(np.float32)
  model = FullyConnected(size=2)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, False))['params']
  assert jax.tree.map(jnp.shape, shapes) == {
    'fc6': {'kernel': (2, 2, 2, 4096), 'bias': (4096,)},
    'fc7': {'kernel': (1, 1, 4096, 4096), 'bias': (4096,)},
  }
  params = jax.tree.map(
    lambda p: (0.03 * random.standard_normal(p.shape, np.float32)).astype(np.float32), shapes
  )

  positions = []
  for i in range(2):
    for j in range(3):
      y = x[:, i : i + 2, j : j + 2].reshape(2, -1)
      for layer in ('fc6', 'fc7'):
        kernel = params[layer]['kernel'].reshape(-1, 4096)
        y = np.maximum(y @ kernel + params[layer]['bias'], 0)
      positions.append(y)
  features = model.apply({'params': params}, x, False)
  assert features.dtype == jnp.float32
  np.testing.assert_allclose(features, np.mean(positions, 0), rtol=1e-4, atol=1e-5)


def test_each_layer_has_masks_of_its_own():
  """With fc7 the identity, one value in four is dropped by neither layer."""
  params = {
    'fc6': {'kernel': jnp.zeros((1, 1, 1, 4096)), 'bias': jnp.ones(4096)},
    'fc7': {'kernel': jnp.eye(4096).reshape(1, 1, 4096, 4096), 'bias': jnp.zeros(4096)},
  }

  def run(x):
    return FullyConnected(1).apply({'params': params}, x, True, rngs={'dropout': jax.random.key(0)})

  features = jax.vmap(run, axis_name='batch')(jnp.ones((1, 2, 1, 1, 1)))
  assert set(np.unique(features)) == {0.0, 4.0}
  np.testing.assert_allclose(np.mean(features == 4), 0.25, atol=4 * np.sqrt(3 / 16 / 8192))
