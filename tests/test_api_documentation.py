"""docs/build_api.py: pages of the Python calls."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sjft_jax

SCRIPT = Path(__file__).parents[1] / 'docs' / 'build_api.py'


@pytest.mark.slow
def test_pages_describe_every_call_and_what_it_returns(tmp_path):
  process = subprocess.run(
    [sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=300
  )
  assert process.returncode == 0, process.stderr
  pages = tmp_path / 'build' / 'api'
  text = (pages / 'sjft_jax.html').read_text()
  for name in sjft_jax.__all__:
    _, _, section = text.partition(f'<section id="{name}">')
    kind = re.search(r'<div class="attr (\w+)"', section)[1]
    assert kind == ('variable' if name == '__version__' else 'function'), name
  # The types that they return are links to their pages.
  for page, name in (
    ('classifier', 'Classifier'),
    ('folder_ranking', 'FolderRanking'),
    ('planning', 'Plan'),
  ):
    assert f'href="sjft_jax/{page}.html#{name}"' in text
    assert f'<section id="{name}">' in (pages / 'sjft_jax' / f'{page}.html').read_text()
  assert str(SCRIPT.parents[1]) not in ''.join(page.read_text() for page in pages.rglob('*.html'))


def test_name_that_leads_nowhere_is_an_error(tmp_path, monkeypatch):
  spec = importlib.util.spec_from_file_location('build_api', SCRIPT)
  build_api = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(build_api)
  (tmp_path / 'broken.py').write_text("def f(x: 'Nowhere'):\n  'Do it.'\n")
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(build_api, 'MODULES', ('sjft_jax', 'broken'))
  with pytest.raises(UserWarning, match='Nowhere'):
    build_api.main()
