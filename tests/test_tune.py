"""Tuning by folds of the training images: through the command line, stopped, and applied."""

import json
import shutil
import subprocess
import sys

import commands
import numpy as np
import pytest
import small_run
from etils import epath

import sjft_jax
from sjft_jax import config as configs
from sjft_jax import inputs, pipeline, tuning, workdir
from sjft_jax.data.dataset import Domains
from sjft_jax.runtime import artifacts
from sjft_jax.training.accumulation import copy_accumulation
from sjft_jax.tuning import ArmSearch, Trial, _choose_arm

OPTIONS = {
  'arms': ('probe', 'none', 'constant', 'rounds'),
  'selection.rounds': 2,
  'tuning.folds': 2,
  'tuning.settings': 2,
}


def run(data, workdir, *more, status=0):
  """Run the command; return its output."""
  options = small_run.overrides(data) | OPTIONS
  arguments = [f'--config.{name}={value}' for name, value in options.items()]
  process = commands.start(
    [
      *(sys.executable, '-m', 'sjft_jax.tune', '--config=configs/folder.py'),
      *(f'--workdir={workdir}', *arguments, *more),
    ],
    subprocess.STDOUT,
  )
  output, _ = process.communicate(timeout=600)
  assert process.returncode == status, output
  return output


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  path = small_run.write_data(tmp_path_factory.mktemp('data'))
  # The test images are never decoded.
  for image in (path / 'target' / 'test').rglob('*.png'):
    image.write_bytes(b'no image')
  return path


@pytest.fixture(scope='module')
def tuned(data, tmp_path_factory):
  """Return the folder of a tuning, started first with too little time, and the outputs of both."""
  workdir = tmp_path_factory.mktemp('tuned')
  first = run(data, workdir, '--minutes=0.0001', status=1)
  assert 'the time was too short for one training of every arm' in first
  return workdir, first, run(data, workdir)


@pytest.mark.slow
def test_everything_is_tried_and_the_best_chosen(tuned):
  workdir, first, output = tuned
  record = json.loads((workdir / 'tuned.json').read_text())
  assert record['complete']
  assert record['num_completed_folds'] == record['num_folds'] == 2
  assert record['held_out_images'] == 12
  assert 'Test images' not in output
  assert 'Look at' not in first + output  # What a training leaves is deleted.
  for arm in OPTIONS['arms']:
    tried = [trial for trial in record['tried'] if trial['arm'] == arm]
    # Both settings; the probe has nothing to be set.
    assert [trial['fold'] for trial in tried].count(1) == (1 if arm == 'probe' else 2)
    assert [trial['fold'] for trial in tried].count(2) == 1  # The better half.
    in_first = [trial for trial in tried if trial['fold'] == 1]
    best = min(in_first, key=lambda trial: trial['cross_entropy'])
    setting = record['arms'][arm]['setting']
    assert setting.items() <= best.items()
    assert f'Use the arm {record["arm"]}' in output
  assert 'gain' not in record['arms']['none']
  # Shown, and made once a fold.
  assert 'histograms of' in output or 'histograms of' in first
  assert (first + output).count('Pretraining the trunk on the source') == 2
  assert len(list(workdir.glob('fold*/ranking.npz'))) == 2
  # Networks and logs of the trainings are gone.
  assert {path.suffix for path in workdir.rglob('fold*/*')} == {'.npz'}


@pytest.mark.slow
def test_nothing_is_trained_again(tuned, data):
  workdir, _, _ = tuned
  before = (workdir / 'tuned.json').read_text()
  output = run(data, workdir)
  assert 'fold 1: ' not in output
  assert (workdir / 'tuned.json').read_text() == before


@pytest.mark.slow
def test_main_trains_with_what_was_chosen(tuned, small_data, data, tmp_path):
  path, workdir = tuned[0] / 'tuned.json', tmp_path / 'run'
  shutil.copytree(small_data / 'target' / 'test', data / 'target' / 'test', dirs_exist_ok=True)
  options = [f'--config.{name}={value}' for name, value in OPTIONS.items()]
  command = small_run.command(data, workdir, f'--tuned={path}', *options)
  process = commands.start(command, subprocess.STDOUT)
  output, _ = process.communicate(timeout=600)
  assert process.returncode == 0, output
  saved = json.loads((workdir / 'config.json').read_text())['options']['overrides']
  for arm, chosen in json.loads(path.read_text())['arms'].items():
    assert bool(chosen['setting']) == (arm != 'probe')
    for name, value in chosen['setting'].items():
      section, _, option = name.partition('.')
      assert saved[arm][section][option] == value
  assert saved['constant']['selection']['sigma0'] == 0  # Other overrides stay.
  error = commands.refusal(commands.start([*command, '--config.bank.tap=relu']))
  assert 'tuned.json was made with bank.tap=its default, not relu; tune again' in error


