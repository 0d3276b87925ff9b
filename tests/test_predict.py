"""A trained run applied to a folder of images, from the command line."""

import shutil
import sys

import commands
import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from small_run import overrides, write_data

from sjft_jax import config, pipeline
from sjft_jax.data.folder import UnlabelledFolder
from sjft_jax.models.weights import run_checkpoint

# Both domains' statistics, and an average of the parameters.
CHANGES = {
  'arms': ('selected',),
  'pretrain.steps': 0,
  'model.name': 'resnet18v2',
  'model.width': 0.25,
  'model.fully_connected': True,
  'model.batch_norm': 'per_domain',
  'solver.ema': 0.5,
  'evaluation.views': ('ten_crop', 'center'),
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  path = write_data(tmp_path_factory.mktemp('data'))
  (path / 'target' / 'test' / 'stripes 0').rename(path / 'target' / 'test' / 'é, "x"')
  (path / 'target' / 'train' / 'stripes 0').rename(path / 'target' / 'train' / 'é, "x"')
  return path


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
  c = config.default()
  for name, value in (overrides(data) | CHANGES).items():
    section, _, option = name.rpartition('.')
    (c[section] if section else c)[option] = value
  workdir = tmp_path_factory.mktemp('run') / 'run'
  pipeline.run(c, workdir)
  shutil.copytree(workdir / 'arms' / 'selected', workdir / 'pretrain')
  return workdir


def start(run, images, output, *more):
  options = f'--run={run}', f'--images={images}', f'--output={output}'
  return commands.start([sys.executable, '-m', 'sjft_jax.predict', *options, *more])


@pytest.mark.slow
def test_it_gives_the_probabilities_that_the_run_scored(run, data, tmp_path):
  images = tmp_path / 'images'
  shutil.copytree(data / 'target' / 'test', images)
  (images / 'broken.png').write_text('no image')
  outputs = [tmp_path / name for name in ('some.csv', 'all.parquet')]
  arm, test = run / 'arms' / 'selected', data / 'target' / 'test'
  processes = [
    start(arm, images, outputs[0], '--max_bad_share=0.2'),
    start(arm, test, outputs[1], '--view=center', '--every_class', '--batch_size=2'),
  ]
  for process in processes:
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, told + errors
    assert '9 images' in told
    assert 'after 9 of 9 steps' in told
  scored = np.load(arm / 'rounds' / '1' / 'round.npz')
  names = [UnlabelledFolder(str(test)).key(i) for i in range(9)]
  # Another order of the classes would show: the run sorts them as the folder does its images.
  classes = ['stripes 1', 'stripes 2', 'é, "x"']

  some = pyarrow.csv.read_csv(outputs[0]).to_pydict()
  assert list(some) == ['image', 'class', 'probability']
  assert some['image'] == names
  expected = scored['test/ten_crop']
  assert some['class'] == [classes[i] for i in expected.argmax(axis=1)]
  np.testing.assert_allclose(some['probability'], expected.max(axis=1), rtol=1e-4)
  assert 'broken.png' in (tmp_path / 'some.csv.bad_images.csv').read_text()

  every = pyarrow.parquet.read_table(outputs[1])
  assert every.column_names[3:] == [f'probability of {name}' for name in classes]
  expected = scored['test/center']
  np.testing.assert_allclose(np.stack(every.columns[3:], axis=1), expected, rtol=1e-4)
  assert every['class'].to_pylist() == [classes[i] for i in expected.argmax(axis=1)]
  assert not (tmp_path / 'all.parquet.bad_images.csv').exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used_once_it_is_deleted(run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  arm = tmp_path / 'run' / 'arms' / 'selected'
  before, newest = sorted((arm / 'checkpoints').iterdir(), key=lambda path: int(path.name))
  for file in [path for path in (newest / 'state').rglob('*') if path.is_file()]:
    file.write_bytes(file.read_bytes()[:10])
  with pytest.raises(ValueError, match=f'^checkpoint {newest} is damaged .*; delete it') as error:
    run_checkpoint.load_newest(str(arm))
  assert '\n' not in str(error.value)
  shutil.rmtree(newest)
  assert run_checkpoint.load_newest(str(arm)).step == int(before.name)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('folder', 'argument', 'message'),
  [
    ('arms/nobody', '', 'give the folder of one training; with checkpoints there: none'),
    ('pretrain', '', 'knows no class of the target; give a folder below '),
    ('arms/selected', '--images=/nowhere', "'/nowhere' is not a folder"),
    ('arms/selected', '--output=p.txt', 'the name must end in .csv or .parquet'),
  ],
)
def test_what_is_wrong_is_said_in_one_line(run, data, tmp_path, folder, argument, message):
  process = start(run / folder, data / 'target', tmp_path / 'p.csv', *argument.split())
  assert message in commands.refusal(process)
  assert not any(tmp_path.iterdir())
