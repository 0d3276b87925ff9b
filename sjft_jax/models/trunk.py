"""The shared networks by name."""

import flax.linen as nn

from sjft_jax.models.alexnet import AlexNet
from sjft_jax.models.resnet import STAGE_SIZES, resnet

RESNETS = {f'resnet{depth}v2': depth for depth in STAGE_SIZES}
NAMES = ('alexnet', *RESNETS)


def build(*, name: str, width: float, batch_norm: str) -> nn.Module:
  """The trunk `name`: normalised images `[b, h, w, 3]`, `train` → features `[b, features]`.

  Args:
    name: one of `NAMES`.
    width: multiple of the standard channel counts (ResNets only).
    batch_norm: 'mixed' or 'frozen' (see `ResNet`); AlexNet has none, and either will do.

  Raises:
    ValueError: unknown name or batch_norm, a width that leaves no channel, or any width but 1
      with AlexNet.
  """
  if name not in NAMES:
    raise ValueError(f'trunk name={name!r} is unknown; known: {", ".join(NAMES)}')
  if name == 'alexnet':
    if width != 1:
      raise ValueError(f'width={width} with the alexnet trunk, which has one width; set width=1')
    return AlexNet()
  return resnet(RESNETS[name], width=width, batch_norm=batch_norm)
