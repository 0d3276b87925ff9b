"""Exported folders: in JAX, timm and torchvision without this package, and in `predict`."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import numpy as np
import pyarrow.parquet
import pytest
import untrained_run
import yaml
from etils import epath

import sjft_jax
from sjft_jax import config, exports
from sjft_jax.models import program
from sjft_jax.runtime import artifacts

TESTS = Path(__file__).parent
# Images of the size to which others are resized: no library resamples them.
RESIZE, CROP, BORDER = 36, 32, 2


@pytest.fixture(scope='module')
def images():
  return untrained_run.images(RESIZE)


@pytest.fixture(scope='module')
def arm(tmp_path_factory):
  """An arm of two rounds, of the paper's variant of a network, with statistics of both domains."""
  workdir = tmp_path_factory.mktemp('untrained') / 'run'
  options = {'name': 'resnet18v2', 'width': 1 / 8, 'batch_norm': 'per_domain'}
  return untrained_run.write(workdir, rounds=2, **options)


@pytest.fixture(scope='module')
def exported(arm, tmp_path_factory):
  """The export of all rounds of the arm."""
  return sjft_jax.export(arm, tmp_path_factory.mktemp('exports') / 'exported', fused=True)


def card_blocks(folder, language):
  """Return the code that a model card shows."""
  return re.findall(rf'```{language}\n(.*?)```', (folder / 'README.md').read_text(), re.DOTALL)


def run_alone(folder, *programs):
  """Run programs one after another in a fresh process, without this package, in a folder."""
  code = '\n'.join(("import sys; sys.modules['sjft_jax'] = None", *programs))
  command = [sys.executable, '-I', '-c', code]
  environment = os.environ | {'XLA_FLAGS': ''}
  process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr


