"""The results of a run: its scores and predictions, and the images that they are of."""

import csv
import dataclasses
import io
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath, epy
from jaxtyping import Float, Int

from sjft_jax.data.dataset import Dataset, Domains, SubsetDataset
from sjft_jax.models.weights import run_checkpoint
from sjft_jax.output import tables
from sjft_jax.round_files import ROUND, Round, round_dir
from sjft_jax.runtime import artifacts, console, distributed
from sjft_jax.training import metrics, significance
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
  files = [round_dir(directory, number) / ROUND for number in range(len(arm['rounds']))]
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
    round_dir(workdir / 'arms' / arm, number) / ROUND
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
  return '; '.join(dict.fromkeys(known)) or distributed.describe_devices()


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
