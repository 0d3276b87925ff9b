import os
import pickle
import shutil

import cv2
import numpy as np
import PIL.Image
import pytest
from data.image_files import write

from sjft_jax.data.decode import UnreadableError
from sjft_jax.data.folder import ClassFolder, UnlabelledFolder


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


def test_a_name_that_is_not_utf8_is_refused(tmp_path, image):
  for name in (b'a.png', b'caf\xe9.png'):
    write(tmp_path / 'c' / os.fsdecode(name), image)
  for open_folder in (UnlabelledFolder, lambda path: ClassFolder(path, '')):
    with pytest.raises(ValueError, match=r'caf\\udce9\.png. has a name that is not UTF-8'):
      open_folder(str(tmp_path))
