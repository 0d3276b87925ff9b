"""The Python calls: import, rank, train, load, predict."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib import metadata, resources

import commands
import ml_collections
import numpy as np
import pyarrow.csv
import pytest
from PIL import Image
from small_run import make_config

import sjft_jax
from sjft_jax import config, option_checks, pipeline
from sjft_jax.runtime import artifacts

DESCRIPTORS = {'resize': 40, 'crop': 36, 'num_bins': 8}


def run_python(program, *arguments, cwd=commands.ROOT, **environment):
  """Return what a program prints in an interpreter of its own."""
  command = [sys.executable, '-c', program, *arguments]
  environment = os.environ | {'PYTHONPATH': str(commands.ROOT)} | environment
  process = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
  assert process.returncode == 0, process.stderr
  return process.stdout


def scored_probabilities(workdir, view):
  """Return the probabilities of the test images after each round, as the run has saved them."""
  rounds = workdir / 'arms' / 'rounds' / 'rounds'
  return [np.load(rounds / number / 'round.npz')[f'test/{view}'] for number in '123']


def test_version_and_types_are_those_of_the_installed_package():
  assert sjft_jax.__version__ == metadata.version('sjft_jax')
  assert resources.files('sjft_jax').joinpath('py.typed').is_file()


def test_configurations_are_found_from_any_folder(tmp_path):
  program = (
    'import sjft_jax\nprint(sjft_jax.load_config("configs/indoor.py:places").source.dataset)\n'
    'try:\n  sjft_jax.load_config("configs/indor.py")\nexcept ValueError as error:\n  print(error)'
  )
  dataset, error = run_python(program, cwd=tmp_path).splitlines()
  assert dataset == 'places205'
  assert error.startswith('configs/indor.py: no such file; did you mean configs/indoor.py?')


HOME = """
import sys
import numpy as np
import sjft_jax
options = {'bank': {'name': 'gabor'}, 'descriptors': {'resize': 16, 'crop': 16}}
ranking = sjft_jax.rank('~/target/test', '~/source', k=2, path='~/ranking.npz', **options)
ranking.save('~/neighbors.csv')
print(sjft_jax.load('~/run/arms/rounds').predict('~/target/test').shape)
"""


@pytest.mark.slow
def test_tilde_is_the_home_in_every_path(small_data, trained_run, tmp_path):
  home = tmp_path / 'home'
  home.mkdir()
  for name in ('target', 'source'):
    (home / name).symlink_to(small_data / name)
  (home / 'run').symlink_to(trained_run[0])
  assert run_python(HOME, cwd=tmp_path, HOME=str(home)).splitlines()[-1] == '(9, 3)'
  assert (home / 'neighbors.csv').exists()
  assert [path.name for path in tmp_path.iterdir()] == ['home']


IMPORT = """
import sys, warnings
from absl import flags
filters, names = list(warnings.filters), set(flags.FLAGS)
import sjft_jax
assert 'jax' not in sys.modules
assert 'numpy' not in sys.modules
assert warnings.filters == filters
assert set(flags.FLAGS) == names
"""


def test_import_is_light_and_changes_nothing():
  run_python(IMPORT)


# Each would make every command start a quarter of a second later, or more.
COMMANDS = """
import sys
import sjft_jax.main, sjft_jax.predict, sjft_jax.retrieve, sjft_jax.tune, sjft_jax.pipeline
packages = 'altair', 'scipy.optimize', 'scipy.stats', 'sklearn', 'tensorflow_datasets', 'vl_convert'
print(*set(packages) & set(sys.modules))
"""


def test_commands_import_slow_packages_when_they_need_them():
  assert not run_python(COMMANDS).split()


# Other packages define flags and filters of their own: they are imported first.
OTHER_PACKAGES = """
import importlib, pkgutil, sys
import sjft_jax
for module in pkgutil.walk_packages(sjft_jax.__path__, 'sjft_jax.'):
  importlib.import_module(module.name)
