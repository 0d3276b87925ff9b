"""Oxford Flowers 102 (1,020 training and 6,149 test images) with ImageNet as the source.

Prepare the images once. The flowers are downloaded; ImageNet's archives have to lie in DIR:

  python -m sjft_jax.data.prepare --dataset=oxford_flowers102
  python -m sjft_jax.data.prepare --dataset=imagenet2012 --archives=DIR

  python -m sjft_jax.main --config=configs/flowers.py --workdir=runs/flowers

The paper's mean class accuracy (Table 3) is 94.7, with all rounds fused 95.8; without a source it
is 92.3. Trained on the validation images as well, with
--config.target.train_split=train+validation, it is 97.0. It was not repeated with this code.
"""

from ml_collections import ConfigDict

from sjft_jax import config


def get_config() -> ConfigDict:
  c = config.default()
  c.target.dataset = 'oxford_flowers102'
  c.source.dataset = 'imagenet2012'
  c.selection.num_neighbors = 300
  c.model.pretrained = 'keras/resnet152v2'
  return c
