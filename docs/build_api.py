"""Build pages of the Python calls from their docstrings, with pdoc; a warning is an error.

  python docs/build_api.py

The pages are in build/api; start with build/api/sjft_jax.html.
"""

import importlib
import warnings
from pathlib import Path

import pdoc

# The calls, then what they take and return.
MODULES = (
  'sjft_jax',
  'sjft_jax.config',
  'sjft_jax.classifier',
  'sjft_jax.folder_ranking',
  'sjft_jax.planning',
  'sjft_jax.calibration',
)


def main() -> None:
  """Write build/api in the current folder."""
  for name in MODULES:  # Here, since pdoc keeps imports from starting programs, as h5py's does.
    importlib.import_module(name)
  # pdoc would import all submodules. The commands sjft_jax.tune and sjft_jax.export would then take
  # the places of the calls with these names.
  pdoc.doc.Module.from_name('sjft_jax').submodules = []
  pdoc.render.configure(docformat='google')
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    # Of the package itself, and not what is below it.
    pdoc.pdoc(MODULES[0], r'!sjft_jax\.', *MODULES[1:], output_directory=Path('build/api'))


if __name__ == '__main__':
  main()
