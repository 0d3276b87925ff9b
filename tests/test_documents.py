"""The documents are right: commands and Python blocks run as they are shown, links lead somewhere.

Blocks of one document run in order, since later ones use what earlier ones left.
"""

import re
import subprocess
from pathlib import Path

import document_commands
import pytest
from document_blocks import ROOT, Block, docstring_commands, fenced_blocks, run

from sjft_jax import config

GUIDES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
EXPERIMENTS = sorted((ROOT / 'experiments').glob('*.md'))
DOCUMENTS = [*GUIDES, *EXPERIMENTS, ROOT / 'CHANGELOG.md']
# Fences of these languages are run; the others show output.
RUN = ('bash', 'python')
SHOWN = ('text', 'bibtex')


def executed_blocks() -> list[Block]:
  """Return all that is run, the README's first."""
  return [block for file in GUIDES for block in fenced_blocks(file) if block.language in RUN]


def experiment_blocks() -> list[Block]:
  """Return the commands of experiments/, whose flags are checked."""
  blocks = [block for file in EXPERIMENTS for block in fenced_blocks(file)]
  for file in sorted((ROOT / 'experiments').glob('*.py')):
    blocks += docstring_commands(file)
  return blocks


@pytest.mark.slow
@pytest.mark.parametrize('block', executed_blocks(), ids=lambda block: block.place)
def test_block_runs_as_shown(block, clone):
  run(block, clone)


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
