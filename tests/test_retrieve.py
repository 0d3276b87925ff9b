"""The ranking of two folders from the command line."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import commands
import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import untrained_run
from absl import flags
from absl.testing import flagsaver
from etils import epath
from stripes import write_images, write_target_and_source

import sjft_jax
from sjft_jax import ranking, retrieve
from sjft_jax.data.folder import UnlabelledFolder
from sjft_jax.descriptors import bank as banks
from sjft_jax.folder_ranking import FolderRanking
from sjft_jax.retrieval import knn

# Small images through filters that need no weights.
FAST = ('--bank=gabor', '--resize=16', '--crop=16', '--num_bins=8')
K = 12


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return write_target_and_source(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def expected(data, tmp_path_factory):
  """Return the rows that the output should have."""
  target, source = (UnlabelledFolder(str(data / name)) for name in ('target', 'source'))
  options = ranking.DescriptorOptions(
    **{'num_bins': 8, 'smoothing': 0.5, 'resize': 16, 'crop': 16},
    **{'batch_size': 64, 'workers': 0, 'checkpoint_minutes': 3.0},
  )
  bank = banks.load(name='gabor', layers=(), tap='linear', pretrained='')
  indices, divergences = ranking.rank_sources(
    epath.Path(tmp_path_factory.mktemp('expected') / 'partial.npz'),
    ranking.RankingInputs(target, source, bank, K, options),
  ).ranking
  return [
    (target.key(t), source.key(int(indices[t, r])), r + 1, divergences[t, r])
    for t in range(len(target))
    for r in range(K)
  ]


def read_rows(path):
  reader = pyarrow.csv.read_csv if path.suffix == '.csv' else pyarrow.parquet.read_table
  table = reader(path).to_pydict()
  assert list(table) == ['target', 'source', 'rank', 'divergence']
  table['divergence'] = np.array(table['divergence'], np.float32)
  return list(zip(*table.values(), strict=True))


def command(data, output, *more):
  folders = f'--target={data / "target"}', f'--source={data / "source"}'
  module = sys.executable, '-m', 'sjft_jax.retrieve'
  return [*module, *folders, f'--k={K}', f'--output={output}', *FAST, *more]


def start(*arguments):
  return commands.start(command(*arguments))


def run_here(data, output, *more):
  """Run the command in this process."""
  with flagsaver.flagsaver():  # It also removes the flags that are defined inside.
    retrieve.define_flags()
    flags.FLAGS(command(data, output, *more)[2:])
    retrieve.retrieve()


@pytest.mark.parametrize('suffix', ['.csv', '.parquet'])
def test_output_holds_the_ranking(data, expected, tmp_path, suffix, capsys):
  output = tmp_path / f'neighbors{suffix}'
  output.write_text('old')
  run_here(data, output)
  assert read_rows(output) == expected
  assert list(tmp_path.iterdir()) == [output]
  line = f'{output}: the 12 nearest of 150 source images to each of 5 target images, in '
  assert line in capsys.readouterr().out


def test_image_of_both_folders_is_its_own_nearest_neighbour(data, tmp_path):
  output = tmp_path / 'neighbors.csv'
  run_here(data, output, f'--target={data / "source"}')
  nearest = [row for row in read_rows(output) if row[2] == 1]
  assert len(nearest) == 150
  assert all(target == source and not divergence for target, source, _, divergence in nearest)


def test_search_is_kept_when_the_output_fills_the_disk(data, expected, tmp_path, monkeypatch):
  def fill_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  output = tmp_path / 'neighbors.csv'
  with monkeypatch.context() as patch:
    patch.setattr(FolderRanking, 'save', fill_disk)
    with pytest.raises(OSError, match='No space'):
      run_here(data, output)
  assert not output.exists()
  with pytest.raises(ValueError, match=r'ranking\.npz .*other images or options; delete it'):
    run_here(data, output, '--smoothing=1')
  monkeypatch.setattr(ranking, 'rank_sources', None)
  run_here(data, output)
  assert read_rows(output) == expected
  assert list(tmp_path.iterdir()) == [output]


def test_memory_that_runs_out_names_the_commands_option(data, tmp_path, monkeypatch):
  def exhaust(*_, **__):
    raise MemoryError

  monkeypatch.setattr(ranking.Describer, 'fit_edges', exhaust)
  with pytest.raises(ValueError, match='ran out of memory .*; lower --batch_size from '):
    run_here(data, tmp_path / 'neighbors.csv')


@pytest.mark.slow
def test_filters_can_be_those_of_a_trained_network(data, tmp_path):
  """`sjft_jax.rank` has the same options; the run is random."""
  arm = untrained_run.write(tmp_path / 'run', name='resnet18v1', style='torch')
  output, options = tmp_path / 'neighbors.csv', {'layers': 'stem', 'pretrained': str(arm)}
  run_here(data, output, '--bank=resnet18v1', *(f'--{n}={value}' for n, value in options.items()))
  ranking = sjft_jax.rank(
    data / 'target',
    data / 'source',
    k=K,
    bank={'name': 'resnet18v1', **options, 'layers': ('stem',)},
    descriptors={'resize': 16, 'crop': 16, 'num_bins': 8},
  )
  rows = read_rows(output)
  assert [row[3] for row in rows] == pytest.approx(ranking.divergences.ravel().tolist(), rel=1e-5)


WRONG = [
  ('--output=neighbors.txt', r'the name must end in one of .csv, .tsv, .parquet'),
  ('--output=nowhere/neighbors.csv', 'there is no folder nowhere; create it'),
  ('--k=0', 'k=0'),
  ('--k=151', 'k=151 exceeds the 150 images'),
  ('--k=many', 'k=many'),
  ('--kk=5', "'kk'"),
  ('--target=/nowhere', "'/nowhere' is not a folder"),
  ('--source=tests', 'there is no image'),
  ('--bank=sift', "bank: name='sift' is unknown"),
  ('--bank=vgg16', "pretrained='auto' is for AlexNet; for name='vgg16' give a file"),
  ('--smoothing=0', 'smoothing=0.0 must lie between 1e-30 and 1,000,000'),
  ('--max_bad_share=nan', '--max_bad_share=nan is not a number; give one'),
  ('--checkpoint_minutes=nan', '--checkpoint_minutes=nan is not a number; give one'),
  ('--crop=300', 'crop=300 exceeds resize=16'),
  ('--layer_weights=1,x', '--layer_weights=1,x'),
  ('--num_processes=2', 'go together'),
  ('--coordinator=here --num_processes=2 --process_id=0', '--coordinator=here must be HOST:PORT'),
  ('--coordinator=a:1 --num_processes=2 --process_id=2', '--process_id=2 must be below'),
  ('extra', "unexpected 'extra'"),
]
# Python starts once for all of them, and imports what takes seconds before it forks.
REFUSE = """
import json, os, runpy, sys
import sjft_jax.folder_ranking
for number, arguments in enumerate(json.loads(sys.argv[1])):
  child = os.fork()
  if not child:
    for descriptor, name in ((1, 'out'), (2, 'err')):
      os.dup2(os.open(f'{number}.{name}', os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = arguments
    runpy.run_module('sjft_jax.retrieve', run_name='__main__')
    sys.exit()
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope='module')
def refused(data, tmp_path_factory):
  """Return the status, the output and the errors of the command with each of `WRONG`."""
  path = tmp_path_factory.mktemp('refused')
  results, output = path / 'results', path / 'output'
  for folder in (results, output, results / 'tests'):
    folder.mkdir()
  lines = [command(data, output / 'neighbors.csv', *wrong.split())[2:] for wrong, _ in WRONG]
  process = subprocess.run(
    [sys.executable, '-c', REFUSE, json.dumps(lines)],
    stdout=subprocess.PIPE,
    text=True,
    cwd=results,
    env=os.environ | {'PYTHONPATH': str(commands.ROOT), 'GLIBC_TUNABLES': ''},  # One start.
    timeout=300,
  )
  assert not any(output.iterdir())
  statuses = map(int, process.stdout.split())
  return {
    wrong: (status, *((results / f'{i}.{name}').read_text() for name in ('out', 'err')))
    for i, ((wrong, _), status) in enumerate(zip(WRONG, statuses, strict=True))
  }


@pytest.mark.parametrize(('argument', 'message'), WRONG)
def test_errors_are_one_line_before_any_work(refused, argument, message):
  status, output, errors = refused[argument]
  assert (status, output) == (1, '')
  assert re.fullmatch(r'error: [^\n]*\n', errors)
  assert message in errors


def test_missing_option_is_named(tmp_path):
  process = subprocess.run(
    [sys.executable, '-m', 'sjft_jax.retrieve', '--target=tests', '--source=tests'],
    capture_output=True,
    text=True,
    cwd=commands.ROOT,
  )
  assert process.returncode == 1
  assert process.stderr.startswith('error: ')
  assert '--output' in process.stderr


def test_help_shows_an_example_and_does_not_import_jax():
  process = subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', 'sjft_jax.retrieve', '--help'],
    capture_output=True,
    text=True,
    cwd=commands.ROOT,
  )
  assert '--k=100 --output=neighbors.csv' in process.stdout
  assert '--checkpoint_minutes' in process.stdout
  assert ' jax\n' not in process.stderr  # It takes seconds.


