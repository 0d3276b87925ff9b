"""Reading what TFDS has prepared, by a builder of the test's own."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from commands import ROOT

from sjft_jax.data import records, registry, riegeli
from sjft_jax.data.dataset import Dataset
from sjft_jax.data.records import Records

COUNT = 7


def encode_jpeg(index):
  file = io.BytesIO()
  PIL.Image.fromarray(np.full((9, 12, 3), 30 * index, np.uint8)).save(file, 'JPEG')
  return file.getvalue()


def make_builder(name, features, examples, version='1.0.0'):
  """Return a TFDS builder class."""

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(version)

    def _info(self):
      all_features = tfds.features.FeaturesDict({'image': tfds.features.Image(), **features})
      return tfds.core.DatasetInfo(builder=self, features=all_features)

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(), 'validation': self._generate_examples()}

    def _generate_examples(self):
      for index in range(COUNT):
        yield index, {'image': encode_jpeg(index), **examples(index)}

  Builder.name = name
  Builder.url_infos = {}  # Otherwise TFDS looks for a package beside the test.
  return Builder


def prepare(data_dir, *args, **kwargs):
  builder = make_builder(*args, **kwargs)(data_dir=data_dir, file_format='array_record')
  builder.download_and_prepare()
  return builder.data_path


SINGLE_LABEL = (
  'thing',
  {'label': tfds.features.ClassLabel(names=['cat', 'dog']), 'file_name': tfds.features.Text()},
  lambda index: {'label': index % 2, 'file_name': f'image {index}.jpg'},
)
MULTI_LABEL = (
  'scene',
  {
    'image/id': np.int64,
    'objects': tfds.features.Sequence({'label': tfds.features.ClassLabel(names=list('abcd'))}),
  },
  lambda index: {'image/id': index, 'objects': {'label': [index % 4] * (index % 3) + [3]}},
)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('tfds')
  prepare(path, *SINGLE_LABEL, version='1.0.0')
  prepare(path, *SINGLE_LABEL, version='1.2.0')
  prepare(path, *MULTI_LABEL)
  killed = path / 'thing' / 'incomplete.ABC_2.0.0'
  killed.mkdir()
  (killed / 'dataset_info.json').write_text('{}')
  return path


def test_images_labels_and_names_are_those_of_the_records(data_dir):
  data = Records('thing', str(data_dir), 'train')
  assert isinstance(data, Dataset)
  assert (len(data), data.name, data.classes) == (COUNT, 'thing', ('cat', 'dog'))
  # TFDS shuffles records: whatever the order, the parts of one belong together.
  numbers = [int(data.key(i).split()[1].removesuffix('.jpg')) for i in range(COUNT)]
  assert sorted(numbers) == list(range(COUNT))
  np.testing.assert_array_equal(data.labels, np.array(numbers) % 2)
  for position, number in enumerate(numbers):
    assert data.read_encoded(position) == encode_jpeg(number)
    assert data[position].shape == (9, 12, 3)
    assert abs(int(data[position].mean()) - 30 * number) <= 1


def test_splits_are_named_as_in_tfds(data_dir):
  def keys(split):
    data = Records('thing', str(data_dir), split)
    return [data.key(i) for i in range(len(data))]

  assert keys('train[2:5]') == keys('train')[2:5]
  assert keys('train[:50%]+validation') == keys('train')[:4] + keys('validation')
  splits = ('train', 'validation', 'train[1:]', 'train+validation')
  fingerprints = {Records('thing', str(data_dir), split).fingerprint for split in splits}
  assert len(fingerprints) == len(splits)
  with pytest.raises(ValueError, match=r"thing, split='tset': .*train"):
    keys('tset')


def test_objects_make_a_multi_label_data_set(data_dir):
  data = Records('scene', str(data_dir), 'train')
  numbers = np.array([int(data.key(i)) for i in range(COUNT)])
  expected = np.zeros((COUNT, 4), bool)
  expected[:, 3] = True
  expected[np.arange(COUNT), numbers % 4] |= numbers % 3 > 0
  assert data.labels.dtype == bool
  np.testing.assert_array_equal(data.labels, expected)


def test_the_index_is_made_once(data_dir, monkeypatch):
  first = Records('thing', str(data_dir), 'train')
  monkeypatch.setattr(Records, '_make_index', None)
  second = Records('thing', str(data_dir), 'train')
  np.testing.assert_array_equal(first.labels, second.labels)
  assert first.fingerprint == second.fingerprint


def test_a_data_set_can_be_pickled_for_other_processes(data_dir):
  data = Records('thing', str(data_dir), 'train')
  copy = pickle.loads(pickle.dumps(data))
  np.testing.assert_array_equal(copy[3], data[3])


def test_a_data_set_that_cannot_be_read_is_refused_with_a_remedy(data_dir, tmp_path):
  with pytest.raises(ValueError, match=r'no prepared nothing at .*TFDS has prepared it'):
    Records('nothing', str(tmp_path), 'train')
  with pytest.raises(ValueError, match=r'sjft_jax\.data\.prepare --dataset=caltech256 '):
    Records('caltech256', str(tmp_path), 'train')
  folder = prepare(tmp_path, 'plain', {}, lambda index: {})
  with pytest.raises(ValueError, match='plain has the features image; an image with a label'):
    Records('plain', str(tmp_path), 'train')
  info = json.loads((folder / 'dataset_info.json').read_text())
  (folder / 'dataset_info.json').write_text(json.dumps(info | {'fileFormat': 'tfrecord'}))
  with pytest.raises(
    ValueError, match=r'stored as tfrecord; convert it, .*convert_format '
  ) as error:
    Records('plain', str(tmp_path), 'train')
  # Where `Records` looks for it below the data directory; TFDS copies no names of classes.
  assert '--out_dir=NEW_DATA_DIR/plain/1.0.0, then cp' in str(error.value)
  assert f'{folder}/*.labels.txt' in str(error.value)
  (tmp_path / 'plain').rename(tmp_path / 'small')
  (tmp_path / 'plain').mkdir()
  (tmp_path / 'small').rename(tmp_path / 'plain' / 'small')
  with pytest.raises(ValueError, match='configurations small; name one, such as plain/small'):
    Records('plain', str(tmp_path), 'train')


def test_classes_without_names_are_a_line(data_dir, tmp_path, capsys):
  for name in ('thing', 'scene'):
    Records(name, str(data_dir), 'train')
  assert 'does not name' not in capsys.readouterr().out
  folder, _ = damaged_copy(data_dir, tmp_path)
  (folder / 'label.labels.txt').unlink()  # As after a conversion to another format by TFDS.
  assert Records('thing', str(tmp_path), 'train').classes == ('0', '1')
  output = ' '.join(capsys.readouterr().out.split())
  assert 'does not name its 2 classes, which are called by their numbers' in output


def test_a_split_without_labels_is_no_damage(tmp_path):
  name, features, _ = SINGLE_LABEL
  prepare(tmp_path, name, features, lambda index: {'label': -1, 'file_name': f'{index}.jpg'})
  message = refusal(tmp_path)
  assert message.startswith("thing, split='train': image 0 has no label")
  assert message.endswith('use a split with labels, of train, validation')


def test_a_copy_of_a_version_is_passed_over(data_dir, tmp_path):
  folder, _ = damaged_copy(data_dir, tmp_path)
  shutil.copytree(folder, folder.with_name('1.0.0_old'))
  assert len(Records('thing', str(tmp_path), 'train')) == COUNT


EVIL = 'data.evil.payload.Feature'
LEGACY_CONTENT = {'image': {'type': EVIL, 'content': {}}}
PYTHON_CLASS = {'pythonClassName': EVIL, 'text': {}}
FEATURES_DICT = 'tensorflow_datasets.core.features.features_dict.FeaturesDict'


def wrap(features):
  """Return the description of a data set's features in TFDS's present notation."""
  return {
    'type': FEATURES_DICT,
    'content': {'features': features},
    'proto_cls': 'tensorflow_datasets.FeaturesDict',
  }


def write_payload(folder):
  """Write a module below a folder that makes the file 'marker' when it is imported."""
  (folder / 'data' / 'evil').mkdir(parents=True)
  text = f'open({str(folder / "marker")!r}, "w").close()'
  (folder / 'data' / 'evil' / 'payload.py').write_text(text)


@pytest.mark.parametrize(
  ('file', 'change'),
  [
    ('features.json', {'type': EVIL, 'content': {}}),
    ('features.json', {'type': FEATURES_DICT, 'content': LEGACY_CONTENT}),
    ('features.json', wrap({'image': PYTHON_CLASS})),
    ('features.json', wrap({'image': {'python_class_name': EVIL, 'text': {}}})),
    ('features.json', wrap({'type': {'pythonClassName': EVIL, 'text': {}}})),
    (
      'features.json',
      wrap(
        {
          'objects': {
            'pythonClassName': 'tensorflow_datasets.core.features.sequence_feature.Sequence',
            'sequence': {'feature': PYTHON_CLASS, 'length': '-1'},
          }
        }
      ),
    ),
    (
      'features.json',
      {**wrap({}), 'content': json.dumps({'features': {'image': PYTHON_CLASS}})},
    ),
    (
      'features.json',
      wrap(
        {
          'image': {
            'pythonClassName': FEATURES_DICT,
            'jsonFeature': {'json': json.dumps(LEGACY_CONTENT)},
          }
        }
      ),
    ),
    ('dataset_info.json', {'features': PYTHON_CLASS}),
  ],
)
def test_code_that_a_data_set_names_is_not_imported(tmp_path, monkeypatch, file, change):
  folder = prepare(tmp_path, *SINGLE_LABEL)
  content = json.loads((folder / file).read_text())
  (folder / file).write_text(json.dumps(content | change))
  write_payload(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ValueError, match=f"{file} names the type '{EVIL}', for which code would be"):
    Records('thing', str(tmp_path), 'train')
  assert not (tmp_path / 'marker').exists()


def test_code_below_the_current_folder_is_not_imported_by_a_run(tmp_path):
  folder = prepare(tmp_path, *SINGLE_LABEL)
  (folder / 'features.json').write_text(json.dumps({'type': EVIL, 'content': {}}))
  write_payload(tmp_path)
  command = [sys.executable, '-m', 'sjft_jax.main', '--config=configs/folder.py']
  command.append(f'--workdir={tmp_path / "run"}')
  for domain in ('source', 'target'):
    command += [f'--config.{domain}.dataset=thing', f'--config.{domain}.path={tmp_path}']
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert not (tmp_path / 'marker').exists(), process.stderr
  assert process.returncode == 1
  assert process.stderr.startswith('error: config.target: ')
  assert f"{folder / 'features.json'} names the type '{EVIL}'" in process.stderr
  assert process.stderr.count('\n') == 1


def test_a_data_set_whose_module_name_is_not_importable_is_read(data_dir, tmp_path):
  folder = prepare(tmp_path, *SINGLE_LABEL)
  info = json.loads((folder / 'dataset_info.json').read_text())
  changed = info | {'moduleName': 'data.evil.payload'}
  (folder / 'dataset_info.json').write_text(json.dumps(changed))
  assert len(Records('thing', str(tmp_path), 'train')) == COUNT


def test_a_data_set_that_declares_too_many_classes_is_refused(tmp_path):
  folder = prepare(tmp_path, *SINGLE_LABEL)
  text = (folder / 'features.json').read_text()
  (folder / 'features.json').write_text(
    text.replace('"numClasses": "2"', f'"numClasses": "{10**8}"')
  )
  (folder / 'label.labels.txt').unlink()
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match='declares 100000000 classes, over 1000000'):
      Records('thing', str(tmp_path), 'train')
    assert tracemalloc.get_traced_memory()[1] < 2**26  # The names alone would take 100 times that.
  finally:
    tracemalloc.stop()


def damaged_copy(data_dir, tmp_path):
  """Return a copy of a prepared data set, and the file of its records."""
  folder = shutil.copytree(data_dir / 'thing' / '1.0.0', tmp_path / 'thing' / '1.0.0')
  return folder, folder / 'thing-train.array_record-00000-of-00001'


def refusal(tmp_path):
  """Return the one line about the data set in a folder."""
  with pytest.raises(ValueError, match=r'\A[^\n]+\Z') as error:
    Records('thing', str(tmp_path), 'train')
  return str(error.value)


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'empty', 'gone'])
def test_damaged_records_are_one_line(data_dir, tmp_path, damage):
  folder, file = damaged_copy(data_dir, tmp_path)
  content = bytearray(file.read_bytes())
  if damage == 'gone':
    file.unlink()
  else:
    content[70] ^= 1  # In the first chunk's hash.
    file.write_bytes({'cut': content[:9000], 'flipped': content, 'empty': b''}[damage])
  message = refusal(tmp_path)
  assert message.startswith(f'{folder} is damaged (')
  assert message.endswith('; prepare the data set again')


@pytest.mark.parametrize('sizes', [[2**26], [2**24] * 8])
def test_records_that_unpack_to_much_more_are_not_read(data_dir, tmp_path, sizes):
  folder, file = damaged_copy(data_dir, tmp_path)
  writer = ArrayRecordWriter(str(file), 'group_size:1,zstd:3')
  for size in sizes:
    writer.write(bytes(size))
  writer.close()
  assert file.stat().st_size < 2**18
  message = refusal(tmp_path)
  assert message.startswith(f'{folder} is damaged ({file} has ')
  assert f'bytes that unpack to {sum(sizes) // 10**6},' in message


@pytest.mark.parametrize('options', ['uncompressed', 'zstd', 'transpose:true', 'group_size:7'])
def test_every_chunk_of_a_file_of_records_is_found(tmp_path, options):
  """Headers of chunks lie across those of blocks, too, and what is behind them is no header."""
  for seed in range(8):
    random = np.random.default_rng(seed)
    writer = ArrayRecordWriter(str(tmp_path / 'x'), options)
    for size in random.integers(random.choice([2, 90, 65_480, 200_000]), size=40):
      writer.write(random.bytes(size))
    writer.close()
    riegeli.check_packing(tmp_path / 'x')


@pytest.mark.parametrize(
  'change',
  [
    {'filepathTemplate': '{SPLIT:>99999999999}'},
    {'filepathTemplate': '../{SPLIT}'},
    {'filepathTemplate': '{0}'},
    {'shardLengths': ['99999999999']},
    {'shardLengths': 3},
  ],
)
def test_forged_names_and_lengths_of_files_are_one_line(data_dir, tmp_path, change):
  folder, _ = damaged_copy(data_dir, tmp_path)
  path = folder / 'dataset_info.json'
  info = json.loads(path.read_text())
  info['splits'] = [split | change for split in info['splits']]
  path.write_text(json.dumps(info))
  assert f'{folder}' in refusal(tmp_path)


def test_labels_without_a_class_are_refused(data_dir, tmp_path):
  folder, _ = damaged_copy(data_dir, tmp_path)
  (folder / 'label.labels.txt').write_text('cat\n')
  path = folder / 'features.json'
  path.write_text(path.read_text().replace('"numClasses": "2"', '"numClasses": "1"'))
  assert 'has a label that is none of 1' in refusal(tmp_path)


def test_a_long_name_does_not_widen_all_rows_of_the_index(tmp_path):
  name, features, _ = SINGLE_LABEL
  prepare(tmp_path, name, features, lambda index: {'label': 0, 'file_name': 'a' * 5000})
  assert 'record 0 has a name of 5,000 letters' in refusal(tmp_path)


def test_rows_for_all_classes_are_bounded(data_dir, tmp_path, monkeypatch):
  monkeypatch.setattr(records, '_MAX_MULTI_HOT', 4 * COUNT - 1)
  shutil.copytree(data_dir / 'scene', tmp_path / 'scene')
  with pytest.raises(ValueError, match='7 images of 4 classes are too many'):
    Records('scene', str(tmp_path), 'train')


def test_a_part_of_a_split_without_images_of_a_class_is_refused(data_dir):
  options = {'dataset': 'thing', 'path': str(data_dir), 'train_per_class': 0}
  options |= {'test_share': 0.2, 'split_seed': 0, 'test_split': 'validation'}
  with pytest.raises(ValueError, match=r"1 of 2 classes, such as .* but none in 'train\[:1\]'"):
    registry.open_target(**options, train_split='train[:1]')
  # A class without test images alone does no harm: the score is the mean of the others.
  train, _ = registry.open_target(**options | {'test_split': 'validation[:1]'}, train_split='train')
  assert len(train) == COUNT
