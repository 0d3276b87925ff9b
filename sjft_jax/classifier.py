"""A trained run that predicts: the network of an arm or of an export, applied to any images."""

import dataclasses
import functools
import os
from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float
from ml_collections import ConfigDict

from sjft_jax import results, round_files
from sjft_jax import workdir as workdirs
from sjft_jax.config import FROZEN_ARMS, arm_config, arm_names
from sjft_jax.data import transforms
from sjft_jax.data.dataset import Dataset, ImageArrays
from sjft_jax.data.image_paths import ImageFiles, open_images
from sjft_jax.models import build, joint
from sjft_jax.models.weights import exported, run_checkpoint
from sjft_jax.models.weights.exported import PredictionOptions
from sjft_jax.models.weights.run_checkpoint import TrainedNetwork
from sjft_jax.runtime import artifacts
from sjft_jax.runtime.choice import choose, whole_number
from sjft_jax.training import sharding, step
from sjft_jax.training.evaluation import EvaluationOptions, Evaluator

PathLike = str | os.PathLike[str]
# What can be predicted: a folder or a file, several files, uint8 arrays, or a data set.
Images = PathLike | Iterable[PathLike] | Iterable[np.ndarray] | np.ndarray | Dataset


class Classifier:
  """The network of one arm of a run; it sees images as the run's test images were seen.

  Attributes:
    classes: the names of the target's classes, in the order of the predicted probabilities.
    views: the run's evaluation views, of which the first is the default of `predict`.
    step: how many steps the network has been trained for.
    num_steps: how many steps the whole training has.
    directory: the directory of the arm, or the exported folder.
    network: the network.
    options: of the prediction.
  """

  classes: tuple[str, ...]
  views: tuple[str, ...]
  step: int
  num_steps: int
  directory: epath.Path
  network: TrainedNetwork
  options: PredictionOptions

  def __init__(self, run: PathLike):
    """Load the newest checkpoint of an arm, or an export.

    Args:
      run: an arm in a work directory ('runs/mine/arms/rounds'), a work directory with one only, or
        a folder that `sjft_jax.export` has written.

    Raises:
      ValueError: there is no checkpoint, there are several arms, the run was a pretraining, or a
        file is damaged or was written by another version of this package.
    """
    path = artifacts.absolute_path(run)
    if path.name == 'knn' and (path / 'rounds').is_dir():
      raise ValueError(
        f'{path} has no network, since its classifier is the training images themselves; give '
        'another arm'
      )
    if exported.is_export(run):
      folder = exported.Folder(run)
      self.network, self.options = folder.load(), folder.options
      self._load_rounds = folder.load_rounds
    else:
      self.network = run_checkpoint.load_newest(os.fspath(run))
      self.options = _load_options(self.network)
      self._load_rounds = functools.partial(_load_rounds, self.network, self.options)
    self.directory = self.network.directory
    self.classes = tuple(self.network.description['classes'])
    self.views = self.options.views
    self.step = self.network.step
    self.num_steps = self.options.num_steps
    self._evaluator = Evaluator(
      step.make_predict(_build_model(self.network, self.options).apply),
      transforms.ImageSize(resize=self.options.resize, crop=self.options.crop),
      EvaluationOptions(views=self.views, batch_size=self.options.batch_size),
      batch_size_option='batch_size',
      last_resort='use the view center, or free memory',
    )

  def predict(
    self,
    images: Images,
    *,
    view: str | None = None,
    fused: bool = False,
    batch_size: int | None = None,
  ) -> Float[np.ndarray, 'image category']:
    """Predict the class probabilities of images.

    Args:
      images: a folder, whose images are read at any depth in the sorted order of their paths; a
        file or several; or uint8 RGB arrays [height, width, 3] of any sizes.
      view: the crops of an image over which probabilities are averaged, one of `transforms.VIEWS`;
        default: the first of the run's evaluation views.
      fused: average the probabilities of the networks that each round ended with, the paper's model
        fusion.
      batch_size: images predicted at once; default: as in the run.

    Raises:
      UnreadableError: an image cannot be decoded.
      ValueError: no images, an unknown view, an impossible batch size, or the run did not keep the
        networks of its rounds.
    """
    dataset = _open(images)
    view = choose('view', view or self.views[0], transforms.VIEWS)
    evaluator = self._evaluator
    if batch_size is not None:
      batch_size = whole_number('batch_size', batch_size, 1)
      options = dataclasses.replace(evaluator.options, batch_size=batch_size)
      evaluator = dataclasses.replace(evaluator, options=options)
    networks = self.load_rounds() if fused else [self.network]
    p = [evaluator(_replicate(network), dataset, view) for network in networks]
    return np.asarray(np.mean(p, axis=0))

  def load_rounds(self) -> list[TrainedNetwork]:
    """Load the network that each round ended with, in the order of the rounds.

    Raises:
      ValueError: the run did not keep them, is not finished, or was exported without them.
    """
    return self._load_rounds()


