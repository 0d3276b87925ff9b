import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.models import preprocess


def test_the_default_normalization_is_imagenet():
  colors = np.uint8([[[[124, 116, 104], [0, 0, 0], [255, 255, 255]]]])
  expected = (colors / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  normalized = preprocess.normalize(jnp.asarray(colors))
  assert normalized.dtype == jnp.float32
  np.testing.assert_allclose(normalized, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  ('normalization', 'expected'),
  [
    ('imagenet', lambda rgb: (rgb / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
    ('inception', lambda rgb: rgb / 127.5 - 1),
    ('caffe', lambda rgb: rgb - [123.68, 116.779, 103.939]),
  ],
)
def test_images_are_normalised_as_the_weights_were_trained(normalization, expected):
  colors = np.uint8([[[[124, 116, 104], [0, 0, 0], [255, 255, 255]]]])
  normalized = preprocess.normalize(jnp.asarray(colors), normalization)
  assert normalized.dtype == jnp.float32
  np.testing.assert_allclose(normalized, expected(colors), rtol=1e-4, atol=1e-5)


def test_an_unknown_normalization_is_refused():
  with pytest.raises(ValueError, match="normalization='keras' is unknown; .*imagenet, incep"):
    preprocess.normalize(jnp.zeros((1, 1, 1, 3), jnp.uint8), 'keras')


@pytest.mark.parametrize('size', [(31, 40), (40, 31)])
def test_images_below_the_smallest_side_are_refused(size):
  preprocess.check_image_size(jnp.zeros((1, 32, 32, 3)), 32, network='a net', remedy='none')
  message = (
    f'^{size[0]}×{size[1]} images are too small for a net, which needs 32 pixels a side; grow$'
  )
  with pytest.raises(ValueError, match=message):
    preprocess.check_image_size(jnp.zeros((1, *size, 3)), 32, network='a net', remedy='grow')
