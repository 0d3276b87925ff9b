"""The files that a run leaves: rounds and their selections, the split, Figure 2, the results."""

import csv
import dataclasses
import io
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from etils import epath, epy
from jaxtyping import Bool, Float, Int
from PIL import Image

from sjft_jax.data.dataset import Dataset, Domains, SubsetDataset, class_names
from sjft_jax.models.weights import run_checkpoint
from sjft_jax.output import tables
from sjft_jax.output.image_grid import image_grid
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.runtime import artifacts, console
from sjft_jax.selection.subset import Subset
from sjft_jax.training import metrics, significance
from sjft_jax.training.trainer import Trainer
from sjft_jax.workdir import CONFIG

with epy.lazy_imports():
  import jsonschema

ARM_TITLES = {
  'knn': 'nearest neighbours',
  'probe': 'linear probe',
  'none': 'no source',
  'random': 'random source',
  'all': 'all source',
  'similar': 'selected by features',
  'classes': 'selected classes',
  'constant': 'selected',
  'rounds': 'selected, growing',
}
# In a work directory: which images the rows of predictions are of.
TEST_IMAGES = 'test_images.npz'
# In a work directory: every score; with it, a run is finished.
RESULTS = 'results.json'
# What readers rely on there, beside what `_find_contradiction` looks for.
_SCHEMA = Path(__file__).parent / 'results.schema.json'
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
    device: that it ended on, see `device`; '': an earlier version has not noted it.
  """

  num_neighbors: Int[np.ndarray, ' target']
  source_images: int
  hardness: Float[np.ndarray, ' target']
  is_correct: Bool[np.ndarray, ' target']
  test: dict[str, np.ndarray]
  seconds: float
  device: str = ''


def round_dir(trainer: Trainer, number: int) -> epath.Path:
  """Return the directory of a round; `number` is from 0, directories count from 1."""
  return _round_dir(trainer.directory, number)


def _round_dir(arm: epath.Path, number: int) -> epath.Path:
  return arm / 'rounds' / str(number + 1)


def save_round(trainer: Trainer, number: int, round_: Round) -> None:
  """Write round.npz, with which a round is finished."""
  artifacts.save(
    round_dir(trainer, number) / ROUND,
    trainer.fingerprint,
    num_neighbors=round_.num_neighbors,
    source_images=round_.source_images,
    hardness=round_.hardness,
    is_correct=round_.is_correct,
    seconds=round_.seconds,
    device=round_.device,
    **{f'test/{view}': p for view, p in round_.test.items()},
  )


def load_round(trainer: Trainer, number: int) -> Round | None:
  """Load a round, or return None if it is not finished.

  Raises:
    ValueError: the file is damaged, or was made from other data or options.
  """
  return read_round(round_dir(trainer, number), trainer.fingerprint)


def read_round(directory: epath.Path, fingerprint: str) -> Round | None:
  """Read the round in a directory, or return None if it is not finished.

  Raises:
    ValueError: as for `load_round`.
  """
  arrays = artifacts.load(directory / ROUND, fingerprint)
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
  directory = round_dir(trainer, number)
  suffix = tables.table_suffix(trainer.logging.selection_format, num_rows)
  tables.write_table(directory / f'selection{suffix}', tables.NEIGHBOR_COLUMNS, parts())
  # A run that was stopped may have had another format.
  for other_suffix in {'.csv', '.parquet'} - {suffix}:
    (directory / f'selection{other_suffix}').unlink(missing_ok=True)


def save_split(path: epath.Path, domains: Domains, screened: Domains) -> None:
  """Write which target images are for training and which for testing, if the run has drawn them.

  Args:
    path: of the table.
    domains: the data sets as they are opened.
    screened: without the images that were left out, which are in neither set.
  """
  if not isinstance(domains.target, SubsetDataset):
    artifacts.remove(path)  # A run that was stopped may have drawn one.
    return
  rows = []
  for name, data, used in (
    ('train', domains.target, screened.target),
    ('test', domains.test, screened.test),
  ):
    kept = {used.key(i) for i in range(len(used))}
    for i in range(len(data)):
      key = data.key(i)
      rows.append((key, data.classes[data.labels[i]], name if key in kept else 'left out'))
  tables.write_rows(path, dict.fromkeys(('image', 'class', 'set'), pa.string()), rows)


def count_trained(split: epath.Path, names: Iterable[str]) -> int:
  """Return how many images are called like training images of a run, as far as its split.csv tells.

  Args:
    split: which images the run has drawn for training and which for testing, if it has.
    names: of the images, below their folder.
  """
  if not split.is_file():
    return 0
  # Beside the folder of an export, a file of this name may be anybody's. (A path of epath takes
  # neither errors= nor newline= when it opens a file.)
  text = split.read_bytes().decode(errors='replace')
  lines = csv.DictReader(io.StringIO(text, newline=''))
  rows = [(row.get('image'), row.get('set')) for row in lines]
  # Where test images lie in a folder of their own, they can have the names of training images.
  trained = {image for image, part in rows if part == 'train'}
  trained -= {image for image, part in rows if part == 'test'}
  return len(trained.intersection(names))


def save_test_images(workdir: epath.Path, fingerprint: str, test: Dataset) -> None:
  """Write which images the rows of all predictions are of: test_images.npz."""
  artifacts.save(
    workdir / TEST_IMAGES,
    fingerprint,
    images=np.array([test.key(i) for i in range(len(test))]),
    labels=test.labels,
    classes=np.array(test.classes),
  )


@dataclass(frozen=True)
class Predictions:
  """The class probabilities of a finished run, or of several, for its test images.

  Attributes:
    name: of the run.
    images: the keys of the test images.
    labels: their true classes.
    classes: the names of the classes.
    probabilities: of each class.
    view: of the evaluation.
  """

  name: str
  images: list[str]
  labels: Int[np.ndarray, ' image']
  classes: list[str]
  probabilities: Float[np.ndarray, 'image category']
  view: str

  def scores(self) -> dict[str, float]:
    """Return mean class accuracy, top-1 and cross-entropy."""
    return score(self.probabilities, self.labels, len(self.classes))


def load_predictions(run: str, view: str | None = None, fused: bool = False) -> Predictions:
  """Load what a finished run has predicted for its test images.

  Args:
    run: an arm of a work directory, such as 'runs/mine/arms/rounds'.
    view: of the evaluation; None: the first one of the run.
    fused: average the rounds; else the last round counts.

  Raises:
    ValueError: no such run, it is not finished, or it was not tested in this view.
  """
  directory = artifacts.absolute_path(run)
  workdir = directory.parent.parent
  is_arm = directory.parent.name == 'arms'
  saved = read_results(workdir) if is_arm else None
  if saved is None:
    raise ValueError(
      f'{run} is no arm of a finished run; give a path such as runs/mine/arms/rounds'
    )
  arm = saved['arms'].get(directory.name)
  if not isinstance(arm, dict):
    raise ValueError(f'{workdir} has no arm {directory.name}, but {", ".join(saved["arms"])}')
  view = view or saved['view']
  files = [_round_dir(directory, number) / ROUND for number in range(len(arm['rounds']))]
  files = files if fused else files[-1:]
  test = _load_finished(workdir / TEST_IMAGES, saved['fingerprint'])
  rounds = [_load_finished(path, saved['fingerprint']) for path in files]
  probabilities = [arrays[f'test/{view}'] for arrays in rounds if f'test/{view}' in arrays]
  if len(probabilities) < len(rounds):
    raise ValueError(f'{run} has no predictions in view {view!r}; use one of its evaluation.views')
  images, labels, classes = (test[name] for name in ('images', 'labels', 'classes'))
  shape = len(images), len(classes)
  if {p.shape for p in probabilities} != {shape} or labels.shape != shape[:1]:
    raise ValueError(f'the files of {run} do not fit together; use another run')
  return Predictions(
    str(run), images.tolist(), labels, classes.tolist(), np.mean(probabilities, axis=0), view
  )


def _load_finished(path: epath.Path, fingerprint: str) -> dict[str, np.ndarray]:
  """Load a file that a finished run has.

  Raises:
    ValueError: it is missing, damaged, or of another run.
  """
  arrays = artifacts.load(path, fingerprint)
  if arrays is None:
    raise ValueError(
      f'{path} is missing; run the command of its work directory again, which writes it anew'
    )
  return arrays


def fuse_predictions(runs: Sequence[Predictions]) -> Predictions:
  """Average the probabilities of several runs for the same test images.

  Raises:
    ValueError: the runs were tested on different images or classes.
  """
  first = runs[0]
  for other in runs[1:]:
    if (first.images, first.classes, first.labels.tolist()) != (
      other.images,
      other.classes,
      other.labels.tolist(),
    ):
      raise ValueError(
        f'{first.name} and {other.name} were tested on different images or classes; average runs '
        'of the same target and split'
      )
  return dataclasses.replace(
    first,
    name=f'average of {len(runs)} runs',
    probabilities=np.mean([run.probabilities for run in runs], axis=0),
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


def arm_title(arm: str, rounds: int, arms: Collection[str]) -> str:
  """Return what reports call one of a run's arms; in one round nothing grows."""
  if arm == 'rounds' and rounds == 1 and 'constant' not in arms:
    arm = 'constant'
  return ARM_TITLES.get(arm, arm)


