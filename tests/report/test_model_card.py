"""Model cards: names of any origin stay text in YAML and Markdown."""

import re

import pytest
import yaml

from sjft_jax.report import model_card
from sjft_jax.report.model_card import ModelCard, Score

HOSTILE = [
  '<script>alert(1)</script>',
  '| x | ](http://evil) `code` **bold**',
  'two\nlines\n---\nlicense: mit',
  '"quoted" \\ \'single\' # no comment: {a: b}',
  'a\x1b[31m\u2028\x85\udc80é 😀',
]


def make_card(**changes):
  values = {
    'name': 'card',
    'network': 'resnet18v1',
    'classes': ('a', 'b'),
    'training': 'alone',
    'step': 5,
    'num_steps': 5,
    'files': ('model.safetensors',),
    'library': 'timm',
    'architecture': 'resnet18',
    'has_image_size': False,
    'resize': 256,
    'crop': 224,
    'mean': (1.0, 2.0, 3.0),
    'deviation': (1.0, 1.0, 1.0),
    'dtype': 'float32',
    'views': ('center',),
    'num_test': 1234,
    'is_screened': True,
    'scores': (Score('center', 'top-1 accuracy', 0.5, 0.25, 0.75),),
    'gain': '',
    'target': 'dogs',
    'source': '',
    'pretrained': '',
    'data': (('target', 'dogs'),),
    'borrowed': (),
    'borrowed_unit': 'pairs',
    'settings': (('model.name', '"a"', '"b"'),),
  }
  return ModelCard(**values | changes)


def head(text):
  _, content, _ = text.split('---\n', 2)
  return yaml.safe_load(content)


def test_scores_are_in_the_head_and_in_the_text():
  text = model_card.render(make_card())
  assert '| center | top-1 accuracy | 50.0% | 25.0% to 75.0% |' in text
  assert '1,234 test images of dogs, which were not trained with:' in text
  text = model_card.render(make_card(is_screened=False))
  assert '1,234 test images of dogs; copies of them were not kept out of the training:' in text
  (model,) = head(text)['model-index']
  (result,) = model['results']
  assert result['metrics'] == [{'type': 'accuracy', 'name': 'top-1 accuracy, center', 'value': 0.5}]


def test_an_unfinished_training_has_no_scores_and_says_so():
  text = model_card.render(make_card(step=3, scores=()))
  assert 'exported after 3 of 5 steps' in text
  assert 'There are none' in text
  assert 'model-index' not in head(text)


@pytest.mark.parametrize('name', HOSTILE)
def test_names_are_text(name):
  changes = {'name': name, 'target': name, 'classes': (name, 'b'), 'data': ((name, name),)}
  card = make_card(**changes, borrowed=((name, 1, 1.0),), settings=((name, name, name),))
  text, plain = model_card.render(card), model_card.render(make_card())
  read = head(text)
  assert read.keys() == head(plain).keys()
  assert read['license'] == 'unknown'
  body = text.split('---\n', 2)[2]
  assert '<script' not in body
  assert '](http://evil' not in body
  assert text.isprintable() or set(re.findall(r'[^ -\U0010ffff]', text)) == {'\n'}
  # No line and no cell more than a plain name has, but for the table of source classes.
  rows = [line for line in text.splitlines() if line.startswith('|')]
  cells = {len(re.findall(r'(?<!\\)\|', row)) for row in rows}
  assert cells == {3, 4, 5}
  text.encode()


@pytest.mark.parametrize(
  ('library', 'architecture', 'names'),
  [
    ('', '', 'the names and layouts of sjft_jax, for Flax'),
    ('timm', 'resnet50', 'timm’s names, which are torchvision’s too'),
    ('timm', 'resnetv2_50', 'timm’s names'),
    ('timm', 'resnet200', 'timm’s names'),
    ('torchvision', 'alexnet', 'torchvision’s names'),
  ],
)
def test_it_says_whose_names_the_weights_have(library, architecture, names):
  card = make_card(library=library, architecture=architecture)
  assert f'| weights, in {names} |' in model_card.render(card)


def test_long_lists_of_classes_end_in_their_number():
  text = model_card.render(make_card(classes=[f'c{i}' for i in range(120)]))
  assert 'c99, and 20 more in `config.json`' in text


@pytest.mark.parametrize(
  ('library', 'architecture'), [('timm', 'resnet18'), ('torchvision', 'alexnet')]
)
def test_every_program_of_a_fused_export_averages_all_networks(library, architecture):
  files = ('round1.safetensors', 'model.safetensors')
  text = model_card.render(make_card(files=files, library=library, architecture=architecture))
  programs = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  assert len(programs) > 1
  for program in programs:
    compile(program, 'card', 'exec')
    assert 'round1.safetensors' in program
    assert '/ len(networks)' in program
  assert 'gives the same' not in text
