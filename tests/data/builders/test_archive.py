import hashlib
import http.server
import io
import threading

import pytest
from data.builders import archives
from hypothesis import given
from hypothesis import strategies as st

from sjft_jax.data.builders import archive
from sjft_jax.data.builders.archive import Archive

FILES = {f'./folder/{i} ü.jpg': archives.encode_image(i) * (1 + 9 * (i % 2)) for i in range(5)}
EXPECTED = [(name.removeprefix('./'), content) for name, content in FILES.items()]


def tar_bytes(mode):
  file = io.BytesIO()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(archives.tarfile, 'open', _open_into(file, archives.tarfile.open))
    archives.tar('unused', FILES, mode)
  return file.getvalue()


def _open_into(file, tar_open):
  return lambda _, mode: tar_open(fileobj=file, mode=mode)


TARS = {mode: tar_bytes(mode) for mode in ('w', 'w:gz')}


@pytest.mark.parametrize('mode', TARS)
def test_members_come_in_order_without_folders(tmp_path, mode):
  (tmp_path / 'a.tar').write_bytes(TARS[mode])
  assert list(archive.members(tmp_path / 'a.tar')) == EXPECTED
  assert list(archive.members(io.BytesIO(TARS[mode]))) == EXPECTED


@pytest.mark.parametrize('mode', TARS)
@given(data=st.data())
def test_any_truncation_is_noticed(mode, data):
  """Also between two members, which is the end of the archive for `tarfile`."""
  length = data.draw(st.integers(0, len(TARS[mode]) - 1))
  try:
    result = list(archive.members(io.BytesIO(TARS[mode][:length]), 'a.tar'))
  except ValueError as error:
    result = str(error).partition(' (')[0]
  # Where only the padding behind the last member is gone, all of them are there.
  assert result in ('a.tar is truncated or no tar archive', EXPECTED)


def test_a_cut_between_members_and_a_web_page_are_refused(tmp_path):
  whole = TARS['w']
  second = whole.index(b'./folder/1 ')
  with pytest.raises(ValueError, match=r'b\.tar is truncated'):
    list(archive.members(io.BytesIO(whole[:second]), 'b.tar'))
  page = tmp_path / 'page.tar'
  page.write_text('<html>404</html>' * 100)
  with pytest.raises(ValueError, match=r'page\.tar is truncated or no tar archive'):
    list(archive.members(page))


def test_members_with_a_label_come_in_the_archives_order(tmp_path):
  (tmp_path / 'a.tar').write_bytes(TARS['w'])
  labels = {EXPECTED[3][0]: 'x', EXPECTED[1][0]: 'y'}
  members = list(archive.labelled_members(tmp_path / 'a.tar', labels))
  assert members == [(*EXPECTED[1], 'y'), (*EXPECTED[3], 'x')]
  with pytest.raises(ValueError, match=r'a\.tar does not hold b\.jpg and 1 more, which the list'):
    list(archive.labelled_members(tmp_path / 'a.tar', labels | {'c.jpg': 'x', 'b.jpg': 'x'}))


def test_archives_of_another_size_or_checksum_are_refused(tmp_path):
  content = b'official' * 300_000
  path = tmp_path / 'a.tar'
  path.write_bytes(content)

  def check(**published):
    archive.check_archives([Archive('a.tar', **published)], {'a.tar': path})

  md5 = f'md5:{hashlib.md5(content).hexdigest()}'
  check()
  check(size=len(content))
  check(size=len(content), checksum=md5)
  with pytest.raises(
    ValueError, match=r'a\.tar has 2,400,000 bytes, the official a\.tar 2,400,001'
  ):
    check(size=len(content) + 1, checksum=md5)
  path.write_bytes(content[:-1] + b'!')
  with pytest.raises(
    ValueError, match=rf'a\.tar is not the official a\.tar: its md5 is .*{md5[4:]}'
  ):
    check(size=len(content), checksum=md5)


@pytest.fixture
def site():
  """A web server of one file that answers ranges; counts the bytes it sends."""

  class Handler(http.server.BaseHTTPRequestHandler):
    content = bytes(range(256)) * 20_000
    cut = None
    sent = 0

    def do_GET(self):
      start = int(self.headers.get('Range', 'bytes=0-')[len('bytes=') : -1])
      if self.path != '/a.tar' or start >= len(self.content):
        self.send_response(404 if self.path != '/a.tar' else 416)
        self.send_header('Content-Range', f'bytes */{len(self.content)}')
        self.end_headers()
        return
      self.send_response(206 if start else 200)
      self.send_header('Content-Length', str(len(self.content) - start))
      self.end_headers()
      body = self.content[start : self.cut]
      type(self).sent += len(body)
      self.wfile.write(body)

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Handler, f'http://127.0.0.1:{server.server_port}/a.tar'
    server.shutdown()
    thread.join()


def test_a_download_goes_on_where_it_broke_off(tmp_path, site):
  handler, url = site
  handler.cut = 3_000_000
  path = tmp_path / 'new' / 'a.tar'
  with pytest.raises(OSError, match='3,000,000 of 5,120,000 bytes came'):
    archive.download(url, path)
  assert not path.exists()
  handler.cut = None
  archive.download(url, path)
  assert path.read_bytes() == handler.content
  assert handler.sent == len(handler.content)
  assert list(path.parent.iterdir()) == [path]


def test_a_download_that_was_complete_is_not_made_again(tmp_path, site):
  handler, url = site
  (tmp_path / 'a.tar.part').write_bytes(handler.content)
  archive.download(url, tmp_path / 'a.tar')
  assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [
    ('a.tar', handler.content)
  ]
  assert handler.sent == 0


def test_a_download_that_began_as_something_else_starts_again(tmp_path, site):
  handler, url = site
  (tmp_path / 'a.tar.part').write_bytes(bytes(len(handler.content) + 1))
  archive.download(url, tmp_path / 'a.tar')
  assert (tmp_path / 'a.tar').read_bytes() == handler.content
