"""The configurations of the paper's tasks, on miniature archives in the official layouts."""

import csv
import io
import sys

import commands
import ml_collections
import numpy as np
import pytest
import scipy.io
from data.builders import archives
from data.builders import test_coco as coco
from data.builders import test_imagenet2012 as imagenet
from data.builders import test_places as places
from data.builders import test_stanford_dogs as stanford
from small_run import SMALL, change

from configs import caltech256, dogs, flowers, folder, indoor
from sjft_jax import config, pipeline
from sjft_jax.data import builders
from sjft_jax.data.builders import imagenet2012
from sjft_jax.data.prepare import prepare

VALIDATION = dict([*imagenet2012.validation_labels().items()][:2])
FEW = SMALL | {
  'bank.name': 'alexnet',
  'bank.pretrained': 'auto',
  'model.pretrained': '',
  'pretrain.steps': 0,
  'selection.rounds': 1,
  'training.steps': 2,
  'evaluation.batch_size': 64,
  'evaluation.views': ('center',),
  'arms': ('none', 'constant'),
}


def picture(seed):
  return archives.encode_image(seed, size=(44, 40))


@pytest.fixture(scope='module')
def monkeymodule():
  with pytest.MonkeyPatch.context() as patch:
    yield patch


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory, monkeymodule):
  """Return a function that prepares a data set, once, and returns the data directory.

  It takes the name of the data set and a function that writes its archives to a folder.
  """
  path = tmp_path_factory.mktemp('tfds')
  names = set()

  def prepare_once(name, write):
    if name not in names:
      folder = tmp_path_factory.mktemp(name.replace('/', '_'))
      write(folder)
      monkeymodule.setattr(imagenet2012, 'validation_labels', lambda: VALIDATION)
      archives.declare_official(monkeymodule, builders.load(name.partition('/')[0]), folder)
      prepare(name, str(path), str(folder))
      names.add(name)
    return path

  return prepare_once


def write_imagenet(path):
  """Write 120 images of the first three classes, of which one cannot be read."""
  images = {
    f'{name}_{i}.JPEG': picture(10_000 + 100 * c + i)
    for c, name in enumerate(imagenet.CLASSES[:3])
    for i in range(40)
  }
  images[f'{imagenet.CLASSES[0]}_7.JPEG'] = picture(7)[:150]
  imagenet.write_nested_tar(path / imagenet.TRAIN, images)
  archives.tar(path / imagenet.VALIDATION, {name: picture(0) for name in VALIDATION})


def write_places(path):
  splits = {
    split: {places.image_name(scene, i): label for label, scene in enumerate(places.SCENES)}
    for i, split in enumerate(('train', 'val'))
  }
  names = splits['train'] | splits['val']
  images = {places.ROOT + name: picture(20_000 + i) for i, name in enumerate(names)}
  archives.tar(path / places.IMAGES, images, 'w:gz')
  lists = {
    f'trainvalsplit_places205/{split}_places205.csv': places.format_list(labels)
    for split, labels in splits.items()
  }
  archives.tar(path / places.LISTS, lists, 'w:gz')


def write_dogs(path):
  splits = {
    split: [f'{breed}/{breed.partition("-")[0]}_{split}{i}.jpg' for breed in stanford.BREEDS]
    for i, split in enumerate(('train', 'test'))
  }
  names = sorted(splits['train'] + splits['test'])
  archives.tar(path / 'images.tar', {f'Images/{n}': picture(i) for i, n in enumerate(names)})
  box = stanford.format_annotation([(0, 0, 9, 9)])
  archives.tar(path / 'annotation.tar', {f'Annotation/{n[:-4]}': box for n in names})
  lists = {f'{split}_list.mat': stanford.encode_list(chosen) for split, chosen in splits.items()}
  archives.tar(path / 'lists.tar', lists | {'file_list.mat': stanford.encode_list(names)})


def write_flowers(path):
  labels = np.tile(np.arange(1, 103), 3)
  images = {f'jpg/image_{i:05d}.jpg': picture(i) for i in range(1, 307)}
  archives.tar(path / '102flowers.tgz', images, 'w:gz')
  scipy.io.savemat(path / 'imagelabels.mat', {'labels': labels[None]})
  ids = np.arange(1, 307).reshape(3, 1, 102)
  scipy.io.savemat(path / 'setid.mat', dict(zip(('trnid', 'valid', 'tstid'), ids, strict=True)))


def write_caltech(path):
  names = [f'{i:03d}.{"clutter" if i == 257 else "thing"}' for i in range(1, 258)]
  images = {
    f'256_ObjectCategories/{name}/{name[:3]}_{i:04d}.jpg': picture(3 * c + i)
    for c, name in enumerate(names)
    for i in range(3)
  }
  archives.tar(path / '256_ObjectCategories.tar', images)


def write_indoor(path):
  rooms = ['airport_inside', 'winecellar', *(f'room_{i}' for i in range(65))]
  names = [f'{room}/{i}.jpg' for room in rooms for i in range(2)]
  archives.tar(path / 'indoorCVPR_09.tar', {f'Images/{n}': picture(i) for i, n in enumerate(names)})
  for name, odd in (('TrainImages.txt', '/0'), ('TestImages.txt', '/1')):
    (path / name).write_text('\n'.join(n for n in names if odd in n))


