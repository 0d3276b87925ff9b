"""Trunks, the networks that both domains share, by name."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from sjft_jax.models.alexnet import AlexNet
from sjft_jax.models.batch_norm import MODES
from sjft_jax.models.convnext import VARIANTS as CONVNEXTS
from sjft_jax.models.convnext import ConvNeXt
from sjft_jax.models.inverted_residual import VARIANTS as INVERTED_RESIDUALS
from sjft_jax.models.inverted_residual import inverted_residual
from sjft_jax.models.resnet import STAGE_SIZES, resnet
from sjft_jax.models.vgg import vgg
from sjft_jax.models.vit import VARIANTS as VITS
from sjft_jax.models.vit import ViT
from sjft_jax.runtime.choice import choose

RESNETS = {
  f'resnet{depth}v{version}': (depth, version) for version in (1, 2) for depth in STAGE_SIZES
}
VGGS = {
  f'vgg{depth}{suffix}': (depth, bool(suffix)) for suffix in ('', '_bn') for depth in (16, 19)
}
ALEXNETS = {'alexnet': False, 'alexnet_caffe': True}
NAMES = (*RESNETS, *VGGS, *ALEXNETS, *INVERTED_RESIDUALS, *CONVNEXTS, *VITS)
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


class TrunkSpec(NamedTuple):
  """The options of `build_trunk` that decide a trunk's variables and what they compute.

  Attributes:
    name, width, style, fully_connected: see `build_trunk`.
  """

  name: str
  width: float = 1.0
  fully_connected: bool = True
  style: str = 'auto'


def build_trunk(
  *,
  name: str,
  width: float = 1.0,
  style: str = 'auto',
  batch_norm: str = 'mixed',
  batch_norm_momentum: float = 0.999,
  fully_connected: bool = True,
  dtype: str = 'float32',
  remat: bool = False,
) -> nn.Module:
  """Build the trunk `name`.

  Args:
    name: one of `NAMES`. ResNets end in v1 or v2 (pre-activation); 'alexnet' is torchvision's,
      'alexnet_caffe' Krizhevsky's with two groups and local response norm.
    width: multiple of the standard channel counts (ResNets only).
    style: whose variant of a ResNet, a key of `resnet.STYLES` at its version, or of MobileNetV2, a
      key of `inverted_residual.STYLES`; 'auto' is the first of these: the paper's released code for
      v2, torchvision's for the others.
    batch_norm: 'mixed', 'per_domain' or 'frozen' (see `BatchNorm`); without effect in networks that
      have no batch norm.
    batch_norm_momentum: share of the running statistics that remains after a micro-batch, at least
      0 and below 1.
    fully_connected: whether VGG and AlexNet have fc6 and fc7 (4,096 features); ResNets have none.
    dtype: 'float32' or 'bfloat16', of activations and products; parameters, statistics and
      features are float32 always.
    remat: compute blocks, or VGG's stages, again in the backward pass, to save memory (not
      AlexNet).

  Returns:
    A module `trunk(images, train=False, is_source=None)` → features `[b, f]`, float32. `images` are
    normalised, `[b, h, w, 3]`; `is_source` is bool `[b]`, which training with
    batch_norm='per_domain' needs.

  Raises:
    ValueError: an unknown name or option, or an option that this network does not have.
  """
  choose('name', name, NAMES)
  choose('batch_norm', batch_norm, MODES)
  choose('dtype', dtype, DTYPES)
  if not 0 <= batch_norm_momentum < 1:
    raise ValueError(
      f'batch_norm_momentum={batch_norm_momentum} should be at least 0 and below 1; '
      "batch_norm='frozen' keeps the running statistics"
    )
  layer_options: dict[str, Any] = {
    'batch_norm': batch_norm,
    'batch_norm_momentum': batch_norm_momentum,
    'dtype': DTYPES[dtype],
    'remat': remat,
  }
  if name in RESNETS:
    return resnet(*RESNETS[name], style=style, width=width, **layer_options)
  if width != 1:
    raise ValueError(
      f'width={width!r} with the {name} trunk: only ResNets have a choice; set width=1.0'
    )
  if name in INVERTED_RESIDUALS:
    return inverted_residual(name, style=style, **layer_options)
  if style != 'auto':
    raise ValueError(
      f'style={style!r} with the {name} trunk: only ResNets and MobileNetV2 have a choice; set '
      "style='auto'"
    )
  if name in VGGS:
    depth, norm = VGGS[name]
    return vgg(depth, norm=norm, fully_connected=fully_connected, **layer_options)
  if name in CONVNEXTS:
    return ConvNeXt(CONVNEXTS[name], DTYPES[dtype], remat)
  if name in VITS:
    return ViT(VITS[name], DTYPES[dtype], remat)
  if remat:
    raise ValueError(f'remat=True with the {name} trunk, which is too shallow; set remat=False')
  return AlexNet(caffe=ALEXNETS[name], fully_connected=fully_connected, dtype=DTYPES[dtype])
