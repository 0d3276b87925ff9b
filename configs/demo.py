"""Selective joint fine-tuning on real images that ship with pip packages, in minutes on two cores.

Target: 21 textures, five training images each. Source: 13,451 images, three fifths of them
letters and digits that have nothing to do with textures. The network starts from random weights,
as for someone whose images no published network has seen anything like.

  python -m sjft_jax.main --config=configs/demo.py --workdir=runs/demo

All arms have the same learning rate, 0.009. Of the four rates that this command tries (0.0009,
0.003, 0.009 and 0.03) it had the lowest cross-entropy on held-out training images, as a mean over
the arms:

  python -m sjft_jax.tune --config=configs/demo.py --workdir=runs/demo-tuning

The command itself chooses a rate for each arm, which is much less certain with 52 held-out images
(experiments/README.md, "One rate for all arms of the demo").
"""

from ml_collections import ConfigDict

from sjft_jax import config


def get_config() -> ConfigDict:
  c = config.default()
  c.target.dataset = 'demo_textures'
  c.source.dataset = 'demo_diverse'
  c.descriptors.resize = 72
  c.descriptors.crop = 64
  c.selection.num_neighbors = 80
  c.selection.rounds = 3
  c.model.name = 'alexnet'
  c.model.fully_connected = False
  c.model.pretrained = ''
  c.images.resize = 72
  c.images.crop = 64
  c.training.batch_size = 16
  c.training.accumulation = 1
  c.training.steps = 150
  c.training.checkpoint_every = 50
  c.solver.learning_rate = 0.009
  c.solver.drop_every = 112  # One drop, after three quarters of a round.
  c.evaluation.views = ('center',)
  c.arms = ('none', 'random', 'constant', 'rounds')
  c.tuning.folds = 2
  c.tuning.settings = 4
  c.tuning.learning_rates = (0.1, 1 / 3, 1.0, 10 / 3)
  # With random weights there is no layer that should keep more of its start than another.
  c.tuning.layer_decays = c.tuning.head_rates = c.tuning.source_weights = (1.0,)
  return c
