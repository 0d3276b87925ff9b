"""What every data set offers, and data sets made from arrays or from other data sets."""

import abc
import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

from sjft_jax.data.decode import UnreadableError, decode_image
from sjft_jax.runtime import host_memory

Image = UInt8[np.ndarray, 'height width 3']
# Equal rows are images whose stored bytes are equal.
Digests = UInt8[np.ndarray, 'image byte']
# Equal numbers are images that belong together, such as photographs of one object.
Groups = Int64[np.ndarray, ' image']
# The class of each image; in a multi-label data set, whether it shows each class.
Labels = Int32[np.ndarray, ' image'] | Bool[np.ndarray, 'image category']


@runtime_checkable
class Dataset(Protocol):
  """Labelled images with random access.

  Joint fine-tuning asks for one particular image after another, so a data set is a sequence.
  Everything except the pixels is known without decoding an image.

  Attributes:
    name: what reports call the data set.
    classes: readable class names; a label is a position in this tuple.
    labels: [image], the class of each; in a multi-label data set [image, class], whether the image
      shows the class.
    fingerprint: sha256 (hexadecimal) of whatever decides the content; artifacts carry it.
  """

  name: str
  classes: tuple[str, ...]
  labels: Labels

  @property
  def fingerprint(self) -> str: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Image:
    """Read an image in full size as RGB, 0–255. This is safe to call from several threads.

    Raises:
      UnreadableError: the image cannot be decoded; the message names it.
    """

  def read_image(self, index: int, *, min_side: int) -> Image:
    """Read an image, smaller where that saves time: both sides keep `min_side` pixels or more.

    An image with a side below `min_side` comes in full size; so does every image for 0.

    Raises:
      UnreadableError: the image cannot be decoded; the message names it.
    """

  def key(self, index: int) -> str:
    """Return a readable id of the image, the same in every session."""


class Domains(NamedTuple):
  """The data sets of a run.

  Attributes:
    target: training images of the target.
    test: test images of the target.
    source: the source.
  """

  target: Dataset
  test: Dataset
  source: Dataset


def class_names(data: Dataset, index: int) -> str:
  """Return the name of an image's class, or the names of all classes that it shows."""
  label = data.labels[index]
  return ', '.join(data.classes[c] for c in (np.flatnonzero(label) if np.ndim(label) else [label]))


def image_digests(dataset: Dataset) -> Digests | None:
  """Return a digest of the stored bytes of each image, or None if they are not known."""
  if isinstance(dataset, SubsetDataset):
    digests = image_digests(dataset.whole)
    return None if digests is None else digests[dataset.indices]
  if isinstance(dataset, ConcatDataset):
    parts = [image_digests(part) for part in dataset.parts]
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None
  return dataset.digests if isinstance(dataset, EncodedDataset) else None


def image_groups(dataset: Dataset) -> Groups | None:
  """Return the group of each image, or None if the images have none."""
  if isinstance(dataset, SubsetDataset):
    groups = image_groups(dataset.whole)
    return None if groups is None else groups[dataset.indices]
  if isinstance(dataset, ConcatDataset):
    return _concatenate_groups(dataset.parts)
  return dataset.groups if isinstance(dataset, EncodedDataset) else None


def _concatenate_groups(parts: Sequence[Dataset]) -> Groups | None:
  """Return the groups of joined data sets; an image of one without groups is one by itself."""
  of_parts = [image_groups(part) for part in parts]
  if all(groups is None for groups in of_parts):
    return None
  joined, start = [], 0
  for part, groups in zip(parts, of_parts, strict=True):
    numbers = np.arange(len(part)) if groups is None else groups
    joined.append(numbers + start)
    start += int(numbers.max(initial=-1)) + 1
  return np.concatenate(joined)


