"""MIT Indoor 67 (5,360 training and 1,340 test images) with ImageNet, Places 205 or both as source.

Prepare the images once. Indoor is downloaded; the other archives have to lie in DIR:

  python -m sjft_jax.data.prepare --dataset=mit_indoor67
  python -m sjft_jax.data.prepare --dataset=imagenet2012 --archives=DIR
  python -m sjft_jax.data.prepare --dataset=places205 --archives=DIR

  python -m sjft_jax.main --config=configs/indoor.py:hybrid --workdir=runs/indoor

The source behind the colon may also be imagenet or places; hybrid is both. The paper's mean class
accuracy (Table 5) is 82.8 with ImageNet, 85.8 with Places, 85.5 with both and 81.7 without a
source; the average of the networks with Places and with both (sjft_jax.fuse) has 86.9. This code
has not reproduced it.

The authors' own network started from one that knew both sources. The nearest that is published is
--config.model.name=resnet152v1 --config.model.pretrained=places365/resnet152_hybrid. Networks that
know Places 365 alone are places365/resnet152, places365/resnet50 and more, all listed in
sjft_jax/models/weights/published.py. Their publisher gives no checksums.
"""

from ml_collections import ConfigDict

from sjft_jax import config

SOURCES = {
  'imagenet': 'imagenet2012',
  'places': 'places205',
  'hybrid': 'imagenet2012+places205',
}


def get_config(source: str = 'hybrid') -> ConfigDict:
  if source not in SOURCES:
    raise ValueError(f':{source} is unknown; use one of :{" :".join(SOURCES)}')
  c = config.default()
  c.target.dataset = 'mit_indoor67'
  c.source.dataset = SOURCES[source]
  c.selection.num_neighbors = 100
  c.bank.name = 'alexnet_caffe'  # Its conv1 and conv2 are the paper's 96 + 256 filters.
  c.bank.pretrained = 'caffe/alexnet'
  c.model.pretrained = 'keras/resnet152v2'
  return c
