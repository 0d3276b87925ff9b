"""Reference networks of PyTorch, timm and Keras, with random weights that leave nothing trivial."""

import contextlib
import os
from unittest import mock

import numpy as np


@contextlib.contextmanager
def _without_operators():
  """torchvision's wheel for another build of torch lacks its operators, which networks need not."""
  import torch

  register = torch.library.register_fake

  def lenient(name, *args, **kwargs):
    if isinstance(name, str) and name.startswith('torchvision::'):
      return lambda function: function
    return register(name, *args, **kwargs)

  with mock.patch.object(torch.library, 'register_fake', lenient):
    yield


def torchvision():
  with _without_operators():
    import torchvision
  return torchvision


def timm():
  with _without_operators():
    import timm
  return timm


def keras(home):
  """Keras on PyTorch, its settings in the folder `home`, not in the user's."""
  with mock.patch.dict(os.environ, KERAS_BACKEND='torch', KERAS_HOME=str(home)):
    import keras
  assert keras.backend.backend() == 'torch'
  return keras


def randomise(model, seed=0):
  """A torch network with random weights (see `random_values`), in evaluation mode."""
  import torch

  random = np.random.default_rng(seed)
  tensors = model.state_dict()
  for name, tensor in tensors.items():
    layer, _, leaf = name.rpartition('.')
    if leaf == 'num_batches_tracked':
      continue
    scales = leaf == 'running_var' or (leaf == 'weight' and f'{layer}.running_var' in tensors)
    # The norm that ends a branch, or, where norms come first, the convolution.
    ends = name.endswith(
      ('conv3.weight',) if 'norm.weight' in tensors else ('bn3.weight', 'bn3.bias')
    )
    values = random_values(random, tuple(tensor.shape), scales, ends)
    tensor.copy_(torch.from_numpy(values))
  return model.eval()


def randomise_keras(model, seed=0):
  """A Keras network with random weights (see `random_values`)."""
  random = np.random.default_rng(seed)
  v2 = any(layer.name == 'post_bn' for layer in model.layers)
  values = []
  for weight in model.weights:
    leaf = weight.path.rpartition('/')[2]
    ends = weight.path.endswith('3_conv/kernel' if v2 else ('3_bn/gamma', '3_bn/beta'))
    # Outputs last.
    shape = (weight.shape[-1], *weight.shape[:-1])
    drawn = random_values(random, shape, leaf in ('gamma', 'moving_variance'), ends)
    values.append(np.moveaxis(drawn, 0, -1))
  model.set_weights(values)
  return model


def random_values(random, shape, scales, ends_branch):
  """Kernels that keep the size of activations; norms far from the identity, biases from zero.

  `scales`: what scales a channel is positive. `ends_branch`: what ends a residual branch is small,
  or activations would grow with depth.
  """
  if scales:
    values = random.uniform(0.5, 1.5, shape).astype(np.float32)
  else:
    deviation = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.2
    values = random.standard_normal(shape, np.float32) * np.float32(deviation)
  return values * np.float32(0.3 if ends_branch else 1)
