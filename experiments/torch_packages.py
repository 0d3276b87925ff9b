"""Import torchvision and timm, also where torchvision's operators are missing."""

import contextlib
from collections.abc import Iterator
from types import ModuleType
from unittest import mock


@contextlib.contextmanager
def _ignore_missing_operators() -> Iterator[None]:
  # torchvision's wheel for another build of torch lacks its operators, which networks do not need.
  import torch

  register = torch.library.register_fake

  def register_others(name, *args, **kwargs):
    if isinstance(name, str) and name.startswith('torchvision::'):
      return lambda function: function
    return register(name, *args, **kwargs)

  with mock.patch.object(torch.library, 'register_fake', register_others):
    yield


def torchvision() -> ModuleType:
  """Return the package torchvision."""
  with _ignore_missing_operators():
    import torchvision
  return torchvision


def timm() -> ModuleType:
  """Return the package timm."""
  with _ignore_missing_operators():
    import timm
  return timm
