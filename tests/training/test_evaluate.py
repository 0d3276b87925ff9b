import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.training.evaluate import predict


@pytest.mark.parametrize('views', [1, 3])
@pytest.mark.parametrize('sizes', [[4, 4, 1], [5], [3, 2]])
def test_no_image_is_dropped_and_views_are_averaged(views, sizes):
  """A 'network' whose probabilities are the first two pixels, on four devices."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 255, (sum(sizes), views, 2, 2, 3)).astype(np.uint8)
  shapes = set()

  def network(state, batch):
    shapes.add(batch.shape)
    return jax.pmap(lambda x: x[:, 0, :, 0].astype(jnp.float32) * state)(batch)

  batches = np.split(images, np.cumsum(sizes)[:-1])
  result = predict(network, np.float32(2), batches)
  np.testing.assert_allclose(result, 2.0 * images[:, :, 0, :, 0].mean(axis=1), rtol=1e-6)
  assert len(shapes) == 1  # Compiled once.
