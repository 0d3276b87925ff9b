"""Find source images that are near duplicates of target images: re-encoded, resized or cropped."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int, Int64

from sjft_jax.data import transforms
from sjft_jax.data.dataset import Dataset, SubsetDataset, image_groups
from sjft_jax.data.loader import views
from sjft_jax.descriptors import bank as banks
from sjft_jax.descriptors import describe
from sjft_jax.retrieval.divergence import symmetric_kl_of_pairs
from sjft_jax.runtime import artifacts, console
from sjft_jax.screening import perceptual_hash
from sjft_jax.screening.scan import CACHE_VERSION, MIN_SIDE, scan

# Pairs with near hashes are confirmed by the divergence of their histograms of Gabor responses, at
# a fixed small size: larger ones tell a picture from its own halved copy. A pair are copies inside
# an ellipse with these half-axes: the more bits differ, the more alike the responses must be. All
# re-encoded (JPEG quality 30 and more), halved and doubled copies of the demo's test images lie
# inside, and no pair of unlike photographs. Neither test alone, nor the two one after the other,
# separates them as well.
_MAX_BITS, _MAX_NATS = 44, 0.3
_VIEW = 32  # pixels
_NUM_BINS = 16
_SMOOTHING = 1.0
_BATCH_SIZE = 64
_FITTED_IMAGES = 512  # target images that the bins are fitted to


class DuplicatePairs(NamedTuple):
  """Pairs of a source image and a target image that it duplicates.

  Attributes:
    source: indices of the source images.
    target: indices of the target images.
    hamming: bits in which the hashes of a pair differ.
    divergence: of the filter responses of a pair (Eq. 1), nats.
  """

  source: Int64[np.ndarray, ' pair']
  target: Int64[np.ndarray, ' pair']
  hamming: Int64[np.ndarray, ' pair']
  divergence: Float[np.ndarray, ' pair']


def find_duplicates(source: Dataset, target: Dataset) -> DuplicatePairs:
  """Find source images that are copies of target images, or load an earlier result.

  Perceptual hashes propose pairs, the divergence of filter responses (Ge & Yu 2017, Eq. 1) confirms
  them. Mirror images are not found. Letters and digits are too much alike for both tests: of the
  demo's handwritten characters, one in six would pass for a copy of another. So are pictures in
  which every object has one outline on a plain ground, such as textures cut to one disc on black.

  Args:
    source, target: data sets without unreadable images.
  """
  fingerprint = artifacts.fingerprint(CACHE_VERSION, source.fingerprint, target.fingerprint)
  arrays = artifacts.load_or_make(
    'duplicates', fingerprint, lambda: _compare(source, target)._asdict()
  )
  return DuplicatePairs(**arrays)


def group_images(data: Dataset) -> Int[np.ndarray, ' image']:
  """Return a number for each image, the same for copies of one picture and for a group of images.

  Images of a domain whose pictures `find_duplicates` confuses can become one large group.

  Args:
    data: without unreadable images.
  """
  copies = find_duplicates(data, data)
  pairs = [(copies.source, copies.target)]
  groups = image_groups(data)
  if groups is not None:
    _, first_images, numbers = np.unique(groups, return_index=True, return_inverse=True)
    pairs.append((np.arange(len(data)), first_images[numbers]))
  rows, columns = (np.concatenate(side) for side in zip(*pairs, strict=True))
  shape = len(data), len(data)
  links = scipy.sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape)
  return scipy.sparse.csgraph.connected_components(links, directed=False)[1]


def _compare(source: Dataset, target: Dataset) -> DuplicatePairs:
  pairs = perceptual_hash.find_near_pairs(scan(source).hashes, scan(target).hashes)
  divergence = _divergences(source, target, pairs) if len(pairs) else np.zeros(0)
  is_copy = (pairs[:, 2] / _MAX_BITS) ** 2 + (divergence / _MAX_NATS) ** 2 < 1
  source_indices, target_indices, bits = pairs[is_copy].T
  return DuplicatePairs(source_indices, target_indices, bits, divergence[is_copy])


def _divergences(
  source: Dataset, target: Dataset, pairs: Int64[np.ndarray, 'pair 3']
) -> Float[np.ndarray, ' pair']:
  """Return the symmetric Kullback–Leibler divergence in nats of each pair's descriptors."""
  bank = banks.load(name='gabor', layers=(), tap='', pretrained='')
  fitted = np.unique(np.linspace(0, len(target) - 1, _FITTED_IMAGES).astype(int))
  edges = describe.fit_edges(bank, _views(target, fitted), num_bins=_NUM_BINS)

  def descriptors(dataset: Dataset, indices: np.ndarray) -> Iterator[np.ndarray]:
    batches = _views(dataset, indices)
    blocks = describe.describe(bank, edges, batches, smoothing=_SMOOTHING, batch_size=_BATCH_SIZE)
    return map(np.asarray, blocks)

  # Each image is described once, however many pairs it is in; rows are positions among them.
  sources, source_rows = np.unique(pairs[:, 0], return_inverse=True)
  targets, target_rows = np.unique(pairs[:, 1], return_inverse=True)
  q = np.concatenate(list(descriptors(target, targets)))
  divergence = np.zeros(len(pairs))
  start = 0
  with console.progress('comparing likely duplicates', len(sources)) as advance:
    for p in descriptors(source, sources):
      in_block = np.flatnonzero((source_rows >= start) & (source_rows < start + len(p)))
      a, b = p[source_rows[in_block] - start], q[target_rows[in_block]]
      divergence[in_block] = symmetric_kl_of_pairs(a, b, bank.weights)
      start += len(p)
      advance(len(p))
  return divergence


def _views(dataset: Dataset, indices: np.ndarray) -> Iterator[np.ndarray]:
  view = functools.partial(transforms.describe_view, resize=_VIEW, crop=_VIEW)
  return views(SubsetDataset(dataset, indices), view, _BATCH_SIZE, min_side=MIN_SIDE)