def summarize(
  rounds: dict[str, list[Round]],
  test: Dataset,
  views: Sequence[str],
  without_neighbors: Collection[str] = (),
) -> dict[str, Any]:
  """Return every score of every arm, and the rows of the closing table.

  Args:
    rounds: the rounds of each arm.
    test: the target's test images.
    views: the views that are scored; the closing table shows the first one.
    without_neighbors: the arms whose target images have no neighbours of their own. Their K_i,
      which decide no draw of the source, are given as 0.
  """
  view = views[0]
  baseline = rounds['none'][-1].test[view] if 'none' in rounds else None
  arms: dict[str, Any] = {}
  table: list[dict[str, Any]] = []
  for arm, arm_rounds in rounds.items():
    last = arm_rounds[-1]
    arms[arm] = {
      'rounds': [
        _round_summary(round_, arm not in without_neighbors)
        | {'test': _scores(round_.test, test, views)}
        for round_ in arm_rounds
      ]
    }
    row: dict[str, Any] = {
      'arm': arm,
      'name': arm_title(arm, len(arm_rounds), rounds),
      'source_images': last.source_images,
      **score(last.test[view], test.labels, len(test.classes)),
    }
    if len(arm_rounds) > 1:
      # The paper's model fusion: the mean of the probabilities after each round.
      fused = {
        name: np.mean([round_.test[name] for round_ in arm_rounds], axis=0) for name in views
      }
      arms[arm]['fused'] = _scores(fused, test, views)
      row['fused'] = arms[arm]['fused'][view]['mean_class_accuracy']
    if baseline is not None and arm != 'none':
      row |= _gain(last.test[view], baseline, test)
    table.append(row)
  return {'test_images': len(test), 'view': view, 'table': table, 'arms': arms}