class EncodedDataset(abc.ABC):
  """A data set of encoded images: files, or records that hold their bytes.

  Args:
    name, classes, labels, fingerprint: as for every `Dataset`; without a fingerprint the subclass
      computes it when it is asked for.

  Attributes:
    digests: [image, byte], of each image's bytes as they are stored; zeros where these cannot be
      read. None: they are not known.
    groups: of each image, or None. A group is not divided between training and held-out images.
  """

  fingerprint: str
  digests: Digests | None = None
  groups: Groups | None = None

  def __init__(
    self, name: str, classes: Sequence[str], labels: Labels, fingerprint: str | None = None
  ):
    self.name, self.classes, self.labels = name, tuple(classes), labels
    if fingerprint is not None:
      self.fingerprint = fingerprint

  def __len__(self) -> int:
    return len(self.labels)

  def encoded_bytes(self, index: int) -> int:
    """Return the size of an image as it is stored, in bytes; 0: it is not known."""
    del index
    return 0

  @abc.abstractmethod
  def read_encoded(self, index: int) -> bytes:
    """Read the bytes of an image as they are stored."""

  @abc.abstractmethod
  def key(self, index: int) -> str:
    """Return a readable id of the image, the same in every session."""

  def location(self, index: int) -> str:
    """Return the place of an image, for error messages."""
    return f'{self.name}: {self.key(index)}'

  def __getitem__(self, index: int) -> Image:
    return self.read_image(index, min_side=0)

  def read_image(self, index: int, *, min_side: int) -> Image:
    try:
      # A large file counts with what becomes of it.
      with host_memory.turn(2 * self.encoded_bytes(index)):
        return decode_image(self.read_encoded(index), min_side=min_side)
    except UnreadableError as error:
      raise UnreadableError(f'{self.location(index)} {error}; replace or remove it') from error
    except host_memory.OutOfMemoryError as error:
      raise host_memory.OutOfMemoryError(
        f'{self.location(index)} {error}; free memory, or make the image smaller'
      ) from error
    except MemoryError as error:
      raise host_memory.OutOfMemoryError(
        f'{self.location(index)} takes more memory than there is; make the image smaller'
      ) from error


class ImageArrays:
  """Images in memory, without labels: all are of one class.

  Args:
    images: uint8 RGB arrays [height, width, 3], or one array of all.

  Raises:
    ValueError: there are no images, or one has another type or shape.
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

  def read_image(self, index: int, *, min_side: int) -> Image:
    del min_side  # There is nothing to decode, so a smaller image would save no time.
    return self._images[index]

  def key(self, index: int) -> str:
    return str(range(len(self))[index])


class SubsetDataset:
  """Some images of a data set, in the order of `indices`; the classes stay the same.

  Args:
    whole: the data set to take images from.
    indices: [image], their indices there.
  """

  def __init__(self, whole: Dataset, indices: np.ndarray):
    self.whole, self.indices = whole, np.asarray(indices)
    self.name, self.classes = whole.name, whole.classes
    self.labels = whole.labels[self.indices]
    content = whole.fingerprint.encode() + self.indices.astype('<i8').tobytes()
    self.fingerprint = hashlib.sha256(content).hexdigest()

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> Image:
    return self.whole[int(self.indices[index])]

  def read_image(self, index: int, *, min_side: int) -> Image:
    return self.whole.read_image(int(self.indices[index]), min_side=min_side)

  def key(self, index: int) -> str:
    return self.whole.key(int(self.indices[index]))


class ConcatDataset:
  """Several data sets one after another, with their label spaces side by side.

  The name of its data set stands in front of each class and key.

  Args:
    parts: the data sets.
    prefixes: what stands in front of the classes of each instead, all different; None: its name.

  Raises:
    ValueError: one of them is multi-label, or two have the same name.
  """

  def __init__(self, parts: Sequence[Dataset], prefixes: Sequence[str] | None = None):
    self.parts = tuple(parts)
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
      twice = next(name for name in names if names.count(name) > 1)
      raise ValueError(
        f'two of the data sets to join are called {twice}; give each once, of TFDS with all splits '
        'in one (train+validation), and if they differ rename the folder or list of one'
      )
    for part in parts:
      if part.labels.ndim > 1:
        raise ValueError(
          f'{part.name} has several classes per image and cannot be joined with another data set'
        )
    self.name = '+'.join(names)
    self.classes = tuple(
      f'{prefix}/{name}'
      for prefix, part in zip(prefixes or names, parts, strict=True)
      for name in part.classes
    )
    self._starts = np.cumsum([0, *map(len, parts)])
    first_labels = np.cumsum([0, *(len(part.classes) for part in parts)])
    self.labels = np.concatenate(
      [part.labels + np.int32(first) for part, first in zip(parts, first_labels, strict=False)]
    ).astype(np.int32)
    content = ' '.join(f'{part.name} {part.fingerprint}' for part in parts)
    self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Image:
    part, index_in_part = self._locate(index)
    return part[index_in_part]

  def read_image(self, index: int, *, min_side: int) -> Image:
    part, index_in_part = self._locate(index)
    return part.read_image(index_in_part, min_side=min_side)

  def key(self, index: int) -> str:
    part, index_in_part = self._locate(index)
    return f'{part.name}/{part.key(index_in_part)}'

  def _locate(self, index: int) -> tuple[Dataset, int]:
    """Return the data set that an image is in, and its index there."""
    index = range(len(self))[index]
    part = int(np.searchsorted(self._starts, index, side='right')) - 1
    return self.parts[part], index - int(self._starts[part])
