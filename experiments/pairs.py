"""Real targets and sources that two cores can train on, as configurations.

  python -m sjft_jax.tune --config=experiments/pairs.py:textures --workdir=runs/textures-tuning
  python -m sjft_jax.main --config=experiments/pairs.py:textures --workdir=runs/textures \\
    --tuned=runs/textures-tuning/tuned.json --config.repeats=5

textures has the demo's images and no pretrained weights, as for someone with a domain of their own:
three fifths of the source have nothing to do with the target.

flowers is Oxford Flowers 102 with the training images of mini-ImageNet, without pretrained weights,
flowers_imagenet the same with AlexNet's from ImageNet. flowers_list.py writes the list of the
flowers; the source comes with

  git clone https://github.com/Deo0330/split_minidataset
  git -C split_minidataset checkout 557ebcae

and both are given by --config.target.path=flowers.csv --config.source.path=split_minidataset.

All arms of the paper train AlexNet's convolutions on 64 × 64 pixels. README.md has the protocol and
the results.
"""

from ml_collections import ConfigDict

from configs import demo

PAIRS = ('textures', 'flowers', 'flowers_imagenet')


def get_config(pair: str = 'textures') -> ConfigDict:
  if pair not in PAIRS:
    raise ValueError(f':{pair} is unknown; use one of :{" :".join(PAIRS)}')
  c = demo.get_config()
  c.arms = ('none', 'random', 'all', 'constant', 'rounds')
  c.training.steps = 200
  c.solver.learning_rate = 0.01
  c.tuning.folds = 2
  c.tuning.settings = 4
  c.tuning.source_weights = (1.0,)
  if pair != 'textures':
    c.target.dataset = c.source.dataset = 'folder'
    c.selection.num_neighbors = 100
    c.training.batch_size = 32
    c.training.steps = 300
  if pair == 'flowers_imagenet':
    c.solver.learning_rate = 0.003
    c.tuning.settings = 8
  else:
    c.model.pretrained = ''
    # With random weights there is no layer that should keep more of its start than another.
    c.tuning.layer_decays = (1.0,)
    c.tuning.head_rates = (1.0,)
  c.training.checkpoint_every = c.training.steps
  c.solver.drop_every = demo.drop_every(c.training.steps)
  return c
