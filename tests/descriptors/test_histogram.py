import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sjft_jax.descriptors import histogram

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
EXTREMES = np.float32([0, -0.0, 1e-45, -1e-45, 1.2e-38, -1.2e-38, 3.4e38, -3.4e38, 1, -1, 1 + 1e-7])


def sketch(*batches, size=None):
  """Sketch batches [value, filter], each as images of one pixel, padded to `size` of them."""
  result = histogram.QuantileSketch(batches[0].shape[1])
  for batch in batches:
    missing = (size or len(batch)) - len(batch)
    images = np.pad(np.float32(batch), ((0, missing), (0, 0)))[:, None, None]
    result.update((jnp.asarray(images),), np.arange(len(images)) < len(batch))
  return result


def fit(values, num_bins, size=None):
  return sketch(np.float32(values)[:, None], size=size).edges(num_bins=num_bins)[0]


def masses(values, edges):
  """Return the share of each bin by definition: a value's bin is the number of edges ≤ it."""
  bins = (np.float32(values)[:, None] >= edges[None]).sum(1)
  return np.bincount(bins, minlength=len(edges) + 1) / len(values)


@pytest.mark.parametrize(
  'draw',
  [
    lambda rng, n: rng.normal(size=n),
    lambda rng, n: rng.normal(-5, 1, n),
    lambda rng, n: rng.uniform(-1e-3, 2e-3, n),
    lambda rng, n: rng.lognormal(0, 5, n),
    lambda rng, n: -rng.exponential(1e30, n),
  ],
)
@pytest.mark.parametrize('num_bins', [2, 7, 32])
def test_edges_are_quantiles(draw, num_bins):
  values = np.float32(draw(np.random.default_rng(0), 20_000))
  edges = fit(values, num_bins)
  exact = np.quantile(values.astype(np.float64), np.arange(1, num_bins) / num_bins)
  # The documented bound, and a little for numpy's interpolation between neighbouring values.
  spacing = np.diff(
    np.quantile(values, [np.arange(1, num_bins) / num_bins + d for d in (-1e-3, 1e-3)], axis=0),
    axis=0,
  )[0]
  assert (np.abs(edges - exact) <= np.abs(exact) * 2**-7 + spacing).all()
  # Interpolation makes the masses of smooth distributions far better than that.
  np.testing.assert_allclose(masses(values, edges), 1 / num_bins, rtol=0.05, atol=2 / len(values))


def test_relu_zero_has_its_own_bin():
  rng = np.random.default_rng(0)
  values = np.concatenate([np.zeros(7_000), rng.uniform(0.1, 5, 3_000)])
  edges = fit(values, 11)
  mass = masses(values, edges)
  assert mass[0] == 0.7
  np.testing.assert_allclose(mass[1:], 0.03, rtol=0.05)


def test_quantile_among_zeros_is_zero():
  """It is no subnormal number, whose comparison with zero depends on the device."""
  values = np.concatenate([-np.linspace(1, 2, 38), np.zeros(22), np.linspace(1, 2, 40)])
  edges = fit(values, 4)
  assert edges[1] == 0


def test_atom_inside_a_distribution_has_its_own_bin():
  rng = np.random.default_rng(0)
  values = np.concatenate(
    [np.full(4_000, 1.0), rng.uniform(-9, 0, 2_000), rng.uniform(2, 5, 4_000)]
  )
  edges = fit(values, 10)
  mass = masses(values, edges)
  # Nine bins share 0.6 of the mass: three below the atom, six above it.
  np.testing.assert_allclose(mass, [2 / 30] * 3 + [0.4] + [4 / 60] * 6, rtol=0.05)


def test_values_between_atoms_too_few_for_a_bin_join_an_atom():
  values = np.repeat([-1.0, 0.0, 3.0], 5)
  edges = fit(values, 6)
  np.testing.assert_array_equal(masses(values, edges), [1 / 3] * 3 + [0] * 3)
  np.testing.assert_array_equal(np.isinf(edges), [False, False, True, True, True])
  # One value in a thousand between two atoms has no bin to itself: with 3 bins, it joins.
  values = np.concatenate([np.zeros(499), [1.0], np.full(500, 2.0)])
  mass = masses(values, fit(values, 2))
  assert sorted(mass) == [0.5, 0.5]


