import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.models import alexnet, preprocess, pretrained


def test_features_average_conv5_at_any_size():
  model, params = alexnet.AlexNet(), {'params': pretrained.load_alexnet()}
  for size in ((31, 31), (67, 101)):
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    x = preprocess.normalize(jnp.asarray(images))
    features = model.apply(params, x, train=True)
    assert features.shape == (2, 256)
    (conv5,) = model.apply(params, x, layers=('conv5',), tap='linear', method='responses')
    np.testing.assert_allclose(features, np.maximum(conv5, 0).mean((1, 2)), rtol=1e-5)


def test_random_and_pretrained_parameters_have_one_structure():
  x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  params = jax.eval_shape(alexnet.AlexNet().init, jax.random.key(0), x)['params']
  loaded = pretrained.load_alexnet()
  assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == jax.tree.map(
    lambda p: (p.shape, p.dtype), loaded
  )


def test_too_small_images_are_named():
  with pytest.raises(ValueError, match='30×40 images are too small for AlexNet conv5'):
    alexnet.AlexNet().init(jax.random.key(0), jnp.zeros((1, 30, 40, 3)))


def test_normalize_is_imagenet():
  colors = np.uint8([[[[124, 116, 104], [0, 0, 0], [255, 255, 255]]]])
  expected = (colors / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  normalized = preprocess.normalize(jnp.asarray(colors))
  assert normalized.dtype == jnp.float32
  np.testing.assert_allclose(normalized, expected, rtol=1e-4, atol=1e-6)