def finish(process, status=0):
  output, errors = process.communicate(timeout=300)
  assert process.returncode == status, output + errors
  return output


@pytest.mark.slow
def test_workers_change_nothing(data, expected, tmp_path):
  output = tmp_path / 'neighbors.parquet'
  finish(start(data, output, '--workers=2'))
  assert read_rows(output) == expected


@pytest.mark.slow
def test_two_processes_are_stopped_by_one_and_write_one_output(data, expected, tmp_path):
  output = tmp_path / 'neighbors.csv'

  def start_two():
    together = f'--coordinator=localhost:{commands.free_port()}', '--num_processes=2'
    slowly = '--batch_size=1', '--checkpoint_minutes=0'
    return [start(data, output, *together, *slowly, f'--process_id={i}') for i in range(2)]

  # One process ranks the source, which is a single tile; the other waits, and gets the signal.
  processes = start_two()
  commands.stop_one(processes, asked=0, held=1, once=lambda: list(tmp_path.glob('*.partial.*')))
  for process in processes:
    assert 'Stopped. The same command goes on' in finish(process, status=143)
  assert list(tmp_path.glob('*.partial.*'))
  assert not output.exists()

  first, second = map(finish, start_two())
  assert read_rows(output) == expected
  assert list(tmp_path.iterdir()) == [output]
  assert f'{output}: ' in first
  assert 'Target' not in second
  assert 'source' not in second


