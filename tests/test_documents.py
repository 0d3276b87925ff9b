"""The documents are right: commands and Python blocks run as they are shown, links lead somewhere.

Commands run in a folder that looks like a clone of the project, with stand-ins for the shell's
commands on the path (`document_commands`), so that a block of a document runs as it is, on little.
A command without a stand-in fails, and so does a new one until it has an entry there.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import commands
import document_commands
import pytest
from small_run import write_folder
from test_configs import WRITERS

from sjft_jax import config

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
EXPERIMENTS = sorted((ROOT / 'experiments').glob('*.md'))
DOCUMENTS = [*GUIDES, *EXPERIMENTS, ROOT / 'CHANGELOG.md']
# Fences of these languages are run; the others show output.
RUN = ('bash', 'python')
SHOWN = ('text', 'bibtex')


class Block(NamedTuple):
  """Commands or Python code that a document shows.

  Attributes:
    place: the file, and the line of the first command.
    language: 'bash' or 'python'.
    text: as it is shown.
  """

  place: str
  language: str
  text: str


def place(file: Path, line: int) -> str:
  return f'{file.relative_to(ROOT)}:{line}'


def fenced_blocks(file: Path) -> list[Block]:
  """Return the code blocks of a Markdown file."""
  text = file.read_text()
  return [
    Block(place(file, text.count('\n', 0, match.start()) + 2), match[1], match[2])
    for match in re.finditer(r'^```(\w*)\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
  ]


def docstring_commands(file: Path) -> list[Block]:
  """Return the commands in a module's docstring: lines that start with `python -m`."""
  docstring = ast.get_docstring(ast.parse(file.read_text())) or ''
  return [
    Block(place(file, docstring.count('\n', 0, match.start()) + 1), 'bash', match[0])
    for match in re.finditer(r'^ *python -m (.*\\\n)*.*$', docstring, re.MULTILINE)
  ]


def command_modules() -> list[Path]:
  """Return the modules that can be started."""
  files = sorted((ROOT / 'sjft_jax').rglob('*.py'))
  return [file for file in files if "__name__ == '__main__'" in file.read_text()]


def executed_blocks() -> list[Block]:
  """Return all that is run, the README's first."""
  blocks = [block for file in GUIDES for block in fenced_blocks(file) if block.language in RUN]
  for file in [*sorted((ROOT / 'configs').glob('*.py')), *command_modules()]:
    blocks += docstring_commands(file)
  return blocks


def experiment_blocks() -> list[Block]:
  """Return the commands of experiments/, whose flags are checked."""
  blocks = [block for file in EXPERIMENTS for block in fenced_blocks(file)]
  for file in sorted((ROOT / 'experiments').glob('*.py')):
    blocks += docstring_commands(file)
  return blocks


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
  """A folder like a clone of the project, with images and archives in `DIR`."""
  path = tmp_path_factory.mktemp('clone')
  for name in ('configs', 'docs', 'experiments', 'setup.cfg', 'sjft_jax'):
    (path / name).symlink_to(ROOT / name)
  (path / 'bin').mkdir()
  for name in document_commands.NAMES:
    stand_in = path / 'bin' / name
    stand_in.write_text(
      f'#!/bin/sh\nexec {sys.executable} {document_commands.__file__} {name} "$@"\n'
    )
    stand_in.chmod(0o755)
  write_folder(path / 'DIR' / 'train', classes=6, per_class=20, seed=0)
  write_folder(path / 'DIR' / 'test', classes=6, per_class=3, seed=1)
  for name in ('my_images', 'source_images', 'new_images'):
    (path / name).symlink_to('DIR')
  # Where archives are looked for that the command does not name.
  (path / 'tfds' / 'downloads').mkdir(parents=True)
  (path / 'tfds' / 'downloads' / 'manual').symlink_to(path / 'DIR')
  for write in WRITERS.values():
    write(path / 'DIR')
  return path


def run(block: Block, clone: Path) -> str:
  """Run a block in the clone and return its output."""
  text = block.text
  if block.language == 'python':
    file = clone / f'{re.sub(r"[/.:]", "_", block.place)}.py'
    file.write_text(text)
    text = f'python {file.name}'
  environment = {
    'PATH': str(clone / 'bin'),
    'TFDS_DATA_DIR': str(clone / 'tfds'),
    'GLIBC_TUNABLES': '',  # No second start for huge pages.
    # Optimised: images have their real size here.
    **commands.ENVIRONMENT,
    'XLA_FLAGS': '',
  }
  process = subprocess.run(
    ['/bin/bash', '-euo', 'pipefail', '-c', text],
    cwd=clone,
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=600,
  )
  assert process.returncode == 0, f'{block.place}:\n{block.text}\n{process.stdout}'
  return process.stdout