def _load_options(network: TrainedNetwork) -> PredictionOptions:
  """Return how an arm predicts, from the options of its work directory."""
  directory, workdir = network.directory, network.workdir
  if directory.parent.name != 'arms':
    raise ValueError(
      f'{directory} was trained on the source alone and knows no class of the target; '
      f'give a folder below {workdir / "arms"}'
    )
  saved_options = workdirs.load_config(workdir)
  if saved_options is None:
    raise ValueError(f'{workdir} has no config.json; it is no work directory')
  arm = directory.name
  try:
    options = ConfigDict(saved_options)
    if arm in arm_names(options):  # Not in a copy under another name.
      options = arm_config(options, arm)
    return PredictionOptions(
      dtype=options.model.dtype,
      **options.images,
      views=tuple(options.evaluation.views),
      batch_size=options.evaluation.batch_size,
      num_steps=0 if arm in FROZEN_ARMS else options.training.steps * options.selection.rounds,
      num_rounds=options.selection.rounds,
    )
  except Exception as error:  # A forged file may have any values.
    reason = (str(error).splitlines() or [''])[0][:200]
    raise ValueError(f'{workdir / workdirs.CONFIG} cannot be used: {reason}') from error


def _load_rounds(network: TrainedNetwork, options: PredictionOptions) -> list[TrainedNetwork]:
  """Load the network that each round of an arm ended with."""
  directories = [
    round_files.round_dir(network.directory, number) / round_files.NETWORK
    for number in range(options.num_rounds)
  ]
  missing = [directory for directory in directories if not directory.exists()]
  if missing:
    # A round is finished only once its network is kept, so here it was not; the same command
    # repeats no finished round.
    is_finished = any((directory.parent / round_files.ROUND).exists() for directory in missing)
    remedy = (
      f'they were not kept: delete {network.directory} and {network.workdir / results.RESULTS} and '
      'run the command of this work directory with training.keep_rounds=True and '
      '--resume_with_changes, which trains this arm anew'
      if is_finished
      else 'finish the run'
    )
    raise ValueError(
      f'{network.directory} holds the networks of {options.num_rounds - len(missing)} of its '
      f'{options.num_rounds} rounds; {remedy}'
    )
  return [run_checkpoint.load_network(directory, network) for directory in directories]


def _build_model(network: TrainedNetwork, options: PredictionOptions) -> joint.Joint:
  source = network.params.get('source')
  num_source_classes = 0 if source is None else source['kernel'].shape[1]
  return build.rebuild(
    network.description, dtype=options.dtype, num_source_classes=num_source_classes
  )


def _replicate(network: TrainedNetwork) -> step.TrainState:
  state = step.TrainState(jnp.int32(network.step), network.params, network.batch_stats, ())
  return sharding.replicate(state)


def _open(images: Images) -> Dataset:
  if isinstance(images, Dataset):
    return images
  if isinstance(images, str | os.PathLike):
    return open_images(os.fspath(images))
  items = list(images)  # The results of Path.glob, like all of a generator, come once.
  arrays = [item for item in items if isinstance(item, np.ndarray)]
  paths = [Path(item) for item in items if not isinstance(item, np.ndarray)]
  if arrays and paths:
    raise ValueError('images are paths and arrays together; give either')
  return ImageFiles(paths) if paths else ImageArrays(arrays)