def test_image_that_cannot_be_read_is_listed_and_left_out(data, expected, tmp_path, capsys):
  source = shutil.copytree(data / 'source', tmp_path / 'source')
  nearest = expected[0][1]
  (source / nearest).write_bytes((source / nearest).read_bytes()[:-20])
  output = tmp_path / 'neighbors.csv'
  run_here(data, output, f'--source={source}')
  rows = read_rows(output)
  assert len(rows) == len(expected)
  assert nearest not in {row[1] for row in rows}
  assert {row[:2] for row in expected if row[1] != nearest} <= {row[:2] for row in rows}
  listed = pyarrow.csv.read_csv(tmp_path / 'neighbors.csv.bad_images.csv').to_pylist()
  assert listed == [{'data_set': 'source', 'image': nearest, 'reason': 'is truncated'}]
  assert '1 of 150 images of source cannot be read' in ' '.join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_too_many_bad_images_end_the_search(data, tmp_path):
  (tmp_path / 'source').mkdir()
  for number in range(K):
    (tmp_path / 'source' / f'{number}.png').write_bytes(b'no image')
  process = start(data, tmp_path / 'neighbors.csv', f'--source={tmp_path / "source"}')
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 1
  assert '12 of 12 images of source cannot be read, a share of 1 above max_bad_share=0.01' in errors
  assert '0.png, 1.png, 10.png …' in errors
  assert 'Traceback' not in errors


def send_signal(process, number, *, when):
  """Send a signal as soon as `when` holds; return what the process printed."""
  deadline = time.monotonic() + 120
  while not when():
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(number)
  return process.communicate()[0]


@pytest.mark.slow
def test_search_that_was_stopped_and_killed_writes_the_same_output(data, tmp_path):
  source = tmp_path / 'source'
  write_images(source, 4 * knn.TILE, seed=2)
  undisturbed, killed = (tmp_path / f'{name}.csv' for name in ('undisturbed', 'killed'))
  partial = tmp_path / 'killed.csv.ranking.partial.npz'
  more = f'--source={source}', '--checkpoint_minutes=0'
  finish(start(data, undisturbed, *more))

  def position():
    return int(np.load(partial)['position']) if partial.exists() else 0

  # A shell that runs the tests in the background makes them ignore this signal.
  handler = signal.signal(signal.SIGINT, signal.default_int_handler)
  process = start(data, killed, *more)
  signal.signal(signal.SIGINT, handler)
  output = send_signal(process, signal.SIGINT, when=position)
  assert process.returncode == 130
  assert 'Stopped. The same command goes on' in output
  stopped_at = position()
  process = start(data, killed, *more)
  send_signal(process, signal.SIGKILL, when=lambda: position() > stopped_at)
  assert not killed.exists()
  message = f'resumes at source image {position():,}'
  assert message in finish(start(data, killed, *more))
  assert killed.read_bytes() == undisturbed.read_bytes()
  assert not partial.exists()


@pytest.mark.slow
def test_processes_with_other_sources_are_refused(data, tmp_path):
  copy = shutil.copytree(data / 'source', tmp_path / 'source')
  next(copy.rglob('*.png')).unlink()
  together = f'--coordinator=localhost:{commands.free_port()}', '--num_processes=2'
  sources = (), (f'--source={copy}',)
  processes = [
    start(data, tmp_path / 'n.csv', *together, f'--process_id={i}', *sources[i]) for i in range(2)
  ]
  for process in processes:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert 'process 1 has other source images than process 0' in errors
  assert not (tmp_path / 'n.csv').exists()