print(*(name for name in sys.modules if name.partition('.')[0] not in ('sjft_jax', '__main__')))
"""
IMPORT_ALL = """
import contextlib, importlib, pkgutil, sys, warnings
for name in sys.argv[1:]:
  with contextlib.suppress(Exception):
    importlib.import_module(name)
import cv2
from absl import flags
assert not any(name.startswith('sjft_jax') for name in sys.modules)
cv2.setNumThreads(3)
state = list(warnings.filters), set(flags.FLAGS), cv2.getNumThreads()
import sjft_jax
names = [module.name for module in pkgutil.walk_packages(sjft_jax.__path__, 'sjft_jax.')]
for name in names:
  importlib.import_module(name)
assert (list(warnings.filters), set(flags.FLAGS), cv2.getNumThreads()) == state, [
  [filter for filter in warnings.filters if filter not in state[0]],
  set(flags.FLAGS) - state[1],
  cv2.getNumThreads(),
]
print(*names)
"""


@pytest.mark.slow
def test_importing_every_module_defines_no_flag_and_changes_no_setting():
  others = run_python(OTHER_PACKAGES).split()
  modules = run_python(IMPORT_ALL, *others).split()
  assert {'sjft_jax.main', 'sjft_jax.pipeline', 'sjft_jax.data.decode'} <= set(modules)


def test_rank_finds_each_image_nearest_to_itself(small_data, tmp_path, capsys):
  folder = small_data / 'target' / 'test'
  path, table = tmp_path / 'ranking.npz', tmp_path / 'neighbors.csv'
  ranking = sjft_jax.rank(folder, folder, k=4, descriptors=DESCRIPTORS, path=path)
  assert ranking.targets == ranking.sources
  assert ranking.targets[:3] == [f'stripes 0/{i}.png' for i in range(3)]
  assert ranking.indices.shape == ranking.divergences.shape == (9, 4)
  np.testing.assert_array_equal(ranking.indices[:, 0], np.arange(9))
  np.testing.assert_allclose(ranking.divergences[:, 0], 0, atol=1e-5)
  assert (np.diff(ranking.divergences, axis=1) >= 0).all()

  ranking.save(table)
  rows = pyarrow.csv.read_csv(table).to_pydict()
  assert rows['target'] == [name for name in ranking.targets for _ in range(4)]
  assert rows['source'] == [ranking.sources[i] for i in ranking.indices.ravel()]
  assert rows['rank'] == [1, 2, 3, 4] * 9
  np.testing.assert_allclose(rows['divergence'], ranking.divergences.ravel(), rtol=1e-6)

  capsys.readouterr()
  loaded = sjft_jax.rank(folder, folder, k=4, descriptors=DESCRIPTORS, path=path)
  assert 'done before' in capsys.readouterr().out
  np.testing.assert_array_equal(loaded.indices, ranking.indices)


def test_rank_takes_options_of_bank_and_descriptors(small_data):
  folder = small_data / 'target' / 'test'
  ranking = sjft_jax.rank(folder, folder, k=9, bank={'name': 'gabor'}, descriptors=DESCRIPTORS)
  other = sjft_jax.rank(folder, folder, k=9, bank={'layers': ['conv1']}, descriptors=DESCRIPTORS)
  assert not np.array_equal(ranking.divergences, other.divergences)


def test_options_that_the_docstring_of_rank_gives_are_possible():
  bank, descriptors = (ast.literal_eval(m) for m in re.findall(r'\{.+?\}', sjft_jax.rank.__doc__))
  changes = {'bank': bank, 'descriptors': descriptors}
  option_checks.check_ranges(config.with_changes(config.default(), changes))


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'k': 0}, 'k=0 must be 1 or more'),
    ({'k': 1.5}, r'k=1\.5 must be a whole number'),
    ({'k': 10}, 'k=10 exceeds the 9 images'),
    ({'bank': {'nme': 'gabor'}}, '"nme" does not exist.* Did you mean "name"'),
    ({'bank': {'name': 'sift'}}, "name='sift' is unknown"),
    ({'descriptors': {'num_bins': 1}}, 'num_bins=1'),
    ({'descriptors': {'resize': 40, 'crop': 41}}, r'descriptors\.crop=41 exceeds'),
    ({'max_bad_share': 2.0}, r'max_bad_share=2\.0 is impossible'),
    ({'source': 'nowhere'}, "'nowhere' is not a folder"),
    ({'path': 'tests'}, r'path=.*tests must be a file whose name ends in \.npz'),
    ({'path': f'{__file__}/kept.npz'}, r'path=.*kept\.npz: a file cannot be written there'),
    ({'path': 'kept.npy'}, r'path=.*kept\.npy must be a file whose name ends in \.npz'),
  ],
)
def test_rank_refuses_impossible_arguments_before_any_work(small_data, capsys, arguments, message):
  folder = small_data / 'target' / 'test'
  with pytest.raises(ValueError, match=message):
    sjft_jax.rank(**{'target': folder, 'source': folder, 'k': 2} | arguments)
  assert not capsys.readouterr().out


@pytest.mark.slow
def test_train_returns_what_results_json_holds(trained_run):
  workdir, results = trained_run
  assert results == artifacts.unseal(json.loads((workdir / 'results.json').read_text()))
  assert list(results['arms']) == ['none', 'rounds']


def test_train_passes_its_arguments_on(monkeypatch):
  calls = []
  monkeypatch.setattr(pipeline, 'run', lambda *args, **options: calls.append((args, options)))
  config = ml_collections.ConfigDict({'repeats': 1})
  options = {'resume_with_changes': True, 'stop_after': 'rank', 'profile_steps': 3}
  sjft_jax.train(config, 'runs/a', **options)
  assert calls == [((config, 'runs/a'), options)]


def test_train_refuses_impossible_options_before_any_work(small_data, tmp_path):
  with pytest.raises(ValueError, match=r'training\.steps=0 is impossible'):
    sjft_jax.train(make_config(small_data, **{'training.steps': 0}), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_predict_gives_the_probabilities_that_the_run_scored(trained_run, small_data):
  workdir, _ = trained_run
  classifier = sjft_jax.load(workdir / 'arms' / 'rounds')
  assert classifier.classes == ('stripes 0', 'stripes 1', 'stripes 2')
  assert classifier.views == ('ten_crop', 'center')
  assert classifier.step == 9
  images = small_data / 'target' / 'test'
  for view, arguments in (('ten_crop', {}), ('center', {'view': 'center'})):
    p = classifier.predict(images, **arguments)
    assert p.shape == (9, 3)
    np.testing.assert_allclose(p, scored_probabilities(workdir, view)[-1], rtol=1e-5)


@pytest.mark.slow
def test_fused_predictions_are_the_mean_over_the_rounds(trained_run, small_data):
  workdir, results = trained_run
  rounds = scored_probabilities(workdir, 'center')
  assert not np.allclose(rounds[0], rounds[2], rtol=1e-4)
  classifier = sjft_jax.load(workdir / 'arms' / 'rounds')
  p = classifier.predict(small_data / 'target' / 'test', view='center', fused=True)
  np.testing.assert_allclose(p, np.mean(rounds, axis=0), rtol=1e-5)
  labels = np.repeat(np.arange(3), 3)
  top1 = results['arms']['rounds']['fused']['center']['top1']
  assert np.mean(p.argmax(axis=1) == labels) == top1


@pytest.mark.slow
def test_predict_takes_a_folder_paths_or_arrays(trained_run, small_data):
  workdir, _ = trained_run
  classifier = sjft_jax.load(workdir / 'arms' / 'rounds')
  folder = small_data / 'target' / 'test'
  paths = sorted(folder.glob('*/*.png'))
  arrays = [np.asarray(Image.open(path).convert('RGB')) for path in paths]
  expected = classifier.predict(folder, view='center')
  for images in (str(folder), paths, [str(path) for path in paths], arrays, np.stack(arrays)):
    np.testing.assert_array_equal(classifier.predict(images, view='center'), expected)
  for image in (paths[4], str(paths[4]), arrays[4:5]):
    p = classifier.predict(image, view='center')
    np.testing.assert_allclose(p, expected[4:5], rtol=1e-5)
