"""Your own images: folders <path>/train/<class>/<image>, <path>/test/<class>/<image>, or lists.

  python -m sjft_jax.main --config=configs/folder.py --workdir=runs/mine \\
    --config.target.path=DIR --config.source.path=DIR

The source needs <path>/train only. Folders of classes without train and test will do: the target is
split then, the source taken whole. A path to a .csv or .parquet file is a list with the columns
path, label and, for splits, split. ImageNet weights are downloaded once; other files, names and
earlier runs go into --config.model.pretrained, and with --config.model.pretrained= and
--config.pretrain.steps=20000 the trunk learns from the source first.
"""

from ml_collections import ConfigDict

from sjft_jax import config


def get_config() -> ConfigDict:
  c = config.default()
  c.model.name = 'resnet50v2'
  c.model.pretrained = 'keras/resnet50v2'
  return c
