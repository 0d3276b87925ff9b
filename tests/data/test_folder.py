import os

import cv2
import numpy as np
import PIL.Image
import pytest

from sjft_jax.data import dataset
from sjft_jax.data.folder import Folder, Unlabelled


def write(file, image):
  file.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(image).save(file)


@pytest.fixture
def image():
  return np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def test_sorted_classes_files_and_labels(tmp_path, image):
  for name in ('train/b/2.PNG', 'train/b/10.png', 'train/a/x.png', 'test/a/x.png'):
    write(tmp_path / name, image)
  (tmp_path / 'train/a/notes.txt').write_text('not an image')
  (tmp_path / 'train/.hidden').mkdir()
  data = Folder(str(tmp_path), 'train')
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
  data = Folder(str(tmp_path), '')
  np.testing.assert_array_equal(data[0], image)
  np.testing.assert_array_equal(data[1], np.repeat(image[..., :1], 3, 2))
  turned = np.rot90(smooth, -1)
  assert data[2].shape == turned.shape
  assert np.abs(data[2].astype(int) - turned).mean() < 3


@pytest.mark.parametrize('content', [b'', b'no image at all'])
def test_unreadable_file_is_named(tmp_path, content):
  (tmp_path / 'c').mkdir()
  (tmp_path / 'c/bad.jpg').write_bytes(content)
  with pytest.raises(ValueError, match=r'c/bad\.jpg cannot be read as an image'):
    Folder(str(tmp_path), '')[0]


def test_layout_errors(tmp_path):
  with pytest.raises(ValueError, match=r'train is not a folder; images are expected as <path>/'):
    Folder(str(tmp_path), 'train')
  with pytest.raises(ValueError, match='is not a folder'):
    Folder('', '')
  (tmp_path / 'train').mkdir()
  with pytest.raises(ValueError, match='has no class folders'):
    Folder(str(tmp_path), 'train')
  (tmp_path / 'train/empty').mkdir()
  with pytest.raises(ValueError, match='empty has no image'):
    Folder(str(tmp_path), 'train')


def test_fingerprint_follows_names_and_sizes(tmp_path, image):
  write(tmp_path / 'c/1.png', image)
  first = Folder(str(tmp_path), '').fingerprint
  assert Folder(str(tmp_path), '').fingerprint == first
  write(tmp_path / 'c/2.png', image)
  second = Folder(str(tmp_path), '').fingerprint
  with (tmp_path / 'c/2.png').open('ab') as file:
    file.write(b'!')
  assert len({first, second, Folder(str(tmp_path), '').fingerprint}) == 3


def test_load(tmp_path, image):
  write(tmp_path / 'train/c/1.png', image)
  data = dataset.load(dataset='folder', path=str(tmp_path), split='train')
  assert (len(data), data.name) == (1, f'{tmp_path.name}/train')
  assert len(dataset.load(dataset='demo_textures', path='', split='test')) == 504
  with pytest.raises(ValueError, match=r"'imagenet' is unknown; choose one of \['folder', 'demo_"):
    dataset.load(dataset='imagenet', path='', split='train')
  with pytest.raises(ValueError, match="path='x' is not read by demo_textures"):
    dataset.load(dataset='demo_textures', path='x', split='train')


def test_unlabelled_images_at_any_depth_in_sorted_order(tmp_path, image):
  for name in ('b.png', 'a/z/2.png', 'a/10.PNG', 'a/2.png', 'a.png', '.hidden/x.png', 'a/.x.png'):
    write(tmp_path / name, image)
  (tmp_path / 'a/notes.txt').write_text('not an image')
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'folder.png').mkdir()
  data = Unlabelled(str(tmp_path))
  assert isinstance(data, dataset.Dataset)
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
  data = Unlabelled(str(tmp_path / 'data'))
  assert [data.key(i) for i in range(len(data))] == ['a/link/1.png']


def test_unlabelled_needs_a_folder_with_images(tmp_path):
  for path in ('', str(tmp_path / 'nowhere')):
    with pytest.raises(ValueError, match=f"'{path}' is not a folder"):
      Unlabelled(path)
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a/notes.txt').write_text('not an image')
  with pytest.raises(ValueError, match=r'no image \(\.bmp, .*\) below'):
    Unlabelled(str(tmp_path))


def test_a_name_that_no_table_can_hold_is_refused(tmp_path, image):
  for name in (b'a.png', b'caf\xe9.png'):
    write(tmp_path / 'c' / os.fsdecode(name), image)
  for data in (lambda: Unlabelled(str(tmp_path)), lambda: Folder(str(tmp_path), '')):
    with pytest.raises(ValueError, match=r'caf\\udce9\.png. has a name that is not UTF-8'):
      data()
