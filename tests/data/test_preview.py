"""Pictures of views to look at, and the command that draws them."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from configs import folder as folder_config
from sjft_jax import config as configs
from sjft_jax.data import preview, transforms
from sjft_jax.data.dataset import class_names
from sjft_jax.data.decode import decode_image
from sjft_jax.output.image_grid import GAP, LINE, LINES, SIDE

ROOT = Path(__file__).parents[2]
DESCRIBE, VIEW = {'resize': SIDE, 'crop': SIDE}, {'resize': 160, 'crop': SIDE}
SIZES = {
  'descriptor_size': transforms.ImageSize(**DESCRIBE),
  'network_size': transforms.ImageSize(**VIEW),
}


class Noise:
  """Classes of 3, 2 and 4 images, in mixed order; views are as large as pictures on the page."""

  name, fingerprint = 'noise', '0'
  classes = ('cat', 'dog', 'owl')
  labels = np.array([2, 0, 1, 2, 0, 2, 1, 0, 2], np.int32)

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    return np.random.default_rng(index).integers(0, 256, (170, 200, 3), np.uint8)

  def read_image(self, index, *, min_side):
    return self[index]

  def key(self, index):
    return f'{self.classes[0]}/{index}.png'


def crop_picture(page, row, column):
  left = GAP + column * (SIDE + GAP)
  top = GAP + LINE + 6 + row * (SIDE + LINES * LINE + GAP)
  return np.asarray(page.crop((left, top, left + SIDE, top + SIDE)))


def draw_page(**options):
  defaults = {'images': 3, 'draws': 2, 'kind': 'resnet', 'seed': 5, **SIZES}
  return preview.preview_grid(Noise(), **defaults | options)


def test_pictures_are_the_views():
  data, page = Noise(), draw_page(ten_crop=True)
  for row, index in enumerate(preview.spread_over_classes(data, 3)):
    image = data[index]
    expected = [
      transforms.describe_view(image, **DESCRIBE),
      transforms.center_crop(image, **VIEW),
      *transforms.ten_crop(image, **VIEW),
    ]
    for column, view in enumerate(expected):
      np.testing.assert_array_equal(crop_picture(page, row, column), view)
    first, second = (crop_picture(page, row, column) for column in (12, 13))
    assert (first != second).any()
  assert page.width == GAP + 14 * (SIDE + GAP)


def test_the_seed_decides_the_page():
  assert draw_page() == draw_page()
  assert draw_page() != draw_page(seed=6)
  plain = draw_page(kind='none')
  for column in (2, 3):
    np.testing.assert_array_equal(crop_picture(plain, 1, column), crop_picture(plain, 1, 1))


@pytest.mark.parametrize('labels', ['one', 'several'])
def test_rows_are_spread_over_classes(labels):
  data = Noise()
  if labels == 'several':
    data.labels = np.eye(3, dtype=bool)[data.labels]
  indices = preview.spread_over_classes(data, 3)
  assert [class_names(data, index) for index in indices] == ['cat', 'dog', 'owl']
  assert (
    sorted(preview.spread_over_classes(data, 9))
    == sorted(preview.spread_over_classes(data, 100))
    == [*range(9)]
  )


@pytest.fixture
def folder(tmp_path):
  for split, count in {'train': 3, 'test': 1}.items():
    for name in ('ant', 'bee'):
      for number in range(count):
        file = tmp_path / 'images' / split / name / f'{number}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), Noise()[number])
  return tmp_path / 'images'


def run_preview(*options):
  module = sys.executable, '-X', 'importtime', '-m', 'sjft_jax.data.preview'
  process = subprocess.run(
    [*module, *options], cwd=ROOT, capture_output=True, text=True, check=False
  )
  lines = process.stderr.splitlines()
  imported = {line.split()[-1] for line in lines if line.startswith('import time:')}
  assert 'sjft_jax.data.transforms' in imported
  assert 'jax' not in imported  # Nobody should wait seconds for a picture.
  errors = [line for line in lines if not line.startswith('import time:')]
  return process.returncode, process.stdout, errors


def test_command_writes_the_picture(folder, tmp_path):
  output = tmp_path / 'page.png'
  data = '--config=configs/folder.py', f'--config.target.path={folder}'
  code, text, errors = run_preview(*data, f'--output={output}', '--images=2', '--draws=3')
  assert (code, errors) == (0, [])
  assert str(output) in text.replace('\n', '')
  with Image.open(output) as page:
    assert page.width == GAP + 5 * (SIDE + GAP)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (['--config=nowhere.py'], 'error: --config=nowhere.py: no such file; '),
    (['--config=configs/folder.py', '--config.images.corp=3'], "error: unknown option 'corp'"),
    (['--config=configs/demo.py', '--kind=mixup'], 'error: flag --kind=mixup: '),
    (['--config=configs/folder.py', '--data=source'], "error: path='', split='train': "),
  ],
)
def test_mistakes_end_in_one_line(options, message):
  code, _, errors = run_preview(*options)
  assert code == 1
  assert len(errors) == 1
  assert errors[0].startswith(message)


@pytest.mark.parametrize('domain', preview.DOMAINS)
def test_a_preview_shows_the_training_images_of_a_configuration(folder, tmp_path, capsys, domain):
  config = folder_config.get_config()
  config.target.path = config.source.path = str(folder)
  config.images.update(VIEW)
  config.descriptors.update(DESCRIBE)
  output = tmp_path / 'page.png'
  preview.save_preview(config, output, domain=domain, images=2, draws=0)
  assert f'{domain}, images/train' in capsys.readouterr().out
  image = decode_image((folder / 'train/ant/1.png').read_bytes())
  with Image.open(output) as page:
    expected = transforms.center_crop(image, **VIEW)
    np.testing.assert_array_equal(crop_picture(page, 0, 1), expected)


def test_an_unknown_domain_is_refused(tmp_path):
  with pytest.raises(ValueError, match="domain='tests' is unknown; .*use one of target, source"):
    preview.save_preview(configs.default(), tmp_path / 'x', domain='tests', images=2, draws=0)
