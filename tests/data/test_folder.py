import os
import pickle
import shutil

import cv2
import numpy as np
import PIL.Image
import pytest
from data.image_files import write

from sjft_jax.data.dataset import Dataset
from sjft_jax.data.decode import UnreadableError
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


def test_pixels_become_upright_rgb(tmp_path, image):
  write(tmp_path / 'c/grey.png', image[..., 0])
  write(tmp_path / 'c/alpha.png', np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]))
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # the camera was turned: show it rotated by 90° clockwise
  smooth = cv2.resize(image, (90, 60), interpolation=cv2.INTER_CUBIC)
  PIL.Image.fromarray(smooth).save(tmp_path / 'c/turned.jpg', exif=exif, quality=100, subsampling=0)
  data = ClassFolder(str(tmp_path), '')
  np.testing.assert_array_equal(data[0], image)
  np.testing.assert_array_equal(data[1], np.repeat(image[..., :1], 3, 2))
  turned = np.rot90(smooth, -1)
  assert data[2].shape == turned.shape
  assert np.abs(data[2].astype(int) - turned).mean() < 3


def test_unreadable_files_are_named_with_their_reason(tmp_path, image):
  write(tmp_path / 'c/whole.png', image)
  for name, content in (('empty.jpg', b''), ('page.jpg', b'<html>'), ('text.jpg', b'no image')):
    (tmp_path / 'c' / name).write_bytes(content)
  data = ClassFolder(str(tmp_path), '')
  (tmp_path / 'c/whole.png').unlink()
  reasons = ('is empty', 'is a web page', 'is no AVIF,', 'cannot be opened: No such file')
  for index, reason in enumerate(reasons):
    with pytest.raises(UnreadableError, match=f'^{data.location(index)} {reason}'):
      data[index]
    assert data.location(index) == str(tmp_path / data.key(index))


def test_images_can_be_read_in_reduced_size(tmp_path, image):
  (tmp_path / 'c').mkdir()
  PIL.Image.fromarray(cv2.resize(image, (90, 60))).save(tmp_path / 'c/1.jpg')
  assert ClassFolder(str(tmp_path), '').read_image(0, min_side=15).shape == (15, 23, 3)


def test_an_index_out_of_range_raises(tmp_path, image):
  write(tmp_path / 'c/1.png', image)
  write(tmp_path / 'c/2.png', image)
  data = ClassFolder(str(tmp_path), '')
  assert data.key(-1) == 'c/2.png'
  with pytest.raises(IndexError):
    data[2]


def test_a_data_set_can_be_pickled_for_other_processes(tmp_path, image):
  for name in ('a/1.png', 'b/2.png'):
    write(tmp_path / name, image)
  data = pickle.loads(pickle.dumps(ClassFolder(str(tmp_path), '')))
  assert [data.key(i) for i in range(2)] == ['a/1.png', 'b/2.png']
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


def test_fingerprint_follows_names_and_content(tmp_path, image):
  write(tmp_path / 'c/1.bmp', image)
  first = ClassFolder(str(tmp_path), '').fingerprint
  assert ClassFolder(str(tmp_path), '').fingerprint == first
  write(tmp_path / 'c/2.bmp', image)
  second = ClassFolder(str(tmp_path), '').fingerprint
  (tmp_path / 'c/2.bmp').rename(tmp_path / 'c/3.bmp')
  third = ClassFolder(str(tmp_path), '').fingerprint
  write(tmp_path / 'c/3.bmp', 255 - image)  # of the same size
  assert len({first, second, third, ClassFolder(str(tmp_path), '').fingerprint}) == 4


def test_fingerprint_stays_when_files_are_copied_or_touched(tmp_path, image):
  write(tmp_path / 'one/c/1.bmp', image)
  shutil.copytree(tmp_path / 'one', tmp_path / 'two')
  os.utime(tmp_path / 'two/c/1.bmp', (0, 0))
  one, two = (ClassFolder(str(tmp_path / name), '').fingerprint for name in ('one', 'two'))
  assert one == two


def test_unlabelled_images_come_from_any_depth_in_sorted_order(tmp_path, image):
  for name in ('b.png', 'a/z/2.png', 'a/10.PNG', 'a/2.png', 'a.png', '.hidden/x.png', 'a/.x.png'):
    write(tmp_path / name, image)
  (tmp_path / 'a/notes.txt').write_text('not an image')
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'folder.png').mkdir()
  data = UnlabelledFolder(str(tmp_path))
  assert isinstance(data, Dataset)
  assert [data.key(i) for i in range(len(data))] == [
    *('a/10.PNG', 'a/2.png', 'a/z/2.png', 'a.png', 'b.png')
  ]
  assert (data.name, len(data.classes)) == (tmp_path.name, 1)
  assert data.labels.tolist() == [0] * 5
  assert data.labels.dtype == np.int32
  np.testing.assert_array_equal(data[3], image)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path, image):
  write(tmp_path / 'elsewhere/1.png', image)
  (tmp_path / 'data/a').mkdir(parents=True)
  (tmp_path / 'data/a/link').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'data/a/up').symlink_to(tmp_path / 'data')
  (tmp_path / 'elsewhere/self').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'data/broken.png').symlink_to(tmp_path / 'nowhere.png')
  data = UnlabelledFolder(str(tmp_path / 'data'))
  assert [data.key(i) for i in range(len(data))] == ['a/link/1.png']


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


def test_a_name_that_is_not_utf8_is_refused(tmp_path, image):
  for name in (b'a.png', b'caf\xe9.png'):
    write(tmp_path / 'c' / os.fsdecode(name), image)
  for open_folder in (UnlabelledFolder, lambda path: ClassFolder(path, '')):
    with pytest.raises(ValueError, match=r'caf\\udce9\.png. has a name that is not UTF-8'):
      open_folder(str(tmp_path))
