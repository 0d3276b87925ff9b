"""Stanford Dogs 120 (12,000 training and 8,580 test images) with ImageNet as the source.

Prepare the images once. The dogs are downloaded; ImageNet's archives have to lie in DIR:

  python -m sjft_jax.data.prepare --dataset=stanford_dogs
  python -m sjft_jax.data.prepare --dataset=imagenet2012 --archives=DIR

  python -m sjft_jax.main --config=configs/dogs.py --workdir=runs/dogs

The paper's mean class accuracy (Table 2) is 90.2; without growing neighbourhoods it is 88.3, and
without a source 80.4. This code has not reproduced it. Stanford Dogs is taken from ImageNet: its
test images are kept out of the source (screening.exclude_duplicates_of), which the paper does not
mention.
"""

from ml_collections import ConfigDict

from sjft_jax import config


def get_config() -> ConfigDict:
  c = config.default()
  c.target.dataset = 'stanford_dogs'
  c.source.dataset = 'imagenet2012'
  c.selection.num_neighbors = 100
  c.bank.name = 'alexnet_caffe'  # Its conv1 and conv2 are the paper's 96 + 256 filters.
  c.bank.pretrained = 'caffe/alexnet'
  c.model.pretrained = 'keras/resnet152v2'
  return c
