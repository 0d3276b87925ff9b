"""Find source images that are copies of target images: re-encoded, resized or slightly cropped."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from sjft_jax.data import transforms
from sjft_jax.data.dataset import Dataset, SubsetDataset
from sjft_jax.data.loader import views
from sjft_jax.descriptors import bank as banks
from sjft_jax.descriptors import describe
from sjft_jax.retrieval.divergence import symmetric_kl_of_pairs
from sjft_jax.runtime import artifacts, console
from sjft_jax.screening import perceptual_hash
from sjft_jax.screening.scan import CACHE_VERSION, SIDE, scan

# Proposed pairs are confirmed by the divergence of their histograms of Gabor responses, at a fixed
# small size: larger ones tell a picture from its own halved copy.  A pair is one of copies inside
# an ellipse with these half-axes: the more bits differ, the more alike the responses must be.  All
# re-encoded (JPEG quality 30 and more), halved and doubled copies of the demo's test images lie
# inside, and no pair of unlike photographs.  Neither test alone, nor the two one after the other,
# tells them apart as well.
_MOST_BITS, _MOST_NATS = 44, 0.3
_VIEW = 32  # pixels
_NUM_BINS = 16
_SMOOTHING = 1.0
_BATCH = 64
_FITTED = 512  # target images that the bins are fitted to


class DuplicatePairs(NamedTuple):
  """Source images that duplicate target images: indices of each pair, bits and nats between."""

  source: Int64[np.ndarray, ' pair']
  target: Int64[np.ndarray, ' pair']
  hamming: Int64[np.ndarray, ' pair']
  divergence: Float[np.ndarray, ' pair']


def find_duplicates(source: Dataset, target: Dataset) -> DuplicatePairs:
  """Source images that are copies of target images: re-encoded, resized or slightly cropped.

  Perceptual hashes propose pairs, the divergence of filter responses (Ge & Yu 2017, Eq. 1) confirms
  them. Mirror images are not found. Letters and digits are too much alike for both tests: of the
  demo's handwritten characters, one in six would pass for a copy of another.

  Args:
    source, target: data sets without unreadable images.
  """
  made_from = artifacts.fingerprint(CACHE_VERSION, source.fingerprint, target.fingerprint)
  found = artifacts.load_or_make(
    'duplicates', made_from, lambda: _confirm(source, target)._asdict()
  )
  return DuplicatePairs(**found)


def _confirm(source: Dataset, target: Dataset) -> DuplicatePairs:
  pairs = perceptual_hash.near_pairs(scan(source).hashes, scan(target).hashes)
  divergence = _divergences(source, target, pairs) if len(pairs) else np.zeros(0)
  is_copy = (pairs[:, 2] / _MOST_BITS) ** 2 + (divergence / _MOST_NATS) ** 2 < 1
  (i, j, bits), nats = pairs[is_copy].T, divergence[is_copy]
  return DuplicatePairs(i, j, bits, nats)


def _divergences(
  source: Dataset, target: Dataset, pairs: Int64[np.ndarray, 'pair 3']
) -> Float[np.ndarray, ' pair']:
  """Symmetric Kullback–Leibler divergence in nats of each pair's descriptors."""
  bank = banks.load(name='gabor', layers=(), tap='', pretrained='')
  fitted = np.unique(np.linspace(0, len(target) - 1, _FITTED).astype(int))
  edges = describe.fit_edges(bank, _views(target, fitted), num_bins=_NUM_BINS)

  def described(dataset: Dataset, indices: np.ndarray) -> Iterator[np.ndarray]:
    batches = _views(dataset, indices)
    return map(
      np.asarray,
      describe.describe(bank, edges, batches, smoothing=_SMOOTHING, batch_size=_BATCH),
    )

  sources, of_source = np.unique(pairs[:, 0], return_inverse=True)
  targets, of_target = np.unique(pairs[:, 1], return_inverse=True)
  q = np.concatenate(list(described(target, targets)))
  divergence, done = np.zeros(len(pairs)), 0
  with console.progress('comparing likely duplicates', len(sources)) as advance:
    for p in described(source, sources):
      here = np.flatnonzero((of_source >= done) & (of_source < done + len(p)))
      a, b = p[of_source[here] - done], q[of_target[here]]
      divergence[here] = symmetric_kl_of_pairs(a, b, bank.weights)
      done += len(p)
      advance(len(p))
  return divergence


def _views(dataset: Dataset, indices: np.ndarray) -> Iterator[np.ndarray]:
  view = functools.partial(transforms.describe_view, resize=_VIEW, crop=_VIEW)
  return views(SubsetDataset(dataset, indices), view, _BATCH, min_side=SIDE)
