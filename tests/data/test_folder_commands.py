"""Folders as people have them, through the command line."""

import csv
import os
import shutil
import unicodedata

import cv2
import pytest
from commands import refusal, start
from data.preview_command import output, preview, write
from small_run import command, write_data

# Every test starts a command, which takes seconds.
pytestmark = pytest.mark.slow

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


# No image, beside class folders.
STRAY = 'Training/Thumbs.db'
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
  'other names of splits, and a stray file': (
    [*(f'{part}/{name}/1.png' for part in ('Training', 'Testing') for name in 'ab'), STRAY],
    'are splits and not classes; name them: for a target train_split=',
  ),
  'wrapper with a stray file': (
    ['Training/rose/1.png', 'Training/lily/1.png', STRAY],
    'give path={0}/Training',
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
    elif name == STRAY:
      (folder / name).write_text('no image')
    else:
      write(folder, name)
  error = refusal(preview(folder, HOME=str(tmp_path)))
  assert message.format(folder) in error
  assert str(folder) in error or 'class' in message


def rows(path):
  with path.open(encoding='utf-8', newline='') as file:
    return list(csv.reader(file))[1:]


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
