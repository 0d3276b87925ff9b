"""Strictness for every test: no silent rank or dtype promotion; four forced devices for pmap."""

import os
import tempfile

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=4')

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')
# What one test has compiled the next one need not. Before the first test: JAX looks once.
_COMPILED = tempfile.TemporaryDirectory()
jax.config.update('jax_compilation_cache_dir', _COMPILED.name)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory):
  """A user's cache of the tests' own."""
  path = tmp_path_factory.mktemp('cache')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(path))
    yield path


def pytest_unconfigure():
  _COMPILED.cleanup()
