"""Real targets and sources that two cores can train on, as configurations.

  python -m sjft_jax.tune --config=experiments/pairs.py:textures --workdir=runs/textures-tuning
  python -m sjft_jax.main --config=experiments/pairs.py:textures --workdir=runs/textures \\
    --tuned=runs/textures-tuning/tuned.json --config.repeats=5

textures has the demo's images and no ImageNet weights, as for someone with a domain of their own:
three fifths of the source have nothing to do with the target. All arms of the paper are trained;
the learning rate of each is tuned. README.md has the protocol and the results.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config(pair: str = 'textures') -> ConfigDict:
  if pair != 'textures':
    raise ValueError(f':{pair} is unknown; use :textures')
  c = demo.get_config()
  c.arms = ('none', 'random', 'all', 'constant', 'rounds')
  c.model.pretrained = ''
  c.training.steps = 200
  c.training.checkpoint_every = 200
  c.solver.learning_rate = 0.01
  c.solver.drop_every = demo.drop_every(200)
  # With random weights there is no layer that should keep more of its start than another.
  c.tuning.folds = 2
  c.tuning.settings = 4
  c.tuning.layer_decays = (1.0,)
  c.tuning.head_rates = (1.0,)
  c.tuning.source_weights = (1.0,)
  return c