@pytest.fixture(scope='module')
def trained_clone(clone):
  """A clone in which the README's first own training has been done, which others build on."""
  for block in fenced_blocks(ROOT / 'README.md'):
    if '--workdir=runs/mine' in block.text:
      run(block, clone)
  assert (clone / 'runs' / 'mine' / 'results.json').exists()
  return clone


def document_group(block: Block) -> pytest.MarkDecorator:
  """Return the mark of a document's blocks, of which later ones use what earlier ones left."""
  return pytest.mark.xdist_group(block.place.partition(':')[0])


@pytest.mark.slow
@pytest.mark.parametrize(
  'block',
  [pytest.param(block, id=block.place, marks=document_group(block)) for block in executed_blocks()],
)
def test_block_runs_as_shown(block, trained_clone):
  run(block, trained_clone)


@pytest.mark.parametrize('block', experiment_blocks(), ids=lambda block: block.place)
def test_experiment_has_the_flags_that_are_shown(block):
  assert block.language == 'bash'
  for command in re.findall(r'python -m (experiments\.\w+)((?:.*\\\n)*.*)', block.text):
    module, rest = command
    # '[--json]' is a flag that may be left out.
    flags = [flag.rstrip(';') for flag in re.sub(r'[\[\]\\]|#.*', ' ', rest).split()]
    document_commands.check_flags(module, [flag for flag in flags if flag.startswith('--')])


def test_every_document_is_run_or_checked():
  files = subprocess.run(
    ['git', 'ls-files', '-co', '--exclude-standard', '*.md'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  # An archive of the project without its history has no list.
  assert {str(file.relative_to(ROOT)) for file in DOCUMENTS} >= set(files.stdout.split())


@pytest.mark.parametrize('file', DOCUMENTS, ids=lambda file: file.name)
def test_fences_have_a_known_language(file):
  for block in fenced_blocks(file):
    assert block.language in (*RUN, *SHOWN), block.place
  assert file.read_text().count('\n```') == 2 * len(fenced_blocks(file))


def test_readme_has_the_two_commands_that_the_ci_script_runs():
  lines = (ROOT / 'README.md').read_text().splitlines()
  install = [line for line in lines if line.startswith('pip install -e ')]
  assert len(install) == 2
  assert '--config=configs/demo.py' in install[0]
  assert 'pytest' in install[1]
  assert len(lines) < 150


def anchors(file: Path) -> set[str]:
  """Return the anchors of a Markdown file's headings, as GitHub makes them."""
  text = re.sub(r'^```.*?^```$', '', file.read_text(), flags=re.DOTALL | re.MULTILINE)
  headings = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
  plain = (re.sub(r'\[(.*?)\]\(.*?\)', r'\1', heading).lower() for heading in headings)
  return {re.sub(r'[^\w\- ]', '', heading).replace(' ', '-') for heading in plain}


@pytest.mark.parametrize('file', DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_relative_links_lead_somewhere(file):
  text = re.sub(r'^```.*?^```$', '', file.read_text(), flags=re.DOTALL | re.MULTILINE)
  for link in re.findall(r'\]\(([^)\s]+)\)', text):
    if re.match(r'https?://', link):
      continue
    path, _, anchor = link.partition('#')
    goal = (file.parent / path).resolve() if path else file
    assert goal.exists(), link
    assert goal.is_relative_to(ROOT), link
    if anchor:
      assert anchor in anchors(goal), link


@pytest.mark.parametrize('file', GUIDES, ids=lambda file: str(file.relative_to(ROOT)))
def test_options_that_are_named_exist(file):
  default = config.default()
  sections = '|'.join(name for name in default if hasattr(default[name], 'keys'))
  for section, option in re.findall(rf'`(?:--config\.)?({sections})\.(\w+)[`=]', file.read_text()):
    is_file = (ROOT / 'sjft_jax' / section / f'{option}.py').exists() or option == 'safetensors'
    assert option in default[section] or is_file, f'{section}.{option}'


@pytest.mark.parametrize('file', DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_that_are_named_exist(file):
  for name in re.findall(
    r'`((?:sjft_jax|configs|experiments|tests|docs)/[\w/.]*)`', file.read_text()
  ):
    assert (ROOT / name).exists(), name
