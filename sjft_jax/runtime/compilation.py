"""Compile with XLA: the options that its CPU backend needs, and a cache of compiled programs."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from sjft_jax.runtime import artifacts

# jaxlib 0.10's CPU backend hands convolutions, products and reductions to YNNPACK. With Eigen's
# convolutions instead, networks train up to 1.6 times faster (experiments/bench_train_step.py) and
# AlexNet's responses are computed 1.5 times faster (experiments/bench_describe.py). Eigen's
# reductions would make batch norm much slower, and its products ResNets a little where there is
# AVX-512: these two stay with YNNPACK.
_YNNPACK_FUSIONS = 'LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_DOT'
_CPU_OPTIONS = {'xla_cpu_experimental_ynn_fusion_type': _YNNPACK_FUSIONS}


def enable_cache() -> None:
  """Keep compiled programs in the user's cache: a run that is started again need not compile."""
  jax.config.update('jax_compilation_cache_dir', str(artifacts.code_cache_dir('xla')))


class CompiledFunction:
  """A function of `jax.pmap` or `jax.jit`, compiled with the options that suit the backend.

  It is compiled once for every combination of argument shapes and types, when first called.

  Attributes:
    mapped: the function as JAX returned it.
  """

  def __init__(self, mapped: Any):
    self.mapped = mapped
    self._programs: dict[Any, Any] = {}

  def __call__(self, *arguments: Any) -> Any:
    if jax.process_count() > 1:
      # A program that is compiled ahead takes the shapes of all processes for those of one.
      return self.mapped(*arguments)
    return self.program(*arguments)(*arguments)

  @property
  def programs(self) -> list[Any]:
    """Return all programs that are compiled so far."""
    return list(self._programs.values())

  def program(self, *arguments: Any) -> Any:
    """Return the compiled program for arguments of these shapes and types."""
    leaves, tree = jax.tree.flatten(arguments)
    key = tree, *((leaf.shape, leaf.dtype) for leaf in leaves)
    if key not in self._programs:
      self._programs[key] = compile_lowered(self.mapped.lower(*arguments))
    return self._programs[key]


def jit(function: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
  """Compile a function like `jax.jit`, with the options that suit the backend.

  JAX takes such options for outermost programs only: `function` must not be called in another one.

  Args:
    function: to be compiled at its first call.
    arguments: those of `jax.jit`.
  """

  @functools.cache
  def jitted() -> Any:  # Not before the first call, because the backend may not be chosen yet.
    return jax.jit(function, compiler_options=_options(), **arguments)

  @functools.wraps(function)
  def call(*arguments: Any) -> Any:
    return jitted()(*arguments)

  return call


def compile_lowered(lowered: Any) -> Any:
  """Compile what `lower` of a JAX function returned, with the options that suit the backend."""
  return lowered.compile(compiler_options=_options())


@functools.cache
def _options() -> dict[str, str] | None:
  if jax.default_backend() != 'cpu':
    return None
  try:
    jax.jit(lambda: 0, compiler_options=_CPU_OPTIONS)()
  except jax.errors.JaxRuntimeError as error:
    # In another jaxlib the option may be gone, and with it the reason for it.
    if 'No such compile option' not in str(error):
      raise
    return None
  return _CPU_OPTIONS