@pytest.mark.parametrize('value', [0.0, -0.0, 1.5, -3e38, 1e-40])
def test_constant_filter_fills_one_bin_and_other_responses_lie_outside(value):
  edges = fit(np.full(100, value), 5)
  np.testing.assert_array_equal(masses(np.full(100, value), edges), [0, 1, 0, 0, 0])
  others = np.array([-3.3e38, 3.3e38])
  np.testing.assert_array_equal(masses(others, edges), [0.5, 0, 0.5, 0, 0])
  assert len(fit(np.full(100, value), 2)) == 1


@settings(max_examples=20)
@given(
  hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.just(2)),
    elements=st.one_of(FLOATS, st.sampled_from(EXTREMES.tolist())),
  ),
  st.integers(2, 9),
  st.randoms(use_true_random=False),
)
def test_edges_are_ordered_and_independent_of_the_order_of_values(values, num_bins, random):
  edges = sketch(values, size=40).edges(num_bins=num_bins)
  assert edges.shape == (2, num_bins - 1)
  assert not np.isnan(edges).any()
  assert (np.diff(np.nan_to_num(edges.astype(np.float64), posinf=1e39)) >= 0).all()
  random.shuffle(order := list(range(len(values))))
  shuffled = values[order]
  cut = random.randrange(len(values) + 1)
  parts = [part for part in (shuffled[:cut], shuffled[cut:]) if len(part)]
  np.testing.assert_array_equal(sketch(*parts, size=40).edges(num_bins=num_bins), edges)


@settings(max_examples=20)
@given(hnp.arrays(np.int8, st.integers(1, 200)), st.integers(2, 9))
def test_no_bin_of_a_discrete_filter_is_too_full_unless_it_is_an_atom(values, num_bins):
  """Each small integer has its own bucket, so that nothing is interpolated."""
  edges = fit(values, num_bins, size=200)
  bins = (np.float32(values)[:, None] >= edges[None]).sum(1)
  for b in range(num_bins):
    inside = values[bins == b]
    heaviest = max(np.unique(values, return_counts=True)[1])
    # An equal share, one bucket too many at either end, and half a bin's share from rounding.
    assert len(inside) <= 2 * len(values) / num_bins + 2 * heaviest


def test_buckets_are_ordered_and_bound_their_values():
  rng = np.random.default_rng(0)
  values = np.concatenate(
    [
      rng.integers(0, 2**32, 50_000, np.uint32).view(np.float32),
      EXTREMES,
    ]
  )
  values = np.sort(values[np.isfinite(values)])
  values[np.abs(values) < np.finfo(np.float32).tiny] = 0
  buckets = np.asarray(histogram._bucket(jnp.asarray(values)))
  assert (np.diff(buckets) >= 0).all()
  lower, upper = histogram._lower_bounds(buckets), histogram._lower_bounds(buckets + 1)
  assert (lower <= values).all()
  assert (values < upper).all()
  normal = np.abs(values) > 1e-37
  finite = normal & np.isfinite(upper) & np.isfinite(lower)
  assert (
    (upper - lower)[finite] <= np.abs(values[finite].astype(np.float64)) * 2**-7 * 1.001
  ).all()


def test_padding_images_are_not_counted():
  images = np.random.default_rng(0).normal(size=(3, 4, 5, 2)).astype(np.float32)
  images[2] = np.nan
  padded = histogram.QuantileSketch(2)
  padded.update((jnp.asarray(images),), np.array([True, True, False]))
  alone = histogram.QuantileSketch(2)
  alone.update((jnp.asarray(images[:2]),), np.array([True, True]))
  np.testing.assert_array_equal(padded.edges(num_bins=4), alone.edges(num_bins=4))


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_responses_that_are_not_finite_are_an_error_that_names_the_filter(bad):
  values = np.zeros((10, 3), np.float32)
  values[4, 1] = bad
  with pytest.raises(ValueError, match='filter 1 '):
    sketch(values).edges(num_bins=4)


