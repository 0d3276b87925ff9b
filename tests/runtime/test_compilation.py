"""Compiler options of the backend, which another jaxlib may not know."""

import jax.numpy as jnp
import numpy as np
import pytest

from sjft_jax.runtime import compilation

KNOWN, UNKNOWN = {'xla_cpu_enable_fast_math': False}, {'xla_cpu_no_such_option': False}


@pytest.mark.parametrize(('options', 'expected'), [(KNOWN, KNOWN), (UNKNOWN, None)])
def test_option_that_the_compiler_does_not_know_is_left_out(monkeypatch, options, expected):
  monkeypatch.setattr(compilation, '_CPU_OPTIONS', options)
  monkeypatch.setattr(compilation, '_options', compilation._options.__wrapped__)
  assert compilation._options() == expected
  add = compilation.jit(lambda x, n: x + n, static_argnums=1)
  np.testing.assert_array_equal(add(jnp.arange(3), 2), [2, 3, 4])
