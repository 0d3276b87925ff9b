"""Reference networks of PyTorch, timm and Keras, with random weights that leave nothing trivial."""

import contextlib
import os
from unittest import mock

import numpy as np


@contextlib.contextmanager
def _without_operators():
  """Do without torchvision's operators, which its wheel for another build of torch lacks.

  The networks need none of them.
  """
  import torch

  register = torch.library.register_fake

  def lenient(name, *args, **kwargs):
    if isinstance(name, str) and name.startswith('torchvision::'):
      return lambda function: function
    return register(name, *args, **kwargs)

  with mock.patch.object(torch.library, 'register_fake', lenient):
    yield


def torchvision():
  """Import torchvision."""
  with _without_operators():
    import torchvision
  return torchvision


def timm():
  """Import timm."""
  with _without_operators():
    import timm
  return timm


def keras(home):
  """Import Keras on PyTorch, with its settings in the folder `home`, not in the user's."""
  with mock.patch.dict(os.environ, KERAS_BACKEND='torch', KERAS_HOME=str(home)):
    import keras
  assert keras.backend.backend() == 'torch'
  return keras


def randomise(model, seed=0):
  """Give a torch network random weights (see `random_values`); return it in evaluation mode."""
  import torch

  random = np.random.default_rng(seed)
  tensors = model.state_dict()
  for name, tensor in tensors.items():
    leaf = name.rpartition('.')[2]
    if leaf == 'num_batches_tracked':
      continue
    # All weights of one axis are of norms.
    is_scale = leaf == 'running_var' or (leaf == 'weight' and tensor.ndim == 1)
    # The norm that ends a branch, or, where norms come first, the convolution.
    ends_branch = name.endswith(
      ('conv3.weight',) if 'norm.weight' in tensors else ('bn3.weight', 'bn3.bias')
    )
    # Class tokens and positions are like biases, and so are factors of channels.
    is_kernel = leaf in ('weight', 'in_proj_weight') and tensor.ndim > 1
    shape = tuple(tensor.shape) if is_kernel else (tensor.numel(),)
    values = random_values(random, shape, is_scale, ends_branch)
    tensor.copy_(torch.from_numpy(values).reshape(tensor.shape))
  return model.eval()


def randomise_keras(model, seed=0):
  """Give a Keras network random weights (see `random_values`); return it."""
  random = np.random.default_rng(seed)
  v2 = any(layer.name == 'post_bn' for layer in model.layers)
  values = []
  for weight in model.weights:
    leaf = weight.path.rpartition('/')[2]
    ends_branch = weight.path.endswith('3_conv/kernel' if v2 else ('3_bn/gamma', '3_bn/beta'))
    # Keras has outputs last, but for depthwise kernels.
    axis = -2 if 'depthwise' in weight.path and weight.shape[-1] == 1 else -1
    shape = np.moveaxis(np.empty(weight.shape), axis, 0).shape
    is_scale = leaf in ('gamma', 'moving_variance')
    values.append(np.moveaxis(random_values(random, shape, is_scale, ends_branch), 0, axis))
  model.set_weights(values)
  return model


def random_values(random, shape, is_scale, ends_branch):
  """Draw kernels that keep the size of activations; norms far from the identity, biases from zero.

  Args:
    random: a generator.
    shape: of the values, outputs first.
    is_scale: whether they scale channels: these are positive.
    ends_branch: whether they end a residual branch: these are small, or activations would grow with
      depth.
  """
  if is_scale:
    values = random.uniform(0.5, 1.5, shape).astype(np.float32)
  else:
    deviation = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.2
    values = random.standard_normal(shape, np.float32) * np.float32(deviation)
  return values * np.float32(0.3 if ends_branch else 1)
