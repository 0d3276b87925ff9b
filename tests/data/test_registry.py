from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sjft_jax.data import registry
from sjft_jax.data.dataset import Dataset
from sjft_jax.data.registry import stratified_split

DRAWN = {'train_per_class': 0, 'test_share': 0.2, 'split_seed': 0}


def write(folder, count):
  folder.mkdir(parents=True)
  for index in range(count):
    pixels = np.full((4, 5, 3), 10 * index % 256, np.uint8)
    cv2.imwrite(str(folder / f'{index}.png'), pixels)


def keys(data):
  return [data.key(i) for i in range(len(data))]


@given(
  counts=st.lists(st.integers(2, 30), min_size=1, max_size=5),
  share=st.floats(0.01, 0.99),
  seed=st.integers(0, 9),
)
def test_a_share_of_every_class_is_held_out(counts, share, seed):
  labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
  labels = labels.astype(np.int32)
  names = tuple(map(str, range(len(counts))))
  train, test = stratified_split(labels, names, test_share=share, seed=seed)
  np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
  assert (np.diff(train) > 0).all()
  for label, count in enumerate(counts):
    held_out = (labels[test] == label).sum()
    assert 1 <= held_out < count
    assert abs(held_out - share * count) <= 1


@given(seed=st.integers(0, 5), per_class=st.integers(1, 6))
def test_as_many_of_every_class_are_drawn_as_asked(seed, per_class):
  labels = np.repeat(np.arange(3, dtype=np.int32), (7, 9, 30))
  train, test = stratified_split(labels, ('a', 'b', 'c'), train_per_class=per_class, seed=seed)
  np.testing.assert_array_equal(np.bincount(labels[train]), [per_class] * 3)
  assert len(test) == 46 - 3 * per_class


def test_a_draw_depends_on_the_seed_but_not_on_other_classes():
  labels = np.repeat(np.arange(2, dtype=np.int32), (20, 30))
  train, _ = stratified_split(labels, ('a', 'b'), train_per_class=10, seed=0)
  again, _ = stratified_split(labels, ('a', 'b'), train_per_class=10, seed=0)
  other, _ = stratified_split(labels, ('a', 'b'), train_per_class=10, seed=1)
  alone, _ = stratified_split(labels[:20], ('a',), train_per_class=10, seed=0)
  np.testing.assert_array_equal(train, again)
  assert (train != other).any()
  np.testing.assert_array_equal(train[:10], alone)


def test_a_folder_without_splits_is_split(tmp_path):
  for name, count in (('cat', 10), ('dog', 5)):
    write(tmp_path / name, count)
  options = {'dataset': 'folder', 'path': str(tmp_path), 'train_split': 'train'}
  train, test = registry.open_target(**options, test_split='test', **DRAWN)
  assert train.classes == test.classes == ('cat', 'dog')
  assert (len(train), len(test)) == (12, 3)
  assert sorted(keys(train) + keys(test)) == sorted(
    f'{name}/{i}.png' for name, count in (('cat', 10), ('dog', 5)) for i in range(count)
  )
  assert train[0].shape == (4, 5, 3)
  changed = DRAWN | {'train_per_class': 3}
  train, test = registry.open_target(**options, test_split='test', **changed)
  np.testing.assert_array_equal(train.labels, [0, 0, 0, 1, 1, 1])
  assert len(test) == 9
  with pytest.raises(ValueError, match=r"class 'dog' has 5 images, too few for 5 to train on"):
    registry.open_target(**options, test_split='test', **DRAWN | {'train_per_class': 5})


def test_a_source_folder_without_splits_is_taken_whole(tmp_path):
  write(tmp_path / 'cat', 3)
  data = registry.load(dataset='folder', path=str(tmp_path), split='train')
  assert keys(data) == ['cat/0.png', 'cat/1.png', 'cat/2.png']
  write(tmp_path / 'train' / 'cat', 1)
  with pytest.raises(ValueError, match="split='trian'.* is not a folder"):
    registry.load(dataset='folder', path=str(tmp_path), split='trian')