def test_impossible_options_are_an_error():
  with pytest.raises(ValueError, match='num_bins=1'):
    sketch(np.zeros((1, 1))).edges(num_bins=1)
  with pytest.raises(ValueError, match='no responses'):
    histogram.QuantileSketch(1).edges(num_bins=4)
  for smoothing in (0.0, -1.0, 1e-40, 1e9, float('nan'), float('inf')):
    with pytest.raises(ValueError, match=r'smoothing=.* must lie between 1e-30 and 1,000,000'):
      histogram.normalize(jnp.ones((1, 1, 4), jnp.int32), smoothing=smoothing)


@pytest.mark.parametrize('smoothing', [1e-30, 1e6])
def test_within_the_limits_of_smoothing_single_pixels_count(smoothing):
  pixels = 2000**2
  counts = jnp.array([[[pixels, 0]], [[pixels - 1, 1]]], jnp.int32)
  one, other = np.asarray(histogram.normalize(counts, smoothing=smoothing))
  assert np.finfo(np.float32).tiny < one.min() < other.min()


# Pixels: one, fewer than a block, a block, a few more, several blocks without a rest.
@pytest.mark.parametrize(
  'shape', [(1, 1, 1, 1), (4, 3, 7, 2), (2, 4, 8, 3), (3, 5, 7, 4), (2, 33, 1, 3), (2, 12, 8, 5)]
)
def test_counts_match_numpy(shape):
  rng = np.random.default_rng(0)
  responses = rng.normal(size=shape).astype(np.float32)
  edges = np.sort(rng.normal(size=(shape[-1], 9)).astype(np.float32), axis=1)
  edges[0, 4:] = np.inf
  responses[0, 0, 0] = edges[:, 0]  # on an edge: the bin above
  responses[-1, -1, -1] = -1e30  # out of range: the end bin
  counts = np.asarray(histogram.counts(edges, responses))
  assert counts.shape == (shape[0], shape[-1], 10)
  for i in range(shape[0]):
    for f in range(shape[-1]):
      finite = edges[f][np.isfinite(edges[f])]
      expected, _ = np.histogram(responses[i, ..., f], np.concatenate([[-3e38], finite, [3e38]]))
      np.testing.assert_array_equal(counts[i, f, : len(expected)], expected)
      assert not counts[i, f, len(expected) :].any()


def test_forms_of_counting_agree():
  """Only one of them runs on this backend otherwise."""
  rng = np.random.default_rng(0)
  pixels = np.round(rng.normal(size=(3, 70, 4)), 1).astype(np.float32)
  pixels[0, 0], pixels[1, 1], pixels[2, 2] = np.nan, np.inf, -np.inf
  edges = np.sort(np.round(rng.normal(size=(1, 9, 4)), 1).astype(np.float32), axis=1)
  edges[0, 7:] = np.inf
  expected = (pixels[:, :, None] >= edges[:, None]).sum(1)
  assert (expected[:, :7] > 0).all()
  np.testing.assert_array_equal(histogram._count_above(edges, pixels), expected)
  np.testing.assert_array_equal(histogram._count_above_blockwise(edges, pixels), expected)


@settings(max_examples=30)
@given(
  hnp.arrays(np.float32, (2, 3, 5, 2), elements=FLOATS),
  hnp.arrays(np.float32, (2, 4), elements=st.floats(width=32, allow_nan=False)),
  st.floats(1e-6, 1e3),
)
def test_descriptors_are_distributions(responses, edges, smoothing):
  counts = histogram.counts(np.sort(edges, axis=1), responses)
  np.testing.assert_array_equal(counts.sum(-1), 15)
  assert (np.asarray(counts) >= 0).all()
  histograms = np.asarray(histogram.normalize(counts, smoothing=smoothing))
  assert (histograms > 0).all()
  expected = (np.asarray(counts, np.float64) + smoothing) / (15 + 5 * smoothing)
  np.testing.assert_allclose(histograms, expected, rtol=1e-5)
