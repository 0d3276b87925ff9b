"""A trained run applied to images, from the command line."""

import csv
import json
import shutil
import sys

import commands
import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from etils import epath
from small_run import make_config, write_data

from sjft_jax import pipeline, predict
from sjft_jax.data.folder import UnlabelledFolder
from sjft_jax.models.weights import run_checkpoint

# The network has statistics of both domains and an average of the parameters.
CHANGES = {
  'arms': ('rounds',),
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
  """Return a work directory with an arm and what looks like a pretraining."""
  workdir = tmp_path_factory.mktemp('run') / 'run'
  pipeline.run(make_config(data, **CHANGES), workdir)
  shutil.copytree(workdir / 'arms' / 'rounds', workdir / 'pretrain')
  return workdir


def test_images_that_trained_the_network_are_counted(tmp_path, capsys):
  split = epath.Path(tmp_path / 'split.csv')  # As the folder of a classifier is.
  predict.warn_of_training_images(split, ['a/1.png'])
  for other in (b'', b'name,split\na/1.png,train\n', b'image\xff\n"a/1.png\n'):
    split.write_bytes(other)
    predict.warn_of_training_images(split, ['a/1.png'])
  split.write_text('image,class,set\na/1.png,a,train\na/2.png,a,train\na/2.png,a,test\n')
  predict.warn_of_training_images(split, ['a/2.png'])
  assert not capsys.readouterr().out
  predict.warn_of_training_images(split, ['a/1.png', 'a/2.png', 'a/3.png'])
  assert 'warning: 1 of 3 images are called like training images' in capsys.readouterr().out


def test_a_linear_probe_is_not_said_to_have_done_no_steps():
  assert predict.describe_progress(0, 0, False) == predict.describe_progress(0, 0, True) == ''
  assert predict.describe_progress(1000, 2000, False) == ' after 1,000 of 2,000 steps'
  assert predict.describe_progress(2000, 2000, True) == ' after each of its rounds'


def test_no_images_are_named_so():
  process = start_predict('nowhere', '--images=')
  assert '--images= is empty; give a folder, a list or an image' in commands.refusal(process)


def test_likeliest_classes_that_nothing_would_show_are_refused():
  process = start_predict('nowhere', '--images=x', '--eval', '--top=3')
  assert '--top=3: --eval prints scores alone' in commands.refusal(process)


def start(arm, images, output, *more):
  return start_predict(arm, f'--images={images}', f'--output={output}', *more)


def start_predict(arm, *options):
  return commands.start([sys.executable, '-m', 'sjft_jax.predict', f'--run={arm}', *options])


def finish(process):
  """Return what a command printed that ended well."""
  output, errors = process.communicate(timeout=300)
  assert process.returncode == 0, output + errors
  return output


@pytest.mark.slow
def test_predictions_are_the_probabilities_that_the_run_scored(run, data, tmp_path):
  images = tmp_path / 'images'
  shutil.copytree(data / 'target' / 'test', images)
  (images / 'broken.png').write_text('no image')
  outputs = [tmp_path / name for name in ('some.csv', 'all.parquet', 'fused.parquet')]
  arm, test = run / 'arms' / 'rounds', data / 'target' / 'test'
  processes = [
    start(arm, images, outputs[0]),
    start(arm, test, outputs[1], '--view=center', '--every_class', '--batch_size=2'),
    start(arm, test, outputs[2], '--fused', '--every_class'),
  ]
  printed = [finish(process) for process in processes]
  assert all('9 images' in text for text in printed)
  assert all('after 9 of 9 steps' in text for text in printed[:2])
  assert 'after each of its rounds' in printed[2]
  scores = [np.load(arm / 'rounds' / number / 'round.npz') for number in '123']
  names = [UnlabelledFolder(str(test)).key(i) for i in range(9)]
  # Another order of the classes would show: the run sorts them as the folder does its images.
  classes = ['stripes 1', 'stripes 2', 'é, "x"']

  some = pyarrow.csv.read_csv(outputs[0]).to_pydict()
  assert list(some) == ['image', 'class', 'probability']
  assert some['image'] == names
  expected = scores[-1]['test/ten_crop']
  assert some['class'] == [classes[i] for i in expected.argmax(axis=1)]
  np.testing.assert_allclose(some['probability'], expected.max(axis=1), rtol=1e-4)
  assert 'broken.png' in (tmp_path / 'some.csv.bad_images.csv').read_text()

  for output, expected in (
    (outputs[1], scores[-1]['test/center']),
    (outputs[2], np.mean([score['test/ten_crop'] for score in scores], axis=0)),
  ):
    table = pyarrow.parquet.read_table(output)
    assert table.column_names[3:] == [f'probability of {name}' for name in classes]
    np.testing.assert_allclose(np.stack(table.columns[3:], axis=1), expected, rtol=1e-4)
    assert table['class'].to_pylist() == [classes[i] for i in expected.argmax(axis=1)]
    assert not output.with_name(f'{output.name}.bad_images.csv').exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used_once_it_is_deleted(run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  arm = tmp_path / 'run' / 'arms' / 'rounds'
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
    ('arms/rounds', '--images=/nowhere', '/nowhere is neither a folder nor a file'),
    ('arms/rounds', '--max_bad_share=0 --images=/nowhere --eval', 'takes one folder or list'),
    ('arms/rounds', '--split=test', '--split=test is for scores; give --eval'),
    ('arms/rounds', '--output=p.txt', 'the name must end in one of .csv, .tsv, .parquet, .json'),
  ],
)
def test_a_mistake_ends_in_one_line(run, data, tmp_path, folder, argument, message):
  process = start(run / folder, data / 'target', tmp_path / 'p.csv', *argument.split())
  assert message in commands.refusal(process)
  assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_of_an_older_version_is_refused(run, data, tmp_path):
  """Before format 2, config.json held the options alone."""
  workdir = tmp_path / 'run'
  shutil.copytree(run, workdir)
  options = json.loads((workdir / 'config.json').read_text())['options']
  (workdir / 'config.json').write_text(json.dumps(options))
  output = tmp_path / 'p.csv'
  message = commands.refusal(start(workdir / 'arms' / 'rounds', data / 'target', output))
  assert f'{workdir}/config.json is damaged: it has no checksum (if another version' in message
  assert not output.exists()


