import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.training.evaluation import predict


@pytest.mark.parametrize('views', [(1,), (3,), (2, 2)])
@pytest.mark.parametrize('sizes', [[4, 4, 1], [5], [3, 2]])
def test_predict_averages_views_and_drops_no_image(views, sizes):
  """The 'probabilities' are the first two pixels of an image, on four devices."""
  rng = np.random.default_rng(0)
  images = [
    rng.integers(0, 255, (sum(sizes), count, 2 + scale, 2 + scale, 3)).astype(np.uint8)
    for scale, count in enumerate(views)
  ]
  shapes = set()

  def predict_step(state, batch):
    shapes.add(batch.shape)
    return jax.pmap(lambda x: x[:, 0, :2, 0].astype(jnp.float32) * state)(batch)

  cuts = np.cumsum(sizes)[:-1]
  batches = zip(*(np.split(part, cuts) for part in images), strict=True)
  result = predict(predict_step, np.float32(2), batches)
  expected = [2.0 * part[:, :, 0, :2, 0].mean(axis=1) for part in images]
  np.testing.assert_allclose(result, np.mean(expected, axis=0), rtol=1e-6)
  assert len(shapes) == len(views)  # Each size compiled once.