def test_splits_of_a_folder_are_used(tmp_path):
  for split, count in (('train', 4), ('test', 2)):
    write(tmp_path / split / 'cat', count)
    write(tmp_path / split / 'dog', count)
  options = {'dataset': 'folder', 'path': str(tmp_path), 'train_split': 'train'}
  train, test = registry.open_target(**options, test_split='test', **DRAWN)
  assert (len(train), len(test)) == (8, 4)
  changed = DRAWN | {'train_per_class': 4}
  assert len(registry.open_target(**options, test_split='test', **changed)[0]) == 8
  changed = DRAWN | {'train_per_class': 1}
  assert len(registry.open_target(**options, test_split='test', **changed)[0]) == 2
  train, test = registry.open_target(**options, test_split='', **changed)
  assert (len(train), len(test)) == (2, 6)
  with pytest.raises(
    ValueError, match="no split test_split='tests', but test, train; test_split=t"
  ):
    registry.open_target(**options, test_split='tests', **DRAWN)


@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
def test_a_list_is_split_by_its_column_or_drawn(tmp_path, suffix):
  save = {'csv': pa.csv.write_csv, 'parquet': pa.parquet.write_table}[suffix]
  write(tmp_path / 'images', 8)
  rows = {'path': [f'images/{i}.png' for i in range(8)], 'label': ['cat', 'dog'] * 4}
  options = {'dataset': 'folder', 'train_split': 'train', 'test_split': 'test'}
  save(pa.table(rows), tmp_path / f'plain.{suffix}')
  path = str(tmp_path / f'plain.{suffix}')
  train, test = registry.open_target(**options, path=path, **DRAWN)
  assert (len(train), len(test)) == (6, 2)
  split = ['train'] * 6 + ['test'] * 2
  save(pa.table(rows | {'split': split}), tmp_path / f'split.{suffix}')
  path = str(tmp_path / f'split.{suffix}')
  train, test = registry.open_target(**options, path=path, **DRAWN)
  assert (keys(train), keys(test)) == (rows['path'][:6], rows['path'][6:])
  np.testing.assert_array_equal(test.labels, [0, 1])


def groups_of(data, groups):
  """Return the groups of a data set's images, whose keys are the rows' paths."""
  return {groups[int(Path(key).stem)] for key in keys(data)}


@pytest.mark.parametrize('share', [0.2, 0.5, 0.75])
def test_groups_of_a_list_are_not_divided_when_test_images_are_drawn(tmp_path, share):
  """Three images of each of seven objects; two of the images belong to no object."""
  write(tmp_path / 'images', 23)
  groups = [*(f'object {i // 3}' for i in range(21)), '', None]
  rows = {'path': [f'images/{i}.png' for i in range(23)], 'label': ['cat', 'dog'] * 11 + ['cat']}
  pa.parquet.write_table(pa.table(rows | {'GROUP': groups}), tmp_path / 'list.parquet')
  options = {'dataset': 'folder', 'train_split': 'train', 'test_split': 'test'}
  options |= {'path': str(tmp_path / 'list.parquet')}
  train, test = registry.open_target(**options, **DRAWN | {'test_share': share})
  assert sorted(keys(train) + keys(test)) == sorted(rows['path'])
  assert len(test) == pytest.approx(share * 23, abs=3)
  assert not groups_of(train, groups) & groups_of(test, groups) - {'', None}
  other, _ = registry.open_target(**options, **DRAWN | {'test_share': share, 'split_seed': 1})
  assert keys(other) != keys(train)
  with pytest.raises(ValueError, match='train_per_class=3 cannot be drawn from images with groups'):
    registry.open_target(**options, **DRAWN | {'train_per_class': 3})


