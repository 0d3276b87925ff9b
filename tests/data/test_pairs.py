import functools

import numpy as np
import pytest

from sjft_jax.data import pairs, transforms
from sjft_jax.data.loader import prefetch, views
from sjft_jax.data.pairs import Pairs, SourceOnly
from sjft_jax.data.sampler import Sampler
from sjft_jax.selection.subset import Subset


class Numbered:
  """Images whose pixels spell their domain and index."""

  classes = ('a', 'b', 'c')
  fingerprint = 'numbered'

  def __init__(self, domain, size):
    self.name, self.domain, self.size = str(domain), domain, size
    self.labels = (np.arange(size) % 3).astype(np.int32)

  def __len__(self):
    return self.size

  def key(self, index):
    return f'{self.name}/{index}'

  def __getitem__(self, index):
    return self.at_least(index, 0)

  def at_least(self, index, side):
    return np.full((8, 8, 3), (self.domain, index, side), np.uint8)


RANKING = np.array([[4, 8, 2], [1, 0, 9], [7, 7, 3], [5, 6, 0], [2, 1, 8]])
COUNTS = np.array([1, 3, 2, 3, 1])


def make(
  subset=True,
  seed=3,
  round_=0,
  batch_size=4,
  kind='none',
  cls=Pairs,
  source=None,
  places=None,
):
  chosen = Subset(RANKING, COUNTS) if subset else None
  augment = functools.partial(transforms.augment, kind=kind, resize=8, crop=6)
  target = Numbered(0, 5)
  return cls(
    target,
    source or Numbered(1, 10),
    chosen,
    Sampler(target.labels, seed, batch_size),
    augment,
    8,
    seed,
    round_,
    batch_size,
    range(batch_size) if places is None else places,
  )


def same(a, b):
  return all(np.array_equal(a[name], b[name]) for name in a)


def test_each_target_stands_before_one_of_its_neighbours():
  drawn = set()
  for step in range(40):
    batch = make()(step)
    np.testing.assert_array_equal(batch['is_source'], [False, True] * 4)
    domain, index = batch['image'][:, 0, 0, 0], batch['image'][:, 0, 0, 1].astype(int)
    np.testing.assert_array_equal(domain, [0, 1] * 4)
    np.testing.assert_array_equal(batch['label'], index % 3)
    drawn |= set(zip(index[0::2].tolist(), index[1::2].tolist(), strict=True))
  allowed = {
    (t, s) for t, (row, k) in enumerate(zip(RANKING, COUNTS, strict=True)) for s in row[:k]
  }
  assert drawn == allowed


def test_without_a_subset_there_are_target_images_only():
  batch = make(subset=False)(0)
  assert batch['image'].shape == (4, 6, 6, 3)
  assert not batch['is_source'].any()
  # The same target images in the same order as with neighbours: arms differ in the source only.
  with_source = make()(0)
  np.testing.assert_array_equal(batch['label'], with_source['label'][0::2])


@pytest.mark.parametrize('kind', ['none', 'resnet', 'pursuit'])
def test_a_batch_is_a_pure_function_of_seed_round_and_step(kind):
  batches = make(kind=kind)
  first = [batches(step) for step in range(6)]
  for step in (5, 0, 3):
    assert same(make(kind=kind)(step), first[step])
  assert not same(make(kind=kind, seed=4)(3), first[3])
  assert not same(make(kind=kind)(4), first[3])


@pytest.mark.parametrize('cls', [Pairs, SourceOnly])
def test_processes_that_share_a_batch_load_its_parts(cls):
  whole, parts = (
    make(kind='pursuit', cls=cls, places=places)(7)['image'] for places in (None, [0, 1, 3])
  )
  np.testing.assert_array_equal(parts, whole[[0, 1, 2, 3, 6, 7]])


def test_the_images_of_a_batch_have_names_and_a_number():
  batches = make()
  index = batches(2)['image'][:, 0, 0, 1]
  assert batches.names(2) == [
    f'{domain}/{domain}/{i}' for domain, i in zip([0, 1] * 4, index, strict=True)
  ]
  for some in (batches, make(subset=False), make(cls=SourceOnly, places=[2])):
    assert some.images == len(some(0)['image'])


def test_another_round_draws_other_neighbours():
  one = [make()(step)['image'] for step in range(5)]
  two = [make(round_=1)(step)['image'] for step in range(5)]
  assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize('ahead', [1, 5])
def test_prefetching_changes_nothing_and_starts_anywhere(monkeypatch, ahead):
  monkeypatch.setattr(pairs, 'AHEAD', ahead)
  batches = make(kind='pursuit')
  loaded = list(prefetch(batches, 7, 20))
  assert len(loaded) == 13
  for step, batch in enumerate(loaded, 7):
    assert same(batch, batches(step))


def test_pretraining_batches_hold_source_images_only():
  batch = make(cls=SourceOnly)(2)
  assert batch['is_source'].all()
  assert (batch['image'][:, 0, 0, 0] == 1).all()
  assert len(batch['image']) == 8


def test_views_keep_the_order_and_every_image():
  loaded = list(views(Numbered(1, 10), lambda image: image[None, :2, :2], 4, side=2))
  assert [len(batch) for batch in loaded] == [4, 4, 2]
  np.testing.assert_array_equal(np.concatenate(loaded)[:, 0, 0, 0, 1], np.arange(10))


def test_a_multi_label_source_brings_what_its_images_show():
  source = Numbered(1, 10)
  source.labels = np.random.default_rng(0).random((10, 3)) < 0.5
  for cls, places in ((Pairs, slice(1, None, 2)), (SourceOnly, slice(None))):
    batch = make(source=source, cls=cls)(0)
    index = batch['image'][places, 0, 0, 1].astype(int)
    np.testing.assert_array_equal(batch['shown'][places], source.labels[index])
    assert not batch['shown'][~batch['is_source']].any()
    assert not batch['label'][batch['is_source']].any()
  assert 'shown' not in make()(0)


def test_images_are_decoded_no_larger_than_the_augmentation_can_use():
  batch = make()(0)
  assert (batch['image'][..., 2] == 8).all()
