"""What a run leaves: rounds and their selections, Figure 2, scores and gains."""

from collections.abc import Iterator
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
# In the directory of a round: a checkpoint of the network that it ends with.
NETWORK = 'network'
# The neighbours that Figure 2 shows of a target image.
_FIGURE_RANKS = (1, 10, 20, 30, 40)


@dataclass(frozen=True)
class Round:
  """What a round selected, and how well the network did after it.

  Attributes:
    num_neighbors: K_i.
    source_images: distinct source images that could be drawn.
    hardness: entropy in nats on the deterministic view (Eq. 2).
    is_correct: on the same view.
    test: class probabilities [image, class] of the test images by view.
    seconds: of training, of all rounds so far.
  """

  num_neighbors: Int[np.ndarray, ' target']
  source_images: int
  hardness: Float[np.ndarray, ' target']
  is_correct: Bool[np.ndarray, ' target']
  test: dict[str, np.ndarray]
  seconds: float


def round_dir(trainer: Trainer, number: int) -> epath.Path:
  """Return the directory of a round, from 0; on the disk they count from 1."""
  return trainer.directory / 'rounds' / str(number + 1)


def save_round(trainer: Trainer, number: int, round_: Round) -> None:
  """Save a round that is done."""
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
  """Load a round, or None if it is not done."""
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
  """Write who is paired with whom: target, source, rank (from 1), divergence in nats.

  A pool that all targets share has no target, rank or divergence. The table is selection.csv or
  selection.parquet, by the option `logging.selection_format`.
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

  num_rows = 0
  if subset is not None:
    num_rows = len(subset) if subset.is_shared else int(subset.num_neighbors.sum())
  suffix = tables.table_suffix(trainer.config['logging']['selection_format'], num_rows)
  path = round_dir(trainer, number) / f'selection{suffix}'
  tables.write_table(path, tables.NEIGHBOR_COLUMNS, parts())
  for other in {'.csv', '.parquet'} - {
    suffix
  }:  # A run that was stopped may have had another format.
    (round_dir(trainer, number) / f'selection{other}').unlink(missing_ok=True)


def save_split(path: epath.Path, domains: Domains) -> None:
  """Write which images of the target train and which test, if that was drawn here."""
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
  """Draw target images of up to six classes with some of their neighbours (Figure 2)."""
  _, firsts = np.unique(domains.target.labels, return_index=True)
  chosen = firsts[np.linspace(0, len(firsts) - 1, min(6, len(firsts))).astype(int)]
  with artifacts.atomic_write(path) as file:
    neighbor_figure(domains, ranking, chosen).save(file, 'PNG')


def neighbor_figure(domains: Domains, ranking: Ranking, targets: np.ndarray) -> Image.Image:
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
  """Return what the log shows of a round: scores, histograms, and the hardest images' neighbours."""
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
  rounds: dict[str, list[Round]],
  test: Dataset,
  views: tuple[str, ...],
  *,
  fingerprint: str,
  seed: int,
  seconds: dict[str, float],
) -> dict[str, Any]:
  """Return what results.json holds: every score of every arm, and the rows of the closing table.

  Args:
    rounds: of each arm.
    test: the target's test images.
    views: of the scores; the closing table shows the first one.
    fingerprint: of everything that decides the results.
    seed: of the run.
    seconds: that its stages took.
  """

  def scores(p: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {
      view: {
        'mean_class_accuracy': metrics.mean_class_accuracy(p[view], test.labels, len(test.classes)),
        'top1': metrics.top1(p[view], test.labels),
        'cross_entropy': metrics.cross_entropy(p[view], test.labels),
      }
      for view in views
    }

  arms: dict[str, Any] = {}
  table: dict[str, tuple[int, dict[str, np.ndarray]]] = {}
  for name, of_arm in rounds.items():
    title = ARM_TITLES.get(name, name)
    arms[name] = {'rounds': [_round_summary(r) | {'test': scores(r.test)} for r in of_arm]}
    last = of_arm[-1]
    table[title] = (last.source_images, last.test)
    if len(of_arm) > 1:
      fused = {view: np.mean([r.test[view] for r in of_arm], axis=0) for view in views}
      arms[name]['fused'] = scores(fused)
      table[f'{title}, fused'] = (last.source_images, fused)
  baseline = rounds['none'][-1].test[views[0]] if 'none' in rounds else None
  rows = []
  for title, (source_images, p) in table.items():
    row = {'name': title, 'source_images': source_images, **scores(p)[views[0]]}
    if baseline is not None and p[views[0]] is not baseline:
      row['gain'], row['standard_error'] = metrics.paired_gain(p[views[0]], baseline, test.labels)
    rows.append(row)
  return {
    'fingerprint': fingerprint,
    'seed': seed,
    'device': _device(),
    'seconds': seconds,
    'test_images': len(test),
    'view': views[0],
    'table': rows,
    'arms': arms,
  }


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


def _device() -> str:
  return f'{jax.local_device_count()} × {jax.local_devices()[0].device_kind}, jax {jax.__version__}'
