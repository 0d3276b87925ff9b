"""Files and links that are passed over in folders, through the command line."""

import os
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from commands import refusal
from data.preview_command import output, preview, write

from sjft_jax.data.folder import ClassFolder

# Every test starts a command, which takes seconds.
pytestmark = pytest.mark.slow


def test_files_that_are_passed_over_are_counted(tmp_path):
  data = tmp_path / 'data'
  write(data, *(f'a/{name}' for name in ('1.png', '2.jfif', '3.jpe', '4', '5.old', 'deep/6.pgm')))
  write(data, 'a/9.jpg')
  (data / 'a/9.jpg').rename(data / 'a/9.jpg~')
  (data / 'a/7.mp4').write_bytes(b'\0\0\0\x18ftypisom' + bytes(99))
  (data / 'a/8.cr2').write_bytes(b'II*\0' + bytes(99))
  (data / 'a/9.png').symlink_to('nowhere.png')
  (data / 'a/BMW').write_text('BMW and P1 are words')
  (data / 'LICENSE').write_text('free')
  write(data, 'beside.png')
  text = output(preview(data, data='source', HOME=str(tmp_path)))
  assert (
    f'Passed over in {data}: 2 files beside the class folders (LICENSE, beside.png), 1 .mp4 files '
    '(a/7.mp4), 1 .cr2 files (a/8.cr2), 1 copies that an editor left (a/9.jpg~), 1 links that lead '
    'nowhere (a/9.png), 1 files of no known format (a/BMW)' in text
  )
  assert 'source, data' in text


@pytest.fixture
def without_heif(tmp_path):
  """Return a folder that hides the package pillow-heif from Python."""
  folder = tmp_path / 'hidden'
  folder.mkdir()
  (folder / 'pillow_heif.py').write_text('raise ImportError\n')
  return folder


def test_line_says_what_reads_heic_images(tmp_path, without_heif):
  data = tmp_path / 'data'
  write(data, 'train/a/1.png', 'train/a/2.HEIC', 'test/a/1.png')  # The second is a PNG by content.
  heic = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(99)
  for name in ('3.heic', '4.jpg'):
    (data / 'train/a' / name).write_bytes(heic)
  text = output(preview(data, python_path=[without_heif], HOME=str(tmp_path)))
  remedy = "HEIC images, which the package pillow-heif reads: pip install 'sjft_jax[heic]'"
  assert f'Passed over in {data}/train: 1 {remedy} (a/3.heic)' in text
  (tmp_path / 'list.csv').write_text(
    'path,label,split\ndata/train/a/3.heic,a,train\ndata/test/a/1.png,a,test\n'
  )
  error = refusal(preview(tmp_path / 'list.csv', python_path=[without_heif], HOME=str(tmp_path)))
  assert f'3.heic is a {remedy.replace("images", "image")}' in error


def test_heic_images_are_read_if_there_is_the_package(tmp_path):
  pillow_heif = pytest.importorskip('pillow_heif')
  data = tmp_path / 'data'
  write(data, 'train/a/1.png', 'test/a/1.png')
  red = PIL.Image.new('RGB', (60, 40), (200, 30, 30))
  pillow_heif.from_pillow(red).save(data / 'train/a/0.heic')
  shutil.copy(data / 'train/a/0.heic', data / 'train/a/no_suffix')
  text = output(preview(data, images=3, HOME=str(tmp_path)))
  assert 'Passed over' not in text
  # Two images, each in a view for retrieval and one for testing of 144 × 144 pixels.
  page = np.asarray(PIL.Image.open(tmp_path / 'preview.png').convert('RGB')).reshape(-1, 3)
  assert (np.abs(page.astype(int) - (200, 30, 30)).max(axis=1) <= 4).sum() >= 4 * 144**2
  (data / 'train/a/2.heic').write_bytes((data / 'train/a/0.heic').read_bytes()[:300])
  error = refusal(preview(data, images=4, HOME=str(tmp_path)))
  assert '2.heic is ' in error


def test_links_to_themselves_and_pipes_are_passed_over(tmp_path):
  data = tmp_path / 'data'
  write(data, 'a/1.png')
  for name in ('a/self', 'a/self.png', 'itself'):
    (data / name).symlink_to(Path(name).name)
  os.mkfifo(data / 'a/pipe.png')
  text = output(preview(data, data='source', HOME=str(tmp_path)))
  assert (
    f'Passed over in {data}: 1 files beside the class folders (itself), 1 pipes and devices '
    '(a/pipe.png), 2 links that lead nowhere (a/self, a/self.png)' in text
  )


def test_folders_of_links_that_multiply_are_read_once(tmp_path):
  """Of eight folders, each links ten times to the next: a hundred million paths."""
  data = tmp_path / 'data'
  write(data, 'a/8/1.png', 'b/1.png')
  for depth in range(1, 8):
    (data / f'a/{depth}').mkdir()
    for number in range(10):
      (data / f'a/{depth}/{number}').symlink_to(f'../{depth + 1}')
  (data / 'b/link').symlink_to('../a/8')  # In another class, the same folder counts again.
  text = output(preview(data, data='source', HOME=str(tmp_path)))
  assert '70 folders that are read under another name (a/1/0/0/0/0/0/0/1, ' in text
  images = ClassFolder(str(data), '')
  assert [images.key(i) for i in range(len(images))] == [
    *('a/1/0/0/0/0/0/0/0/1.png', 'b/1.png', 'b/link/1.png')
  ]
