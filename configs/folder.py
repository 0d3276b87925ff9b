"""Your own images, in folders or lists.

  python -m sjft_jax.main --config=configs/folder.py --workdir=runs/mine \\
    --config.target.path=TARGET --config.source.path=SOURCE

TARGET and SOURCE are folders <path>/train/<class>/<image>, the target with <path>/test beside it,
or folders <path>/<class>/<image>: then the target is split, and the source is taken whole. A path
may also be a list, a .csv, .tsv or .parquet file with the columns path, label and, for splits,
split. With the options below the source needs at least 1,700 images (docs/data.md).

ImageNet weights are downloaded once. --config.model.pretrained takes another file, a published name
or an earlier run instead. With --config.model.pretrained= --config.pretrain.steps=20000 the trunk
learns from the source first.
"""

from ml_collections import ConfigDict

from sjft_jax import config


def get_config() -> ConfigDict:
  c = config.default()
  c.model.name = 'resnet50v2'
  c.model.pretrained = 'keras/resnet50v2'
  return c
