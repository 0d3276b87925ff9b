"""Filter banks by name: what turns an image into maps of filter responses."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array, Float, UInt8

from sjft_jax.descriptors import alexnet, gabor

NAMES = ('alexnet', 'gabor')


@dataclasses.dataclass(frozen=True)
class FilterBank:
  """A bank of filters in one or more layers.

  Attributes:
    name: one of `NAMES`.
    num_filters: the number of filters in each layer.
    respond: jitted, RGB images 0–255 → one float32 map per layer.
  """

  name: str
  num_filters: tuple[int, ...]
  respond: Callable[
    [UInt8[Array, 'batch height width 3']],
    tuple[Float[Array, 'batch _height _width _filter'], ...],
  ]

  @property
  def weights(self) -> Float[np.ndarray, 'filter']:
    """w_h of Eq. 1 (Ge & Yu 2017): 1 / the number of filters in the layer of filter h."""
    return np.repeat(1 / np.array(self.num_filters, np.float32), self.num_filters)


def load(*, name: str, layers: Sequence[str], tap: str, pretrained: str) -> FilterBank:
  """The filter bank `name`.

  `layers`, `tap` and `pretrained` are AlexNet's (see `alexnet.load`); the Gabor bank is one layer
  of linear filters computed from a formula, to which they do not apply.

  Raises:
    ValueError: unknown bank, layers or tap.
  """
  if name == 'gabor':
    return FilterBank('gabor', (gabor.NUM_FILTERS,), gabor.respond)
  if name == 'alexnet':
    num_filters, respond = alexnet.load(layers=layers, tap=tap, weights=pretrained)
    return FilterBank('alexnet', num_filters, respond)
  raise ValueError(f'bank.name={name!r} is unknown; known: {", ".join(NAMES)}')
