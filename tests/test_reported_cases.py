"""What people reported of other tools that train on image folders, through the command line.

Cases name the report, where there is one.
"""

import os
import shutil
import sys

import cv2
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from commands import ROOT, refusal, start
from small_run import command, write_data

# Every test starts a command, which takes seconds.
pytestmark = pytest.mark.slow

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
  'Latin-1': (ROWS.replace('x', 'é').encode('latin-1'), 'its text is not UTF-8; save it as UTF-8'),
  # pandas-dev/pandas 13497, "read_csv includes the BOM of an utf8 file".
  'byte order mark': (f'\ufeff{ROWS}', None),
  # chanzuckerberg/cellxgene 1115: labels that a reader takes for missing values.
  'classes NA and nan': (ROWS.replace(',x', ',NA').replace(',y', ',nan'), None),
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


# Files with noise, the content of other files, a message, and the status of the command.
FOLDERS = {
  # pytorch/vision 446 and 552: .JPEG was no image.
  'capital suffixes': (['train/a/1.JPEG', 'train/a/2.PNG', 'test/a/1.Jpg'], {}, 'target, '),
  # tensorflow/tensorflow 46595: folders that notebooks leave became classes, their copies images.
  'notebook folders': (
    ['train/a/1.png', 'train/.ipynb_checkpoints/1.png', 'test/a/1.png', 'test/a/.x/2.png'],
    *({}, 'target, '),
  ),
  # elementary/photos 580, "Skipping Import of HEIC Images Claiming Non Image Files"; here the name
  # alone is wrong, as a telephone leaves it when it exports JPEGs.
  'a suffix of another format': (['train/a/1.heic', 'test/a/1.gif'], {}, 'target, '),
  # fastai/fastai 3329, "from_folder appears to work incorrectly": names of splits above the path.
  'splits above the path': (['train/a/1.png', 'test/a/1.png'], {}, 'target, '),
}
REFUSED_FOLDERS = {
  # pytorch/vision 4925, "ImageFolder(root) raises error if root contains empty subfolders".
  'empty class': (
    ['train/a/1.png', 'train/b/1.png', 'test/a/1.png'],
    {'test/b/.keep': ''},
    'test/b has no image that can be read (AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM (PBM, PGM), '
    'TIFF or WebP), it is empty; add images, or move the folder out of ',
  ),
  # ultralytics/ultralytics 13936: a test set without one class had the others' names moved.
  'class without test images': (
    ['train/0/1.png', 'train/180/1.png', 'train/90/1.png', 'test/0/1.png', 'test/90/1.png'],
    *({}, "class '180' in only one of 'train' and 'test'"),
  ),
  # pytorch/vision 485, "show name of damaged file in FolderDataset".
  'damaged image': (['test/a/1.png'], {'train/a/1.jpg': 'x'}, 'train/a/1.jpg is no AVIF, BMP,'),
}


def write_files(folder, names, contents):
  for name in names:
    pixels = np.random.default_rng([*name.encode()]).integers(0, 256, (40, 40, 3), np.uint8)
    contents = contents | {name: cv2.imencode('.png', pixels)[1].tobytes()}
  for name, content in contents.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize('case', FOLDERS)
def test_folder_is_read_whole(tmp_path, case):
  names, contents, message = FOLDERS[case]
  folder = tmp_path / 'train' / 'valid'
  write_files(folder, names, contents)
  output = finish(preview(f'--config.target.path={folder}', f'--output={tmp_path}/p.png'))
  assert message in output
  assert 'Passed over' not in output


@pytest.mark.parametrize('case', REFUSED_FOLDERS)
def test_folder_is_refused_with_its_place(tmp_path, case):
  names, contents, message = REFUSED_FOLDERS[case]
  write_files(tmp_path, names, contents)
  error = refusal(preview(f'--config.target.path={tmp_path}', f'--output={tmp_path}/p.png'))
  assert message in error


def test_large_image_is_no_bomb(tmp_path):
  """facebookresearch/detectron2 1221, "PIL warnings for decompression bomb"."""
  write_files(tmp_path, ['train/a/2.png', 'test/a/1.png'], {})
  large = PIL.Image.new('1', (10_000, 9_000))
  large.save(tmp_path / 'train/a/1.png')
  options = f'--config.target.path={tmp_path}', f'--output={tmp_path}/p.png'
  assert 'target, ' in finish(preview(*options))


def test_name_of_a_data_set_in_other_case_is_refused_with_the_right_one(tmp_path):
  """tensorflow/datasets 5275, "tfds.load() does not load datasets with a capital letter"."""
  options = '--config.target.dataset=Stanford_Dogs', f'--output={tmp_path}/p.png'
  assert 'stanford_dogs' in refusal(preview(*options))


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


def test_tilde_in_a_flagfile_is_the_home(images, tmp_path):
  (tmp_path / 'options.txt').write_text('--images=~/list.csv\n--output=~/list.csv\n--run=x\n')
  (images / 'list.csv').write_text(ROWS)
  arguments = [sys.executable, '-m', 'sjft_jax.predict', f'--flagfile={tmp_path}/options.txt']
  error = refusal(start(arguments, HOME=str(images)))
  assert f'--output={images}/list.csv is the list of images itself' in error


UNLISTED_USER = """
import os
import pwd

def getpwuid(number):
  raise KeyError(f'getpwuid(): uid not found: {number}')

pwd.getpwuid = getpwuid
os.environ.pop('HOME', None)
"""


