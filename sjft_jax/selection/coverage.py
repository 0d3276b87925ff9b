"""The smallest neighbourhoods that hold enough source images (Ge & Yu 2017, section 4.2)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Coverage(NamedTuple):
  """How many source images the nearest neighbours of all target images hold.

  Attributes:
    num_neighbors: K0, the nearest neighbours of each target image.
    source_images: the number of distinct source images among them.
  """

  num_neighbors: int
  source_images: int


def count_source_images(ranking: Int[np.ndarray, 'target depth']) -> Int[np.ndarray, ' depth']:
  """Count the distinct source images among the first 1, 2, …, depth neighbours of all targets.

  Args:
    ranking: source indices, nearest first.
  """
  depth = ranking.shape[1]
  # Each source image counts from the smallest rank that it has with any target image.
  smallest_rank = np.full(ranking.max(initial=-1) + 1, depth)
  for rank in reversed(range(depth)):
    smallest_rank[ranking[:, rank]] = rank
  return np.cumsum(np.bincount(smallest_rank, minlength=depth)[:depth])


def choose_num_neighbors(
  ranking: Int[np.ndarray, 'target depth'], min_source_images: int
) -> Coverage:
  """Choose the smallest number of neighbours that together hold enough source images.

  Args:
    ranking: source indices, nearest first; the depth is the largest number allowed.
    min_source_images: distinct source images that are asked for. Where even the largest number has
      fewer, it is chosen.
  """
  counts = count_source_images(ranking)
  index = min(int(np.searchsorted(counts, min_source_images)), len(counts) - 1)
  return Coverage(index + 1, int(counts[index]))
