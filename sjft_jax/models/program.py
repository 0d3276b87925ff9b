"""A network as a program that JAX runs without this package, in StableHLO."""

from collections.abc import Mapping
from typing import Any

# jax.export imports it late, when it serialises: without it, nothing should be computed first.
import flatbuffers  # noqa: F401
import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, UInt8

from sjft_jax.models.joint import Joint
from sjft_jax.models.weights import libraries
from sjft_jax.models.weights.libraries import Architecture

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def export_program(
  model: Joint, shapes: Mapping[str, Any], architecture: Architecture | None, image_size: int
) -> bytes:
  """Return the serialised `program(weights, images)` → class probabilities `[batch, class]`.

  `weights` are the tensors of a file by name, as `libraries.to_tensors` gives them: as constants in
  the program they would take minutes to compile and a multiple of their size. `images` are uint8
  RGB `[batch, image_size, image_size, 3]`, of any number; they are normalised in the program.

  Args:
    model: the network; of its heads, the target's counts.
    shapes: its variables or their shapes: 'params' of 'trunk' and 'target', and 'batch_stats'.
    architecture: in whose names and layouts the weights come; None: ours.
    image_size: side of the square images in pixels.
  """

  def program(
    weights: dict[str, Float[Array, '...']], images: UInt8[Array, 'b h w 3']
  ) -> Float[Array, 'b classes']:
    variables = libraries.to_variables(weights, shapes, architecture)
    logits: Any = model.apply(variables, images)
    return jax.nn.softmax(logits['target'])

  weights = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in libraries.tensor_shapes(shapes, architecture).items()
  }
  (batch,) = export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.uint8)
  exported = export.export(jax.jit(program), platforms=PLATFORMS)(weights, images)
  return bytes(exported.serialize())
