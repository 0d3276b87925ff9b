"""The search over whole data sets: interrupted, on several devices, in several processes."""

import dataclasses
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import commands
import jax
import numpy as np
import oracles
import pytest
from etils import epath

from sjft_jax.data import transforms
from sjft_jax.descriptors import bank as banks
from sjft_jax.descriptors import describe
from sjft_jax.ranking import (
  DescriptorOptions,
  RankingInputs,
  check_crop,
  copy_ranking,
  load_or_rank,
  rank_sources,
)
from sjft_jax.retrieval import divergence, knn
from sjft_jax.runtime.host_memory import OutOfMemoryError

BANK = {'name': 'gabor', 'layers': (), 'tap': 'linear', 'pretrained': ''}
VIEW = {'resize': 24, 'crop': 20}
OPTIONS = DescriptorOptions(
  **VIEW, num_bins=8, smoothing=0.5, batch_size=4, workers=0, checkpoint_minutes=1.0
)
# What saves a search after every batch.
CHECKPOINTED = dataclasses.replace(OPTIONS, checkpoint_minutes=0.0)
DEPTH = 10


class Images:
  """Stripes in noise, each image a function of its index.

  Attributes:
    read: the indices of the images that were read, in order.
  """

  classes = ('stripes',)

  def __init__(self, name, count, *, stop_at=None, seconds=0.0):
    self.name = self.fingerprint = name
    self.labels = np.zeros(count, np.int32)
    self.read = []
    self._stop_at, self._seconds = stop_at, seconds

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    return self.read_image(index, min_side=0)

  def read_image(self, index, *, min_side):
    self.read.append(index)
    if index == self._stop_at:
      raise KeyboardInterrupt
    time.sleep(self._seconds)
    rng = np.random.default_rng([len(self.name), index])
    y, x = np.mgrid[:24, :24] / rng.uniform(0.7, 4)
    angle = rng.uniform(0, 6)
    wave = 128 + 60 * np.sin(x * np.cos(angle) + y * np.sin(angle))
    noise = rng.normal(0, rng.uniform(3, 25), (24, 24, 3))
    return np.clip(wave[..., None] + noise, 0, 255).astype(np.uint8)

  def key(self, index):
    return str(index)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
  """Make many tiles of a hundred sources."""
  monkeypatch.setattr(knn, 'TILE', 8)


@pytest.fixture(scope='module')
def bank():
  return banks.load(**BANK)


def rank(partial, source, bank, depth=DEPTH, options=OPTIONS, target='target'):
  return rank_sources(partial, RankingInputs(Images(target, 6), source, bank, depth, options))


def load_or_rank_to(path, source, bank, depth=DEPTH, target='target'):
  """Load the ranking at `path`, or rank with a checkpoint after every batch."""
  inputs = RankingInputs(Images(target, 6), source, bank, depth, CHECKPOINTED)
  return load_or_rank(epath.Path(path), inputs)


def assert_same(result, expected):
  for name in ('indices', 'divergences'):
    np.testing.assert_array_equal(getattr(result.ranking, name), getattr(expected.ranking, name))
  np.testing.assert_array_equal(result.edges, expected.edges)


