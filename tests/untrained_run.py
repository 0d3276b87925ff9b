"""A work directory as a training leaves it, with random weights in place of learnt ones."""

import jax
import numpy as np
from etils import epath
from models.weights import run_directory

from sjft_jax import config, workdir
from sjft_jax.models import joint, trunk
from sjft_jax.models.weights import run_checkpoint

CLASSES = ('a', 'b', 'ü, "x"', 'd', 'e')
ARM = 'arms/rounds'


def write(path, *, rounds=1, batch_norm='mixed', resize=36, crop=32, dtype='float32', **model):
  """Write a work directory of one arm, one step a round; return the arm's folder.

  Args:
    path: of the work directory.
    rounds: how many networks there are.
    batch_norm, dtype: of the network.
    resize, crop: of its images, in pixels.
    model: name, and style, width or fully_connected.
  """
  options = config.default()
  options.model.update(model, batch_norm=batch_norm, dtype=dtype)
  options.images.update(resize=resize, crop=crop)
  options.training.steps, options.selection.rounds = 1, rounds
  options.evaluation.views = ('center', 'ten_crop')
  path.mkdir(parents=True)
  workdir.save_config(options, epath.Path(path))
  spec = trunk.TrunkSpec(**model)
  description = {'normalization': 'imagenet', 'classes': [*CLASSES], **spec._asdict()}
  run_checkpoint.save_description(epath.Path(path), description)
  model = joint.Joint(trunk.build_trunk(**spec._asdict(), batch_norm=batch_norm), len(CLASSES), 2)
  shapes = joint.variable_shapes(model, crop)
  for number in range(1, rounds + 1):
    variables = draw(shapes, number)
    run_directory.save(path / ARM / 'rounds' / str(number) / 'network', number, variables)
  run_directory.save_checkpoint(path / ARM, rounds, variables)
  return path / ARM


def draw(shapes, seed):
  """Draw variables that leave nothing trivial, with probabilities that are not near 0 or 1."""
  random = np.random.default_rng(seed)

  def draw_leaf(path, leaf):
    *_, layer, name = (key.key for key in path)
    # The last norm of a residual branch, or where norms come first its last convolution, is small:
    # activations would grow with depth.
    factor = 0.3 if layer in ('norm3', 'conv3') else 1.0
    if layer in ('target', 'source') and name == 'kernel':
      factor = 0.15
    if 'var' in name or name == 'scale':
      return (factor * random.uniform(0.5, 1.5, leaf.shape)).astype(np.float32)
    fan_in = np.prod(leaf.shape[:-1])
    deviation = np.sqrt(2 / fan_in) if len(leaf.shape) > 1 else 0.2
    return (factor * deviation * random.standard_normal(leaf.shape)).astype(np.float32)

  return jax.tree.map_with_path(draw_leaf, shapes)


def images(crop, count=100):
  """Draw square images that differ in brightness, colour and texture."""
  random = np.random.default_rng(0)
  colors, contrasts = (
    random.uniform(0, 255, (count, 1, 1, 3)),
    random.uniform(0, 90, (count, 1, 1, 1)),
  )
  noise = random.standard_normal((count, crop, crop, 3))
  return np.clip(colors + contrasts * noise, 0, 255).astype(np.uint8)