def test_containers_user_without_a_name_or_a_home_trains_and_predicts(small_data, tmp_path):
  """matplotlib/matplotlib 17707, "getpwuid(): uid not found: 99", in a container.

  So may files of a mounted disk belong to a user of another machine.
  """
  (tmp_path / 'sitecustomize.py').write_text(UNLISTED_USER)
  environment = {'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)]), 'XDG_CACHE_HOME': ''}
  options = '--config.pretrain.steps=0', '--config.arms=rounds', '--config.selection.rounds=1'
  run = tmp_path / 'run'
  printed = finish(start(command(small_data, run, *options), **environment))
  assert 'report.html' in printed
  assert 'could not be written' not in printed
  assert (run / 'report.html').exists()
  finish(predict(run, small_data / 'target' / 'test', tmp_path / 'p.csv', **environment))
  assert len((tmp_path / 'p.csv').read_text().splitlines()) == 1 + 9


def predict(run, images, output, **environment):
  arguments = f'--run={run}', f'--images={images}', f'--output={output}'
  return start([sys.executable, '-m', 'sjft_jax.predict', *arguments], **environment)


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


@pytest.fixture(scope='module')
def numbered_run(tmp_path_factory):
  """Return the data and the work directory of a run whose classes are numbers, drawn from one."""
  path = tmp_path_factory.mktemp('numbered')
  data = write_data(path / 'data')
  for old, new in (('0', '10'), ('1', '9'), ('2', '100')):
    (data / f'target/train/stripes {old}').rename(data / f'target/train/{new}')
  options = [
    *('--config.arms=none', '--config.training.steps=2', '--config.selection.rounds=1'),
    *('--config.pretrain.steps=0', '--config.logging.tensorboard=False'),
    *('--config.solver.learning_rate=0.1', f'--config.target.path={data}/target/train'),
    '--config.target.test_share=0.5',
  ]
  finish(start(command(data, path / 'run', *options)))
  return data, path / 'run'


def read_predictions(run, images, output, *more):
  """Return what the run predicts, image → {class: probability}, in the order of the table."""
  arguments = f'--run={run}', f'--images={images}', f'--output={output}', '--every_class', *more
  finish(start([sys.executable, '-m', 'sjft_jax.predict', *arguments]))
  start_of_name = 'probability of '
  return {
    row['image']: {
      name.removeprefix(start_of_name): p
      for name, p in row.items()
      if name.startswith(start_of_name)
    }
    for row in pyarrow.csv.read_csv(output).to_pylist()
  }


@pytest.mark.slow
def test_predictions_belong_to_their_images_and_classes(numbered_run, tmp_path):
  """Order and batch size change nothing that is predicted.

  huggingface/pytorch-image-models 2419, "inference.py script is not returning the custom labels";
  keras-team/keras 7543, "ImageDataGenerator shuffles the directories' labels" ('10' before '2');
  keras-team/keras 5048, "predict_generator cannot maintain data order"; tensorflow/models 7362,
  "when i try to run inference on a batch of images the results are very different".
  """
  data, run = numbered_run
  whole = read_predictions(run, data / 'target/train', tmp_path / 'whole.csv')
  single = read_predictions(run, data / 'target/train', tmp_path / 'single.csv', '--batch_size=1')
  assert [*whole] == sorted(whole)
  assert all([*p] == ['9', '10', '100'] for p in whole.values())
  assert [*single] == [*whole]
  for image, p in whole.items():
    assert single[image] == pytest.approx(p, rel=1e-4)
  # The run has scored its test images alike.
  test = np.load(run / 'test_images.npz')
  scored = np.load(run / 'arms/none/rounds/1/round.npz')['test/center']
  assert test['classes'].tolist() == ['9', '10', '100']
  for image, label, p in zip(test['images'], test['labels'], scored, strict=True):
    assert image.partition('/')[0] == test['classes'][label]
    assert [*whole[image].values()] == pytest.approx(p.tolist(), rel=1e-4)


@pytest.mark.slow
def test_split_is_not_the_order_of_names(numbered_run):
  """keras-team/keras-preprocessing 254: the images with the last names were the validation set."""
  _, run = numbered_run
  images = [name.partition('/')[2] for name in np.load(run / 'test_images.npz')['images']]
  splits = {tuple(images[i : i + 2]) for i in range(0, 6, 2)}
  assert len(splits) > 1
  assert splits != {('2.png', '3.png')}


@pytest.mark.slow
def test_the_same_picture_in_another_form_is_predicted_alike(numbered_run, tmp_path):
  """Channels and orientation.

  lucidrains/stylegan2-pytorch 108 (two channels), keras-team/keras 16473 (PNG and JPEG together),
  keras-team/autokeras 777 (one channel), tensorflow/tensorflow 49834, "Use image orientation tag
  in exif data".
  """
  data, run = numbered_run
  grey = PIL.Image.open(data / 'target/train/9/0.png').convert('L')
  folder = tmp_path / 'images'
  folder.mkdir()
  for mode in ('L', 'LA', 'RGB', 'RGBA'):
    grey.convert(mode).save(folder / f'{mode}.png')
  grey.quantize(256).save(folder / 'palette.png')
  grey.save(folder / 'bmp.bmp')
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # A viewer turns it clockwise.
  grey.convert('RGB').rotate(90, expand=True).save(folder / 'turned.png', exif=exif)
  predictions = read_predictions(run, folder, tmp_path / 'p.csv')
  assert len(predictions) == 7
  for image, p in predictions.items():
    assert p == pytest.approx(predictions['RGB.png'], rel=1e-4), image
