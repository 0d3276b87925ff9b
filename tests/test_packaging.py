"""What a wheel holds."""

import configparser
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_and_the_configurations_are_installed():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  listed = setup['options']['packages'].split()
  folders = (file.parent for file in (ROOT / 'sjft_jax').rglob('__init__.py'))
  packages = {str(folder.relative_to(ROOT)).replace('/', '.') for folder in folders}
  assert sorted(listed) == sorted(packages | {'sjft_jax.configs'})
  assert setup['options']['package_dir'].split() == ['sjft_jax.configs', '=', 'configs']
