"""Sheets of views to look at, and the command that draws them."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sjft_jax.data import preview, transforms
from sjft_jax.data.dataset import class_names
from sjft_jax.report.image_grid import GAP, LINE, LINES, SIDE

ROOT = Path(__file__).parents[2]
DESCRIBE, VIEW = {'resize': SIDE, 'crop': SIDE}, {'resize': 160, 'crop': SIDE}


class Noise:
  """Classes of 3, 2 and 4 images, in mixed order; views are as large as pictures on the sheet."""

  name, fingerprint = 'noise', '0'
  classes = ('cat', 'dog', 'owl')
  labels = np.array([2, 0, 1, 2, 0, 2, 1, 0, 2], np.int32)

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    return np.random.default_rng(index).integers(0, 256, (170, 200, 3), np.uint8)

  def at_least(self, index, side):
    return self[index]

  def key(self, index):
    return f'{self.classes[0]}/{index}.png'


def picture(page, row, column):
  left = GAP + column * (SIDE + GAP)
  top = GAP + LINE + 6 + row * (SIDE + LINES * LINE + GAP)
  return np.asarray(page.crop((left, top, left + SIDE, top + SIDE)))


def draw(**options):
  common = {'images': 3, 'draws': 2, 'kind': 'resnet', 'seed': 5}
  return preview.sheet(Noise(), **(common | {'describe': DESCRIBE, 'view': VIEW} | options))


def test_pictures_are_the_views():
  data, page = Noise(), draw(ten_crop=True)
  for row, index in enumerate(preview.spread(data, 3)):
    image = data[index]
    expected = [
      transforms.describe_view(image, **DESCRIBE),
      transforms.center_crop(image, **VIEW),
      *transforms.ten_crop(image, **VIEW),
    ]
    for column, view in enumerate(expected):
      np.testing.assert_array_equal(picture(page, row, column), view)
    first, second = (picture(page, row, column) for column in (12, 13))
    assert (first != second).any()
  assert page.width == GAP + 14 * (SIDE + GAP)


def test_the_seed_decides_the_sheet():
  assert draw() == draw()
  assert draw() != draw(seed=6)
  plain = draw(kind='none')
  for column in (2, 3):
    np.testing.assert_array_equal(picture(plain, 1, column), picture(plain, 1, 1))


@pytest.mark.parametrize('labels', ['one', 'several'])
def test_rows_are_spread_over_classes(labels):
  data = Noise()
  if labels == 'several':
    data.labels = np.eye(3, dtype=bool)[data.labels]
  shown = preview.spread(data, 3)
  assert [class_names(data, index) for index in shown] == ['cat', 'dog', 'owl']
  assert sorted(preview.spread(data, 9)) == sorted(preview.spread(data, 100)) == [*range(9)]


def test_class_names_name_all_that_an_image_shows():
  data = Noise()
  data.labels = np.array([[True, False, True]] * 9)
  assert class_names(data, 4) == 'cat, owl'


@pytest.fixture
def folder(tmp_path):
  for split, count in {'train': 3, 'test': 1}.items():
    for name in ('ant', 'bee'):
      for number in range(count):
        file = tmp_path / 'images' / split / name / f'{number}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), Noise()[number])
  return tmp_path / 'images'


def run(*options):
  module = sys.executable, '-X', 'importtime', '-m', 'sjft_jax.data.preview'
  done = subprocess.run([*module, *options], cwd=ROOT, capture_output=True, text=True, check=False)
  lines = done.stderr.splitlines()
  imported = {line.split()[-1] for line in lines if line.startswith('import time:')}
  assert 'cv2' in imported
  assert 'jax' not in imported  # Nobody should wait seconds for a picture.
  errors = [line for line in lines if not line.startswith('import time:')]
  return done.returncode, done.stdout, errors


def test_command(folder, tmp_path):
  output = tmp_path / 'sheet.png'
  data = '--config=configs/folder.py', f'--config.target.path={folder}'
  code, text, errors = run(*data, f'--output={output}', '--images=2', '--draws=3')
  assert (code, errors) == (0, [])
  assert str(output) in text.replace('\n', '')
  with Image.open(output) as page:
    assert page.width == GAP + 5 * (SIDE + GAP)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (['--config=nowhere.py'], 'error: --config=nowhere.py: no such file; see configs/'),
    (['--config=configs/folder.py', '--config.images.corp=3'], "error: unknown option 'corp'"),
    (['--config=configs/demo.py', '--kind=mixup'], 'error: flag --kind=mixup: '),
    (['--config=configs/folder.py', '--data=source'], "error: path='', split='train': "),
  ],
)
def test_mistakes_end_in_one_line(options, message):
  code, _, errors = run(*options)
  assert code == 1
  assert len(errors) == 1
  assert errors[0].startswith(message)