def test_a_class_of_one_group_or_a_group_in_two_splits_is_an_error(tmp_path):
  write(tmp_path / 'images', 8)
  rows = {'path': [f'images/{i}.png' for i in range(8)], 'label': ['cat'] * 4 + ['dog'] * 4}
  rows['group'] = ['a', 'a', 'b', 'b', 'c', 'c', 'c', 'c']
  options = {'dataset': 'folder', 'train_split': 'train', 'test_split': 'test'}
  options |= {'path': str(tmp_path / 'list.csv')}
  pa.csv.write_csv(pa.table(rows), tmp_path / 'list.csv')
  with pytest.raises(ValueError, match="class 'dog' has too few groups for training and test"):
    registry.open_target(**options, **DRAWN)
  split = {'split': ['train', 'test', 'train', 'train'] * 2}
  pa.csv.write_csv(pa.table(rows | split), tmp_path / 'list.csv')
  message = r"2 test images, such as 'images/1.png', share a group with training images; move"
  with pytest.raises(ValueError, match=message):
    registry.open_target(**options, **DRAWN)


@pytest.mark.parametrize('num_groups', [2, 3, 4, 5, 9])
@pytest.mark.parametrize('share', [0.2, 0.3, 0.4, 0.45, 0.6])
def test_the_share_of_drawn_groups_is_as_near_as_whole_groups_allow(tmp_path, num_groups, share):
  count = 2 * 3 * num_groups  # Groups of three images each in two classes.
  write(tmp_path / 'images', count)
  rows = {
    'path': [f'images/{i}.png' for i in range(count)],
    'label': ['cat' if i < count // 2 else 'dog' for i in range(count)],
    'group': [f'{i // 3}' for i in range(count)],
  }
  pa.csv.write_csv(pa.table(rows), tmp_path / 'list.csv')
  options = {'dataset': 'folder', 'train_split': 'train', 'test_split': 'test'}
  options |= {'path': str(tmp_path / 'list.csv')}
  _, test = registry.open_target(**options, **DRAWN | {'test_share': share})
  for label in range(2):
    num_test = (test.labels == label).sum() / 3
    assert 1 <= num_test < num_groups
    assert num_test == 1 or abs(num_test - share * num_groups) <= 0.5 + 1e-9


def test_groups_of_joined_lists_are_not_divided_either(tmp_path):
  write(tmp_path / 'images', 24)
  for name, start in (('a', 0), ('b', 12)):
    rows = {
      'path': [f'images/{i}.png' for i in range(start, start + 12)],
      'label': ['cat'] * 12,
      'group': [f'{i // 4}' for i in range(12)],
    }
    pa.csv.write_csv(pa.table(rows), tmp_path / f'{name}.csv')
  options = {'dataset': 'folder+folder', 'train_split': '', 'test_split': ''}
  options |= {'path': f'{tmp_path / "a.csv"},{tmp_path / "b.csv"}'}
  train, test = registry.open_target(**options, **DRAWN)
  groups = [{int(Path(key).stem) // 4 for key in keys(data)} for data in (train, test)]
  assert len(groups[0]) == 4
  assert len(groups[1]) == 2
  assert not groups[0] & groups[1]


def test_splits_in_two_spellings_are_an_error(tmp_path):
  write(tmp_path / 'images', 6)
  rows = {'path': [f'images/{i}.png' for i in range(6)], 'label': ['cat', 'dog'] * 3}
  split = ['train', 'train', 'Train', 'Train', 'test', 'test']
  pa.csv.write_csv(pa.table(rows | {'split': split}), tmp_path / 'list.csv')
  with pytest.raises(ValueError, match='list.csv has the splits Train and train; spell them'):
    registry.load(dataset='folder', path=str(tmp_path / 'list.csv'), split='train')


def test_folders_beside_a_split_that_may_be_classes_are_named(tmp_path, capsys):
  for name in ('car/2019', 'bus/2019', 'train/2019', 'train/2020'):
    write(tmp_path / name, 1)
  data = registry.load(dataset='folder', path=str(tmp_path), split='train')
  assert data.classes == ('2019', '2020')
  printed = ' '.join(capsys.readouterr().out.split())
  assert 'train is read without bus, car beside it; if train is a class like these' in printed
  data = registry.load(dataset='folder', path=str(tmp_path), split='')
  assert data.classes == ('bus', 'car', 'train')


def test_several_data_sets_become_one(tmp_path):
  for name in ('one', 'two'):
    write(tmp_path / name / 'train' / 'cat', 2)
  path = f'{tmp_path / "one"},{tmp_path / "two"}'
  data = registry.load(dataset='folder+folder', path=path, split='train')
  assert isinstance(data, Dataset)
  assert data.classes == ('one/cat', 'two/cat')
  with pytest.raises(ValueError, match='names 2 for 3 data sets'):
    registry.load(dataset='folder+folder+folder', path=path, split='train')


def test_unknown_names_are_refused_with_a_suggestion():
  with pytest.raises(ValueError, match=r"'imagenet2021' is unknown; did you mean 'imagenet2012'"):
    registry.load(dataset='imagenet2021', path='', split='train')
  with pytest.raises(ValueError, match='stanford_dogs, or a data set that TFDS has prepared below'):
    registry.load(dataset='x', path='', split='train')
  with pytest.raises(ValueError, match="path='x' is not read by demo_textures"):
    registry.load(dataset='demo_textures', path='x', split='train')
  assert len(registry.load(dataset='demo_textures', path='', split='test')) == 504


def test_joined_targets_without_splits_are_not_tested_on_what_they_are_trained_on(tmp_path):
  for folder in ('photos', 'scans'):
    for name in ('a', 'b'):
      write(tmp_path / folder / name, 5)
  path = f'{tmp_path}/photos,{tmp_path}/scans'
  options = {'dataset': 'folder+folder', 'path': path, 'train_split': 'train', **DRAWN}
  with pytest.raises(ValueError, match='photos has no splits: all its images would be for train'):
    registry.open_target(**options, test_split='test')
  train, test = registry.open_target(**options, test_split='')
  assert (len(train), len(test)) == (16, 4)


@pytest.mark.parametrize('splits', ['train test', 'fit held'])
def test_joined_targets_may_have_splits(tmp_path, splits):
  training, testing = splits.split()
  for split in ('photos/train', 'photos/test', f'scans/{training}', f'scans/{testing}'):
    for name in ('a', 'b'):
      write(tmp_path / split / name, 2)
  options = {'dataset': 'folder+folder', 'path': f'{tmp_path}/photos,{tmp_path}/scans', **DRAWN}
  options |= {'train_split': f'train,{training}', 'test_split': f'test,{testing}'}
  train, test = registry.open_target(**options)
  assert (len(train), len(test)) == (8, 8)
  assert train.classes == test.classes == ('photos/a', 'photos/b', 'scans/a', 'scans/b')
  # Two splits of one folder as a source: their classes have other names.
  path = f'{tmp_path}/photos,{tmp_path}/photos'
  twice = registry.load(dataset='folder+folder', path=path, split='train,test')
  assert twice.classes[::2] == ('photos/train/a', 'photos/test/a')


def test_remedies_for_joined_data_sets_fit_them(tmp_path):
  for name in ('a', 'b'):
    write(tmp_path / 'images' / name, 2)
  joined = {'dataset': 'folder+demo_textures', 'split': 'train'}
  with pytest.raises(ValueError, match="its place among the paths, as in 'SOURCE,'"):
    registry.load(**joined, path=f'{tmp_path}/images')
  assert len(registry.load(**joined, path=f'{tmp_path}/images,')) == 4 + 105
  with pytest.raises(ValueError, match=r'of TFDS with all splits in one \(train\+validation\)'):
    registry.load(dataset='demo_textures+demo_textures', path='', split='train,test')