@pytest.fixture(scope='module')
def whole(bank, tmp_path_factory):
  """Rank 120 sources on all four devices."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(knn, 'TILE', 8)
    return rank(tmp_path_factory.mktemp('whole') / 'partial.npz', Images('sources', 120), bank)


def test_neighbours_are_those_of_descriptors_and_divergences_in_float64(whole, bank):
  def views(data):
    return [np.stack([transforms.describe_view(data[i], **VIEW) for i in range(len(data))])]

  targets, sources = views(Images('target', 6)), views(Images('sources', 120))
  edges = describe.fit_edges(bank, targets, num_bins=8)
  # XLA's convolutions may differ in the last bit between batch sizes.
  np.testing.assert_allclose(whole.edges, edges, rtol=1e-2, atol=1e-4)
  descriptors = [
    np.concatenate(list(describe.describe(bank, whole.edges, images, smoothing=0.5)))
    for images in (targets, sources)
  ]
  exact = oracles.symmetric_kl(*descriptors, bank.weights)
  indices, divergences = whole.ranking.indices, whole.ranking.divergences
  rows, tolerance = np.arange(6)[:, None], 4 * divergence.TOLERANCE * exact.max()
  assert indices.shape == divergences.shape == (6, DEPTH)
  np.testing.assert_allclose(divergences, exact[rows, indices], atol=tolerance)
  np.testing.assert_allclose(
    exact[rows, indices], exact[rows, oracles.nearest(exact, DEPTH)], atol=tolerance
  )


def test_one_device_finds_the_same_as_four(whole, bank, tmp_path, monkeypatch):
  devices = jax.local_devices()
  assert len(devices) == 4
  monkeypatch.setattr(jax, 'local_devices', lambda: devices[:1])
  assert_same(rank(tmp_path / 'partial.npz', Images('sources', 120), bank), whole)


def test_interrupted_search_resumes_with_the_same_result(whole, bank, tmp_path, capsys):
  partial = tmp_path / 'partial.npz'
  with pytest.raises(KeyboardInterrupt):
    rank(partial, Images('sources', 120, stop_at=110), bank, options=CHECKPOINTED)
  position = int(np.load(partial)['position'])
  assert 0 < position < 110
  source = Images('sources', 120)
  assert_same(rank(partial, source, bank), whole)
  assert sorted(source.read) == list(range(position, 120))
  assert f'resumes at source image {position}' in capsys.readouterr().out
  # It is there until the caller has saved the ranking.
  assert [partial] == list(tmp_path.iterdir())


def test_search_interrupted_twice_resumes_with_the_same_result(whole, bank, tmp_path):
  partial, positions = tmp_path / 'partial.npz', []
  for stop_at in (85, 115):
    with pytest.raises(KeyboardInterrupt):
      rank(partial, Images('sources', 120, stop_at=stop_at), bank, options=CHECKPOINTED)
    positions.append(int(np.load(partial)['position']))
  assert 0 < positions[0] <= positions[1]
  assert_same(rank(partial, Images('sources', 120), bank), whole)


def test_interrupted_search_goes_on_with_smaller_batches(whole, bank, tmp_path):
  partial, smaller = tmp_path / 'partial.npz', dataclasses.replace(OPTIONS, batch_size=2)
  with pytest.raises(KeyboardInterrupt):
    rank(partial, Images('sources', 120, stop_at=110), bank, options=CHECKPOINTED)
  position, source = int(np.load(partial)['position']), Images('sources', 120)
  result = rank(partial, source, bank, options=smaller)
  assert sorted(source.read) == list(range(position, 120))
  np.testing.assert_array_equal(result.edges, whole.edges)
  # XLA's convolutions may differ in the last bit between batch sizes.
  np.testing.assert_allclose(result.ranking.divergences, whole.ranking.divergences, rtol=1e-2)


def test_partial_file_of_another_search_or_a_damaged_one_is_an_error(bank, tmp_path):
  partial = tmp_path / 'partial.npz'
  with pytest.raises(KeyboardInterrupt):
    rank(partial, Images('sources', 120, stop_at=110), bank, options=CHECKPOINTED)
  with pytest.raises(ValueError, match=r'partial\.npz .*other images or options; delete it'):
    rank(partial, Images('sources', 120), bank, target='others')
  partial.write_bytes(partial.read_bytes()[:1000])
  with pytest.raises(ValueError, match=r'partial\.npz is damaged.*delete it'):
    rank(partial, Images('sources', 120), bank)


def test_more_neighbours_than_sources_are_an_error_before_any_image_is_read(bank, tmp_path):
  source = Images('sources', 9)
  message = '10 neighbours of each target image exceed the 9 source images; lower'
  with pytest.raises(ValueError, match=message):
    rank(tmp_path / 'partial.npz', source, bank)
  assert not source.read


@pytest.mark.parametrize('step', ['fit_edges', 'describe'])
def test_memory_that_runs_out_while_the_target_is_described_names_the_option(
  bank, tmp_path, monkeypatch, step
):
  def exhaust(*_, **__):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate')

  monkeypatch.setattr(describe, step, exhaust)
  inputs = RankingInputs(Images('target', 6), Images('sources', 20), bank, DEPTH, OPTIONS)
  message = 'describing 4 images at once ran out of memory .*; lower --batch_size from 4 to 2'
  with pytest.raises(OutOfMemoryError, match=message):
    load_or_rank(epath.Path(tmp_path / 'ranking.npz'), inputs, prefix='--')


def test_slow_decoding_is_reported(bank, tmp_path, capsys, monkeypatch):
  devices = jax.local_devices()[:1]  # The others would compile their own.
  monkeypatch.setattr(jax, 'local_devices', lambda: devices)
  rank(tmp_path / 'partial.npz', Images('sources', 20, seconds=0.2), bank)
  assert 'ranking sources: 20 in' in (printed := capsys.readouterr().out)
  assert 'decoding is the slower stage' in printed


def test_ranking_is_saved_and_loaded(whole, bank, tmp_path, capsys):
  path, source = tmp_path / 'ranking.npz', Images('sources', 120)
  result = load_or_rank_to(path, source, bank)
  assert_same(result, whole)
  assert [path] == list(tmp_path.iterdir())
  source.read = []
  loaded = load_or_rank_to(path, source, bank)
  assert_same(loaded, result)
  assert loaded.seconds == pytest.approx(result.seconds)
  assert not source.read
  assert f'done before: {path}' in capsys.readouterr().out
  with pytest.raises(ValueError, match=r'ranking\.npz .*other images or options; delete it'):
    load_or_rank_to(path, source, bank, target='others')


def test_deeper_ranking_begins_with_the_one_asked_for(whole, bank, tmp_path):
  path, source = tmp_path / 'ranking.npz', Images('sources', 120)
  deeper = load_or_rank_to(path, source, bank, depth=2 * DEPTH)
  assert deeper.ranking.indices.shape == (6, 2 * DEPTH)
  assert_same(load_or_rank_to(path, source, bank), whole)
  copy = epath.Path(tmp_path / 'copy.npz')
  inputs = RankingInputs(Images('target', 6), source, bank, DEPTH, CHECKPOINTED)
  copy_ranking([epath.Path(path)], copy, inputs)
  source.read = []
  assert_same(load_or_rank(copy, inputs), whole)
  assert not source.read
  with pytest.raises(ValueError, match='has 20 neighbours of each image, 21 are asked for; delete'):
    load_or_rank_to(path, source, bank, depth=2 * DEPTH + 1)
  missing = epath.Path(tmp_path / 'missing.npz')
  copy_ranking([epath.Path(path)], missing, inputs._replace(depth=2 * DEPTH + 1))
  assert not missing.exists()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'crop': 25}, 'crop=25 exceeds resize=24'),
    ({'num_bins': 1}, 'num_bins=1 must be 2 or more'),
    ({'smoothing': 0.0}, r'smoothing=0\.0 must lie between 1e-30'),
    ({'smoothing': math.inf}, 'smoothing=inf must lie between 1e-30'),
  ],
)
def test_impossible_options_are_an_error(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(OPTIONS, **changes)


def test_crop_that_leaves_no_response_is_an_error():
  def respond(images):
    return (images[:, 6:, 6:].astype(np.float32),)

  filters = banks.FilterBank('six', (3,), respond)
  with pytest.raises(ValueError, match='crop=6 is smaller than the filters of the six bank; raise'):
    check_crop(filters, 6)
  check_crop(filters, 7)


def test_result_options_are_those_that_decide_the_ranking():
  harmless = dataclasses.replace(OPTIONS, workers=3, checkpoint_minutes=7.0, batch_size=2)
  assert harmless.result_options == OPTIONS.result_options
  changes = {'resize': 30, 'crop': 10, 'num_bins': 9, 'smoothing': 1.0}
  for name, value in changes.items():
    changed = dataclasses.replace(OPTIONS, **{name: value})
    assert changed.result_options != OPTIONS.result_options


PROCESS = """
import os
import sys

