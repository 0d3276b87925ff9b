"""Folders and lists as people have them, through the command line."""

import csv
import os
import shutil
import sys
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from commands import ROOT, refusal, start
from small_run import command, write_data

from sjft_jax.data.folder import ClassFolder

# Every test starts a command, which takes seconds.
pytestmark = pytest.mark.slow

LIST = 'path,label,split\n'


def write(folder, *names, shape=(40, 40, 3)):
  """Write a picture of noise under each name."""
  for name in names:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    seed = [*name.encode()]
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    file.write_bytes(cv2.imencode('.png', pixels)[1].tobytes())


def preview(path, *options, data='target', images=1, cwd=ROOT, python_path=(), **environment):
  """Start the command that opens a data set and draws a few images.

  Folders of `python_path` come before all others where Python looks for packages.
  """
  options = [f'--config.{data}.path={path}', *(f'--config.{option}' for option in options)]
  module = f'cd {cwd} && exec {sys.executable} -m sjft_jax.data.preview "$@"'
  output = os.path.join(environment['HOME'], 'preview.png')
  config = f'--config={ROOT}/configs/folder.py'
  arguments = [
    config,
    f'--data={data}',
    f'--output={output}',
    f'--images={images}',
    '--draws=0',
    *options,
  ]
  python_path = os.pathsep.join(map(str, (*python_path, ROOT)))
  environment |= {'PYTHONPATH': python_path, 'XDG_CACHE_HOME': f'{environment["HOME"]}/cache'}
  return start(['sh', '-c', module, 'sh', *arguments], **environment)


def output(process):
  """Return what a command prints that ends well."""
  text, errors = process.communicate(timeout=300)
  assert (process.returncode, errors) == (0, '')
  return text.replace('\n', '')


# Files below HOME, options of the target, and a part of what is printed.
WORKING = {
  'capital splits': (['d/Train/a/1.png', 'd/Test/a/1.png'], 'd', [], 'd/Train'),
  'wrappers in splits': (
    [f'd/{split}/x/{name}/1.png' for split in ('train', 'test') for name in 'ab'],
    *('d', ['target.train_split=train/x', 'target.test_split=test/x'], 'd/train/x'),
  ),
  'val as test split': (
    ['d/train/a/1.png', 'd/val/a/1.png'],
    *('d', ['target.test_split=val'], 'd/train'),
  ),
  'classes called train and test': (
    ['d/bus/1.png', 'd/bus/2.png', 'd/train/1.png', 'd/train/2.png', 'd/test/1', 'd/test/2'],
    *('d', [], 'target, d'),
  ),
  'home': (['d/train/a/1.png', 'd/test/a/1.png'], '~/d', [], 'd/train'),
  'any depth': (['d/train/a/images/1.png', 'd/test/a/x/y/1.png'], 'd', [], 'd/train'),
  'blanks and Unicode forms': (
    [
      f'd/train/{unicodedata.normalize("NFC", "é")}/1.png',
      'd/test/é /1.png'.replace('é', 'e\u0301'),
    ],
    *('d', [], 'd/train'),
  ),
}


@pytest.mark.parametrize('case', WORKING)
def test_folder_is_read(tmp_path, case):
  names, path, options, expected = WORKING[case]
  write(tmp_path, *names)
  path = path if path.startswith('~') else tmp_path / path
  assert expected in output(preview(path, *options, HOME=str(tmp_path)))