@pytest.mark.slow
@pytest.mark.parametrize('fused', [False, True])
def test_jax_alone_has_the_same_probabilities(arm, exported, images, tmp_path, fused):
  folder = exported if fused else sjft_jax.export(arm, tmp_path / 'exported')
  np.save(tmp_path / 'images.npy', images)
  (block,) = card_blocks(folder, 'python')
  averaged = 'networks' if fused else '[weights]'
  run_alone(
    folder,
    block,
    f"""
assert probabilities.shape == (7, 5) and len(classes) == 5
images = np.load({str(tmp_path / 'images.npy')!r})[:, {BORDER}:-{BORDER}, {BORDER}:-{BORDER}]
networks = {averaged}
parts = [
  sum(program(weights, images[start:stop]) for weights in networks) / len(networks)
  for start, stop in ((0, 1), (1, 8), (0, 100))
]
np.savez({str(tmp_path / 'p.npz')!r}, *parts)
""",
  )
  expected = sjft_jax.load(arm).predict(images, view='center', fused=fused)
  assert np.ptp(expected, axis=0).max() > 0.2  # The images matter.
  parts = np.load(tmp_path / 'p.npz')
  for name, part in (('arr_0', expected[:1]), ('arr_1', expected[1:8]), ('arr_2', expected)):
    np.testing.assert_allclose(parts[name], part, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_export_alone_predicts_like_the_run(arm, exported, images):
  run, alone = sjft_jax.load(arm), sjft_jax.load(exported)
  assert (alone.classes, alone.views) == (untrained_run.CLASSES, ('center', 'ten_crop'))
  assert (alone.step, alone.num_steps) == (2, 2)
  for fused in (False, True):
    for view in alone.views:
      expected = run.predict(images, view=view, fused=fused)
      p = alone.predict(images, view=view, fused=fused)
      np.testing.assert_allclose(p, expected, rtol=0, atol=1e-6)


def read_table(file):
  table = pyarrow.parquet.read_table(file)
  return table['image'].to_pylist(), np.stack(table.columns[3:], axis=1)


@pytest.mark.slow
def test_the_commands_need_the_work_directory_no_longer(trained_run, small_data, tmp_path):
  workdir = shutil.copytree(trained_run[0], tmp_path / 'run')
  output, test = tmp_path / 'exported', small_data / 'target' / 'test'
  python = [sys.executable, '-m']
  options = [f'--run={workdir / "arms" / "rounds"}', f'--output={output}', '--fused']
  process = commands.start([*python, 'sjft_jax.export', *options])
  printed, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors
  assert printed.splitlines()[-1].startswith(f'{output}: ')
  shutil.rmtree(workdir)
  jobs = [
    commands.start([*python, 'sjft_jax.predict', f'--run={output}', f'--images={test}', *more])
    for more in (
      [f'--output={tmp_path / "last.parquet"}', '--every_class'],
      [f'--output={tmp_path / "fused.parquet"}', '--every_class', '--fused'],
      ['--eval'],
    )
  ]
  texts = []
  for job in jobs:
    printed, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    texts.append(printed)
  rounds = trained_run[0] / 'arms' / 'rounds' / 'rounds'
  scored = [np.load(rounds / number / 'round.npz')['test/ten_crop'] for number in '123']
  for name, expected in (('last', scored[-1]), ('fused', np.mean(scored, axis=0))):
    _, p = read_table(tmp_path / f'{name}.parquet')
    np.testing.assert_allclose(p, expected, rtol=1e-4)
  scores = trained_run[1]['arms']['rounds']['rounds'][-1]['test']['ten_crop']
  assert f'{scores["mean_class_accuracy"]:.1%}' in texts[2].splitlines()[-2]


@pytest.mark.slow
@pytest.mark.parametrize('fused', [False, True])
def test_the_card_says_what_was_trained_scored_and_borrowed(trained_run, tmp_path, fused):
  workdir, results = trained_run
  folder = sjft_jax.export(workdir / 'arms' / 'rounds', tmp_path / 'my export', fused=fused)
  _, head, text = (folder / 'README.md').read_text().split('---\n', 2)
  (model,) = yaml.safe_load(head)['model-index']
  assert model['name'] == 'my export'
  arm = results['arms']['rounds']
  scores = arm['fused' if fused else 'rounds']
  scores = scores['ten_crop'] if fused else scores[-1]['test']['ten_crop']
  (result,) = model['results']
  assert result['dataset']['name'] == 'target'
  values = [metric['value'] for metric in result['metrics']]
  assert values == pytest.approx([scores['mean_class_accuracy'], scores['top1']], abs=5e-5)
  row = re.search(r'\| ten crop \| mean class accuracy \| (.*)% \| (.*)% to (.*)% \|', text)
  value, low, high = map(float, row.groups())
  assert low <= value <= high
  assert '9 test images of target' in text
  assert '| target images for training | 12 |' in text
  drawn = ', '.join(str(round_['source_images']) for round_ in arm['rounds'])
  assert f'| source images that could be drawn, by round | {drawn} |' in text
  # Every pair of the last round counts; names of classes are those of folders.
  shares = re.findall(r'\| stripes \d \| \d+ \| (.*)% \|', text)
  assert sum(map(float, shares)) == pytest.approx(100, abs=0.5)
  assert ('Against plain fine-tuning' in text) != fused
  assert 'average of 3 networks' in text or not fused
  # Where things lie on this machine is not told.
  assert not re.search(re.escape(str(workdir.parent)), head + text)


@pytest.mark.slow
def test_an_export_is_replaced_and_nothing_else(arm, exported, tmp_path):
  folder = shutil.copytree(exported, tmp_path / 'exported')
  sjft_jax.export(arm, folder)
  files = {'README.md', 'config.json', 'model.safetensors', 'network.stablehlo'}
  assert {path.name for path in folder.iterdir()} == files
  (folder / '.git').mkdir()
  with pytest.raises(ValueError, match=r'holds \.git, which is no part of an export; give a new'):
    sjft_jax.export(arm, folder)
  (folder / '.git').rmdir()
  (folder / 'my_lora.safetensors').touch()
  with pytest.raises(ValueError, match=r'holds my_lora\.safetensors, which is no part of an'):
    sjft_jax.export(arm, folder)
  assert {path.name for path in tmp_path.iterdir()} == {'exported'}


@pytest.mark.slow
def test_an_export_that_is_stopped_leaves_what_was_there(arm, exported, tmp_path, monkeypatch):
  folder = shutil.copytree(exported, tmp_path / 'exported')
  before = {path.name: path.read_bytes() for path in folder.iterdir()}

  def stop(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(program, 'export_program', stop)
  with pytest.raises(KeyboardInterrupt):
    sjft_jax.export(arm, folder)
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
  assert {path.name for path in tmp_path.iterdir()} == {'exported'}


@pytest.mark.parametrize(
  ('run', 'output', 'message'),
  [
    ('run', 'nowhere/exported', 'a folder cannot be written there; create .*nowhere first'),
    ('run', 'file', 'file is a file; give a folder'),
    ('run', 'full', r'holds notes\.txt, which is no part of an export; give a new folder'),
    ('run', 'weights', 'is a folder of something else; give a new one'),
    ('run', 'other', r'holds other\.safetensors, which is no part of an export'),
    ('run', 'gs://bucket/exported', 'an export is written to a disk; give a path'),
    ('exported', 'new', 'is an export already; give the run, or copy the folder'),
    ('nowhere', 'new', 'give the folder of one training; with checkpoints there: none'),
  ],
)
def test_impossible_places_are_named(tmp_path, run, output, message):
  (tmp_path / 'file').touch()
  for name, file in (
    ('full', 'notes.txt'),
    ('weights', 'round1.safetensors'),
    ('other', 'other.safetensors'),
    ('exported', 'model.safetensors'),
  ):
    (tmp_path / name).mkdir()
    (tmp_path / name / file).touch()
  output = output if '://' in output else tmp_path / output
  with pytest.raises(ValueError, match=message) as error:
    sjft_jax.export(tmp_path / run, output)
  assert '\n' not in str(error.value)


def edit(folder, **changes):
  """Change the part of config.json that is read, and its checksum with it."""
  saved = artifacts.unseal(json.loads((folder / 'config.json').read_text()))
  labels = changes.pop('label_names', saved['label_names'])
  saved |= {'label_names': labels, 'sjft_jax': saved['sjft_jax'] | changes}
  artifacts.write_json(folder / 'config.json', saved)


def flip_byte(path):
  content = bytearray(path.read_bytes())
  content[-9] ^= 1
  path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda f: (f / 'config.json').unlink(), 'is no complete export: config.json is missing; '),
    (lambda f: (f / 'model.safetensors').unlink(), 'no such weight file'),
    (lambda f: flip_byte(f / 'model.safetensors'), 'content has another checksum; export the run'),
    (lambda f: (f / 'model.safetensors').write_bytes(b'{'), 'model.safetensors is refused'),
    (lambda f: flip_byte(f / 'config.json'), 'config.json is damaged: .*; export the run again'),
    (lambda f: edit(f, format=2), 'exported by another version of sjft_jax'),
    (lambda f: edit(f, crop=100_000, resize=100_000), 'cannot be used: resize=100000'),
    (lambda f: edit(f, batch_size=10**9), 'cannot be used: .*batch_size=1000000000'),
    (lambda f: edit(f, name='resnet99v2'), 'cannot be used: name=.resnet99v2. is unknown'),
    (lambda f: edit(f, width=float('nan')), 'cannot be used: '),
    (lambda f: edit(f, width=2.0), 'holds no weights of the network in config.json'),
    (lambda f: edit(f, views=['corner']), "cannot be used: views='corner' is unknown"),
    (lambda f: edit(f, views=[]), 'cannot be used: it has no views'),
    (lambda f: edit(f, normalization='none'), "cannot be used: normalization='none' is unknown"),
    (lambda f: edit(f, sha256=[]), 'cannot be used: it has no sha256 of the right type'),
    (lambda f: edit(f, label_names=['a']), 'holds no weights of the network in config.json'),
    (
      lambda f: edit(f, label_names=[1, 2]),
      'cannot be used: it has no classes, or one that is no text',
    ),
  ],
)
def test_damage_is_named_in_a_line(exported, tmp_path, damage, message):
  folder = shutil.copytree(exported, tmp_path / 'exported')
  damage(folder)
  with pytest.raises(ValueError, match=message) as error:
    sjft_jax.load(folder)
  assert '\n' not in str(error.value)


