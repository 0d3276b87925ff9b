import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sjft_jax.training.losses import LossOptions, cross_entropy_sum, joint_loss

NUM_CLASSES = {'target': 3, 'source': 7}
IMAGES = 6
EQUAL_WEIGHTS = LossOptions(target_weight=1.0, source_weight=1.0)


def loss_oracle(logits, labels, is_source, weights, smoothing=0.0):
  """The definition, image by image, in float64."""
  total = 0.0
  for domain, weight in weights.items():
    losses = []
    for row, label, flag in zip(logits[domain].astype(np.float64), labels, is_source, strict=True):
      if flag == (domain == 'source'):
        p = np.exp(row) / np.exp(row).sum()
        q = np.full(len(row), smoothing / len(row))
        q[label] += 1 - smoothing
        losses.append(-(q * np.log(p)).sum())
    if losses:
      total += weight * np.mean(losses)
  return total


def draw_batch(seed, is_source):
  random = np.random.default_rng(seed)
  logits = {
    d: random.normal(0, 3, (len(is_source), n)).astype(np.float32) for d, n in NUM_CLASSES.items()
  }
  labels = np.where(
    is_source,
    random.integers(0, NUM_CLASSES['source'], len(is_source)),
    random.integers(0, NUM_CLASSES['target'], len(is_source)),
  ).astype(np.int32)
  return logits, labels


FLAGS = st.one_of(
  st.lists(st.booleans(), min_size=IMAGES, max_size=IMAGES),
  st.booleans().map(lambda flag: [flag] * IMAGES),
).map(np.array)


@pytest.mark.slow
@settings(max_examples=25)
@given(
  seed=st.integers(0, 999),
  is_source=FLAGS,
  cut=st.sampled_from([1, IMAGES // 2]),
  smoothing=st.sampled_from([0.0, 0.1]),
)
def test_contributions_add_up_to_the_joint_loss(seed, is_source, cut, smoothing):
  logits, labels = draw_batch(seed, is_source)
  options = LossOptions(target_weight=0.7, source_weight=0.4, label_smoothing=smoothing)
  counts = {
    'num_target': jnp.sum(jnp.asarray(~is_source)),
    'num_source': jnp.sum(jnp.asarray(is_source)),
  }
  total = 0.0
  for part in (slice(None, cut), slice(cut, None)):
    contribution, sums = joint_loss(
      {d: jnp.asarray(x[part]) for d, x in logits.items()},
      jnp.asarray(labels[part]),
      jnp.asarray(is_source[part]),
      **counts,
      options=options,
    )
    total += float(contribution)
    for domain, members in (('target', ~is_source[part]), ('source', is_source[part])):
      assert members.any() or float(sums[domain]) == 0
  expected = loss_oracle(logits, labels, is_source, {'target': 0.7, 'source': 0.4}, smoothing)
  assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@settings(max_examples=40)
@given(seed=st.integers(0, 999), is_source=FLAGS)
def test_gradient_of_an_image_reaches_only_the_head_of_its_domain(seed, is_source):
  logits, labels = draw_batch(seed, is_source)
  gradient = jax.grad(
    lambda logits: joint_loss(
      logits,
      jnp.asarray(labels),
      jnp.asarray(is_source),
      num_target=jnp.int32(IMAGES),
      num_source=jnp.int32(IMAGES),
      options=EQUAL_WEIGHTS,
    )[0]
  )({d: jnp.asarray(x) for d, x in logits.items()})
  for domain, members in (('target', ~is_source), ('source', is_source)):
    has_gradient = np.abs(gradient[domain]).max(axis=1) > 0
    np.testing.assert_array_equal(has_gradient, members)


def test_labels_outside_the_mask_are_ignored():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
  mask = jnp.array([True, False, False])
  value, gradient = jax.value_and_grad(cross_entropy_sum)(
    logits, jnp.array([1, 400, -5], jnp.int32), mask
  )
  p = np.exp(logits[0]) / np.exp(logits[0]).sum()
  assert float(value) == pytest.approx(-np.log(p[1]), rel=1e-5)
  assert np.isfinite(gradient).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 999), is_source=FLAGS, smoothing=st.sampled_from([0.0, 0.2]))
def test_multi_label_loss_is_the_likelihood_of_independent_classes(seed, is_source, smoothing):
  logits, labels = draw_batch(seed, is_source)
  multi_hot = np.random.default_rng(seed).random((IMAGES, NUM_CLASSES['source'])) < 0.3
  multi_hot &= is_source[:, None]
  _, sums = joint_loss(
    {d: jnp.asarray(x) for d, x in logits.items()},
    jnp.asarray(np.where(is_source, 0, labels)),
    jnp.asarray(is_source),
    jnp.asarray(multi_hot),
    num_target=jnp.int32(IMAGES),
    num_source=jnp.int32(IMAGES),
    options=dataclasses.replace(EQUAL_WEIGHTS, label_smoothing=smoothing),
  )
  p = 1 / (1 + np.exp(-logits['source'].astype(np.float64)))
  # Smoothing spreads its share of every class over present and absent.
  q = np.where(multi_hot, 1 - smoothing / 2, smoothing / 2)
  expected = -(q * np.log(p) + (1 - q) * np.log(1 - p))[is_source].sum()
  assert float(sums['source']) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.reference
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_smoothed_losses_and_gradients_match_torch(smoothing):
  import torch

  logits = np.random.default_rng(0).normal(0, 3, (5, 7)).astype(np.float32)
  labels = np.array([0, 6, 3, 3, 1], np.int32)
  mask = jnp.ones(5, bool)
  value, gradient = jax.value_and_grad(cross_entropy_sum)(
    jnp.asarray(logits), jnp.asarray(labels), mask, smoothing
  )
  tensor = torch.tensor(logits, requires_grad=True)
  expected = torch.nn.functional.cross_entropy(
    tensor, torch.tensor(labels).long(), reduction='sum', label_smoothing=smoothing
  )
  expected.backward()
  assert float(value) == pytest.approx(expected.item(), rel=1e-6)
  np.testing.assert_allclose(gradient, tensor.grad, atol=1e-6)
