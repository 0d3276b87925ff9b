"""Blocks of code that documents and docstrings show, and a folder in which to run them.

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
from small_run import write_folder
from test_configs import WRITERS

ROOT = Path(__file__).parents[1]


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


def make_clone(path: Path) -> Path:
  """Make a folder like a clone of the project, with images and archives in `DIR`.

  The README's first own training has been done there, which other blocks build on.
  """
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
  for name in ('my_images', 'source_images', 'new_images', 'TARGET', 'SOURCE'):
    (path / name).symlink_to('DIR')
  # Where archives are looked for that the command does not name.
  (path / 'tfds' / 'downloads').mkdir(parents=True)
  (path / 'tfds' / 'downloads' / 'manual').symlink_to(path / 'DIR')
  for write in WRITERS.values():
    write(path / 'DIR')
  for block in fenced_blocks(ROOT / 'README.md'):
    if '--workdir=runs/mine' in block.text:
      run(block, path)
  assert (path / 'runs' / 'mine' / 'results.json').exists()
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
    **commands.ENVIRONMENT,
    'XLA_FLAGS': '',  # Optimised: some images have their real size here.
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
