"""What every data set offers, and the data sets known by name."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, UInt8

from sjft_jax.data.demo import DemoDiverse, DemoTextures
from sjft_jax.data.folder import Folder


@runtime_checkable
class Dataset(Protocol):
  """Labelled images with random access.

  Joint fine-tuning asks for one particular image after another, so a data set is a sequence.
  Everything except the pixels is known without decoding an image.

  Attributes:
    name: what reports call the data set.
    classes: readable class names; a label is a position in this tuple.
    labels: the class of every image.
    fingerprint: sha256 (hex) of whatever decides the content; artifacts carry it.
  """

  name: str
  classes: tuple[str, ...]
  labels: Int32[np.ndarray, 'image']
  fingerprint: str

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> UInt8[np.ndarray, 'height width 3']:
    """The image as RGB, 0–255. Safe to call from several threads."""

  def key(self, index: int) -> str:
    """A readable id of the image, the same in every session."""


def load(*, dataset: str, path: str, split: str) -> Dataset:
  """Opens a data set by name; no image is decoded.

  Args:
    dataset: 'folder', 'demo_textures' or 'demo_diverse'.
    path: the folder of a 'folder' data set; empty for the demo, which reads installed packages.
    split: 'train' or 'test' (the demo), or a sub-folder of `path`.

  Raises:
    ValueError: the name or the split is unknown, or `path` does not fit the data set.
    ModuleNotFoundError: a package that the demo reads is not installed.
  """
  if dataset == 'folder':
    return Folder(path, split)
  demos = {'demo_textures': DemoTextures, 'demo_diverse': DemoDiverse}
  if dataset not in demos:
    raise ValueError(f'dataset={dataset!r} is unknown; choose one of {["folder", *demos]}')
  if path:
    raise ValueError(f'path={path!r} is not read by {dataset}; leave it empty')
  return demos[dataset](split)
