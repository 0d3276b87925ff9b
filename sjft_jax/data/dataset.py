"""What every data set offers, and data sets made out of others."""

import abc
import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from sjft_jax.data import decode

Image = UInt8[np.ndarray, 'height width 3']
# The class of each image; or which classes it shows, where there may be several.
Labels = Int32[np.ndarray, ' image'] | Bool[np.ndarray, 'image category']


@runtime_checkable
class Dataset(Protocol):
  """Labelled images with random access.

  Joint fine-tuning asks for one particular image after another, so a data set is a sequence.
  Everything except the pixels is known without decoding an image.

  Attributes:
    name: what reports call the data set.
    classes: readable class names; a label is a position in this tuple.
    labels: the class of every image; in a multi-label data set, which ones it shows.
    fingerprint: sha256 (hex) of whatever decides the content; artifacts carry it.
  """

  name: str
  classes: tuple[str, ...]
  labels: Labels
  fingerprint: str

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Image:
    """The image as RGB, 0–255. Safe to call from several threads.

    Raises:
      decode.UnreadableError: it cannot be decoded; the message names it.
    """

  def at_least(self, index: int, side: int) -> Image:
    """The image, possibly smaller, where that saves time; both sides keep `side` pixels or more."""

  def key(self, index: int) -> str:
    """A readable id of the image, the same in every session."""


class Domains(NamedTuple):
  """The data sets of a run: training and test images of the target, and the source."""

  target: Dataset
  test: Dataset
  source: Dataset


def class_names(data: Dataset, index: int) -> str:
  """The name of an image's class, or the names of all that it shows."""
  label = data.labels[index]
  return ', '.join(data.classes[c] for c in (np.flatnonzero(label) if np.ndim(label) else [label]))


class EncodedDataset(abc.ABC):
  """A data set of encoded images: files, or records of their bytes."""

  def __init__(self, name: str, classes: Sequence[str], labels: Labels, fingerprint: str):
    self.name, self.classes, self.labels = name, tuple(classes), labels
    self.fingerprint = fingerprint

  def __len__(self) -> int:
    return len(self.labels)

  @abc.abstractmethod
  def encoded(self, index: int) -> bytes:
    """An image as it is stored."""

  @abc.abstractmethod
  def key(self, index: int) -> str:
    """As of every data set."""

  def where(self, index: int) -> str:
    """What an error calls the image."""
    return f'{self.name}: {self.key(index)}'

  def __getitem__(self, index: int) -> Image:
    return self.at_least(index, 0)

  def at_least(self, index: int, side: int) -> Image:
    try:
      return decode.rgb(self.encoded(index), at_least=side)
    except decode.UnreadableError as error:
      raise decode.UnreadableError(f'{self.where(index)} {error}; replace or remove it') from error


class ImageArrays:
  """Images in memory, without labels.

  Args:
    images: uint8 RGB arrays [height, width, 3], or one array of all.

  Raises:
    ValueError: no images, or one of another type or shape.
  """

  def __init__(self, images: Sequence[np.ndarray] | np.ndarray):
    self.name = 'arrays'
    self.classes: tuple[str, ...] = ('image',)
    self._images = [np.asarray(image) for image in images]
    if not self._images:
      raise ValueError('no images are given')
    for index, image in enumerate(self._images):
      if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
          f'image {index} is {image.dtype} {list(image.shape)}; give uint8 RGB, [height, width, 3]'
        )
    self.labels = np.zeros(len(self._images), np.int32)
    content = hashlib.sha256()
    for image in self._images:
      content.update(f'{image.shape}'.encode() + image.tobytes())
    self.fingerprint = content.hexdigest()

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> Image:
    return self._images[index]

  def at_least(self, index: int, side: int) -> Image:
    del side
    return self._images[index]

  def key(self, index: int) -> str:
    return str(range(len(self))[index])


class SubsetDataset:
  """Some images of a data set, in the order of `indices`; the same classes."""

  def __init__(self, whole: Dataset, indices: np.ndarray):
    self.whole, self.indices = whole, np.asarray(indices)
    self.name, self.classes = whole.name, whole.classes
    self.labels = whole.labels[self.indices]
    chosen = self.indices.astype('<i8').tobytes()
    self.fingerprint = hashlib.sha256(whole.fingerprint.encode() + chosen).hexdigest()

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> Image:
    return self.whole[int(self.indices[index])]

  def at_least(self, index: int, side: int) -> Image:
    return self.whole.at_least(int(self.indices[index]), side)

  def key(self, index: int) -> str:
    return self.whole.key(int(self.indices[index]))


class ConcatDataset:
  """Several data sets one after another, their label spaces side by side.

  Classes and keys have the name of their data set in front.

  Raises:
    ValueError: one of them is multi-label, or two have the same name.
  """

  def __init__(self, parts: Sequence[Dataset]):
    self.parts = tuple(parts)
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
      raise ValueError(f'the same data set twice: {", ".join(names)}')
    for part in parts:
      if part.labels.ndim > 1:
        raise ValueError(f'{part.name} has several classes an image and cannot join another source')
    self.name = '+'.join(names)
    self.classes = tuple(f'{part.name}/{name}' for part in parts for name in part.classes)
    self._starts = np.cumsum([0, *map(len, parts)])
    first = np.cumsum([0, *(len(part.classes) for part in parts)])
    offset = [part.labels + np.int32(start) for part, start in zip(parts, first, strict=False)]
    self.labels = np.concatenate(offset).astype(np.int32)
    together = ' '.join(f'{part.name} {part.fingerprint}' for part in parts)
    self.fingerprint = hashlib.sha256(together.encode()).hexdigest()

  def __len__(self) -> int:
    return len(self.labels)

  def _find(self, index: int) -> tuple[Dataset, int]:
    index = range(len(self))[index]
    part = int(np.searchsorted(self._starts, index, side='right')) - 1
    return self.parts[part], index - int(self._starts[part])

  def __getitem__(self, index: int) -> Image:
    part, place = self._find(index)
    return part[place]

  def at_least(self, index: int, side: int) -> Image:
    part, place = self._find(index)
    return part.at_least(place, side)

  def key(self, index: int) -> str:
    part, place = self._find(index)
    return f'{part.name}/{part.key(place)}'
