import numpy as np
import pytest
from data.image_files import write

from sjft_jax.data.folder import ClassFolder, UnlabelledFolder


def test_classes_files_and_labels_are_sorted(tmp_path, image):
  for name in ('train/b/2.PNG', 'train/b/10.png', 'train/a/x.png', 'test/a/x.png'):
    write(tmp_path / name, image)
  (tmp_path / 'train/a/notes.txt').write_text('not an image')
  (tmp_path / 'train/.hidden').mkdir()
  data = ClassFolder(str(tmp_path), 'train')
  assert data.classes == ('a', 'b')
  assert [data.key(i) for i in range(len(data))] == ['a/x.png', 'b/10.png', 'b/2.PNG']
  assert data.labels.tolist() == [0, 1, 1]
  assert data.labels.dtype == np.int32
  np.testing.assert_array_equal(data[1], image)


def test_classes_that_are_numbers_are_sorted_by_value(tmp_path, image):
  for name in ('10', '9', '2', '02'):
    write(tmp_path / f'all/{name}/x.png', image)
    write(tmp_path / f'some/{name}/x.png', image)
  write(tmp_path / 'some/a/x.png', image)
  assert ClassFolder(str(tmp_path), 'all').classes == ('02', '2', '9', '10')
  assert ClassFolder(str(tmp_path), 'some').classes == ('02', '10', '2', '9', 'a')


def test_folders_without_classes_or_images_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r'train is not a folder; images are expected as <path>/'):
    ClassFolder(str(tmp_path), 'train')
  with pytest.raises(ValueError, match='is not a folder'):
    ClassFolder('', '')
  (tmp_path / 'train').mkdir()
  with pytest.raises(ValueError, match='has no class folders'):
    ClassFolder(str(tmp_path), 'train')
  (tmp_path / 'train/empty').mkdir()
  with pytest.raises(ValueError, match='empty has no image'):
    ClassFolder(str(tmp_path), 'train')


def test_an_unlabelled_folder_needs_images(tmp_path):
  for path in ('', str(tmp_path / 'nowhere')):
    with pytest.raises(ValueError, match=f"'{path}' is not a folder"):
      UnlabelledFolder(path)
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a/notes.txt').write_text('not an image')
  with pytest.raises(
    ValueError, match=r'no image \(AVIF, .*\) below .*, but 1 .txt files \(a/notes.txt\)'
  ):
    UnlabelledFolder(str(tmp_path))
