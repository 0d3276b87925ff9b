"""Strictness for every test: no silent rank or dtype promotion; four devices for pmap.

Fixtures that several test modules share are here too.
"""

import os
import re
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


@pytest.fixture(scope='session')
def clone(tmp_path_factory):
  """Return a folder like a clone of the project, in which blocks of documents run."""
  import document_blocks

  return document_blocks.make_clone(tmp_path_factory.mktemp('clone'))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """Keep the tests of a file in one process, but divide the documents of `test_documents`.

  (Groups of --dist loadgroup are ignored with pytest 9.2, pytest-xdist's issue 1386.)
  """
  from xdist.scheduler import LoadFileScheduling

  class DocumentScheduling(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
      document = re.search(r'\[([\w/]+\.md):\d+\]', nodeid)
      return document[1] if document else super()._split_scope(nodeid)

  return DocumentScheduling(config, log) if config.getoption('dist') == 'loadfile' else None


def pytest_unconfigure():
  _COMPILATION_CACHE.cleanup()
