"""How XLA compiles here: what its CPU backend needs, and where compiled programs are kept."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from sjft_jax.runtime import artifacts

# jaxlib 0.10's CPU backend hands convolutions, products and reductions to YNNPACK. With Eigen's
# convolutions instead, networks train up to 1.6 times faster (experiments/bench_train_step.py) and
# AlexNet's responses come 1.5 times faster (experiments/bench_describe.py). With Eigen's reductions
# batch norm is much slower, and with its products ResNets a little, where there is AVX-512.
_FOR_YNNPACK = 'REDUCE', 'DOT'
_ON_CPU = {
  'xla_cpu_experimental_ynn_fusion_type': ','.join(
    f'LIBRARY_FUSION_TYPE_{kind}' for kind in _FOR_YNNPACK
  )
}


def enable_cache() -> None:
  """Keeps compiled programs in the user's cache: a run that is started again need not compile."""
  jax.config.update('jax_compilation_cache_dir', str(artifacts.cache_dir() / 'xla'))


class CompiledFunction:
  """A function of `jax.pmap` or `jax.jit`, compiled with the options that suit the backend.

  It is compiled once for every combination of argument shapes and types, when first called.
  """

  def __init__(self, mapped: Any):
    self.mapped = mapped
    self._programs: dict[Any, Any] = {}

  def __call__(self, *arguments: Any) -> Any:
    if jax.process_count() > 1:
      # A program that is compiled ahead takes the shapes of all processes for those of one.
      return self.mapped(*arguments)
    return self.program(*arguments)(*arguments)

  def program(self, *arguments: Any) -> Any:
    """The compiled program for arguments such as these."""
    leaves, tree = jax.tree.flatten(arguments)
    key = tree, *((leaf.shape, leaf.dtype) for leaf in leaves)
    if key not in self._programs:
      self._programs[key] = compile_lowered(self.mapped.lower(*arguments))
    return self._programs[key]


def jit(function: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
  """`jax.jit`, and its arguments, for a program that no other contains; see `CompiledFunction`."""

  @functools.cache
  def jitted():  # Not before the first call: which backend there is may not be settled yet.
    return jax.jit(function, compiler_options=_options(), **arguments)

  @functools.wraps(function)
  def call(*arguments):
    return jitted()(*arguments)

  return call


def compile_lowered(lowered: Any) -> Any:
  """What `lowered.compile()` gives, with the backend's options."""
  return lowered.compile(compiler_options=_options())


@functools.cache
def _options() -> dict[str, str] | None:
  if jax.default_backend() != 'cpu':
    return None
  try:
    jax.jit(lambda: 0, compiler_options=_ON_CPU)()
  except jax.errors.JaxRuntimeError as error:
    # Another jaxlib: the option may be gone, and its reason with it.
    if 'No such compile option' not in str(error):
      raise
    return None
  return _ON_CPU
