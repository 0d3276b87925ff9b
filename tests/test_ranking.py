"""The search over whole data sets: interrupted, spread over devices and over processes."""

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

from sjft_jax.data import transforms
from sjft_jax.descriptors import bank as banks
from sjft_jax.descriptors import describe
from sjft_jax.ranking import rank_sources
from sjft_jax.retrieval import divergence, knn

BANK = {'name': 'gabor', 'layers': (), 'tap': 'linear', 'pretrained': ''}
VIEW = {'resize': 24, 'crop': 20}
OPTIONS = {'num_bins': 8, 'smoothing': 0.5, 'batch_size': 4, 'workers': 0, **VIEW}
DEPTH = 10


class Images:
  """Stripes in noise, every image a function of its index; `read` has who was asked for."""

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
  """So that a hundred sources make many tiles."""
  monkeypatch.setattr(knn, 'TILE', 8)


@pytest.fixture(scope='module')
def bank():
  return banks.load(**BANK)


def rank(partial, source, bank, depth=DEPTH, made_from='x', checkpoint_minutes=1.0, **changes):
  options = OPTIONS | changes
  return rank_sources(
    *(partial, made_from, Images('target', 6), source, bank, depth),
    checkpoint_minutes=checkpoint_minutes,
    **options,
  )


def assert_same(ranked, expected):
  for name in ('indices', 'divergences'):
    np.testing.assert_array_equal(getattr(ranked.ranking, name), getattr(expected.ranking, name))
  np.testing.assert_array_equal(ranked.edges, expected.edges)


@pytest.fixture(scope='module')
def whole(bank, tmp_path_factory):
  """The ranking of 120 sources by all four devices."""
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
  described = [
    np.concatenate(list(describe.describe(bank, whole.edges, images, smoothing=0.5)))
    for images in (targets, sources)
  ]
  exact = oracles.symmetric_kl(*described, bank.weights)
  indices, divergences = whole.ranking.indices, whole.ranking.divergences
  rows, tolerance = np.arange(6)[:, None], 4 * divergence.TOLERANCE * exact.max()
  assert indices.shape == divergences.shape == (6, DEPTH)
  np.testing.assert_allclose(divergences, exact[rows, indices], atol=tolerance)
  np.testing.assert_allclose(
    exact[rows, indices], exact[rows, oracles.nearest(exact, DEPTH)], atol=tolerance
  )


def test_one_device_finds_what_four_find(whole, bank, tmp_path, monkeypatch):
  devices = jax.local_devices()
  assert len(devices) == 4
  monkeypatch.setattr(jax, 'local_devices', lambda: devices[:1])
  assert_same(rank(tmp_path / 'partial.npz', Images('sources', 120), bank), whole)


def test_interrupted_it_goes_on_as_if_undisturbed(whole, bank, tmp_path, capsys):
  partial = tmp_path / 'partial.npz'
  with pytest.raises(KeyboardInterrupt):
    rank(partial, Images('sources', 120, stop_at=110), bank, checkpoint_minutes=0)
  position = int(np.load(partial)['position'])
  assert 0 < position < 110
  source = Images('sources', 120)
  ranked = rank(partial, source, bank)
  assert_same(ranked, whole)
  assert sorted(source.read) == list(range(position, 120))
  assert f'goes on from source image {position}' in capsys.readouterr().out
  # It is there until the caller has kept the ranking.
  assert ranked.partial == partial
  assert [partial] == list(tmp_path.iterdir())


def test_interrupted_twice(whole, bank, tmp_path):
  partial, positions = tmp_path / 'partial.npz', []
  for stop_at in (85, 115):
    with pytest.raises(KeyboardInterrupt):
      rank(partial, Images('sources', 120, stop_at=stop_at), bank, checkpoint_minutes=0)
    positions.append(int(np.load(partial)['position']))
  assert 0 < positions[0] <= positions[1]
  assert_same(rank(partial, Images('sources', 120), bank), whole)


