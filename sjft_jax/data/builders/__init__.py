"""Builders for TFDS that prepare the paper's data sets from their official archives.

They need no TensorFlow. After `register()`, TFDS finds them by name, also where it has a builder of
its own: `tfds.builder('stanford_dogs', data_dir=…)`, `tfds.data_source('caltech256', …)`.
"""

import functools
import importlib
from typing import Any

from tensorflow_datasets.core import registered

# Name to module. A module is imported only when its builder is needed.
BUILDERS = {
  name: f'{__name__}.{name}'
  for name in (
    'caltech256',
    'coco',
    'imagenet2012',
    'mit_indoor67',
    'oxford_flowers102',
    'places205',
    'places365_small',
    'stanford_dogs',
  )
}


@functools.cache
def register() -> None:
  """Let TFDS find the builders by name, before its own. Importing this package does not do so."""
  registered.add_dataset_builder_provider(_Provider(), index=0)


def load(name: str) -> Any:
  """Register the builders and return the builder class of a data set in `BUILDERS`."""
  register()
  return importlib.import_module(BUILDERS[name]).Builder


class _Provider:
  """What TFDS looks up builders in."""

  def has_dataset(self, name: str) -> bool:
    return name in BUILDERS

  def get_builder_cls(self, name: str) -> Any:
    return load(name)
