"""A loaded run: which network and options it takes, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from sjft_jax.classifier import Classifier
from sjft_jax.runtime import artifacts

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def classifier(trained_run):
  workdir, _ = trained_run
  return Classifier(workdir / 'arms' / 'rounds')


@pytest.fixture
def workdir(trained_run, tmp_path):
  """Return a copy of the trained run's work directory that a test may change."""
  return shutil.copytree(trained_run[0], tmp_path / 'run')


def change_options(workdir, change):
  path = workdir / 'config.json'
  saved = json.loads(path.read_text())
  change(saved['options'])
  artifacts.write_json(path, saved)


def test_it_knows_its_classes_views_and_steps(classifier, trained_run):
  assert classifier.classes == ('stripes 0', 'stripes 1', 'stripes 2')
  assert classifier.views == ('ten_crop', 'center')
  assert (classifier.step, classifier.num_steps) == (9, 9)
  assert classifier.directory == trained_run[0] / 'arms' / 'rounds'


def test_options_are_those_of_the_arm(workdir):
  def override(options):
    options['overrides']['none']['training'] = {'steps': 12}

  change_options(workdir, override)
  assert Classifier(workdir / 'arms' / 'none').num_steps == 36
  assert Classifier(workdir / 'arms' / 'rounds').num_steps == 9


def test_a_work_directory_with_one_arm_is_enough(workdir):
  shutil.rmtree(workdir / 'arms' / 'none')
  assert Classifier(str(workdir)).directory == workdir / 'arms' / 'rounds'


def test_a_copy_of_an_arm_under_another_name_predicts_alike(workdir, classifier, small_data):
  (workdir / 'arms' / 'rounds').rename(workdir / 'arms' / 'best')
  images = sorted((small_data / 'target' / 'test').glob('*/0.png'))
  p = Classifier(workdir / 'arms' / 'best').predict(images, view='center')
  np.testing.assert_array_equal(p, classifier.predict(images, view='center'))


def test_several_arms_are_named(workdir):
  with pytest.raises(ValueError, match=r'give the folder of one training; .*none, .*rounds'):
    Classifier(workdir)


def test_a_pretraining_is_refused(workdir):
  (workdir / 'arms' / 'none').rename(workdir / 'pretrain')
  with pytest.raises(ValueError, match=r'knows no class of the target; give a folder below .*arms'):
    Classifier(workdir / 'pretrain')


def test_a_work_directory_without_options_is_refused(workdir):
  (workdir / 'config.json').unlink()
  with pytest.raises(ValueError, match=r'run has no config\.json'):
    Classifier(workdir / 'arms' / 'rounds')


def test_a_work_directory_of_another_version_is_refused(workdir):
  path = workdir / 'config.json'
  artifacts.write_json(path, json.loads(path.read_text()) | {'format': 1})
  with pytest.raises(ValueError, match='run was made by another version of sjft_jax'):
    Classifier(workdir / 'arms' / 'rounds')


def test_fused_predictions_need_the_network_of_every_round(workdir, small_data):
  shutil.rmtree(workdir / 'arms' / 'rounds' / 'rounds' / '2' / 'network')
  classifier = Classifier(workdir / 'arms' / 'rounds')
  # A finished run repeats nothing, whatever its options.
  remedy = (
    r'delete .*rounds and .*results\.json .* training\.keep_rounds=True .*resume_with_changes'
  )
  with pytest.raises(ValueError, match=f'2 of its 3 rounds; .*{remedy}'):
    classifier.predict(small_data / 'target' / 'test', fused=True)
  (workdir / 'arms' / 'rounds' / 'rounds' / '2' / 'round.npz').unlink()
  with pytest.raises(ValueError, match=r'2 of its 3 rounds; finish the run$'):
    classifier.load_rounds()


def test_batches_of_any_size_give_the_same_probabilities(classifier, small_data):
  folder = small_data / 'target' / 'test'
  p = classifier.predict(folder, view='center')
  for batch_size in (4, 100):
    np.testing.assert_allclose(
      classifier.predict(folder, view='center', batch_size=batch_size), p, rtol=1e-5
    )


def test_paths_and_arrays_may_come_from_a_generator(classifier, small_data):
  folder = small_data / 'target' / 'test'
  p = classifier.predict(sorted(folder.glob('*/0.png')), view='center')
  by_path = classifier.predict((path for path in sorted(folder.glob('*/0.png'))), view='center')
  np.testing.assert_array_equal(by_path, p)
  arrays = (np.asarray(Image.open(path)) for path in sorted(folder.glob('*/0.png')))
  np.testing.assert_allclose(classifier.predict(arrays, view='center'), p, rtol=1e-5)


GRAY = np.zeros((40, 44), np.uint8)
FLOAT = np.zeros((40, 44, 3), np.float32)
RGB = np.zeros((40, 44, 3), np.uint8)


@pytest.mark.parametrize(
  ('images', 'options', 'message'),
  [
    ([RGB], {'view': 'corner'}, "view='corner' is unknown; .*ten_crop"),
    ([RGB], {'batch_size': 0}, 'batch_size=0 must be 1 or more'),
    ([RGB], {'batch_size': 1.5}, r'batch_size=1\.5 must be a whole number'),
    ([], {}, 'no images are given'),
    ([GRAY], {}, r'image 0 is uint8 \[40, 44\]; give uint8 RGB'),
    ([RGB, FLOAT], {}, r'image 1 is float32 \[40, 44, 3\]; give uint8 RGB'),
    (RGB, {}, r'image 0 is uint8 \[44, 3\]; give uint8 RGB'),
    (['nowhere.png'], {}, 'nowhere.png is not a file'),
    ('nowhere', {}, 'nowhere is neither a folder nor a file'),
    ([RGB, 'nowhere.png'], {}, 'paths and arrays together; give either'),
  ],
)
def test_impossible_inputs_are_named(classifier, images, options, message):
  with pytest.raises(ValueError, match=message):
    classifier.predict(images, **options)


def test_an_unreadable_image_is_named(classifier, tmp_path):
  (tmp_path / 'broken.png').write_bytes(b'no image')
  with pytest.raises(ValueError, match=r'broken\.png'):
    classifier.predict(tmp_path)
