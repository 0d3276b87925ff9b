import functools

import numpy as np
import pytest
from data.numbered import NumberedDataset

from sjft_jax.data import transforms
from sjft_jax.data.batches import Batches, SourceBatches
from sjft_jax.data.sampler import Sampler
from sjft_jax.selection.subset import Subset

RANKING = np.array([[4, 8, 2], [1, 0, 9], [7, 7, 3], [5, 6, 0], [2, 1, 8]])
NUM_NEIGHBORS = np.array([1, 3, 2, 3, 1])


def make_dataset(domain, size):
  return NumberedDataset(str(domain), np.arange(size) % 3, domain=domain, size=8)


def make_batches(
  *,
  cls=Batches,
  has_subset=True,
  seed=3,
  round_=0,
  batch_size=4,
  kind='none',
  source=None,
  local_pairs=None,
):
  target = make_dataset(0, 5)
  return cls(
    target=target,
    source=make_dataset(1, 10) if source is None else source,
    subset=Subset(RANKING, NUM_NEIGHBORS) if has_subset else None,
    sampler=Sampler(target.labels, seed, batch_size),
    augment=functools.partial(transforms.augment, kind=kind, resize=8, crop=6),
    min_side=8,
    seed=seed,
    round_=round_,
    batch_size=batch_size,
    local_pairs=range(batch_size) if local_pairs is None else local_pairs,
  )


def is_equal(a, b):
  return all(np.array_equal(a[name], b[name]) for name in a)


def test_each_target_stands_before_one_of_its_neighbours():
  drawn = set()
  for step in range(40):
    batch = make_batches()(step)
    np.testing.assert_array_equal(batch['is_source'], [False, True] * 4)
    domain, index = batch['image'][:, 0, 0, 0], batch['image'][:, 0, 0, 1].astype(int)
    np.testing.assert_array_equal(domain, [0, 1] * 4)
    np.testing.assert_array_equal(batch['label'], index % 3)
    drawn |= set(zip(index[0::2].tolist(), index[1::2].tolist(), strict=True))
  allowed = {
    (t, s) for t, (row, k) in enumerate(zip(RANKING, NUM_NEIGHBORS, strict=True)) for s in row[:k]
  }
  assert drawn == allowed


def test_without_a_subset_there_are_target_images_only():
  batch = make_batches(has_subset=False)(0)
  assert batch['image'].shape == (4, 6, 6, 3)
  assert not batch['is_source'].any()
  # The same target images in the same order as with neighbours: arms differ in the source only.
  with_source = make_batches()(0)
  np.testing.assert_array_equal(batch['label'], with_source['label'][0::2])


@pytest.mark.parametrize('kind', ['none', 'resnet', 'pursuit'])
def test_a_batch_is_a_pure_function_of_seed_round_and_step(kind):
  batches = make_batches(kind=kind)
  first = [batches(step) for step in range(6)]
  for step in (5, 0, 3):
    assert is_equal(make_batches(kind=kind)(step), first[step])
  assert not is_equal(make_batches(kind=kind, seed=4)(3), first[3])
  assert not is_equal(make_batches(kind=kind)(4), first[3])


@pytest.mark.parametrize('cls', [Batches, SourceBatches])
def test_processes_that_share_a_batch_load_its_parts(cls):
  whole, part = (
    make_batches(kind='pursuit', cls=cls, local_pairs=local_pairs)(7)['image']
    for local_pairs in (None, [0, 1, 3])
  )
  np.testing.assert_array_equal(part, whole[[0, 1, 2, 3, 6, 7]])


def test_the_images_of_a_batch_have_names_and_a_number():
  batches = make_batches()
  index = batches(2)['image'][:, 0, 0, 1]
  assert batches.names(2) == [
    f'{domain}/image {i}' for domain, i in zip([0, 1] * 4, index, strict=True)
  ]
  source_batches = make_batches(cls=SourceBatches, local_pairs=[2])
  for case in (batches, make_batches(has_subset=False), source_batches):
    assert case.images_per_batch == len(case(0)['image'])


def test_another_round_draws_other_neighbours():
  one = [make_batches()(step)['image'] for step in range(5)]
  two = [make_batches(round_=1)(step)['image'] for step in range(5)]
  assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_pretraining_batches_hold_source_images_only():
  batch = make_batches(cls=SourceBatches)(2)
  assert batch['is_source'].all()
  assert (batch['image'][:, 0, 0, 0] == 1).all()
  assert len(batch['image']) == 8


def test_a_multi_label_source_adds_the_classes_in_its_images():
  source = make_dataset(1, 10)
  source.labels = np.random.default_rng(0).random((10, 3)) < 0.5
  for cls, is_source in ((Batches, slice(1, None, 2)), (SourceBatches, slice(None))):
    batch = make_batches(source=source, cls=cls)(0)
    index = batch['image'][is_source, 0, 0, 1].astype(int)
    np.testing.assert_array_equal(batch['multi_hot'][is_source], source.labels[index])
    assert not batch['multi_hot'][~batch['is_source']].any()
    assert not batch['label'][batch['is_source']].any()
  assert 'multi_hot' not in make_batches()(0)


def test_images_are_decoded_no_larger_than_the_augmentation_can_use():
  batch = make_batches()(0)
  assert (batch['image'][..., 2] == 8).all()