@pytest.mark.slow
def test_fused_predictions_need_the_networks_of_all_rounds(arm, images, tmp_path):
  classifier = sjft_jax.load(sjft_jax.export(arm, tmp_path / 'exported'))
  with pytest.raises(
    ValueError, match='holds the network of the last round only; export .*--fused'
  ):
    classifier.predict(images, fused=True)


@pytest.mark.reference
@pytest.mark.parametrize(
  ('name', 'style', 'rounds'),
  [
    ('resnet18v1', 'torch', 1),
    ('resnet18v2', 'torch', 2),
    ('vit_tiny_patch16_224', 'auto', 2),  # At another size than timm's default.
  ],
)
def test_timm_has_the_same_probabilities(images, tmp_path, name, style, rounds):
  import huggingface_hub

  arm = untrained_run.write(tmp_path / 'run', rounds=rounds, name=name, style=style)
  folder = sjft_jax.export(arm, tmp_path / 'exported', fused=rounds > 1)
  np.save(tmp_path / 'images.npy', images)
  _, block = card_blocks(folder, 'python')
  create = re.search(
    r'`(timm.create_model[^`]*)` gives the same', (folder / 'README.md').read_text()
  )[1]
  architecture = {'resnet18v1': 'resnet18', 'resnet18v2': 'resnetv2_18'}.get(name, name)
  run_alone(
    folder,
    f'sys.path.insert(0, {str(TESTS)!r})',
    'from models import torch_reference; torch_reference.timm()',
    block,
    f"""
import numpy as np
from PIL import Image
assert probabilities.shape == (7, 5)
network = timm.create_model('local-dir:.', pretrained=True).eval()
assert network.pretrained_cfg['label_names'][2] == 'ü, "x"'
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
images = np.load({str(tmp_path / 'images.npy')!r})
images = torch.stack([transform(Image.fromarray(image)) for image in images])
files = globals().get('files', ['model.safetensors'])
networks = globals().get('networks', [network])
network = {create}.eval()
with torch.no_grad():
  p = sum(network(images).softmax(1) for network in networks) / len(networks)
  last = network(images).softmax(1)
np.savez({str(tmp_path / 'p.npz')!r}, p=p.numpy(), last=last.numpy())
if {architecture!r} == 'resnet18':
  import safetensors.torch
  import torchvision
  network = torchvision.models.resnet18(num_classes=5)
  network.load_state_dict(safetensors.torch.load_file('model.safetensors'))
""",
  )
  classifier, p = sjft_jax.load(arm), np.load(tmp_path / 'p.npz')
  expected = classifier.predict(images, view='center', fused=rounds > 1)
  # The images matter, to random attention less.
  assert np.ptp(expected, axis=0).max() > (0.02 if name.startswith('vit') else 0.2)
  np.testing.assert_allclose(p['p'], expected, rtol=0, atol=1e-5)
  last = classifier.predict(images, view='center')
  np.testing.assert_allclose(p['last'], last, rtol=0, atol=1e-5)
  card = huggingface_hub.ModelCard.load(folder / 'README.md')
  assert (card.data.library_name, card.data.license) == ('timm', 'unknown')


