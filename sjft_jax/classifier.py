"""A trained run that predicts: the network of a work directory on images of any kind."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sjft_jax import workdir as workdirs
from sjft_jax.data import transforms
from sjft_jax.data.dataset import Dataset, ImageArrays
from sjft_jax.data.folder import ImageFiles, UnlabelledFolder
from sjft_jax.models import joint, trunk
from sjft_jax.models.weights import run_checkpoint
from sjft_jax.models.weights.run_checkpoint import TrainedNetwork
from sjft_jax.training import step
from sjft_jax.training.evaluation import EvaluationOptions, Evaluator

# What can be predicted: paths, a folder, uint8 arrays, or a data set.
Images = (
  str | os.PathLike[str] | Sequence[str | os.PathLike[str] | np.ndarray] | np.ndarray | Dataset
)


class Classifier:
  """The network of one arm of a run, prepared as the run prepared its test images.

  Attributes:
    classes: the names of the target's classes.
    views: the run's evaluation views; the first one is the default of `predict`.
    step: how many steps the network has taken.
  """

  def __init__(self, run: str | Path):
    """
    Args:
      run: an arm in a work directory ('runs/mine/arms/rounds'), or a work directory with one only.

    Raises:
      ValueError: there is no checkpoint, there are several arms, the run was a pretraining, or a
        file is damaged or of another version of this package.
    """
    trained = run_checkpoint.load_newest(str(run))
    if trained.directory.parent.name != 'arms':
      raise ValueError(
        f'{trained.directory} was trained on the source alone and knows no class of the target; '
        f'give a folder below {trained.workdir / "arms"}'
      )
    options = workdirs.load_config(trained.workdir)
    if options is None:
      raise ValueError(f'{trained.workdir} has no config.json; it is no work directory')
    self._trained, self._options = trained, options
    self.classes: tuple[str, ...] = tuple(trained.description['classes'])
    self.views: tuple[str, ...] = tuple(options['evaluation']['views'])
    self.step = trained.step
    self._evaluator = Evaluator(
      step.make_predict(_build_model(trained, options).apply),
      transforms.ImageSize(**options['images']),
      EvaluationOptions(views=self.views, batch_size=options['evaluation']['batch_size']),
    )

  @property
  def directory(self) -> Path:
    """Return the directory of the arm."""
    return Path(self._trained.directory)

  def predict(
    self,
    images: Images,
    *,
    view: str | None = None,
    fused: bool = False,
    batch_size: int | None = None,
  ) -> Float[np.ndarray, 'image category']:
    """Predict class probabilities.

    Args:
      images: a folder, whose images are read at any depth in the order of their paths; paths; or
        uint8 RGB arrays [height, width, 3], of any sizes.
      view: over which crops of an image probabilities are averaged, one of `transforms.VIEWS`;
        default: the first of the run.
      fused: average the probabilities of the networks that each round ended with (the paper's model
        fusion).
      batch_size: images at once; default: as the run did.

    Raises:
      UnreadableError: an image cannot be decoded.
      ValueError: no images, an unknown view, or the run did not keep the networks of its rounds.
    """
    data = _open(images)
    evaluator = self._evaluator
    if batch_size:
      options = dataclasses.replace(evaluator.options, batch_size=batch_size)
      evaluator = dataclasses.replace(evaluator, options=options)
    networks = self._rounds() if fused else [self._trained]
    probabilities = [
      evaluator(_replicate(network), data, view or self.views[0]) for network in networks
    ]
    return np.asarray(np.mean(probabilities, axis=0))

  def _rounds(self) -> list[TrainedNetwork]:
    directories = sorted(
      self._trained.directory.glob('rounds/*/network'), key=lambda path: int(path.parent.name)
    )
    rounds = self._options['overrides'].get(self.directory.name, {}).get('selection', {})
    expected = rounds.get('rounds', self._options['selection']['rounds'])
    if len(directories) != expected:
      raise ValueError(
        f'{self._trained.directory} holds the networks of {len(directories)} of its {expected} '
        'rounds; finish the run, and leave training.keep_rounds=True'
      )
    return [run_checkpoint.load_network(directory, self._trained) for directory in directories]


def _build_model(trained: TrainedNetwork, options: dict) -> joint.Joint:
  description, model_options = trained.description, options['model']
  shared = trunk.build_trunk(
    name=description['name'],
    width=description['width'],
    style=description['style'],
    fully_connected=description['fully_connected'],
    batch_norm=model_options['batch_norm'],
    batch_norm_momentum=model_options['batch_norm_momentum'],
    dtype=model_options['dtype'],
  )
  num_target, num_source = (
    trained.params[head]['kernel'].shape[1] for head in ('target', 'source')
  )
  return joint.Joint(shared, num_target, num_source, description['normalization'])


def _replicate(network: TrainedNetwork) -> step.TrainState:
  state = step.TrainState(jnp.int32(network.step), network.params, network.batch_stats, ())
  return step.replicate(state)


def _open(images: Images) -> Dataset:
  if isinstance(images, Dataset):
    return images
  if isinstance(images, str | os.PathLike):
    path = Path(images)
    return UnlabelledFolder(str(path)) if path.is_dir() else ImageFiles([path])
  arrays = [image for image in images if isinstance(image, np.ndarray)]
  if len(arrays) < len(images):
    return ImageFiles([Path(image) for image in images if isinstance(image, str | os.PathLike)])
  return ImageArrays(arrays)