@pytest.mark.slow
def test_one_file_and_a_list_are_predicted_as_in_their_folder(run, data, tmp_path):
  arm, folder = run / 'arms' / 'rounds', data / 'target' / 'test'
  names = ['é, "x"/0.png', 'stripes 1/2.png']
  (folder / 'LIST.TSV').write_text('\n'.join(['path', *(f'./{name}' for name in names)]) + '\n')
  jobs = {
    'folder.csv': start(arm, folder, tmp_path / 'folder.csv'),
    'file.CSV': start(arm, folder / names[0], tmp_path / 'file.CSV'),
    'list.tsv': start(arm, folder / 'LIST.TSV', tmp_path / 'list.tsv'),
  }
  tables = {}
  for name, process in jobs.items():
    count = {'file.CSV': '1 image', 'list.tsv': '2 images'}.get(name, '9 images')
    assert f'{name}: {count}, ten_crop, by' in finish(process)
    delimiter = '\t' if name.endswith('tsv') else ','
    options = pyarrow.csv.ParseOptions(delimiter=delimiter)
    tables[name] = pyarrow.csv.read_csv(tmp_path / name, parse_options=options).to_pydict()
  whole = dict(zip(tables['folder.csv']['image'], tables['folder.csv']['probability'], strict=True))
  assert tables['file.CSV']['probability'] == pytest.approx([whole[names[0]]], rel=1e-5)
  assert tables['list.tsv']['image'] == names
  expected = [whole[name] for name in names]
  assert tables['list.tsv']['probability'] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_eval_gives_the_numbers_that_training_gave(run, data, tmp_path):
  arm, test = run / 'arms' / 'rounds', data / 'target' / 'test'
  first = sorted(path.relative_to(test).as_posix() for path in test.rglob('*.png'))[0]
  with (run / 'split.csv').open('w') as file:  # As of a run that has drawn its test images.
    rows = csv.writer(file)
    rows.writerows([('image', 'class', 'set'), (first, 'any', 'train')])
  jobs = [
    start_predict(arm, f'--images={test}', '--eval'),
    start_predict(arm, f'--images={test}', '--eval', '--fused', '--view=center'),
    start_predict(arm, f'--images={test}', '--eval', f'--output={tmp_path / "p.json"}'),
  ]
  printed = [finish(process) for process in jobs]
  (run / 'split.csv').unlink()
  assert 'images are called like training images' in printed[0]
  saved = json.loads((run / 'results.json').read_text())['arms']['rounds']
  for text, scores in (
    (printed[0], saved['rounds'][-1]['test']['ten_crop']),
    (printed[1], saved['fused']['center']),
    (printed[2], saved['rounds'][-1]['test']['ten_crop']),
  ):
    row = text.splitlines()[-2]
    assert f'{scores["mean_class_accuracy"]:.1%}' in row
    assert f'{scores["top1"]:.1%}' in row
    assert float(row.split('│')[-2]) == pytest.approx(scores['cross_entropy'], abs=6e-4)
  rows = json.loads((tmp_path / 'p.json').read_text())
  assert [row['label'] for row in rows] == [row['image'].partition('/')[0] for row in rows]
  hits = np.mean([row['label'] == row['class'] for row in rows])
  assert hits == pytest.approx(saved['rounds'][-1]['test']['ten_crop']['top1'])


@pytest.mark.slow
def test_several_paths_are_printed_with_their_likeliest_classes(run, data, tmp_path):
  arm, test = run / 'arms' / 'rounds', data / 'target' / 'test'
  file, folder = test / 'stripes 1' / '2.png', test / 'é, "x"'
  text = finish(start_predict(arm, f'--images={file}', f'--images={folder}', '--top=2'))
  rows = [line.split('│')[1:-1] for line in text.splitlines() if line.startswith('│')]
  cells = [[cell.strip() for cell in row] for row in rows]
  assert [row[0] for row in cells] == [str(file), *(str(folder / f'{i}.png') for i in range(3))]
  p = np.load(arm / 'rounds' / '3' / 'round.npz')['test/ten_crop']
  classes = ['stripes 1', 'stripes 2', 'é, "x"']
  # The file is the third image of the first class; the folder holds the last class.
  for row, own in zip(cells, p[[2, 6, 7, 8]], strict=True):
    first, second = np.argsort(-own)[:2]
    assert row[1::2] == [classes[first], classes[second]]
    shares = [float(cell.rstrip('%')) for cell in row[2::2]]
    assert shares == pytest.approx(100 * own[[first, second]], abs=0.051)


@pytest.mark.slow
def test_a_class_that_the_network_does_not_know_is_named(run, data, tmp_path):
  images = tmp_path / 'images'
  # Another test leaves a list there, about which the command says a line.
  ignore = shutil.ignore_patterns('LIST*')
  shutil.copytree(data / 'target' / 'test', images, ignore=ignore)
  (images / 'stripes 1').rename(images / 'zebra')
  process = start_predict(run / 'arms' / 'rounds', f'--images={images}', '--eval')
  assert "has the class 'zebra', which the network does not know" in commands.refusal(process)
