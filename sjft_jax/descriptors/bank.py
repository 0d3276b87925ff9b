"""Filter banks by name, which turn an image into maps of filter responses."""

import dataclasses
import numbers
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array, Float, UInt8

from sjft_jax.descriptors import alexnet, gabor, trunk_filters
from sjft_jax.runtime import artifacts
from sjft_jax.runtime.choice import choose

ALEXNETS = ('alexnet', 'alexnet_caffe')
NAMES = (*ALEXNETS, 'gabor', *trunk_filters.NAMES)
# The banks that are loaded, by fingerprint. Programs are compiled for a bank and kept with it: were
# the same one loaded as another object, each call of `sjft_jax.rank` would compile them again.
_loaded: dict[str, 'FilterBank'] = {}


@dataclasses.dataclass(frozen=True)
class FilterBank:
  """A bank of filters in one or more layers.

  Attributes:
    name: one of `NAMES`.
    num_filters: the number of filters in each layer.
    respond: jitted; takes RGB images 0–255 and returns one float32 map for each layer.
    layer_weights: a factor for each layer on the w_h of its filters; (): 1 for every layer.
    fingerprint: of the filters' values and everything else that decides a divergence.

  Raises:
    ValueError: `layer_weights` do not fit the layers, or are all 0.
  """

  name: str
  num_filters: tuple[int, ...]
  respond: Callable[[UInt8[Array, 'batch height width 3']], alexnet.Responses]
  layer_weights: tuple[float, ...] = ()
  fingerprint: str = ''

  def __post_init__(self) -> None:
    weights, num_layers = self.layer_weights, len(self.num_filters)
    if weights and len(weights) != num_layers:
      raise ValueError(
        f'layer_weights={weights} must have one weight for each layer of the {self.name} bank, '
        f'which has {num_layers}; use () for equal weights'
      )
    is_possible = all(0 <= weight < float('inf') for weight in weights) and any(weights)
    if weights and not is_possible:
      raise ValueError(
        f'layer_weights={weights} must be finite, 0 or more, and not all 0; '
        'use () for equal weights'
      )

  @property
  def weights(self) -> Float[np.ndarray, ' filter']:
    """Return w_h of Eq. 1 (Ge & Yu 2017): the weight of h's layer / the filters in it."""
    factors = np.array(self.layer_weights or [1] * len(self.num_filters), np.float32)
    return np.repeat(factors / np.array(self.num_filters, np.float32), self.num_filters)


def load(
  variant: alexnet.Variant = alexnet.USUAL,
  *,
  name: str,
  layers: Sequence[str],
  tap: str,
  pretrained: str,
  layer_weights: Sequence[float] = (),
) -> FilterBank:
  """Load a filter bank; the same filters, loaded again, are the same object.

  Args:
    variant: of the network that the filters are of, if it is not the usual one of its name.
    name: one of `NAMES`.
    layers, tap, pretrained: as for `alexnet.load`, or of another trunk, `trunk_filters.load`. The
      Gabor bank does not use them: it is one layer of linear filters, computed from a formula.
    layer_weights: as for `FilterBank`.

  Raises:
    ModuleNotFoundError: the package of the weights is not installed.
    ValueError: unknown bank, layers or tap; unfit weights; impossible layer weights.
  """
  choose('name', name, NAMES)
  if not all(isinstance(weight, numbers.Real) for weight in layer_weights):
    raise ValueError(f'layer_weights={tuple(layer_weights)} must be numbers')
  # NumPy's are no numbers to JSON.
  layer_weights = [w if isinstance(w, int | float) else float(w) for w in layer_weights]
  if name == 'gabor':
    fingerprint = artifacts.fingerprint(name, layer_weights)
    return FilterBank(name, (gabor.NUM_FILTERS,), gabor.respond, tuple(layer_weights), fingerprint)
  load_filters = alexnet.load if name in ALEXNETS else trunk_filters.load
  filters = load_filters(variant, name=name, layers=layers, tap=tap, pretrained=pretrained)
  fingerprint = artifacts.fingerprint(name, layers, tap, filters.digest, layer_weights)
  bank = FilterBank(name, filters.num_filters, filters.respond, tuple(layer_weights), fingerprint)
  return _loaded.setdefault(fingerprint, bank)
