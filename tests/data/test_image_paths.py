from pathlib import Path

import numpy as np
import pytest
from data.image_files import keys, write

from sjft_jax.data.dataset import Dataset
from sjft_jax.data.decode import UnreadableError
from sjft_jax.data.image_paths import ImageFiles, open_images, open_labelled


def test_image_files_come_in_the_given_order(tmp_path, image):
  paths = [tmp_path / name for name in ('b.png', 'a/1.png', 'noise without suffix')]
  for number, path in enumerate(paths[:2]):
    write(path, image + np.uint8(number))
  paths[2].write_bytes(paths[0].read_bytes())
  data = ImageFiles(paths)
  assert isinstance(data, Dataset)
  assert (len(data), data.name, data.classes) == (3, 'images', ('image',))
  assert data.labels.tolist() == [0, 0, 0]
  assert data.labels.dtype == np.int32
  assert keys(data) == [data.location(i) for i in range(3)] == [str(path) for path in paths]
  np.testing.assert_array_equal(data[1], image + np.uint8(1))
  np.testing.assert_array_equal(data[2], data[0])
  assert data.fingerprint == ImageFiles(paths).fingerprint != ImageFiles(paths[::-1]).fingerprint


def test_image_files_may_be_relative_and_given_twice(tmp_path, image, monkeypatch):
  write(tmp_path / 'a/1.png', image)
  monkeypatch.chdir(tmp_path)
  data = ImageFiles([Path('a/1.png')] * 2)
  assert keys(data) == ['a/1.png'] * 2
  np.testing.assert_array_equal(data[1], image)


def test_image_files_that_are_missing_or_unreadable_are_named(tmp_path):
  with pytest.raises(ValueError, match='no images are given'):
    ImageFiles([])
  for path in (tmp_path, tmp_path / 'none.png'):
    with pytest.raises(ValueError, match=f'{path} is not a file'):
      ImageFiles([path])
  (tmp_path / 'text.png').write_text('no image')
  with pytest.raises(UnreadableError, match=rf'^{tmp_path}/text\.png is no AVIF,'):
    ImageFiles([tmp_path / 'text.png'])[0]


def test_a_split_of_a_list_or_a_folder_is_opened(tmp_path, image):
  names = ['train/ant/1.png', 'test/ant/1.png', 'test/bee/1.png']
  for name in names:
    write(tmp_path / name, image)
  rows = [f'{name},{name.split("/")[1]},{name.split("/")[0]}' for name in names]
  path = tmp_path / 'list.csv'
  path.write_text('\n'.join(['path,label,split', *rows]))
  assert keys(open_labelled(str(path), 'test')) == names[1:]
  assert keys(open_labelled(str(tmp_path), 'test')) == keys(open_labelled(str(tmp_path / 'test')))
  with pytest.raises(ValueError, match=r'has the splits test, train; choose one, .*--split=test$'):
    open_labelled(str(path))
  path.write_text('\n'.join(['path,label,split', *rows[1:]]))
  assert keys(open_labelled(str(path))) == names[1:]
  path.write_text('\n'.join(['path,label', *(row.rpartition(',')[0] for row in rows)]))
  assert keys(open_labelled(str(path))) == names


def test_a_list_has_its_own_paths_with_labels_and_without(tmp_path, image):
  write(tmp_path / 'in/1.png', image)
  write(tmp_path / 'out/2.png', image)
  path = tmp_path / 'in' / 'list.csv'
  path.write_text(f'path,label\n./1.png,a\n{tmp_path}/out/2.png,b\n')
  data = open_images(str(path))
  assert keys(data) == keys(open_labelled(str(path))) == ['1.png', f'{tmp_path}/out/2.png']
  np.testing.assert_array_equal(data[0], image)
  # Of several, the folder tells images of one name apart.
  assert keys(open_images(str(path), str(path)))[0] == str(tmp_path / 'in/1.png')
  path.write_text('path\nnone.png\n')
  with pytest.raises(ValueError, match=f'{tmp_path}/in/none.png is not a file'):
    open_images(str(path))


def test_a_split_to_score_is_found_in_any_case(tmp_path, image):
  for split in ('Train', 'TEST'):
    for name in ('a', 'b'):
      write(tmp_path / split / name / '0.png', image)
  lines = ['path,label,split', 'Train/a/0.png,a,Train', 'TEST/b/0.png,b,TEST']
  (tmp_path / 'list.csv').write_text('\n'.join(lines))
  assert len(open_labelled(str(tmp_path), 'test')) == 2
  assert len(open_labelled(str(tmp_path / 'list.csv'), 'test')) == 1
