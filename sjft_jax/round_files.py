"""What a round leaves: its selection and its predictions, and pictures of neighbours (Figure 2)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int
from PIL import Image

from sjft_jax.data.dataset import Dataset, Domains, class_names
from sjft_jax.output import tables
from sjft_jax.output.image_grid import image_grid
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.runtime import artifacts
from sjft_jax.selection.subset import Subset
from sjft_jax.training import metrics
from sjft_jax.training.trainer import Trainer

# In a round's directory: what it selected, and its predictions; with it, a round is finished.
ROUND = 'round.npz'
# In a round's directory: the checkpoint of the network that the round ends with.
NETWORK = 'network'
# Figure 2 shows target images of this many classes, and their neighbours of these ranks.
_FIGURE_CLASSES = 6
_FIGURE_RANKS = (1, 10, 20, 30, 40)


@dataclass(frozen=True)
class Round:
  """What a round selected, and how well the network does after it.

  Attributes:
    num_neighbors: K_i of each target image.
    source_images: the number of distinct source images that could be drawn.
    hardness: entropy in nats of the predictions for the target's training images (Eq. 2).
    is_correct: whether the same predictions are right.
    test: class probabilities [image, category] of the test images by view.
    seconds: the time that training took, up to the end of this round.
    device: that it ended on, see `distributed.describe_devices`; '': an earlier version has not
      noted it.
  """

  num_neighbors: Int[np.ndarray, ' target']
  source_images: int
  hardness: Float[np.ndarray, ' target']
  is_correct: Bool[np.ndarray, ' target']
  test: dict[str, np.ndarray]
  seconds: float
  device: str = ''


def round_dir(arm: epath.Path, number: int) -> epath.Path:
  """Return the directory of a round of an arm; `number` is from 0, directories count from 1."""
  return arm / 'rounds' / str(number + 1)


def save_round(trainer: Trainer, number: int, round_: Round) -> None:
  """Write round.npz, with which a round is finished."""
  artifacts.save(
    round_dir(trainer.directory, number) / ROUND,
    trainer.fingerprint,
    num_neighbors=round_.num_neighbors,
    source_images=round_.source_images,
    hardness=round_.hardness,
    is_correct=round_.is_correct,
    seconds=round_.seconds,
    device=round_.device,
    **{f'test/{view}': p for view, p in round_.test.items()},
  )


def load_round(arm: epath.Path, number: int, fingerprint: str) -> Round | None:
  """Load a round of an arm, or return None if it is not finished.

  Raises:
    ValueError: the file is damaged, or was made from other data or options.
  """
  arrays = artifacts.load(round_dir(arm, number) / ROUND, fingerprint)
  if arrays is None:
    return None
  return Round(
    num_neighbors=arrays['num_neighbors'],
    source_images=int(arrays['source_images']),
    hardness=arrays['hardness'],
    is_correct=arrays['is_correct'],
    test={name.removeprefix('test/'): p for name, p in arrays.items() if name.startswith('test/')},
    seconds=float(arrays['seconds']),
    device=str(arrays.get('device', '')),
  )


def save_selection(trainer: Trainer, number: int, subset: Subset | None, ranking: Ranking) -> None:
  """Write the pairs of a round as a table: target, source, rank (from 1), divergence.

  It is selection.csv or selection.parquet, as `logging.selection_format` says. The divergence is
  in nats, or with the method 'similar' 1 − cosine. A pool that all target images share has no
  target, rank or divergence.
  """
  target, source = trainer.domains.target, trainer.domains.source

  def parts() -> Iterator[tuple[Any, ...]]:
    if subset is None:
      return
    if subset.is_shared:
      pool = subset.distinct
      blank = [None] * len(pool)
      yield blank, [source.key(int(i)) for i in pool], blank, blank
      return
    for index, count in enumerate(subset.num_neighbors):
      neighbors = ranking.indices[index, :count]
      yield (
        [target.key(index)] * count,
        [source.key(int(i)) for i in neighbors],
        np.arange(1, count + 1, dtype=np.int32),
        ranking.divergences[index, :count],
      )

  num_rows = 0
  if subset is not None:
    num_rows = len(subset) if subset.is_shared else int(subset.num_neighbors.sum())
  directory = round_dir(trainer.directory, number)
  suffix = tables.table_suffix(trainer.logging.selection_format, num_rows)
  tables.write_table(directory / f'selection{suffix}', tables.NEIGHBOR_COLUMNS, parts())
  # A run that was stopped may have had another format.
  for other_suffix in {'.csv', '.parquet'} - {suffix}:
    (directory / f'selection{other_suffix}').unlink(missing_ok=True)


def save_neighbor_figure(path: epath.Path, domains: Domains, ranking: Ranking) -> None:
  """Write a picture with a target image of some classes, and their neighbours (Figure 2)."""
  _, first_images = np.unique(domains.target.labels, return_index=True)
  count = min(_FIGURE_CLASSES, len(first_images))
  targets = first_images[np.linspace(0, len(first_images) - 1, count).astype(int)]
  with artifacts.atomic_write(path) as file:
    neighbor_figure(domains, ranking, targets).save(file, 'PNG')


def neighbor_figure(
  domains: Domains, ranking: Ranking, targets: Int[np.ndarray, ' row']
) -> Image.Image:
  """Draw target images, one a row, with some of their neighbours (Figure 2)."""
  ranks = [rank for rank in _FIGURE_RANKS if rank <= ranking.indices.shape[1]]

  def cell(data: Dataset, index: int, line: str) -> tuple[np.ndarray, str, str]:
    return data[index], class_names(data, index), line

  rows = []
  for target in map(int, targets):
    row = [cell(domains.target, target, domains.target.key(target))]
    for rank in ranks:
      divergence = ranking.divergences[target, rank - 1]
      source = int(ranking.indices[target, rank - 1])
      row.append(cell(domains.source, source, f'divergence {divergence:.3g}'))
    rows.append(row)
  ordinals = [f'{rank}{"st" if rank == 1 else "th"} neighbour' for rank in ranks]
  return image_grid(rows, ['target image', *ordinals])


def round_metrics(domains: Domains, round_: Round, ranking: Ranking) -> dict[str, Any]:
  """Return what the log shows of a round: scores, histograms, and neighbours of hard images."""
  test = domains.test
  values: dict[str, Any] = {
    f'test_accuracy_{view}': metrics.mean_class_accuracy(p, test.labels, len(test.classes))
    for view, p in round_.test.items()
  }
  values['hardness'] = round_.hardness
  if ranking.indices.shape[1]:
    hardest = np.argsort(-round_.hardness, kind='stable')[:6]
    values['num_neighbors'] = round_.num_neighbors
    values['hardest'] = neighbor_figure(domains, ranking, hardest)
  return values
