"""Caltech 256 with 15, 30, 45 or 60 training images of each class and ImageNet as the source.

Prepare the images once. Caltech 256 is downloaded; ImageNet's archives have to lie in DIR:

  python -m sjft_jax.data.prepare --dataset=caltech256
  python -m sjft_jax.data.prepare --dataset=imagenet2012 --archives=DIR

  python -m sjft_jax.main --config=configs/caltech256.py:30 --workdir=runs/caltech30

The number behind the colon may also be 15, 45 or 60. Training images are drawn by
--config.target.split_seed; all others are for testing, as is usual. There are 257 classes, of which
the background is one. The paper's mean class accuracy (Table 4) for 15, 30, 45 and 60 images is
80.5 ± 0.3, 83.8 ± 0.5, 87.0 ± 0.1 and 89.1 ± 0.2; without a source it is 76.4 ± 0.1, 81.2 ± 0.2,
83.5 ± 0.2 and 86.4 ± 0.3. This code has not reproduced it.
"""

from ml_collections import ConfigDict

from sjft_jax import config


def get_config(per_class: str = '30') -> ConfigDict:
  if per_class not in ('15', '30', '45', '60'):
    raise ValueError(f':{per_class} is unknown; use one of :15 :30 :45 :60')
  c = config.default()
  c.target.dataset = 'caltech256'
  c.target.test_split = ''
  c.target.train_per_class = int(per_class)
  c.source.dataset = 'imagenet2012'
  # The paper says 50 to 100 neighbours, so many that there are 200,000 different source images.
  c.selection.num_neighbors = 100 if per_class in ('15', '30') else 50
  c.bank.name = 'alexnet_caffe'  # Its conv1 and conv2 are the paper's 96 + 256 filters.
  c.bank.pretrained = 'caffe/alexnet'
  c.model.pretrained = 'keras/resnet152v2'
  return c
