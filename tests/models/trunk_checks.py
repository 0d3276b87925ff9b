"""Checks that hold for every trunk, on small ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def random_variables(model, side, seed=0):
  """Draw every leaf at random, variances and scales positive: no norm is the identity."""
  random = np.random.default_rng(seed)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))

  def draw(path, leaf):
    name = path[-1].key
    if 'var' in name or name == 'scale':
      return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    is_kernel = name == 'kernel'
    deviation = np.sqrt(2 / np.prod(leaf.shape[:-1])) if is_kernel else 0.2
    return random.normal(0, deviation, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def draw_images(side, count=4, seed=0):
  """Draw images of different contrast."""
  random = np.random.default_rng(seed)
  noise = random.standard_normal((count, side, side, 3), np.float32)
  return noise * random.uniform(0.5, 3, (count, 1, 1, 1)).astype(np.float32)


def training_pass(model, variables, images):
  """Run a training pass over images of two domains; return features and updated statistics."""
  is_source = np.arange(len(images)) % 2 == 1

  def run(images, is_source):
    return model.apply(variables, images, True, is_source, mutable=['batch_stats'])

  run_batch = jax.jit(jax.vmap(run, axis_name='batch'))  # Compiled once instead of op by op.
  features, updates = run_batch(images[None], is_source[None])
  return features[0], updates


def assert_remat_changes_nothing(model, side):
  """Compare features, statistics and gradients, all finite, with and without remat."""
  images = draw_images(side)
  models = {remat: model.clone(remat=remat) for remat in (False, True)}
  variables = random_variables(model, side)

  def loss(params, remat):
    features, updates = training_pass(models[remat], {**variables, 'params': params}, images)
    return (features**2).sum(), updates

  def run(remat):
    gradient = jax.value_and_grad(functools.partial(loss, remat=remat), has_aux=True)
    return jax.jit(gradient)(variables['params'])

  plain, again = run(False), run(True)
  for leaf in jax.tree.leaves(plain):
    assert np.isfinite(leaf).all()
  # Every variable has an effect.
  for path, leaf in jax.tree_util.tree_leaves_with_path(plain[1]):
    assert np.abs(leaf).max() > 0, path
  # A bias before a normalisation has no gradient but rounding errors of the others.
  noise = 1e-6 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain[1]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max() + noise),
    again,
    plain,
  )
  for remat in (False, True):
    jaxpr = str(jax.make_jaxpr(functools.partial(loss, remat=remat))(variables['params']))
    assert ('prevent_cse' in jaxpr) == remat


def assert_low_precision_is_of_activations_only(model, side, tolerance):
  """Check types with bfloat16, and that features are near those of float32."""
  low = model.clone(dtype=jnp.bfloat16)
  variables, images = random_variables(model, side), draw_images(side)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(random_variables(low, side)))
  features, captured = jax.jit(
    lambda images: low.apply(
      variables, images, capture_intermediates=True, mutable=['intermediates']
    )
  )(images)
  inner = {k: v for k, v in captured['intermediates'].items() if k not in ('__call__', 'norm')}
  assert len(jax.tree.leaves(inner)) > 8
  assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(inner))
  assert features.dtype == jnp.float32
  expected = jax.jit(model.apply)(variables, images)
  error = np.linalg.norm(features - expected) / np.linalg.norm(expected)
  assert 1e-5 < error < tolerance


def count_parameters(model, side=224):
  """Return how many parameters a model has."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes['params']))