import jax
import numpy as np

import test_ranking
from sjft_jax.descriptors import bank as banks
from sjft_jax.retrieval import knn

port, process, directory, stop_at, *sizes = sys.argv[1:]
jax.distributed.initialize(f'localhost:{port}', 2, int(process))
knn.TILE = 8
bank = banks.load(**test_ranking.BANK)
for size in sizes:
  count, depth = map(int, size.split(','))
  source = test_ranking.Images('sources', count, stop_at=int(stop_at))
  try:
    result = test_ranking.load_or_rank_to(f'{directory}/{size}.npz', source, bank, depth)
  except KeyboardInterrupt:
    os._exit(130)
  path = f'{directory}/result {process} of {size}.npz'
  np.savez(path, **result.ranking._asdict(), edges=result.edges, read=source.read)
  loaded = test_ranking.load_or_rank_to(f'{directory}/{size}.npz', source, bank, depth)
  test_ranking.assert_same(loaded, result)
"""


def start_two_processes(directory, *sizes, stop_at=-1):
  port = commands.free_port()
  paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
  # One device each, and else compiled as here: other optimisation moves the last bits of responses.
  flags = os.environ['XLA_FLAGS'].replace('--xla_force_host_platform_device_count=4', '')
  return [
    subprocess.Popen(
      [
        *(sys.executable, '-c', PROCESS, str(port), str(process), str(directory), str(stop_at)),
        *(f'{count},{depth}' for count, depth in sizes),
      ],
      env={**os.environ, 'XLA_FLAGS': flags, 'PYTHONPATH': os.pathsep.join(paths)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for process in range(2)
  ]


def finish(processes):
  try:
    for process in processes:
      output, _ = process.communicate(timeout=300)
      assert process.returncode == 0, output
  finally:
    for process in processes:
      process.kill()


@pytest.mark.slow
def test_two_processes_find_the_same_as_one(whole, bank, tmp_path):
  """Also more neighbours than a share has sources, all sources, and a process without a source."""
  sizes = [(120, DEPTH), (120, 70), (120, 120), (1, 1)]
  finish(start_two_processes(tmp_path, *sizes))
  for count, depth in sizes:
    expected = rank(tmp_path / 'one.npz', Images('sources', count), bank, depth)
    read = []
    for process in range(2):
      result = np.load(tmp_path / f'result {process} of {count},{depth}.npz')
      for name in ('indices', 'divergences'):
        np.testing.assert_array_equal(result[name], getattr(expected.ranking, name))
      np.testing.assert_array_equal(result['edges'], expected.edges)
      read += result['read'].tolist()
    assert sorted(read) == list(range(count))
  assert not list(tmp_path.glob('*.partial.*'))


@pytest.mark.slow
def test_two_processes_resume_after_one_was_stopped(whole, tmp_path):
  size = (120, DEPTH)
  first, second = start_two_processes(tmp_path, size, stop_at=110)
  output, _ = second.communicate(timeout=300)
  assert second.returncode == 130, output
  # The first one waits for the second, or is about to.
  first.kill()
  first.communicate()
  partial = tmp_path / f'{size[0]},{size[1]}.partial.npz.1-of-2'
  position = int(np.load(partial)['position'])
  assert 60 < position < 110
  finish(start_two_processes(tmp_path, size))
  for process in range(2):
    result = np.load(tmp_path / f'result {process} of 120,{DEPTH}.npz')
    np.testing.assert_array_equal(result['indices'], whole.ranking.indices)
    np.testing.assert_array_equal(result['divergences'], whole.ranking.divergences)
  assert sorted(result['read'].tolist()) == list(range(position, 120))
