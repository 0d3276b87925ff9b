"""experiments/two_folders.ipynb runs as it is shown, on the two folders that it makes."""

import os
from pathlib import Path

import commands
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / 'experiments' / 'two_folders.ipynb'


@pytest.fixture
def notebook():
  return nbformat.read(NOTEBOOK, as_version=4)


def test_notebook_is_kept_without_outputs(notebook):
  """They would hold pictures, which this project does not store, and names of folders."""
  nbformat.validate(notebook)
  for cell in notebook.cells:
    assert not cell.get('outputs')
    assert not cell.get('execution_count')


@pytest.mark.slow
def test_notebook_goes_from_two_folders_to_predictions(notebook, tmp_path):
  # Steps too few to learn, and programs that are the same in several trainings compiled once.
  settings = {
    'STEPS': '2',
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'programs'),
    **commands.ENVIRONMENT,
  }
  client = NotebookClient(
    notebook, timeout=1800, kernel_name='python3', resources={'metadata': {'path': str(tmp_path)}}
  )
  client.execute(env=os.environ | settings)
  outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
  shown = ''.join(output.get('data', {}).get('text/plain', '') for output in outputs)
  streams = [output for output in outputs if output.output_type == 'stream']
  errors = ''.join(stream.text for stream in streams if stream.name == 'stderr')
  # Orbax warns where a disk is slow, and of nothing else.
  assert all('Waiting for previous save' in line for line in errors.splitlines() if line), errors
  printed = ''.join(stream.text for stream in streams if stream.name == 'stdout')
  assert sum('image/png' in output.get('data', {}) for output in outputs) == 2
  assert 'selected, growing' in shown  # The closing table.
  assert shown.count('Look at ') == 1  # What training leaves; what tuning leaves is deleted.
  assert printed.split()[0] in ('none', 'rounds')
  assert str(Path('runs', 'notebook', 'run', 'report.html')) in shown
  assert (tmp_path / 'runs' / 'notebook' / 'run' / 'report.html').exists()