@pytest.mark.reference
def test_torchvision_has_the_same_probabilities(tmp_path):
  arm = untrained_run.write(tmp_path / 'run', name='alexnet', resize=224, crop=224)
  folder = sjft_jax.export(arm, tmp_path / 'exported')
  images = untrained_run.images(224)
  np.save(tmp_path / 'images.npy', images)
  _, block = card_blocks(folder, 'python')
  run_alone(
    folder,
    f'sys.path.insert(0, {str(TESTS)!r})',
    'from models import torch_reference; torch_reference.torchvision()',
    block,
    f"""
import json
import numpy as np
import torch
config = json.load(open('config.json'))['pretrained_cfg']
mean, std = (torch.tensor(config[name])[:, None, None] for name in ('mean', 'std'))
images = torch.from_numpy(np.load({str(tmp_path / 'images.npy')!r})).permute(0, 3, 1, 2)
with torch.no_grad():
  p = network((images / 255 - mean) / std).softmax(1)
np.save({str(tmp_path / 'p.npy')!r}, p.numpy())
""",
  )
  expected = sjft_jax.load(arm).predict(images, view='center')
  np.testing.assert_allclose(np.load(tmp_path / 'p.npy'), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
  ('name', 'training'),
  [
    ('similar', 'fine-tuned .* nearest to each by the trunk’s features'),
    ('classes', 'fine-tuned .* together with the source classes that are nearest'),
    ('probe', 'not fine-tuned: its last layer alone was fitted .* as it started$'),
    ('none', 'fine-tuned on the target’s images alone, without a source$'),
  ],
)
def test_the_card_describes_how_an_arm_was_trained(tmp_path, name, training):
  untrained_run.write(tmp_path / 'run', rounds=5, name='resnet18v2', width=1 / 64)
  arm = (tmp_path / 'run' / 'arms' / 'rounds').rename(tmp_path / 'run' / 'arms' / name)
  card = exports._make_card(sjft_jax.load(arm), 'card', None, fused=False)
  assert re.match(training, card.training)
  is_trained, has_source = name != 'probe', name in ('similar', 'classes')
  lines, settings = dict(card.data), {setting for setting, _, _ in card.settings}
  assert ('rounds' in lines, 'source' in lines) == (is_trained, has_source)
  assert 'pretraining on the source' not in lines
  assert ('training.steps' in settings, 'model.name' in settings) == (is_trained, True)
  assert card.num_steps == (5 if is_trained else 0)


