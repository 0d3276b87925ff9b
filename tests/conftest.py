"""Strictness for every test: no silent rank or dtype promotion; four devices for pmap.

Fixtures that several test modules share are here too.
"""

import os
import tempfile

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=4')

import hypothesis
import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')
# Under load a single example may take seconds.
hypothesis.settings.register_profile('without a deadline', deadline=None)
hypothesis.settings.load_profile('without a deadline')
# Tests share compiled programs. JAX reads these settings once, so they are set before any test.
_COMPILATION_CACHE = tempfile.TemporaryDirectory()
jax.config.update('jax_compilation_cache_dir', _COMPILATION_CACHE.name)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory):
  """Return an empty user's cache, for all tests instead of the real one."""
  path = tmp_path_factory.mktemp('cache')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(path))
    yield path


@pytest.fixture(scope='session')
def small_data(tmp_path_factory):
  """Return the folder of the images of `small_run`."""
  import small_run  # Not above: the package is imported once its annotations can be checked.

  return small_run.write_data(tmp_path_factory.mktemp('small_data'))


@pytest.fixture(scope='session')
def trained_run(small_data, tmp_path_factory):
  """Return the work directory of a run with two arms, and its results; tests leave it as it is."""
  import small_run

  import sjft_jax

  workdir = tmp_path_factory.mktemp('trained') / 'run'
  options = small_run.make_config(small_data, **{'pretrain.steps': 0, 'arms': ('none', 'rounds')})
  return workdir, sjft_jax.train(options, workdir)


def pytest_unconfigure():
  _COMPILATION_CACHE.cleanup()
