"""What people reported of other tools that train on image folders, through the command line.

Cases name the report, where there is one.
"""

import shutil
import sys

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from commands import refusal, start
from small_run import command, write_data

ROWS = 'path,label\na.png,x\nb.png,x\nc.png,y\nd.png,y\n'


@pytest.fixture
def images(tmp_path):
  """Return a folder with four images of noise."""
  for name in 'abcd':
    pixels = np.random.default_rng(ord(name)).integers(0, 256, (40, 40, 3), np.uint8)
    (tmp_path / f'{name}.png').write_bytes(cv2.imencode('.png', pixels)[1].tobytes())
  return tmp_path


def preview(*arguments):
  """Start the command that opens a data set and draws a few of its images."""
  options = '--config=configs/folder.py', '--images=1', '--draws=0', *arguments
  return start([sys.executable, '-m', 'sjft_jax.data.preview', *options])


def finish(process):
  """Return what a command prints that ends well."""
  output, errors = process.communicate(timeout=300)
  assert (process.returncode, errors) == (0, '')
  return output


LISTS = {
  # pandas-dev/pandas 6563, "addressing data frame columns gives KeyError".
  'columns in capitals': (ROWS.replace('path,label', 'Path,LABEL'), None),
  # huggingface/datasets 4814, "Support CSV as metadata file format": its column is file_name.
  'metadata.csv': (
    ROWS.replace('path', 'file_name'),
    'it has no column path, but file_name, label; rename the column that holds it',
  ),
  # open-cogsci/OpenSesame 448, "Improve error message when reading non-utf8 csv files".
  'UTF-16': (ROWS.encode('utf-16'), 'its text is UTF-16; save it as UTF-8'),
  # Rows that belong to no split, which were silently left out.
  'empty split': (
    'path,label,split\na.png,x,train\nb.png,x,test\nc.png,y,\nd.png,y,test\n',
    'row 3: split is empty; fill it in or remove the row',
  ),
}


@pytest.mark.parametrize('case', LISTS)
def test_list_is_read_or_refused_with_a_remedy(images, case):
  content, message = LISTS[case]
  path = images / 'list.csv'
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  process = preview(f'--config.target.path={path}', f'--output={images}/preview.png')
  if message is None:
    assert 'target, list' in finish(process)
  else:
    error = refusal(process)
    assert message in error
    assert str(path) in error


@pytest.mark.parametrize('name', ['metadata.jsonl', 'list.xlsx', 'train.txt'])
def test_file_of_another_kind_is_not_called_a_missing_folder(images, name):
  """huggingface/datasets 5278, "load_dataset does not read jsonl metadata file properly"."""
  (images / name).write_text('{"file_name": "a.png", "label": "x"}\n')
  error = refusal(preview(f'--config.target.path={images}/{name}', f'--output={images}/p.png'))
  assert f"{name}' is a file; give a folder, or a list whose name ends in one of .csv," in error


@pytest.mark.parametrize(
  ('output', 'message'),
  [
    ('preview.txt', 'the name must end in one of .png, .jpg,'),
    ('nowhere/preview.png', 'there is no folder'),
  ],
)
def test_impossible_picture_is_refused_before_the_work(images, output, message):
  error = refusal(preview('--config.target.path=/nowhere', f'--output={images}/{output}'))
  assert message in error
  assert f'--output={images}/{output}' in error


def test_flagfile_may_hold_the_configuration_and_its_options(images):
  """google/ml_collections 20, "cannot read config updates from --flagfile"."""
  (images / 'list.csv').write_text(ROWS)
  (images / 'options.txt').write_text(
    f'--config=configs/folder.py\n--config.target.path={images}/list.csv\n'
    '--config.arms=none,rounds\n--config.overrides.none.training.steps=7\n'
  )
  module = sys.executable, '-m', 'sjft_jax.data.preview'
  arguments = f'--flagfile={images}/options.txt', f'--output={images}/preview.png'
  assert 'target, list' in finish(start([*module, *arguments]))
  error = refusal(start([*module, '--flagfile=/nowhere/options.txt']))
  assert '/nowhere/options.txt' in error


def test_rows_of_a_flagfile_reach_the_arms(images, tmp_path):
  (tmp_path / 'options.txt').write_text('--config.arms=none,wrong\n--config.pretrain.steps=0\n')
  data = write_data(tmp_path / 'data')
  error = refusal(start(command(data, tmp_path / 'run', f'--flagfile={tmp_path}/options.txt')))
  assert "arms='wrong' is unknown" in error