class Images:
  name, fingerprint, classes = 'images', 'x', ('a', 'b', 'c', 'd')
  labels = np.array([0, 3], np.int32)

  def __len__(self):
    return 2


DOMAINS = Domains(Images(), Images(), Images())


def diverging(stage):
  """Return what replaces a run that diverges in a stage, whose folder it has begun."""

  def diverge(domains, config, workdir, **_):
    (workdir / stage).mkdir(parents=True)
    raise FloatingPointError('the loss is nan')

  return diverge


def one_arm(arm='none', **options):
  return small_run.change(configs.default(), {'arms': (arm,), **options})


def test_training_that_diverges_is_the_worst_setting_and_not_the_end(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(pipeline, 'run_on_datasets', diverging('arms/none'))
  path = epath.Path(tmp_path / 'fold1' / 'none.npz')
  path.parent.mkdir()
  trial = tuning._load_or_train(path, DOMAINS, one_arm(), 'start')
  assert 'it diverged: this setting counts as knowing nothing' in capsys.readouterr().out
  np.testing.assert_array_equal(trial.probabilities, 0.25)
  np.testing.assert_array_equal(trial.labels, [0, 3])
  monkeypatch.setattr(pipeline, 'run_on_datasets', None)
  again = tuning._load_or_train(path, DOMAINS, one_arm(), 'start')
  np.testing.assert_array_equal(again.probabilities, trial.probabilities)
  for config, start in (
    (one_arm(), 'other weights'),
    (one_arm(**{'training.max_loss': 1.0}), 'start'),
  ):
    with pytest.raises(ValueError, match=r'none\.npz was made from other data'):
      tuning._load_or_train(path, DOMAINS, config, start)
  search = ArmSearch(one_arm(), [{}], {0: [trial]})
  with pytest.raises(ValueError, match=r'every training diverged; lower solver\.learning_rate'):
    tuning._choose({'none': search})


@pytest.mark.parametrize(('arm', 'stage'), [('none', 'pretrain'), ('probe', 'arms/probe')])
def test_what_no_setting_is_to_blame_for_ends_the_tuning(tmp_path, monkeypatch, arm, stage):
  monkeypatch.setattr(pipeline, 'run_on_datasets', diverging(stage))
  with pytest.raises(FloatingPointError, match='the loss is nan'):
    tuning._train(epath.Path(tmp_path / 'fold1' / arm), DOMAINS, one_arm(arm))


def test_all_trainings_have_the_micro_batches_of_the_first(tmp_path, monkeypatch):
  numbers, found = iter((4, 2)), []

  def choose(domains, config, workdir, earlier_runs, **_):
    copy_accumulation(earlier_runs, workdir)
    file = workdir / 'accumulation.100.json'
    if not file.exists():
      artifacts.write_json(file, {'accumulation': next(numbers)})
    found.append(artifacts.load_json(file, {})['accumulation'])
    diverging('arms/none')(domains, config, workdir)

  monkeypatch.setattr(pipeline, 'run_on_datasets', choose)
  for fold in ('fold1', 'fold2'):
    tuning._train(epath.Path(tmp_path / fold / 'none'), DOMAINS, one_arm())
  assert found == [4, 4]


@pytest.mark.slow
def test_setting_whose_last_update_overflows_is_the_worst(small_data, tmp_path):
  options = {'arms': ('none',), 'pretrain.steps': 0, 'selection.rounds': 1, 'training.steps': 1}
  config = small_run.make_config(small_data, **options, **{'solver.learning_rate': 1e38})
  domains = inputs.open_domains(config)
  trial = tuning._load_or_train(epath.Path(tmp_path / 'none.npz'), domains, config, 'start')
  np.testing.assert_allclose(trial.probabilities, 1 / 3)
  with pytest.raises(FloatingPointError, match=r'not finite after step 1; lower solver'):
    pipeline.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run' / 'results.json').exists()


@pytest.mark.parametrize('minutes', [-1.0, float('nan')])
def test_impossible_minutes_are_refused(tmp_path, minutes):
  with pytest.raises(ValueError, match=f'minutes={minutes} must be 0 or more'):
    tuning.tune(configs.default(), tmp_path / 'tuning', minutes=minutes)
  assert not any(tmp_path.iterdir())


def test_fewer_groups_than_folds_are_refused_before_any_training():
  labels, groups = np.tile(np.arange(4), 8), np.repeat([0, 1], 16)
  assert set(tuning._assign_folds(labels, groups, 2, 0)) == {0, 1}
  message = r'tuning\.folds=3 leaves a fold empty: .* are 2 groups, .*; lower it to 2, or add'
  with pytest.raises(ValueError, match=message):
    tuning._assign_folds(labels, groups, 3, 0)


def make_search(scores):
  """Return a search with trials of given probabilities of the right class, [setting][fold]."""
  trials = {}
  for number, folds in enumerate(scores):
    trials[number] = [
      Trial(np.array([[p, 1 - p], [1 - p, p]], np.float32), np.array([0, 1]), 1.0) for p in folds
    ]
  return ArmSearch(None, [{'a': float(n)} for n in range(len(scores))], trials)


def test_half_of_the_settings_go_on_by_the_score_of_all_folds_so_far():
  arm = make_search([[0.9, 0.4], [0.4], [0.8, 0.9, 0.9], [0.2]])
  assert arm.survivors(0) == [0, 1, 2, 3]
  assert arm.survivors(1) == [0, 2]
  assert arm.survivors(2) == [2]
  assert arm.num_completed_folds() == 3


def test_time_to_go_is_that_of_each_arm_and_counts_what_an_earlier_start_did():
  def make_arm(num_settings, *seconds):
    trials = [[Trial(np.zeros((1, 2)), np.zeros(1, int), s)] for s in seconds]
    return ArmSearch(None, [{}] * num_settings, dict(enumerate(trials)))

  assert make_arm(5).num_trials(3) == 5 + 3 + 2
  # All trials are from an earlier start. One diverged at once; the last arm has none yet.
  arms = [make_arm(4, 10.0, 20.0), make_arm(4, 2.0, 0.0), make_arm(1)]
  means = 15.0, 2.0, (10 + 20 + 2) / 3
  expected = 4 * means[0] + 4 * means[1] + 2 * means[2]
  assert tuning._seconds_to_go(arms, 2) == pytest.approx(expected)
  assert tuning._seconds_to_go([make_arm(4)], 2) == 0


def test_partly_tried_fold_does_not_count():
  arm = make_search([[0.9, 0.4], [0.4], [0.8], [0.2]])
  assert arm.num_completed_folds() == 1


def test_arm_with_one_setting_lets_the_others_try_theirs_within_the_time():
  arms = {'probe': make_search([[0.6]]), 'none': make_search([[0.5], [0.9], [0.1]])}
  arms['none'].settings.append({'a': 3.0})  # It was not tried yet.
  record = tuning._choose(arms)
  assert record['num_completed_folds'] == 0
  assert record['arms']['none']['setting'] == {'a': 1.0}


def test_cheapest_arm_within_a_standard_error_is_chosen():
  labels = np.repeat([0, 1], 50)
  right = np.arange(100) % 10 < 7
  correct = {'none': right, 'constant': right.copy(), 'rounds': right.copy()}

  def choose():
    chosen = {name: {'accuracy': float(value.mean())} for name, value in correct.items()}
    return _choose_arm(chosen, correct, labels)

  assert choose() == 'none'
  correct['rounds'][[0, 7, 8]] = False, True, True  # One more right, with an error of 1.7.
  assert choose() == 'none'
  correct['constant'][[7, 8, 17, 18, 27, 57, 67]] = True
  assert choose() == 'constant'
  correct = {'mine': right, 'rounds': right.copy()}  # What an arm of one's own costs is not known.
  assert choose() == 'rounds'
  correct['mine'] = right | True
  assert choose() == 'mine'


def test_tuning_that_main_would_refuse_is_not_begun(tmp_path):
  small_run.write_folder(tmp_path / 'images', 2, 4, seed=0)
  changes = {'target.path': str(tmp_path / 'images'), 'repeats': 3, 'arms': ('none',)}
  config = small_run.change(configs.default(), changes)
  with pytest.raises(ValueError, match='some of which the other 2 repeats test on'):
    tuning.tune(config, tmp_path / 'tuning')
  assert not (tmp_path / 'tuning').exists()


def test_tuning_among_class_folders_is_refused(tmp_path):
  config = small_run.make_config(small_run.write_data(tmp_path))
  directory = tmp_path / 'target' / 'train' / 'tuning'
  with pytest.raises(ValueError, match='where it would be taken for a class'):
    tuning.tune(config, directory)
  assert not directory.exists()


@pytest.mark.parametrize(
  ('option', 'then', 'now'), [('tuning.folds', 3, 5), ('training.max_loss', 1000.0, 10.0)]
)
def test_what_trainings_were_made_with_stays(small_data, tmp_path, option, then, now):
  config = small_run.make_config(small_data, arms=('none',), **{option: then})
  workdir.save_config(config, epath.Path(tmp_path))
  other = small_run.make_config(small_data, arms=('none',), **{option: now})
  tuning._check_trials(other, epath.Path(tmp_path))
  (tmp_path / 'fold1').mkdir()
  (tmp_path / 'fold1' / 'none-0123456789abcdef.npz').touch()
  tuning._check_trials(config, epath.Path(tmp_path))
  with pytest.raises(ValueError, match=f'has trainings with {option}={then}, now {now}: use a new'):
    tuning._check_trials(other, epath.Path(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize('is_killed', [False, True])
def test_trainings_of_a_fold_share_its_pretraining(small_data, tmp_path, monkeypatch, is_killed):
  """They do so without a trace in what they predict."""
  options = {'pretrain.steps': 2, 'selection.rounds': 1, 'training.steps': 2}
  trials = []
  for number, fold in enumerate(('shared', 'shared', 'alone')):
    arm, rate = (('none', 0.05), ('constant', 0.02), ('constant', 0.02))[number]
    config = small_run.make_config(small_data, arms=(arm,), **options)
    config.overrides[arm] = {'solver': {'learning_rate': rate}}
    directory = epath.Path(tmp_path / fold / arm)
    if is_killed and number == 1:
      with monkeypatch.context() as patch:
        # As a kill after the pretraining was taken over: nothing puts it back.
        patch.setattr(pipeline, 'run_on_datasets', lambda *_, **__: 1 / 0)
        patch.setattr(tuning.os, 'replace', replace_once())
        with pytest.raises((ZeroDivisionError, OSError)):
          tuning._train(directory, inputs.open_domains(config), config)
      assert (directory / 'pretrain').exists()
    trials.append(tuning._train(directory, inputs.open_domains(config), config))
    assert (tmp_path / fold / 'pretrain').exists()
  first, second, alone = trials
  assert first.pretrain_seconds > 0
  assert alone.pretrain_seconds > 0
  assert is_killed or second.pretrain_seconds == 0
  np.testing.assert_array_equal(second.probabilities, alone.probabilities)


def test_a_pretraining_that_is_refused_stays_where_the_error_says(tmp_path, monkeypatch):
  """Moved, it could not be deleted there, and would be taken over and refused again."""

  def refuse(domains, config, workdir, **_):
    raise ValueError(f'{workdir / "pretrain"} was made from other data; delete this one')

  monkeypatch.setattr(pipeline, 'run_on_datasets', refuse)
  config = configs.default()
  config.arms = ('none',)
  fold = epath.Path(tmp_path / 'fold1')
  (fold / 'pretrain').mkdir(parents=True)
  for _ in range(2):
    with pytest.raises(ValueError, match='delete this one'):
      tuning._train(fold / 'none-0', None, config)
    assert (fold / 'none-0' / 'pretrain').exists()


def replace_once():
  """Return an os.replace that works once."""
  calls, replace = [], tuning.os.replace

  def replace_or_fail(*paths):
    calls.append(paths)
    if len(calls) > 1:
      raise OSError('killed')
    replace(*paths)

  return replace_or_fail


def test_pretraining_of_the_folds_to_come_counts_in_the_time_to_go():
  trial = Trial(np.zeros((1, 2)), np.zeros(1, int), 4.0, 30.0)
  arms = [ArmSearch(None, [{}] * 2, {0: [trial]})]
  assert arms[0].num_trials(3) == 4
  assert tuning._seconds_to_go(arms, 3) == pytest.approx(3 * 4 + 2 * 30)


@pytest.mark.parametrize('name', ['screened.json', 'results.json'])
def test_lists_of_a_run_are_not_replaced(small_data, tmp_path, name):
  options = small_run.make_config(small_data)
  (tmp_path / name).write_text('{}')
  with pytest.raises(ValueError, match='is the work directory of a run, whose lists of images'):
    sjft_jax.tune(options, tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == [name]
  trial = tmp_path / 'fold1' / 'none-0.npz'  # The run came later; the tuning can go on.
  trial.parent.mkdir()
  trial.touch()
  tuning._check_no_run(epath.Path(tmp_path))
