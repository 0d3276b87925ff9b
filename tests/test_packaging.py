"""Tests of setup.cfg: what pip installs, and the versions of what it requires."""

import ast
import configparser
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def setup():
  parser = configparser.ConfigParser()
  parser.read(ROOT / 'setup.cfg')
  return parser


def parse_requirements(text):
  lines = (line for line in text.splitlines() if line and not line.startswith('%'))
  return [Requirement(line) for line in lines]


def names(requirements):
  return {canonicalize_name(requirement.name) for requirement in requirements}


def imported_packages():
  """Return the top-level packages that the modules of sjft_jax import, at any depth."""
  packages = set()
  for file in (ROOT / 'sjft_jax').rglob('*.py'):
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.Import):
        packages |= {alias.name.partition('.')[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        packages.add(node.module.partition('.')[0])
  return packages - {'sjft_jax'} - sys.stdlib_module_names


def test_every_folder_of_the_package_is_installed(setup):
  files = (file.relative_to(ROOT) for file in (ROOT / 'sjft_jax').rglob('*.py'))
  folders = {'.'.join(file.parent.parts) for file in files}
  assert set(setup['options']['packages'].split()) == folders | {'sjft_jax.configs'}


def test_every_import_is_of_a_requirement_and_every_requirement_is_imported(setup):
  required = names(parse_requirements(setup['options']['install_requires']))
  extras = dict(setup['options.extras_require'])
  optional = names(parse_requirements('\n'.join(extras.values())))
  distributions = importlib.metadata.packages_distributions()
  imported = set()
  for package in imported_packages():
    # A package that is optional need not be installed.
    candidates = names(map(Requirement, distributions.get(package, [package])))
    assert candidates & (required | optional), package
    imported |= candidates
  assert required <= imported


def test_lower_bounds_are_the_oldest_versions_that_are_tested(setup):
  lines = (ROOT / '.ci' / 'oldest.txt').read_text().splitlines()
  pins = {
    canonicalize_name(match[1]): Version(match[2])
    for line in lines
    if (match := re.fullmatch(r'([\w-]+)==(.+)', line))
  }
  for requirement in parse_requirements(setup['options']['install_requires']):
    (bound,) = requirement.specifier
    assert bound.operator == '>='
    version, pin = Version(bound.version), pins[canonicalize_name(requirement.name)]
    assert pin.release[: len(version.release)] == version.release, requirement