REFUSED = {
  'train and val': (
    ['train/a/1.png', 'val/a/1.png'],
    "has no split test_split='test', but train, val; test_split=val tests on that, test_split= ",
  ),
  'wrapper': (['flowers/rose/1.png', 'flowers/lily/1.png', '__MACOSX/x'], 'give path={0}/flowers'),
  'wrapper of a wrapper': (
    ['zip/flowers/rose/1.png', 'zip/flowers/lily/1.png'],
    '{0} holds one folder, zip, and {0}/zip/flowers holds lily, rose: if these are the classes, '
    'give path={0}/zip/flowers; otherwise put',
  ),
  'wrapper in a split': (
    ['train/flowers/rose/1.png', 'train/flowers/lily/1.png', 'test/flowers/rose/1.png'],
    'give train/flowers as the split: train_split=train/flowers, or split=train/flowers for a',
  ),
  'other names of splits': (
    ['Training/a/1.png', 'Training/b/1.png', 'Testing/a/1.png', 'Testing/b/1.png'],
    'are splits and not classes; name them: for a target train_split=Training and '
    'test_split=Testing, for a source split=Training',
  ),
  'splits without classes': (
    ['train/1.png', 'test/1.png'],
    'but not all of them hold class folders; images are expected as <path>/<split>/<class>/<file>, '
    'the split may be empty; classes of these names need a split above them, {0}/train/test',
  ),
  'line break': (['train/a\nb/1.png', 'test/a/1.png'], "has the class name 'a\\nb'; rename it"),
  'two spellings of a class': (
    ['train/a/1.png', 'train/a /1.png', 'test/a/1.png'],
    "has the folders 'a' and 'a ', which name one class",
  ),
  'case of a class': (
    ['train/Cat/1.png', 'test/cat/1.png'],
    "has class 'Cat' in only one of 'train' and 'test': 1 of 1 classes of 'train' are not in "
    "'test', which has 'cat'",
  ),
  'class without images': (
    ['train/a/1.png', 'train/b/', 'test/a/1.png'],
    'train/b has no image that can be read',
  ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_folder_is_refused_with_a_remedy(tmp_path, case):
  names, message = REFUSED[case]
  folder = tmp_path / 'data'
  for name in names:
    if name.endswith('/'):
      (folder / name).mkdir(parents=True)
    else:
      write(folder, name)
  error = refusal(preview(folder, HOME=str(tmp_path)))
  assert message.format(folder) in error
  assert str(folder) in error or 'class' in message


def test_files_that_are_passed_over_are_counted(tmp_path):
  data = tmp_path / 'data'
  write(data, *(f'a/{name}' for name in ('1.png', '2.jfif', '3.jpe', '4', '5.old', 'deep/6.pgm')))
  (data / 'a/7.mp4').write_bytes(b'\0\0\0\x18ftypisom' + bytes(99))
  (data / 'a/8.cr2').write_bytes(b'II*\0' + bytes(99))
  (data / 'a/9.png').symlink_to('nowhere.png')
  (data / 'a/BMW').write_text('BMW and P1 are words')
  (data / 'LICENSE').write_text('free')
  write(data, 'beside.png')
  text = output(preview(data, data='source', HOME=str(tmp_path)))
  assert (
    f'Passed over in {data}: 2 beside the class folders (LICENSE, beside.png), 1 .mp4 files '
    '(a/7.mp4), 1 .cr2 files (a/8.cr2), 1 links that lead nowhere (a/9.png), 1 files of no known '
    'format (a/BMW)' in text
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
    f'{LIST}data/train/a/3.heic,a,train\ndata/test/a/1.png,a,test\n'
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
    f'Passed over in {data}: 1 beside the class folders (itself), 1 that are no files '
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


def test_list_that_is_a_pipe_or_a_device_is_refused(tmp_path):
  os.mkfifo(tmp_path / 'pipe.csv')
  (tmp_path / 'zero.csv').symlink_to('/dev/zero')
  for name in ('pipe.csv', 'zero.csv'):
    error = refusal(preview(tmp_path / name, HOME=str(tmp_path)))
    assert f'{name} cannot be read as a list of path and label: it is no regular file' in error


@pytest.mark.parametrize('name', ['list.csv', 'list.CSV', 'list.tsv'])
def test_list_in_the_current_folder_is_read(tmp_path, name):
  write(tmp_path, 'a.png', 'b.png', 'c.png', 'd.png')
  rows = 'path, label,note\na.png, x,1\nb.png,x ,2\nc.png,y,3\nd.png,y,\n'
  (tmp_path / name).write_text(rows.replace(',', '\t') if name.endswith('.tsv') else rows)
  assert 'target, list' in output(preview(name, cwd=tmp_path, HOME=str(tmp_path)))


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    (f'{LIST}a.png,x,train\nsub/../a.png,x,test\n', "'a.png' and 'sub/../a.png', the same file"),
    (f'{LIST}a.png,x,train\n{{0}}/a.png,x,test\n', "a.png', the same file; keep one row"),
    (f'{LIST}a.png,x,train\n./a.png,x,test\n', "'a.png' and './a.png', the same file"),
    ('path,path,label\na.png,a.png,x\n', 'it has 2 columns path; keep one'),
    ('path,label\na.png,"x\ny"\n', "has the class name 'x\\ny'; rename it"),
    ('path;label\na.png;x\n', 'columns are separated by commas, in a .tsv by tabs'),
    ('path,label\nsub\\b.png,x\n', 'write / instead of \\ in its paths'),
    (f'{LIST}a.png,x,train\nsub/b.png,x,val\n', 'test_split=val tests on that'),
  ],
)
def test_list_is_refused_with_a_remedy(tmp_path, rows, message):
  write(tmp_path, 'a.png', 'sub/b.png')
  (tmp_path / 'list.csv').write_text(rows.format(tmp_path))
  error = refusal(preview(tmp_path / 'list.csv', HOME=str(tmp_path)))
  assert message in error
  assert 'list.csv' in error


def rows(path):
  with path.open(encoding='utf-8', newline='') as file:
    return list(csv.reader(file))[1:]


@pytest.mark.slow
def test_run_notices_exchanged_mended_and_shared_images(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  data = write_data(tmp_path / 'data')
  folder = data / 'target/train/stripes 0'
  for file in data.glob('*/*/*/*.png'):  # Files of one size each.
    file.with_suffix('.bmp').write_bytes(cv2.imencode('.bmp', cv2.imread(str(file)))[1].tobytes())
    file.unlink()
  whole = (folder / '1.bmp').read_bytes()
  (folder / '1.bmp').write_bytes(whole[:100] + bytes(0))
  shutil.copy(data / 'target/test/stripes 0/0.bmp', folder / 'copy.bmp')
  options = [
    *('--config.arms=("none",)', '--config.training.steps=2', '--config.selection.rounds=1'),
    *('--config.pretrain.steps=0', '--config.screening.max_bad_share=0.5'),
  ]

  text = output(start(command(data, tmp_path / '1', *options)))
  assert '1 of 12 training images are test images as well and are left out of the training' in text
  copies = rows(tmp_path / '1/train_test_copies.csv')
  assert copies == [['stripes 0/copy.bmp', 'stripes 0/0.bmp']]
  assert [row[1] for row in rows(tmp_path / '1/bad_images.csv')] == ['stripes 0/1.bmp']
  assert 'is finished' in output(start(command(data, tmp_path / '1', *options)))

  # Exchange two images of the same size; copy the time stamps, too.
  one, other = folder / '2.bmp', data / 'target/test/stripes 0/1.bmp'
  stamps = os.stat(one)
  content = one.read_bytes()
  one.write_bytes(other.read_bytes())
  os.utime(one, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))
  assert 'was made from other data' in refusal(start(command(data, tmp_path / '1', *options)))

  # A mended file is looked at again.
  one.write_bytes(content)
  (folder / '1.bmp').write_bytes(whole)
  output(start(command(data, tmp_path / '2', *options)))
  assert rows(tmp_path / '2/bad_images.csv') == []