def test_what_another_search_left_is_refused(bank, tmp_path):
  partial = tmp_path / 'partial.npz'
  with pytest.raises(KeyboardInterrupt):
    rank(partial, Images('sources', 120, stop_at=110), bank, checkpoint_minutes=0)
  with pytest.raises(ValueError, match=r'partial\.npz .*other images or options; delete it'):
    rank(partial, Images('sources', 120), bank, made_from='y')
  partial.write_bytes(partial.read_bytes()[:1000])
  with pytest.raises(ValueError, match=r'partial\.npz is damaged.*delete it'):
    rank(partial, Images('sources', 120), bank)


def test_more_neighbours_than_sources_is_refused_before_any_image_is_read(bank, tmp_path):
  source = Images('sources', 9)
  with pytest.raises(ValueError, match='10 neighbours of each image exceed the 9 source images'):
    rank(tmp_path / 'partial.npz', source, bank)
  assert not source.read


def test_a_slow_data_set_is_told(bank, tmp_path, capsys, monkeypatch):
  devices = jax.local_devices()[:1]  # The others would compile their own.
  monkeypatch.setattr(jax, 'local_devices', lambda: devices)
  rank(tmp_path / 'partial.npz', Images('sources', 20, seconds=0.2), bank)
  assert 'ranking sources: 20 in' in (printed := capsys.readouterr().out)
  assert 'decoding is the slower stage' in printed


PROCESS = """
import os
import sys
from pathlib import Path

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
    ranked = test_ranking.rank(
      Path(directory) / f'{size}.npz', source, bank, depth, checkpoint_minutes=0
    )
  except KeyboardInterrupt:
    os._exit(130)
  result = Path(directory) / f'ranked {process} of {size}.npz'
  np.savez(result, **vars(ranked.ranking), edges=ranked.edges, read=source.read)
  ranked.partial.unlink(missing_ok=True)
"""


def two_processes(directory, *sizes, stop_at=-1):
  port = commands.free_port()
  paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
  return [
    subprocess.Popen(
      [
        *(sys.executable, '-c', PROCESS, str(port), str(process), str(directory), str(stop_at)),
        *(f'{count},{depth}' for count, depth in sizes),
      ],
      env={**os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': os.pathsep.join(paths)},
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
def test_two_processes_find_what_one_finds(whole, bank, tmp_path):
  """Also more neighbours than a share has sources, all sources, and a process without a source."""
  sizes = [(120, DEPTH), (120, 70), (120, 120), (1, 1)]
  finish(two_processes(tmp_path, *sizes))
  for count, depth in sizes:
    expected = rank(tmp_path / 'one.npz', Images('sources', count), bank, depth)
    read = []
    for process in range(2):
      found = np.load(tmp_path / f'ranked {process} of {count},{depth}.npz')
      for name in ('indices', 'divergences'):
        np.testing.assert_array_equal(found[name], getattr(expected.ranking, name))
      np.testing.assert_array_equal(found['edges'], expected.edges)
      read += found['read'].tolist()
    assert sorted(read) == list(range(count))
  assert not any(path.name[0].isdigit() for path in tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_of_which_one_was_stopped_go_on(whole, tmp_path):
  size = (120, DEPTH)
  first, second = two_processes(tmp_path, size, stop_at=110)
  output, _ = second.communicate(timeout=300)
  assert second.returncode == 130, output
  # The first one waits for the other, or is on its way there.
  first.kill()
  first.communicate()
  partial = tmp_path / f'{size[0]},{size[1]}.npz.1-of-2'
  position = int(np.load(partial)['position'])
  assert 60 < position < 110
  finish(two_processes(tmp_path, size))
  for process in range(2):
    found = np.load(tmp_path / f'ranked {process} of 120,{DEPTH}.npz')
    np.testing.assert_array_equal(found['indices'], whole.ranking.indices)
    np.testing.assert_array_equal(found['divergences'], whole.ranking.divergences)
  assert sorted(found['read'].tolist()) == list(range(position, 120))
