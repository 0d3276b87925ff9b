"""Joint batches: each target image beside one of its neighbours (Ge & Yu 2017, Section 3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from sjft_jax.data.dataset import Dataset
from sjft_jax.data.sampler import AUGMENT, NEIGHBOR, Sampler, keyed_rng, shuffled_indices
from sjft_jax.selection.subset import Subset

Batch = dict[str, np.ndarray]
Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Batches:
  """The batches of one round; `batches(step)` is a pure function of (seed, round, step).

  A batch holds `batch_size` target images and, unless there is no subset, one neighbour of each
  behind it: target, neighbour, target, neighbour … so that any cut between pairs keeps the domains
  in balance. Its leaves are 'image' uint8 [image, height, width, channel], 'label' int32 in the
  label space of the image's own domain, and 'is_source' bool. If the source is multi-label, there
  is also 'multi_hot' bool [image, class], the classes in each source image, whose 'label' is 0.

  Attributes:
    target: the data set of the target domain.
    source: the data set of the source domain.
    subset: the source images that may be drawn; None: target images alone.
    sampler: the order of the target images.
    augment: makes the training view of an image.
    min_side: short side in pixels above which `augment` gains nothing: images may be decoded so
      small.
    seed: of neighbours and augmentation.
    round_: the round's number, from 0.
    batch_size: target images in a batch, of all processes.
    local_pairs: which pairs of a batch this process loads.
  """

  target: Dataset
  source: Dataset
  subset: Subset | None
  sampler: Sampler
  augment: Augment
  min_side: int
  seed: int
  round_: int
  batch_size: int
  local_pairs: Int[np.ndarray, ' pair'] | Sequence[int]

  def __call__(self, step: int) -> Batch:
    """Load the batch of a step, from 0."""
    draws = self._draw(step)
    is_multi_label = self.source.labels.ndim > 1
    images: list[np.ndarray] = []
    labels, is_source = [], []
    multi_hot = np.zeros((len(draws) * len(self.local_pairs), len(self.source.classes)), bool)
    for pair in self.local_pairs:
      for place, (dataset, indices) in enumerate(draws):
        index = int(indices[pair])
        rng = keyed_rng(AUGMENT, self.seed, self.round_, step, int(pair) * len(draws) + place)
        is_source.append(dataset is self.source)
        if is_multi_label and is_source[-1]:
          multi_hot[len(images)] = dataset.labels[index]
          labels.append(0)
        else:
          labels.append(dataset.labels[index])
        images.append(self.augment(dataset.read_image(index, min_side=self.min_side), rng))
    batch = {
      'image': np.stack(images),
      'label': np.array(labels, np.int32),
      'is_source': np.array(is_source),
    }
    return batch | {'multi_hot': multi_hot} if is_multi_label else batch

  @property
  def images_per_batch(self) -> int:
    """Return how many images of a batch this process loads."""
    return len(self.local_pairs) * (1 if self.subset is None else 2)

  def names(self, step: int) -> list[str]:
    """Return the names of the images of the whole batch, in its order."""
    draws = self._draw(step)
    return [
      f'{dataset.name}/{dataset.key(int(indices[pair]))}'
      for pair in range(self.batch_size)
      for dataset, indices in draws
    ]

  def _draw(self, step: int) -> list[tuple[Dataset, np.ndarray]]:
    """Return for each image of a pair its data set and its index there, for all pairs."""
    first = step * self.batch_size
    targets = self.sampler(first, first + self.batch_size)
    if self.subset is None:
      return [(self.target, targets)]
    uniform = keyed_rng(NEIGHBOR, self.seed, self.round_, step).random(self.batch_size)
    return [(self.target, targets), (self.source, self.subset.draw(targets, uniform))]


class SourceBatches(Batches):
  """Batches of source images alone, for pretraining a trunk; of the same size as joint ones."""

  @property
  def images_per_batch(self) -> int:
    """Return how many images of a batch this process loads."""
    return 2 * len(self.local_pairs)

  def _draw(self, step: int) -> list[tuple[Dataset, np.ndarray]]:
    first = 2 * step * self.batch_size
    indices = shuffled_indices(self.seed, first, first + 2 * self.batch_size, len(self.source))
    return [(self.source, indices[0::2]), (self.source, indices[1::2])]
