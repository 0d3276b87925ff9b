"""The AlexNet filter bank: the kernels of an ImageNet network, with or without nonlinearity."""

from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array, Float, UInt8

from sjft_jax.models import alexnet, pretrained
from sjft_jax.models.preprocess import normalize

Responses = tuple[Float[Array, 'batch _height _width _filter'], ...]


def load(
  *, layers: Sequence[str], tap: str, weights: str
) -> tuple[tuple[int, ...], Callable[[UInt8[Array, 'batch height width 3']], Responses]]:
  """The number of filters per layer and the jitted images → responses, one map per layer.

  Args:
    layers: one or more of `alexnet.LAYERS`, in that order.
    tap: 'linear' takes the responses before the nonlinearity, 'relu' after it.
    weights: as in `pretrained.load_alexnet`.

  Raises:
    ValueError: unknown, repeated, unordered or no layers; unknown tap.
  """
  unknown = [layer for layer in layers if layer not in alexnet.LAYERS]
  if unknown:
    raise ValueError(
      f'layers={tuple(layers)} names unknown {", ".join(map(repr, unknown))}; '
      f'known: {", ".join(alexnet.LAYERS)}'
    )
  if not layers or list(layers) != sorted(set(layers), key=alexnet.LAYERS.index):
    raise ValueError(
      f'layers={tuple(layers)} must name one or more of {", ".join(alexnet.LAYERS)}, '
      'each once and in this order'
    )
  if tap not in alexnet.TAPS:
    raise ValueError(f'tap={tap!r} is unknown; known: {", ".join(alexnet.TAPS)}')
  params = pretrained.load_alexnet(weights)
  # Layers that are not computed are not carried along either.
  depth = alexnet.LAYERS.index(layers[-1]) + 1
  params = {layer: params[layer] for layer in alexnet.LAYERS[:depth]}
  model = alexnet.AlexNet()

  @jax.jit
  def respond(images: UInt8[Array, 'batch height width 3']) -> Responses:
    # GPUs would compute float32 convolutions with 10-bit mantissas; a descriptor should not
    # depend on the device.
    with jax.default_matmul_precision('highest'):
      x = normalize(images)
      responses: Responses = model.apply(
        {'params': params}, x, layers=tuple(layers), tap=tap, method='responses'
      )  # type: ignore[assignment]
    return responses

  return tuple(alexnet.NUM_FILTERS[layer] for layer in layers), respond
