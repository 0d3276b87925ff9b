"""Oxford Flowers 102 (1,020 training and 6,149 test images) with ImageNet as the source.

Prepare the images once. The flowers are downloaded; ImageNet's archives have to lie in DIR:

  python -m sjft_jax.data.prepare --dataset=oxford_flowers102
  python -m sjft_jax.data.prepare --dataset=imagenet2012 --archives=DIR

  python -m sjft_jax.main --config=configs/flowers.py --workdir=runs/flowers

The paper's mean class accuracy (Table 3) is 94.7, with all rounds fused 95.8; without a source it
is 92.3. Trained on the validation images as well, with
--config.target.train_split=train+validation, it is 97.0. This code has not reproduced it.

Table 1 compares filter banks with a half-width ResNet-50 that learns from the source first:

  python -m sjft_jax.main --config=configs/flowers.py:table1 --workdir=runs/table1

The paper's overall accuracy is 89.59 with conv1 and conv2, 88.82 with conv1 to conv5, 88.48 with
conv4 and conv5 (--config.bank.layers), 88.90 with Gabor filters (--config.bank.name=gabor), and
88.12 without a source.
"""

from ml_collections import ConfigDict

from sjft_jax import config


def get_config(table: str = '') -> ConfigDict:
  if table not in ('', 'table1'):
    raise ValueError(f':{table} is unknown; use :table1, or nothing')
  c = config.default()
  c.target.dataset = 'oxford_flowers102'
  c.source.dataset = 'imagenet2012'
  c.selection.num_neighbors = 300
  c.bank.name = 'alexnet_caffe'  # Its conv1 and conv2 are the paper's 96 + 256 filters.
  c.bank.pretrained = 'caffe/alexnet'
  if table:
    c.model.name = 'resnet50v2'
    c.model.width = 0.5
    c.pretrain.steps = 200_000
    c.pretrain.learning_rate = 0.1
    c.pretrain.warmup_steps = 500
  else:
    c.model.pretrained = 'keras/resnet152v2'
  return c
