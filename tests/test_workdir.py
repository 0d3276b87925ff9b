import json
from types import SimpleNamespace

import pytest
from etils import epath

from sjft_jax import config, workdir
from sjft_jax.data.dataset import Domains
from sjft_jax.runtime import artifacts


def test_unusable_store_is_refused_with_the_remedy(monkeypatch):
  assert workdir.resolve('runs/a') == epath.Path('runs/a')
  with pytest.raises(ValueError, match='s3://b/run: .*gs://bucket/path.*mount a s3:// bucket'):
    workdir.resolve('s3://b/run')
  monkeypatch.setattr(workdir.util, 'find_spec', lambda _: None)
  with pytest.raises(ValueError, match=r"gs://b/run needs .* pip install 'sjft_jax\[gcs\]'"):
    workdir.resolve('gs://b/run')


def changed(**options):
  """Return the default options with some changed: section__option=value."""
  c = config.default()
  for name, value in options.items():
    section, _, option = name.partition('__')
    c[section][option] = value
  return c


def test_options_that_change_no_result_exist():
  known = workdir._options(config.default())
  for pattern in workdir.NON_RESULT_OPTIONS:
    if pattern != 'logging.*' or 'logging' in config.default():
      assert any(workdir.fnmatchcase(option, pattern) for option in known)
  assert workdir.changes_no_result('overrides.none.training.workers')
  assert not workdir.changes_no_result('overrides.none.training.steps')


def test_result_options_are_those_that_decide_results():
  usual = workdir.result_options(config.default())
  assert workdir.result_options(changed(training__workers=3, descriptors__workers=2)) == usual
  smaller = changed(evaluation__batch_size=16, descriptors__batch_size=32)
  assert workdir.result_options(smaller) == usual
  other = changed(training__steps=7, training__workers=3)
  assert workdir.result_options(other) == usual | {'training.steps': 7}
  other = changed(descriptors__num_bins=7, descriptors__workers=3, training__steps=7)
  assert workdir.result_options(other, 'bank', 'descriptors') == {'descriptors.num_bins': 7}


def test_result_options_contain_what_an_arm_overrides():
  c = config.default()
  del c.overrides.none['loss']
  assert workdir.result_options(c) != workdir.result_options(config.default())
  assert 'overrides.none.selection.method' in workdir.result_options(config.default())


def test_other_options_are_refused_by_name_and_harmless_ones_accepted_on_demand(tmp_path):
  directory = epath.Path(tmp_path)
  workdir.check_unchanged(changed(training__steps=3), directory)  # There is no config.json yet.
  workdir.save_config(config.default(), directory)
  workdir.check_unchanged(config.default(), directory)

  harmless = changed(training__workers=4)
  with pytest.raises(
    ValueError, match=r'training\.workers was 0, now 4\), all harmless: add --res'
  ):
    workdir.check_unchanged(harmless, directory)
  workdir.check_unchanged(harmless, directory, resume_with_changes=True)

  # What the messages about memory that ran out ask for.
  smaller = changed(evaluation__batch_size=16, descriptors__batch_size=32)
  workdir.check_unchanged(smaller, directory, resume_with_changes=True)

  harmful = changed(training__workers=4, solver__learning_rate=0.5)
  for accept in (False, True):
    with pytest.raises(ValueError, match=r'\(solver\.learning_rate was 0\.01, now 0\.5\)') as error:
      workdir.check_unchanged(harmful, directory, resume_with_changes=accept)
    assert 'accepts only the harmless training.workers was 0, now 4' in str(error.value)

  moved = changed(source__path='elsewhere')
  with pytest.raises(ValueError, match='the same options; where the same images have moved, a li'):
    workdir.check_unchanged(moved, directory)
  moved.training.steps = 3
  with pytest.raises(ValueError, match='or the same options$'):
    workdir.check_unchanged(moved, directory)

  c = config.default()
  del c.overrides.none['loss']
  with pytest.raises(ValueError, match=r'overrides\.none\.loss\.target_weight was 1\.0, now None'):
    workdir.check_unchanged(c, directory)


def test_earlier_options_are_kept(tmp_path):
  directory = epath.Path(tmp_path)
  for workers in (0, 0, 3, 5, 5):
    workdir.save_config(changed(training__workers=workers), directory)
  workers = {
    path.name: json.loads(path.read_text())['options']['training']['workers']
    for path in directory.glob('config*.json')
  }
  assert workers == {'config.1.json': 0, 'config.2.json': 3, 'config.json': 5}
  assert json.loads((directory / 'versions.json').read_text())['jax']
  assert not (directory / 'versions.1.json').exists()


