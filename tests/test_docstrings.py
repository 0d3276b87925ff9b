"""The commands in the docstrings of configurations and of command modules run as they are shown."""

import pytest
from document_blocks import ROOT, Block, docstring_commands, run


def docstring_blocks() -> list[Block]:
  """Return the commands, those first that train what others show the use of."""
  modules = [
    file
    for file in sorted((ROOT / 'sjft_jax').rglob('*.py'))
    if "__name__ == '__main__'" in file.read_text()
  ]
  modules.sort(key=lambda file: file.stem not in ('main', 'tune'))
  files = [*sorted((ROOT / 'configs').glob('*.py')), *modules]
  return [block for file in files for block in docstring_commands(file)]


@pytest.mark.slow
@pytest.mark.parametrize('block', docstring_blocks(), ids=lambda block: block.place)
def test_command_runs_as_shown(block, clone):
  run(block, clone)