def predict(run, images, output):
  arguments = f'--run={run}', f'--images={images}', f'--output={output}'
  return start([sys.executable, '-m', 'sjft_jax.predict', *arguments])


@pytest.mark.parametrize(
  ('paths', 'message'),
  [
    (['a.png', None], 'row 2: path is empty; fill it in or remove the row'),
    ([' '], 'row 1: path is empty; fill it in or remove the row'),
    ([], 'has no rows'),
  ],
)
def test_list_without_paths_is_not_predicted(images, paths, message):
  """huggingface/datasets 4311, "Error messages when metadata and images aren't linked"."""
  file = images / 'list.parquet'
  pa.parquet.write_table(pa.table({'path': pa.array(paths, pa.string())}), file)
  assert f'{file}' in (error := refusal(predict('/nowhere', file, images / 'p.csv')))
  assert message in error


def test_output_does_not_replace_the_list_of_images(images):
  """drivendataorg/cyfi 72, "Update CLI options": overwriting."""
  file = images / 'list.csv'
  file.write_text(ROWS)
  error = refusal(predict('/nowhere', file, images / '.' / 'list.csv'))
  assert 'is the list of images itself; give another name' in error
  assert file.read_text() == ROWS


def test_impossible_runs_end_before_the_work(tmp_path):
  data = write_data(tmp_path / 'data')
  (tmp_path / 'run').write_text('a file')
  error = refusal(start(command(data, tmp_path / 'run')))
  assert f'{tmp_path}/run is a file; give another work directory' in error
  # googlecodelabs/tensorflow-for-poets-2 98, "multiple classes are needed for classification".
  for split in ('train', 'test'):
    for number in (1, 2):
      shutil.rmtree(data / 'target' / split / f'stripes {number}')
  error = refusal(start(command(data, tmp_path / 'other')))
  assert "the target has one class, 'stripes 0'" in error
  assert not (tmp_path / 'other').exists()


def test_work_directory_among_the_classes_or_with_patterns_is_refused(tmp_path):
  data = write_data(tmp_path / 'data')
  # pytorch/vision 2831: folders that a program makes among those of the images become classes.
  for folder in (data / 'source/train/runs/1', data / 'target/test'):
    error = refusal(start(command(data, folder)))
    assert f'the work directory {folder} lies in {data}' in error
    assert 'would be taken for a class; give another one' in error
  # elisemercury/Duplicate-Image-Finder 94, "Filepaths with square brackets are ignored". Orbax
  # left checkpoints empty there, and the run ended well.
  error = refusal(start(command(data, tmp_path / 'run [1]')))
  assert 'has one of * ? [ in its path, where checkpoints cannot be written' in error


@pytest.mark.slow
def test_run_predicts_from_a_folder_with_brackets(tmp_path):
  """elisemercury/Duplicate-Image-Finder 94; azavea/raster-vision 756, moved checkpoints."""
  data = write_data(tmp_path / '[2024] x, y*')
  options = [
    *('--config.arms=none', '--config.training.steps=2', '--config.selection.rounds=1'),
    *('--config.pretrain.steps=0', '--config.logging.tensorboard=False'),
  ]
  finish(start(command(data, tmp_path / 'run', *options)))
  shutil.move(tmp_path / 'run', tmp_path / 'moved [1]')
  output = tmp_path / 'p.csv'
  assert '9 images' in finish(predict(tmp_path / 'moved [1]', data / 'target/test', output))


@pytest.mark.slow
def test_image_of_two_classes_is_reported(tmp_path):
  """BMEII-AI/RadImageNet 17, "Duplicates in RadImageNet dataset": in different folders."""
  data = write_data(tmp_path / 'data')
  train = data / 'target/train'
  shutil.copy(train / 'stripes 0/1.png', train / 'stripes 2/copy.png')
  shutil.copy(train / 'stripes 1/1.png', train / 'stripes 1/copy.png')
  options = [
    *('--config.arms=none', '--config.training.steps=2', '--config.selection.rounds=1'),
    *('--config.pretrain.steps=0', '--config.logging.tensorboard=False'),
  ]
  text = finish(start(command(data, tmp_path / 'run', *options))).replace('\n', '')
  assert '1 of 14 training images are in another class as well and stay in: stripes 2/copy' in text
  assert (tmp_path / 'run/contradictions.csv').read_text().splitlines()[1:] == [
    '"stripes 2/copy.png","stripes 2","stripes 0/1.png","stripes 0"'
  ]
