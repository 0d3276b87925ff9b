import json
import os
import re
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from data.builders import archives
from tensorflow_datasets.core.utils import gcs_utils

from sjft_jax.data import builders
from sjft_jax.data.builders import caltech256
from sjft_jax.data.builders.archive import Archive
from sjft_jax.data.prepare import prepare

# Code that kills the process at a moment: after the last image, or with everything written but not
# in its place.
KILLS = {
  'after the last image': (
    'generate = caltech256.Builder._generate_examples\n'
    'def killed(*args):\n'
    '  yield from generate(*args)\n'
    '  os.kill(os.getpid(), signal.SIGKILL)\n'
    'caltech256.Builder._generate_examples = killed\n'
  ),
  'before the folder is renamed': (
    'write = tfds.core.DatasetInfo.write_to_directory\n'
    'def killed(*args, **kwargs):\n'
    '  write(*args, **kwargs)\n'
    '  os.kill(os.getpid(), signal.SIGKILL)\n'
    'tfds.core.DatasetInfo.write_to_directory = killed\n'
  ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
  folder = tmp_path / 'archives'
  folder.mkdir()
  names = (f'{i:03d}.class' for i in range(1, 258))
  images = {
    f'256_ObjectCategories/{name}/{name[:3]}_0001.jpg': archives.encode_image(i)
    for i, name in enumerate(names)
  }
  archives.tar(folder / '256_ObjectCategories.tar', images)
  archives.declare_official(monkeypatch, caltech256.Builder, folder)
  return folder


def run(*arguments):
  return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


def test_an_unprepared_data_set_is_not_looked_up_on_tfds_server(tmp_path, monkeypatch):
  """TFDS's server describes data that it has prepared itself, in another format."""
  monkeypatch.setattr(gcs_utils, 'gcs_dataset_info_files', lambda _: pytest.fail('asked'))
  builders.register()
  for name in builders.BUILDERS:
    info = tfds.builder(name, data_dir=tmp_path).info
    assert not info.initialized
    assert info.file_format == tfds.core.FileFormat.ARRAY_RECORD


def test_a_second_run_finds_the_data_set_prepared(tmp_path, folder, capsys):
  prepare('caltech256', str(tmp_path), str(folder))
  assert 'prepared already' not in capsys.readouterr().out
  version = tmp_path / 'caltech256' / '1.0.0'
  before = {path: path.stat().st_mtime_ns for path in version.iterdir()}
  prepare('caltech256', str(tmp_path), str(folder))
  output = capsys.readouterr().out
  assert 'prepared already' in output
  assert f'{version}: train 257 images' in output
  assert {path: path.stat().st_mtime_ns for path in version.iterdir()} == before


def test_what_tfds_has_prepared_in_another_format_is_not_called_prepared(tmp_path, folder, capsys):
  prepare('caltech256', str(tmp_path), str(folder))
  path = tmp_path / 'caltech256' / '1.0.0' / 'dataset_info.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'fileFormat': 'tfrecord'}))
  capsys.readouterr()
  with pytest.raises(ValueError, match='stored as tfrecord; convert it'):
    prepare('caltech256', str(tmp_path), str(folder))
  assert 'prepared already' not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize('moment', KILLS)
def test_a_killed_run_leaves_no_data_set_and_its_folder_is_named(tmp_path, folder, moment, capsys):
  script = (
    'import os, signal, tensorflow_datasets as tfds\n'
    'from sjft_jax.data.builders import caltech256\n'
    'from sjft_jax.data.builders.archive import Archive\n'
    'from sjft_jax.data.prepare import prepare\n'
    f'caltech256.Builder.ARCHIVES = {caltech256.Builder.ARCHIVES!r}\n'
    f'{KILLS[moment]}'
    f'prepare("caltech256", {str(tmp_path)!r}, {str(folder)!r})\n'
  )
  assert run('-c', script).returncode == -9
  (leftover,) = (tmp_path / 'caltech256').iterdir()
  builders.register()
  assert not tfds.builder('caltech256', data_dir=tmp_path).info.initialized
  prepare('caltech256', str(tmp_path), str(folder))
  assert f'{leftover} is left of a killed one' in capsys.readouterr().out
  assert len(archives.read_records('caltech256', tmp_path, 'train')) == 257


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_an_interrupted_run_leaves_nothing(tmp_path, folder, monkeypatch, error):
  def interrupt(self, path):
    yield next(generate(self, path))
    raise error('stopped')

  generate = caltech256.Builder._generate_examples
  monkeypatch.setattr(caltech256.Builder, '_generate_examples', interrupt)
  with pytest.raises(error, match='stopped'):
    prepare('caltech256', str(tmp_path), str(folder))
  assert not list((tmp_path / 'caltech256').iterdir())


def test_a_folder_that_is_no_data_set_is_refused(tmp_path, folder):
  (tmp_path / 'caltech256' / '1.0.0').mkdir(parents=True)
  with pytest.raises(ValueError, match=r'1\.0\.0 is there, but not a prepared data set; remove it'):
    prepare('caltech256', str(tmp_path), str(folder))


def test_mistakes_are_named_with_a_remedy(tmp_path, folder, monkeypatch):
  with pytest.raises(
    ValueError, match=r"dataset='caltech' is unknown; did you mean 'caltech256'\?"
  ):
    prepare('caltech', str(tmp_path))
  with pytest.raises(
    ValueError, match="dataset='coco' is unknown; .*use one of coco/2014, coco/2017$"
  ):
    prepare('coco', str(tmp_path))
  with pytest.raises(
    ValueError, match="dataset='caltech256/15' is unknown; .*use one of caltech256$"
  ):
    prepare('caltech256/15', str(tmp_path))
  with pytest.raises(ValueError, match='archives=.*none is not a folder'):
    prepare('caltech256', str(tmp_path), str(tmp_path / 'none'))
  # Nothing listens at port 9, and nobody asks for a password.
  nowhere = Archive('256_ObjectCategories.tar', 'http://127.0.0.1:9/256_ObjectCategories.tar')
  monkeypatch.setattr(caltech256.Builder, 'ARCHIVES', (nowhere, Archive('by_mail.tar')))
  with pytest.raises(
    ValueError, match=r'by_mail\.tar is missing; get it from https://data\.caltech'
  ):
    prepare('caltech256', str(tmp_path), str(folder))
  (folder / '256_ObjectCategories.tar').unlink()
  expected = (
    f'{nowhere.url} cannot be downloaded (<urlopen error [Errno 111] Connection refused>); '
    f'put 256_ObjectCategories.tar into {folder} yourself'
  )
  with pytest.raises(ValueError, match=re.escape(expected)):
    prepare('caltech256', str(tmp_path), str(folder))


def test_tfds_prepares_from_its_own_folder_of_archives(tmp_path, folder):
  """Only TFDS is called, without `prepare`."""
  builders.register()
  manual = tmp_path / 'data' / 'downloads' / 'manual'
  manual.parent.mkdir(parents=True)
  folder.rename(manual)
  source = tfds.data_source('caltech256', split='train[:10]', data_dir=tmp_path / 'data')
  assert len(source) == 10
  assert source[0]['image'].shape == (9, 12, 3)


def test_every_name_leads_to_our_builder():
  builders.register()
  for name in builders.BUILDERS:
    cls = tfds.builder_cls(name)
    assert cls is builders.load(name)
    assert cls.name == name
    assert cls.ARCHIVES
  assert tfds.builder_cls('mnist').__module__.startswith('tensorflow_datasets')


@pytest.mark.slow
def test_the_command_names_mistakes_in_one_line(tmp_path, folder):
  command = ['-m', 'sjft_jax.data.prepare', f'--data_dir={tmp_path}']
  missing = run(*command)
  assert missing.returncode == 1
  assert missing.stderr.splitlines()[-1].startswith('error: ')
  unknown = run(*command, '--dataset=dogs')
  assert unknown.returncode == 1
  assert unknown.stderr.startswith("error: dataset='dogs' is unknown; ")
  assert len(unknown.stderr.splitlines()) == 1
  # The miniature archive is not the official one.
  unofficial = run(*command, '--dataset=caltech256', f'--archives={folder}')
  assert unofficial.returncode == 1
  size = os.path.getsize(folder / '256_ObjectCategories.tar')
  assert (
    f'has {size:,} bytes, the official 256_ObjectCategories.tar 1,183,006,720' in unofficial.stderr
  )
  assert len(unofficial.stderr.splitlines()) == 1


def test_importing_registers_nothing():
  script = (
    'from tensorflow_datasets.core import registered\n'
    'providers = list(registered._DATASET_PROVIDER_REGISTRY)\n'
    'from sjft_jax.data import builders, records, registry\n'
    'from sjft_jax.data.builders import caltech256\n'
    'assert registered._DATASET_PROVIDER_REGISTRY == providers\n'
    'builders.register()\n'
    'builders.register()\n'
    'assert registered._DATASET_PROVIDER_REGISTRY[1:] == providers\n'
  )
  subprocess.run([sys.executable, '-c', script], check=True)
