"""Your own images: class sub-folders, <path>/train/<class>/<image> and <path>/test/<class>/<image>.

  python -m sjft_jax.main --config=configs/folder.py --workdir=runs/mine \\
    --config.target.path=DIR --config.source.path=DIR

The source needs <path>/train only. Without pretrained weights for your trunk, set
--config.pretrain.steps so that it learns from the source first.
"""

from ml_collections import ConfigDict

from sjft_jax import config


def get_config() -> ConfigDict:
  c = config.default()
  c.model.name = 'resnet50v2'
  return c