def read_results(workdir: epath.Path) -> dict[str, Any] | None:
  """Read what results.json of a work directory holds; return None if the run is not finished.

  Raises:
    ValueError: the file is damaged, or holds the means of several repeats.
  """
  path = workdir / RESULTS
  if not path.exists():
    return None
  saved = artifacts.load_json(path, {})
  if 'seeds' in saved:
    raise ValueError(f'{workdir} holds several repeats; give one of them: {workdir / "repeat1"}')
  schema = json.loads(_SCHEMA.read_bytes())
  misfit = jsonschema.exceptions.best_match(
    jsonschema.Draft202012Validator(schema).iter_errors(saved)
  )
  # The message quotes the value, which may be long.
  damage = f'{misfit.json_path}: {misfit.message:.99}' if misfit else _find_contradiction(saved)
  if damage:
    raise ValueError(f'{path} is damaged: {damage}; {artifacts.REMEDY}')
  return saved


def _find_contradiction(saved: dict[str, Any]) -> str:
  """Return what in a results.json that fits the schema cannot be; '' if all can."""
  arms, rows = saved['arms'], saved['table']
  if [row['arm'] for row in rows] != list(arms):
    return 'its table has other arms than it scores'
  if 'none' not in arms and any('gain' in row for row in rows):
    return 'it has a gain over an arm that it lacks'
  for arm in arms.values():
    last = arm['rounds'][-1]['test']
    if saved['view'] not in last or not last.keys() >= arm.get('fused', {}).keys():
      return 'a round lacks the scores of a view'
  return ''