def write_coco(path):
  """Write sixty images, each with the second of three things and one of the others."""
  for year in ('2014', '2017'):
    lists = {}
    for part, ids in (('train', range(60)), ('val', range(60, 61))):
      prefix = f'COCO_{part}2014_' if year == '2014' else ''
      names = {i: f'{prefix}{i:012d}.jpg' for i in ids}
      objects = [
        (3 * i + j, i, coco.IDS[thing], [0.0, 0.0, 6.0, 9.0], 54.0, 0)
        for i in ids
        for j, thing in enumerate((1, 2 * (i % 2)))
      ]
      images = {f'{part}{year}/{name}': picture(30_000 + i) for i, name in names.items()}
      coco.write_zip(path / f'{part}{year}.zip', images)
      annotations = coco.format_annotations(year, names, objects)
      lists[f'annotations/instances_{part}{year}.json'] = annotations
    coco.write_zip(path / f'annotations_trainval{year}.zip', lists)


def caltech_with_few():
  """Return a task with two training images of each class, as the miniature archive has three."""
  task = caltech256.get_config('15')
  task.target.train_per_class = 2
  return task


def flowers_and_coco():
  """Return a task with a source whose images show several classes each."""
  task = flowers.get_config()
  task.source.dataset = 'coco/2017'
  return task


WRITERS = {
  'coco/2017': write_coco,
  'stanford_dogs': write_dogs,
  'oxford_flowers102': write_flowers,
  'caltech256': write_caltech,
  'mit_indoor67': write_indoor,
  'imagenet2012': write_imagenet,
  'places205': write_places,
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ('task', 'sizes', 'classes'),
  [
    (dogs.get_config(), (120, 120, 119), (120, 1000)),
    (flowers.get_config(), (102, 102, 119), (102, 1000)),
    (caltech_with_few(), (2 * 257, 257, 119), (257, 1000)),
    (indoor.get_config('hybrid'), (67, 67, 324), (67, 1205)),
    (flowers_and_coco(), (102, 102, 60), (102, 80)),
  ],
  ids=['dogs', 'flowers', 'caltech256', 'indoor', 'coco'],
)
def test_each_task_runs_on_its_official_archives(task, sizes, classes, data_dir, tmp_path, capsys):
  for name in (task.target.dataset, *task.source.dataset.split('+')):
    path = data_dir(name, WRITERS[name])
  task.target.path = task.source.path = str(path)
  task.screening.max_bad_share = 0.05
  results = pipeline.run(change(task, FEW), tmp_path / 'run')
  assert results['test_images'] == sizes[1]
  assert 0 <= results['table'][0]['mean_class_accuracy'] <= 1
  output = ' '.join(capsys.readouterr().out.split())
  for number, what in zip((*sizes[:2], classes[0]), ('training', 'test', 'classes'), strict=True):
    assert f'{number:,} {what}' in output
  assert f'Source: {sizes[2]:,} images in {classes[1]:,} classes' in output
  with (tmp_path / 'run' / 'bad_images.csv').open() as file:
    bad = [row['image'].rpartition('/')[2] for row in csv.DictReader(file)]
  assert bad == [f'{imagenet.CLASSES[0]}_7.JPEG'] * ('imagenet2012' in task.source.dataset)
  ranking = np.load(tmp_path / 'run' / 'ranking.npz')
  assert ranking['indices'].shape == (sizes[0], 3)
  assert ranking['indices'].max() < sizes[2]
  is_drawn = task.target.dataset == 'caltech256'
  assert (tmp_path / 'run' / 'split.csv').exists() == is_drawn
  if is_drawn:
    rows = list(csv.DictReader(io.StringIO((tmp_path / 'run' / 'split.csv').read_text())))
    assert [row['set'] for row in rows].count('train') == 2 * 257


@pytest.mark.slow
@pytest.mark.parametrize('file', ['dogs.py', 'indoor.py:places', 'caltech256.py:60'])
def test_configuration_is_found_from_the_command_line(file, tmp_path):
  """Without prepared data sets, the command ends at the first one that is missing."""
  main = [sys.executable, '-m', 'sjft_jax.main', f'--config=configs/{file}']
  paths = f'--workdir={tmp_path / "run"}', f'--config.target.path={tmp_path}'
  message = commands.refusal(commands.start([*main, *paths]))
  assert 'config.target: there is no prepared ' in message
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('file', 'message'),
  [
    ('indoor.py:coco', ':coco is unknown; use one of :imagenet :places :hybrid'),
    ('caltech256.py:20', ':20 is unknown; use one of :15 :30 :45 :60'),
    ('nothing.py', 'nothing.py: no such file; the package has configs/'),
  ],
)
def test_a_configuration_that_is_not_known_ends_in_one_line(file, message, tmp_path):
  main = [sys.executable, '-m', 'sjft_jax.main', f'--config=configs/{file}']
  assert message in commands.refusal(commands.start([*main, f'--workdir={tmp_path / "run"}']))


def test_the_papers_numbers_of_neighbours_and_images():
  tasks = [dogs.get_config(), flowers.get_config(), indoor.get_config()]
  assert [task.selection.num_neighbors for task in tasks] == [100, 300, 100]
  # It would lower K0 to the least that reaches so many.
  assert not any(t.selection.min_source_images for t in (*tasks, caltech256.get_config('60')))
  for per_class in (15, 30, 45, 60):
    assert caltech256.get_config(str(per_class)).target.train_per_class == per_class
  for source in ('imagenet2012', 'places205', 'imagenet2012+places205'):
    assert source in [indoor.get_config(name).source.dataset for name in indoor.SOURCES]
  for wrong in (lambda: caltech256.get_config('20'), lambda: indoor.get_config('coco')):
    with pytest.raises(ValueError, match='use one of :'):
      wrong()
  for task in (*tasks, caltech256.get_config(), folder.get_config()):
    assert isinstance(task, ml_collections.ConfigDict)
    assert set(task) == set(config.default())
