"""Hostile archives end in one line, with little memory and time."""

import io
import os
import sys

import pytest
from commands import refusal, start
from data.builders import archives, hostile_archives
from data.builders.hostile_archives import ATTACKS, extended, header, pad, record
from measured_process import needs_linux, read_all

from sjft_jax.data.builders.archive import MAX_MEMBER, members, read_lines

# What is said of a member; the others are read, or no archives.
REFUSED = {
  'sparse': "'hole.jpg' is a sparse file",
  'sparse_records': "'hole.jpg' is a sparse file",
  'negative_size': "'back.jpg' has a size of -512 bytes, the limit is 536,870,912",
  'negative_record': "'back.jpg' has a size of -1024 bytes",
  'enormous_size': "'large.jpg' has a size of 9223372036854775807 bytes",
  'enormous_record': "'large.jpg' has a size of 999999999999999999 bytes",
  'long_name': "'././@LongLink' has a size of 8589934591 bytes, the limit is 65,536",
  'packed_zeros': "'zeros.jpg' has a size of 8589934592 bytes",
  'packed_members': 'it unpacks to more than 32 times its own bytes',
}
DAMAGED = ('damaged_record', 'digits')

READ = """
from sjft_jax.data.builders.archive import members

def prepare(path):
  return path

def read(path):
  with path.open('rb') as file:
    return sum(1 for _ in members(file, str(path)))
"""


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  folder = tmp_path_factory.mktemp('archives')
  return folder, read_all(READ, folder, ATTACKS)


@needs_linux
@pytest.mark.parametrize('name', [attack.__name__ for attack in ATTACKS])
def test_hostile_archive_takes_little_memory_and_time(results, name):
  folder, of_each = results
  result = of_each[name]
  count, message, seconds = result['value'], result['message'], result['seconds']
  assert result['megabytes'] < 20
  # As long as 100 MB of headers take.
  assert seconds < (20 if name == 'packed_members' else 10)
  if name in REFUSED:
    assert message.startswith(f'{folder / name}: {REFUSED[name]}')
    assert message.endswith('; get it again')
  elif name in DAMAGED:
    assert message == (
      f'{folder / name} is truncated or no tar archive (damaged extended header); get it again'
    )
  else:
    assert (count, message) == (
      {'many_headers': 1, 'global_records': 20_000, 'many_members': 39_060}[name],
      None,
    )


def read(content):
  return list(members(io.BytesIO(content), 'x.tar'))


def test_extended_headers_name_the_member_behind_them():
  name = 'ü' * 200 + '.jpg'
  records = record(b'mtime', b'1.5') + record(b'path', name.encode()) + record(b'size', b'3')
  content = extended(records) + header('short', 0) + pad(b'abc') + header('b', 1) + pad(b'x')
  assert read(content + hostile_archives.END) == [(name, b'abc'), ('b', b'x')]
  comment = extended(record(b'comment', b'from git'), b'g')
  assert read(comment + content + hostile_archives.END) == [(name, b'abc'), ('b', b'x')]
  of_all = extended(record(b'path', b'a'), b'g')
  with pytest.raises(ValueError, match=r"^x\.tar: 'pax' gives all members one path; get it again$"):
    read(of_all + content)


def test_a_member_of_the_largest_size_is_read_and_a_larger_one_refused():
  with pytest.raises(ValueError, match='unexpected end of data'):
    read(header('a', MAX_MEMBER))
  with pytest.raises(ValueError, match=r"x\.tar: 'a' has a size of 536870913 bytes"):
    read(header('a', MAX_MEMBER + 1))


def test_names_in_errors_are_short_and_without_control_characters():
  content = extended(record(b'path', b'\x1b[2J' + b'a' * 60_000)) + header('a', -1)
  with pytest.raises(ValueError, match='get it again') as caught:
    read(content)
  assert len(str(caught.value)) < 400
  assert '\x1b' not in str(caught.value)


def test_a_list_of_a_data_set_is_not_read_if_it_is_too_large(tmp_path):
  (tmp_path / 'TrainImages.txt').write_bytes(b'')
  os.truncate(tmp_path / 'TrainImages.txt', 2**40)
  with pytest.raises(ValueError, match=r'TrainImages\.txt has 1,099,511,627,776 bytes, too many'):
    read_lines(tmp_path / 'TrainImages.txt')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['sparse', 'enormous_size', 'packed_zeros'])
def test_prepare_names_archive_and_member_in_one_line(tmp_path, name):
  images = tmp_path / 'imagesPlaces205_resize.tar.gz'
  images.write_bytes(getattr(hostile_archives, name)())
  rows = ''.join(
    f'data/vision/torralba/deeplearning/images256/a/s{i}/1.jpg {i}\n' for i in range(205)
  )
  lists = dict.fromkeys(('train_places205.csv', 'val_places205.csv'), rows.encode())
  archives.tar(tmp_path / 'trainvalsplit_places205.tar.gz', lists, 'w:gz')
  arguments = ['--dataset=places205', f'--archives={tmp_path}', f'--data_dir={tmp_path}/out']
  error = refusal(start([sys.executable, '-m', 'sjft_jax.data.prepare', *arguments]))
  assert f'error: {images}: {REFUSED[name]}' in error