def load_results(workdir: epath.Path, fingerprint: str) -> dict[str, Any] | None:
  """Load the results of a finished run, or return None if there are none.

  A run is not finished where one of the files is missing that readers of a finished run need: what
  is deleted, because it was damaged, is made anew.

  Raises:
    ValueError: they were made from other data or weights, or the file is damaged.
  """
  results = read_results(workdir)
  if results is None:
    return None
  if results['fingerprint'] != fingerprint:
    raise ValueError(
      f'{workdir / RESULTS} was made from other data or weights; use a new --workdir'
    )
  files = [workdir / name for name in (CONFIG, run_checkpoint.DESCRIPTION, TEST_IMAGES)]
  if 'rank' in results['seconds']:
    files.append(workdir / 'ranking.npz')
  files += [
    _round_dir(workdir / 'arms' / arm, number) / ROUND
    for arm, scores in results['arms'].items()
    for number in range(len(scores['rounds']))
  ]
  missing = [file for file in files if not file.exists()]
  if missing:
    console.say(f'{missing[0]} is missing, so this run is not finished.')
    return None
  return results


def devices(rounds: Iterable[Round]) -> str:
  """Return what results.json says about the devices that the rounds ended on, each once."""
  known = (round_.device for round_ in rounds if round_.device)
  return '; '.join(dict.fromkeys(known)) or device()


def device() -> str:
  """Return the devices of this process, and the version of JAX."""
  return f'{jax.local_device_count()} × {jax.local_devices()[0].device_kind}, jax {jax.__version__}'


def _round_summary(round_: Round, has_neighbors: bool) -> dict[str, Any]:
  num_neighbors = round_.num_neighbors if has_neighbors else np.zeros(1)
  return {
    'source_images': round_.source_images,
    'num_neighbors': {'mean': float(num_neighbors.mean()), 'max': int(num_neighbors.max())},
    'hardness': float(round_.hardness.mean()),
    'training_accuracy': float(round_.is_correct.mean()),
    'seconds': round_.seconds,
  }


def _scores(
  probabilities: dict[str, np.ndarray], test: Dataset, views: Sequence[str]
) -> dict[str, dict[str, float]]:
  return {view: score(probabilities[view], test.labels, len(test.classes)) for view in views}


def score(p: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, float]:
  """Return mean class accuracy, top-1 and cross-entropy of predicted probabilities."""
  return {
    'mean_class_accuracy': metrics.mean_class_accuracy(p, labels, num_classes),
    'top1': metrics.top1(p, labels),
    'cross_entropy': metrics.cross_entropy(p, labels),
  }


def _gain(p: np.ndarray, baseline: np.ndarray, test: Dataset) -> dict[str, Any]:
  """Return the gain over the baseline, its standard error and p-value, and the verdict on it."""
  is_correct, baseline_is_correct = (q.argmax(axis=1) == test.labels for q in (p, baseline))
  gain = significance.paired_gain(is_correct, baseline_is_correct, test.labels)
  return gain._asdict() | {'is_significant': gain.p_value < significance.LEVEL}
