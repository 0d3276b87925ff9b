"""The files that a run leaves: rounds and their selections, the split, Figure 2, the results."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from etils import epath
from jaxtyping import Bool, Float, Int
from PIL import Image

from sjft_jax.data.dataset import Dataset, Domains, SubsetDataset, class_names
from sjft_jax.report import tables
from sjft_jax.report.image_grid import image_grid
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.runtime import artifacts
from sjft_jax.selection.subset import Subset
from sjft_jax.training import metrics
from sjft_jax.training.trainer import Trainer

ARM_TITLES = {
  'none': 'no source',
  'random': 'random source',
  'all': 'all source',
  'selected': 'selected',
  'rounds': 'selected, growing',
}
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
  """

  num_neighbors: Int[np.ndarray, ' target']
  source_images: int
  hardness: Float[np.ndarray, ' target']
  is_correct: Bool[np.ndarray, ' target']
  test: dict[str, np.ndarray]
  seconds: float


def round_dir(trainer: Trainer, number: int) -> epath.Path:
  """Return the directory of a round; `number` is from 0, directories count from 1."""
  return trainer.directory / 'rounds' / str(number + 1)


def save_round(trainer: Trainer, number: int, round_: Round) -> None:
  """Write round.npz, with which a round is finished."""
  artifacts.save(
    round_dir(trainer, number) / 'round.npz',
    trainer.fingerprint,
    num_neighbors=round_.num_neighbors,
    source_images=round_.source_images,
    hardness=round_.hardness,
    is_correct=round_.is_correct,
    seconds=round_.seconds,
    **{f'test/{view}': p for view, p in round_.test.items()},
  )


def load_round(trainer: Trainer, number: int) -> Round | None:
  """Load a round, or return None if it is not finished.

  Raises:
    ValueError: the file is damaged, or was made from other data or options.
  """
  arrays = artifacts.load(round_dir(trainer, number) / 'round.npz', trainer.fingerprint)
  if arrays is None:
    return None
  return Round(
    num_neighbors=arrays['num_neighbors'],
    source_images=int(arrays['source_images']),
    hardness=arrays['hardness'],
    is_correct=arrays['is_correct'],
    test={name.removeprefix('test/'): p for name, p in arrays.items() if name.startswith('test/')},
    seconds=float(arrays['seconds']),
  )


def save_selection(trainer: Trainer, number: int, subset: Subset | None, ranking: Ranking) -> None:
  """Write selection.csv, the pairs of a round: target, source, rank (from 1), divergence (nats).

  A pool that all target images share has no target, rank or divergence.
  """
  target, source = trainer.domains.target, trainer.domains.source

  def parts() -> Iterator[tuple[Any, ...]]:
    if subset is None:
      return
    if subset.is_shared:
      pool = subset.distinct()
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

  path = round_dir(trainer, number) / 'selection.csv'
  tables.write_table(path, tables.NEIGHBOR_COLUMNS, parts())


def save_split(path: epath.Path, domains: Domains) -> None:
  """Write which target images are for training and which for testing, if the run has drawn them."""
  if not isinstance(domains.target, SubsetDataset):
    return
  tables.write_rows(
    path,
    dict.fromkeys(('image', 'class', 'set'), pa.string()),
    (
      (data.key(i), data.classes[data.labels[i]], name)
      for name, data in (('train', domains.target), ('test', domains.test))
      for i in range(len(data))
    ),
  )


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


def summarize(
  rounds: dict[str, list[Round]], test: Dataset, views: Sequence[str]
) -> dict[str, Any]:
  """Return every score of every arm, and the rows of the closing table.

  Args:
    rounds: the rounds of each arm.
    test: the target's test images.
    views: the views that are scored; the closing table shows the first one.
  """
  view = views[0]
  baseline = rounds['none'][-1].test[view] if 'none' in rounds else None
  arms: dict[str, Any] = {}
  table: list[dict[str, Any]] = []
  for arm, arm_rounds in rounds.items():
    title, last = ARM_TITLES.get(arm, arm), arm_rounds[-1]
    arms[arm] = {
      'rounds': [
        _round_summary(round_) | {'test': _scores(round_.test, test, views)}
        for round_ in arm_rounds
      ]
    }
    row = {'name': title, 'source_images': last.source_images}
    table.append(row | _compare(last.test[view], None if arm == 'none' else baseline, test))
    if len(arm_rounds) > 1:
      # The paper's model fusion: the mean of the probabilities after each round.
      fused = {
        name: np.mean([round_.test[name] for round_ in arm_rounds], axis=0) for name in views
      }
      arms[arm]['fused'] = _scores(fused, test, views)
      table.append(row | {'name': f'{title}, fused'} | _compare(fused[view], baseline, test))
  return {'test_images': len(test), 'view': view, 'table': table, 'arms': arms}


def load_results(path: epath.Path, fingerprint: str) -> dict[str, Any] | None:
  """Load the results of a finished run, or return None if there are none.

  Raises:
    ValueError: they were made from other data.
  """
  if not path.exists():
    return None
  results: dict[str, Any] = json.loads(path.read_text())
  if results['fingerprint'] != fingerprint:
    raise ValueError(f'{path} was made from other data; use a new --workdir')
  return results


def device() -> str:
  """Return what results.json says about the devices that computed the results."""
  return f'{jax.local_device_count()} × {jax.local_devices()[0].device_kind}, jax {jax.__version__}'


def _round_summary(round_: Round) -> dict[str, Any]:
  return {
    'source_images': round_.source_images,
    'num_neighbors': {
      'mean': float(round_.num_neighbors.mean()),
      'max': int(round_.num_neighbors.max()),
    },
    'hardness': float(round_.hardness.mean()),
    'training_accuracy': float(round_.is_correct.mean()),
    'seconds': round_.seconds,
  }


def _scores(
  probabilities: dict[str, np.ndarray], test: Dataset, views: Sequence[str]
) -> dict[str, dict[str, float]]:
  return {view: _score(probabilities[view], test) for view in views}


def _score(p: np.ndarray, test: Dataset) -> dict[str, float]:
  return {
    'mean_class_accuracy': metrics.mean_class_accuracy(p, test.labels, len(test.classes)),
    'top1': metrics.top1(p, test.labels),
    'cross_entropy': metrics.cross_entropy(p, test.labels),
  }


def _compare(p: np.ndarray, baseline: np.ndarray | None, test: Dataset) -> dict[str, float]:
  """Return the scores and, if there is a baseline, the gain over it with its standard error."""
  scores = _score(p, test)
  if baseline is not None:
    scores['gain'], scores['standard_error'] = metrics.paired_gain(p, baseline, test.labels)
  return scores