@pytest.mark.parametrize(
  ('name', 'training'),
  [
    ('none', '^pretrained on the source, then fine-tuned on the target’s images alone$'),
    ('classes', '^pretrained on the source, then fine-tuned .* together with the source classes'),
    ('probe', 'on the features of the trunk as pretrained on the source$'),
  ],
)
def test_the_card_tells_of_the_pretraining_on_the_source(tmp_path, name, training):
  untrained_run.write(tmp_path / 'run', rounds=5, name='resnet18v2', width=1 / 64)
  saved = artifacts.unseal(json.loads((tmp_path / 'run' / 'config.json').read_text()))
  saved['options']['pretrain']['steps'] = 1234
  artifacts.write_json(tmp_path / 'run' / 'config.json', saved)
  arm = (tmp_path / 'run' / 'arms' / 'rounds').rename(tmp_path / 'run' / 'arms' / name)
  card = exports._make_card(sjft_jax.load(arm), 'card', None, fused=False)
  assert re.search(training, card.training)
  lines = dict(card.data)
  assert lines['pretraining on the source'] == '1,234 steps'
  assert 'source' in lines


def test_the_card_of_an_earlier_checkpoint_has_no_scores_of_the_last_one(tmp_path, monkeypatch):
  arm = untrained_run.write(tmp_path / 'run', rounds=2, name='resnet18v2', width=1 / 64)
  rounds = [{'source_images': 5, 'num_neighbors': {'mean': 1.0}}] * 2
  results = {'arms': {'rounds': {'rounds': rounds}}, 'test_images': 9, 'fingerprint': 'f'}
  results['table'] = [{'arm': 'rounds'}]
  monkeypatch.setattr(exports.result_files, 'read_results', lambda workdir: results)
  monkeypatch.setattr(exports, '_score', lambda classifier, fused: ['a score'])

  def scores(fused):
    return exports._make_card(sjft_jax.load(arm), 'card', None, fused).scores

  assert scores(fused=False) == scores(fused=True) == ['a score']
  saved = artifacts.unseal(json.loads((tmp_path / 'run' / 'config.json').read_text()))
  saved['options']['training']['steps'] = 2  # Its checkpoint is of 2 steps of 4.
  artifacts.write_json(tmp_path / 'run' / 'config.json', saved)
  assert (scores(fused=False), scores(fused=True)) == ((), ['a score'])


def test_the_card_counts_whole_classes_by_their_images(tmp_path):
  options = config.default()
  options.source.dataset = 'demo_diverse'
  rows = ['target,source,rank,divergence', *(f',{c}/{i}.jpg,,' for c in 'aab' for i in range(2))]
  for name in ('classes', 'similar', 'probe'):
    path = tmp_path / name / 'rounds' / '5' / 'selection.csv'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(rows))
    counts = exports._count_classes(epath.Path(tmp_path / name), config.arm_config(options, name))
    assert counts == ([] if name == 'probe' else [('a', 4, 4 / 6), ('b', 2, 2 / 6)])


@pytest.mark.parametrize(
  ('dataset', 'path', 'name'),
  [
    ('folder', '/data/birds', 'birds'),
    ('folder+folder', '/data/birds,/data/boats', 'birds + boats'),
    ('folder+imagenet2012', '/data/birds,/tfds', 'birds + imagenet2012'),
    ('demo_diverse', '', 'demo_diverse'),
  ],
)
def test_the_card_names_every_data_set_of_a_source(dataset, path, name):
  options = config.default().source
  options.dataset, options.path = dataset, path
  assert exports._name_data(options) == name
