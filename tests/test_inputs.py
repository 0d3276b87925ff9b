import shutil

import pytest
from etils import epath
from small_run import make_config, write_data

from sjft_jax import inputs


@pytest.mark.parametrize('split', ['target/train', 'target/test', 'source/train'])
def test_a_work_directory_among_class_folders_is_refused(tmp_path, split):
  for folder in ('target/train/a', 'target/test/a', 'source/train/a'):
    (tmp_path / folder).mkdir(parents=True)
  config = make_config(tmp_path)
  inputs.check_outside_data(config, tmp_path / 'run')
  inputs.check_outside_data(config, tmp_path / 'target')
  with pytest.raises(ValueError, match=f'{split}/run lies in .*/{split}, where it would be taken'):
    inputs.check_outside_data(config, tmp_path / split / 'run')


def test_a_work_directory_in_an_object_store_lies_in_no_folder(tmp_path, monkeypatch):
  (tmp_path / 'a').mkdir()
  config = make_config(tmp_path, **{'target.path': '.'})
  monkeypatch.chdir(tmp_path)
  inputs.check_outside_data(config, epath.Path('gs://bucket/run'))
  with pytest.raises(ValueError, match='would be taken for a class'):
    inputs.check_outside_data(config, epath.Path('run'))


def test_filters_that_do_not_fit_are_named_before_any_stage(small_data):
  config = make_config(small_data, **{'descriptors.crop': 6, 'arms': ('none', 'rounds')})
  domains = inputs.open_domains(config)
  with pytest.raises(ValueError, match='descriptors: crop=6'):
    inputs.load_inputs(config, domains)
  config.arms = ('none',)
  inputs.load_inputs(config, domains)


def test_a_source_among_the_classes_of_the_target_is_refused(tmp_path, capsys):
  data = write_data(tmp_path / 'data')
  train = data / 'target/train'
  shutil.copytree(data / 'source/train', train / 'source')
  config = make_config(data, **{'target.path': str(train), 'source.path': str(train / 'source')})
  with pytest.raises(ValueError, match='lies in .* where it is taken for a class of the target'):
    inputs.check_outside_data(config, epath.Path(tmp_path / 'run'))
  # A link is followed, so it is a class too; a hidden folder is none.
  (train / 'link').symlink_to(data / 'source/train')
  config = make_config(data, **{'target.path': str(train), 'source.path': str(train / 'link')})
  with pytest.raises(ValueError, match='lies in .* where it is taken for a class of the target'):
    inputs.check_outside_data(config, epath.Path(tmp_path / 'run'))
  (train / 'source').rename(train / '.source')
  config = make_config(data, **{'target.path': str(train), 'source.path': str(train / '.source')})
  inputs.check_outside_data(config, epath.Path(tmp_path / 'run'))
  config = make_config(data)
  inputs.check_outside_data(config, epath.Path(tmp_path / 'run'))
  assert not capsys.readouterr().out
  config = make_config(data, **{'source.path': str(data)})  # Its classes are target and source.
  inputs.check_outside_data(config, epath.Path(tmp_path / 'run'))
  assert 'where it is a part of a class of the source' in ' '.join(capsys.readouterr().out.split())