def test_other_versions_of_packages_are_said_and_kept(tmp_path, capsys):
  directory = epath.Path(tmp_path)
  workdir.save_config(config.default(), directory)
  assert capsys.readouterr().out == ''
  versions = json.loads((directory / 'versions.json').read_text())
  for changes, message in (
    ({'pytest': '0.1'}, ''),
    ({'jax': '0.1'}, f'Other versions than before (jax 0.1, now {versions["jax"]}): results agree'),
  ):
    artifacts.write_json(directory / 'versions.json', versions | changes)
    workdir.save_config(config.default(), directory)
    output = capsys.readouterr().out
    assert output.count('\n') == bool(message)
    assert message in output
    assert json.loads((directory / 'versions.json').read_text()) == versions
  assert json.loads((directory / 'versions.2.json').read_text())['jax'] == '0.1'


def test_option_that_a_work_directory_lacks_had_its_default(tmp_path):
  directory = epath.Path(tmp_path)
  workdir.save_config(config.default(), directory)
  content = json.loads((directory / 'config.json').read_text())
  del content['options']['training']['steps']
  artifacts.write_json(directory / 'config.json', content)
  workdir.check_unchanged(config.default(), directory)
  with pytest.raises(ValueError, match=r'training\.steps was 16000, now 7'):
    workdir.check_unchanged(changed(training__steps=7), directory)
  content['options']['training']['gone'] = 3
  artifacts.write_json(directory / 'config.json', content)
  with pytest.raises(ValueError, match=r'training\.gone was 3, now None'):
    workdir.check_unchanged(config.default(), directory)


@pytest.mark.parametrize(
  ('section', 'option', 'value'),
  [('training', 'steps', 'many'), ('solver', 'l2_sp', True), ('target', 'path', [1])],
)
def test_option_of_another_type_is_damage(tmp_path, section, option, value):
  directory = epath.Path(tmp_path)
  workdir.save_config(config.default(), directory)
  forged = artifacts.load_json(directory / 'config.json', {})
  forged['options'][section][option] = value
  artifacts.write_json(directory / 'config.json', forged)
  with pytest.raises(ValueError, match=rf'config\.json is damaged: {section}\.{option}=.* is no '):
    workdir.load_config(directory)


def test_work_directory_of_another_version_is_refused(tmp_path):
  directory = epath.Path(tmp_path)
  message = 'another version of sjft_jax.*new --workdir'
  for content in ({'training': {}}, {'format': workdir.FORMAT - 1, 'options': {}}):
    (directory / 'config.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
      workdir.check_unchanged(config.default(), directory)
  artifacts.write_json(directory / 'config.json', {'format': workdir.FORMAT + 1, 'options': {}})
  with pytest.raises(ValueError, match=message):
    workdir.check_unchanged(config.default(), directory)


@pytest.mark.parametrize('name', ['model.safetensors', 'network.stablehlo'])
def test_an_export_is_no_work_directory_and_nothing_there_is_to_be_deleted(tmp_path, name):
  (tmp_path / name).touch()
  artifacts.write_json(tmp_path / 'config.json', {'label_names': ['a'], 'sjft_jax': {'format': 1}})
  message = f'^{tmp_path} is an exported network, no work directory; give another folder'
  with pytest.raises(ValueError, match=message):
    workdir.check_unchanged(config.default(), epath.Path(tmp_path))


def test_other_images_after_the_screening_are_refused(tmp_path):
  def domains(*fingerprints):
    return Domains(*(SimpleNamespace(fingerprint=f) for f in fingerprints))

  directory = epath.Path(tmp_path)
  for _ in range(2):
    workdir.check_screened(domains('a', 'b', 'c'), directory)
    workdir.save_screened(domains('a', 'b', 'c'), directory, 'start')
  workdir.check_screened(domains('a', 'b', 'd'), directory)  # Nothing is trained.
  (directory / 'pretrain').mkdir()
  with pytest.raises(ValueError, match='was made with other source images'):
    workdir.check_screened(domains('a', 'b', 'd'), directory)


def test_other_start_is_refused_once_something_is_trained(tmp_path):
  directory = epath.Path(tmp_path)
  workdir.check_start('a', directory)
  domains = Domains(*(SimpleNamespace(fingerprint=f) for f in 'xyz'))
  workdir.save_screened(domains, directory, 'a')
  workdir.check_start('b', directory)
  (directory / 'arms').mkdir()
  workdir.check_start('a', directory)
  with pytest.raises(ValueError, match='was made with other images, weights or filters'):
    workdir.check_start('b', directory)


def test_versions_that_decide_the_frozen_arms_are_said(tmp_path, capsys):
  directory = epath.Path(tmp_path)
  workdir.save_config(config.default(), directory)
  versions = json.loads((directory / 'versions.json').read_text())
  assert versions.keys() >= set(workdir._DECIDING_PACKAGES)
  artifacts.write_json(directory / 'versions.json', versions | {'scikit-learn': '0.1'})
  workdir.save_config(config.default(), directory)
  assert 'Other versions than before (scikit-learn 0.1, now' in capsys.readouterr().out
