import numpy as np
import PIL.Image
import pytest
from screening.pictures import (
  Pictures,
  blobs,
  jpeg,
  planted_copies,
  read_rows,
  reencode,
  some_bad,
)

from sjft_jax.data.dataset import SubsetDataset
from sjft_jax.data.folder import ClassFolder
from sjft_jax.screening.screen import exclude_unreadable, screen

OPTIONS = {'max_bad_share': 0.01, 'exclude_duplicates_of': 'test'}


def test_bad_files_are_listed_and_left_out(tmp_path, capsys):
  for name in ('a/1', 'a/2', 'b/3', 'b/4', 'b/5'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / f'{name}.jpg').write_bytes(jpeg(blobs(int(name[-1]))))
  (tmp_path / 'a/empty.jpg').touch()
  whole = (tmp_path / 'b/5.jpg').read_bytes()
  (tmp_path / 'b/cut, short.jpg').write_bytes(whole[: len(whole) // 2])
  (tmp_path / 'b/page.jpg').write_text('<html>404</html>')
  data, good = ClassFolder(str(tmp_path), ''), Pictures('good', [blobs(1)])
  listing = tmp_path / 'bad_images.csv'
  readable, same = exclude_unreadable((data, good), listing, max_bad_share=0.4)
  assert [readable.key(i) for i in range(len(readable))] == ['a/1.jpg', 'a/2.jpg'] + [
    f'b/{i}.jpg' for i in (3, 4, 5)
  ]
  assert readable.labels.tolist() == [0, 0, 1, 1, 1]
  assert same is good
  header, *bad = read_rows(listing)
  assert header == ['data_set', 'image', 'reason']
  assert [row[:2] for row in bad] == [
    [data.name, f'{name}.jpg'] for name in ('a/empty', 'b/cut, short', 'b/page')
  ]
  assert all(reason and 'jpg' not in reason for _, _, reason in bad)
  assert (
    f'3 of 8 images of {data.name} cannot be read and are left out: a/empty.jpg, b/cut, short.jpg, '
    f'b/page.jpg; see {listing}' in capsys.readouterr().out
  )
  for i in range(len(readable)):
    np.testing.assert_array_equal(readable[i], PIL.Image.open(tmp_path / readable.key(i)))


def test_without_a_listing_bad_images_are_left_out_and_reported(tmp_path, capsys):
  (readable,) = exclude_unreadable((some_bad(5, (2,)),), None, max_bad_share=0.5)
  assert readable.indices.tolist() == [0, 1, 3, 4]
  assert 'cannot be read and are left out: 2.jpg\n' in capsys.readouterr().out
  assert not list(tmp_path.glob('*.csv'))


def test_without_a_listing_every_bad_image_is_named(capsys):
  exclude_unreadable((some_bad(10, (1, 3, 5, 8)),), None, max_bad_share=0.5)
  lines = capsys.readouterr().out.splitlines()
  assert lines[-2].endswith('are left out: 1.jpg, 3.jpg, 5.jpg …')
  assert lines[-1].strip() == '… 8.jpg'


def test_larger_share_is_an_error_but_listed(tmp_path):
  data, listing = some_bad(10, (1, 3, 5, 8)), tmp_path / 'bad.csv'
  (readable,) = exclude_unreadable((data,), listing, max_bad_share=0.4)
  assert readable.indices.tolist() == [0, 2, 4, 6, 7, 9]
  listing.unlink()
  with pytest.raises(ValueError) as error:  # noqa: PT011
    exclude_unreadable((data,), listing, max_bad_share=0.3)
  assert str(error.value) == (
    f'4 of 10 images of {data.name} cannot be read, a share of 0.4 above max_bad_share=0.3: 1.jpg, '
    f'3.jpg, 5.jpg …; see {listing}; replace them, or raise max_bad_share'
  )
  assert read_rows(listing)[1:] == [[data.name, f'{i}.jpg', f'bad {i}'] for i in (1, 3, 5, 8)]


@pytest.mark.parametrize('labels', [[0, 1, 0, 1], [[1, 0], [0, 1], [1, 0], [0, 1]]])
def test_class_that_loses_all_images_is_an_error(tmp_path, labels):
  labels = np.array(labels) if np.ndim(labels) == 1 else np.array(labels, bool)
  data = some_bad(4, (1, 3), labels=labels)
  with pytest.raises(ValueError, match="no image of class 'two' of 4 with 2 bad can be read"):
    exclude_unreadable((data,), tmp_path / 'bad.csv', max_bad_share=0.5)
  # A class that had none before loses nothing.
  subset = SubsetDataset(data, np.array([0, 2]))
  assert exclude_unreadable((subset,), tmp_path / 'bad.csv', max_bad_share=0) == (subset,)


def test_no_class_is_blamed_where_no_image_can_be_read(tmp_path):
  data, listing = some_bad(2, (0, 1)), tmp_path / 'bad.csv'
  message = (
    f'^none of the 2 images of {data.name} can be read: 0.jpg, 1.jpg; see {listing}; replace'
  )
  with pytest.raises(ValueError, match=message):
    exclude_unreadable((data,), listing, max_bad_share=1)


def test_error_of_the_disk_is_no_bad_image(tmp_path):
  data = Pictures('gone', [blobs(0), OSError('the disk is away')])
  with pytest.raises(OSError, match='the disk is away'):
    exclude_unreadable((data,), tmp_path / 'bad.csv', max_bad_share=1)


def test_second_screening_decodes_only_what_could_not_be_read(tmp_path):
  def make_data():
    return [
      Pictures('target', [blobs(i) for i in range(3)]),
      some_bad(5, (2,)),
      Pictures('source', [reencode(blobs(i), 50) for i in range(3, 9)]),
    ]

  options = {'max_bad_share': 0.5, 'exclude_duplicates_of': 'test_and_train'}
  (first, left_out), data = screen(tmp_path / '1', *make_data(), **options), make_data()
  second, second_left_out = screen(tmp_path / '2', *data, **options)
  assert left_out == second_left_out
  assert left_out == {'unreadable': {'target': 0, 'test': 1, 'source': 0}, 'duplicates': 2}
  assert [dataset.read for dataset in data] == [[], [2], []]  # The unreadable one once more.
  assert [d.fingerprint for d in first] == [d.fingerprint for d in second]
  assert first[2].indices.tolist() == [2, 3, 4, 5]  # 3 and 4 are copies, 2 cannot be read.
  for name in ('bad_images.csv', 'duplicates.csv'):
    assert (tmp_path / '1' / name).read_bytes() == (tmp_path / '2' / name).read_bytes()
    assert len(read_rows(tmp_path / '1' / name)) > 1


def test_without_a_cache_the_result_is_the_same(tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  data = some_bad(5, (2,))
  (readable,) = exclude_unreadable((data,), tmp_path / 'bad.csv', max_bad_share=0.5)
  assert readable.indices.tolist() == [0, 1, 3, 4]


def test_copies_of_test_images_leave_the_source(tmp_path, capsys):
  target, test, source = planted_copies()
  screened, left_out = screen(tmp_path, target, test, source, **OPTIONS)
  assert screened[:2] == (target, test)
  assert screened.source.indices.tolist() == [4, 5, 6, 7]
  assert left_out['duplicates'] == 4
  header, *pairs = read_rows(tmp_path / 'duplicates.csv')
  assert header == ['source', 'target', 'target_set', 'hamming', 'divergence']
  assert [pair[:3] for pair in pairs] == [[f'{i}.jpg', '1.jpg', 'test'] for i in range(4)]
  assert pairs[0][3:] == ['0', '0']
  assert all(0 < float(nats) < 0.3 for *_, nats in pairs[1:])
  assert '4 of 8 source images duplicate test images and are left out' in capsys.readouterr().out


def test_many_copies_are_suspicious(tmp_path, capsys):
  screen(tmp_path, *planted_copies(), **OPTIONS)
  printed = capsys.readouterr().out
  assert 'warning: 4 of 8 source images are left out as near-duplicates; of domains' in printed
  assert 'duplicates.csv are no copies, start anew with screening.exclude_duplicates_of=' in printed
  screen(tmp_path, *planted_copies(), **OPTIONS | {'exclude_duplicates_of': 'none'})
  assert 'warning' not in capsys.readouterr().out


def test_few_copies_are_not_suspicious(tmp_path, capsys):
  images = [blobs(i) for i in range(21)]
  data = [Pictures('train', [blobs(31)]), Pictures('test', images[:1]), Pictures('source', images)]
  _, left_out = screen(tmp_path, *data, **OPTIONS)
  assert left_out['duplicates'] == 1
  assert 'warning' not in capsys.readouterr().out


def test_copies_of_training_images_leave_the_source_on_request(tmp_path):
  options = OPTIONS | {'exclude_duplicates_of': 'test_and_train'}
  screened, left_out = screen(tmp_path, *planted_copies(), **options)
  assert screened.source.indices.tolist() == [5, 6, 7]
  assert left_out['duplicates'] == 5
  rows = read_rows(tmp_path / 'duplicates.csv')
  assert rows[-1] == ['4.jpg', '0.jpg', 'train', '0', '0']


def test_copies_that_stay_in_are_listed(tmp_path, capsys):
  data = planted_copies()
  screened, left_out = screen(tmp_path, *data, **OPTIONS | {'exclude_duplicates_of': 'none'})
  assert screened == data
  assert left_out == {'unreadable': {'target': 0, 'test': 0, 'source': 0}, 'duplicates': 0}
  assert len(read_rows(tmp_path / 'duplicates.csv')) == 5
  assert '4 of 8 source images duplicate test images and stay in' in capsys.readouterr().out


def test_without_duplicates_the_tables_have_no_rows(tmp_path, capsys):
  data = [Pictures(name, [blobs(i)]) for i, name in enumerate(('train', 'test', 'source'))]
  assert screen(tmp_path, *data, **OPTIONS).domains == tuple(data)
  for name in ('duplicates.csv', 'bad_images.csv'):
    assert len(read_rows(tmp_path / name)) == 1
  assert '0 of 1 source images duplicate test images' in capsys.readouterr().out


def test_source_of_nothing_but_copies_is_an_error(tmp_path):
  images = [blobs(i) for i in range(3)]
  data = [Pictures('train', [blobs(9)]), Pictures('test', images), Pictures('source', images)]
  with pytest.raises(ValueError, match='every image of source duplicates an image of the target'):
    screen(tmp_path, *data, **OPTIONS)


def test_unknown_option_is_an_error_before_any_image_is_read(tmp_path):
  data = planted_copies()
  with pytest.raises(ValueError, match="exclude_duplicates_of='tests' is unknown; .*one of test,"):
    screen(tmp_path, *data, **OPTIONS | {'exclude_duplicates_of': 'tests'})
  assert not any(dataset.read for dataset in data)


def test_data_sets_of_one_name_are_told_apart(tmp_path, capsys):
  data, listing = some_bad(4, (1,)), tmp_path / 'bad.csv'
  exclude_unreadable((data, data), listing, max_bad_share=0.5, roles=('target', 'source'))
  names = [f'{role} {data.name}' for role in ('target', 'source')]
  assert [row[0] for row in read_rows(listing)[1:]] == names
  assert f'images of source {data.name} cannot be read' in ' '.join(capsys.readouterr().out.split())
