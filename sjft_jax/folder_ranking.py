"""Rank the images of one folder for each image of another, without labels or training."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath
from jaxtyping import Float32, Int32

from sjft_jax.config import option_section
from sjft_jax.data.folder import UnlabelledFolder
from sjft_jax.descriptors import bank as banks
from sjft_jax.output import tables
from sjft_jax.ranking import DescriptorOptions, RankingInputs, check_crop, load_or_rank
from sjft_jax.runtime import artifacts, console
from sjft_jax.runtime.choice import whole_number
from sjft_jax.screening.screen import exclude_unreadable

# Rows of a table that are written at once.
_TABLE_ROWS = 2**18


@dataclass(frozen=True)
class FolderRanking:
  """The neighbours of the images of one folder among those of another.

  Attributes:
    targets: the target images, as paths below their folder.
    sources: the source images, likewise.
    indices: of each target's neighbours in `sources`, nearest first.
    divergences: of the neighbours from their target, nats.
    seconds: that the search took.
  """

  targets: list[str]
  sources: list[str]
  indices: Int32[np.ndarray, 'target k']
  divergences: Float32[np.ndarray, 'target k']
  seconds: float

  def save(self, path: os.PathLike[str] | str) -> None:
    """Write a table (.csv, .tsv, .parquet or .json) with a row for each target image and neighbour.

    Its columns are target, source, rank (1 is the nearest) and divergence (nats).

    Raises:
      ValueError: the name has another suffix than `tables.write_table` knows.
    """
    tables.write_table(path, tables.NEIGHBOR_COLUMNS, self._columns())

  def _columns(self) -> Iterator[tuple[Any, ...]]:
    """Yield the columns of the table for a few targets at a time."""
    num_targets, k = self.indices.shape
    targets, sources = pa.array(self.targets), pa.array(self.sources)
    ranks = np.arange(1, k + 1, dtype=np.int32)
    step = max(1, _TABLE_ROWS // k)
    for start in range(0, num_targets, step):
      rows = slice(start, start + step)
      indices = self.indices[rows]
      yield (
        targets[rows].take(pa.array(np.repeat(np.arange(len(indices)), k))),
        sources.take(pa.array(indices.ravel())),
        np.tile(ranks, len(indices)),
        self.divergences[rows].ravel(),
      )


def rank_folders(
  target: str,
  source: str,
  *,
  k: int,
  bank: Mapping[str, Any],
  descriptors: DescriptorOptions,
  max_bad_share: float,
  path: epath.Path | None = None,
  bad_images: os.PathLike[str] | None = None,
  prefix: str = 'descriptors.',
) -> FolderRanking:
  """Find the images of one folder that are nearest to each image of another.

  Args:
    target: the folder of the images to find neighbours of, at any depth.
    source: the folder of the images to find neighbours among.
    k: neighbours of each target image.
    bank: the keywords of `bank.load`.
    descriptors: how images are described.
    max_bad_share: share of a folder, 0–1, that may be unreadable.
    path: an .npz file where the ranking is saved, and beside which a stopped search is resumed.
    bad_images: the table of the images that cannot be read, written if there are any.
    prefix: as for `load_or_rank`.

  Raises:
    ValueError: an impossible option, a folder without images, k exceeds the source images, too many
      images cannot be read, or memory runs out.
  """
  k = whole_number('k', k, 1)
  if path is not None and (path.suffix.lower() != '.npz' or path.is_dir()):
    raise ValueError(f'path={path} must be a file whose name ends in .npz')
  # One that is there is read alone.
  if path is not None and not artifacts.is_remote(path) and not path.exists():
    folder = next(place for place in artifacts.absolute_path(path).parents if place.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
      raise ValueError(f'path={path}: a file cannot be written there')
  folders = UnlabelledFolder(target), UnlabelledFolder(source)
  num_sources = len(folders[1])
  if k > num_sources:
    raise ValueError(f'k={k} exceeds the {num_sources:,} images below {source}')
  with option_section('bank'):
    filter_bank = banks.load(**bank)
  check_crop(filter_bank, descriptors.crop)
  targets, sources = exclude_unreadable(
    folders, bad_images, max_bad_share=max_bad_share, roles=('target', 'source')
  )
  if bad_images is not None and (targets, sources) == folders:
    epath.Path(bad_images).unlink(missing_ok=True)  # It has no rows.
  counts = (console.format_count(len(images), 'image') for images in (targets, sources))
  console.say('Target: {}. Source: {}.'.format(*counts))
  inputs = RankingInputs(targets, sources, filter_bank, k, descriptors)
  with tempfile.TemporaryDirectory() as scratch:
    path = path or epath.Path(scratch) / 'ranking.npz'
    result = load_or_rank(path, inputs, prefix=prefix)
  return FolderRanking(
    [targets.key(i) for i in range(len(targets))],
    [sources.key(i) for i in range(len(sources))],
    result.ranking.indices,
    result.ranking.divergences,
    result.seconds,
  )
