import dataclasses
import hashlib
import http.server
import threading

import pytest
from models import torch_reference

from sjft_jax.models.weights import published
from sjft_jax.runtime import artifacts

CONTENT = bytes(range(256)) * 9000  # More than two chunks.


@pytest.fixture
def server(monkeypatch, tmp_path):
  """Run a server of one published file, which records the paths that it serves in `requests`."""

  class Handler(http.server.BaseHTTPRequestHandler):
    requests: list[str] = []  # noqa: RUF012
    content = CONTENT

    def do_GET(self):
      self.requests.append(self.path)
      if self.path != '/net.pth':
        return self.send_error(404)
      self.send_response(200)
      self.send_header('Content-Length', str(len(CONTENT)))
      self.end_headers()
      self.wfile.write(self.content)

    def log_message(self, *_):
      pass

  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as running:
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    Handler.address = f'http://127.0.0.1:{running.server_port}'
    publish(monkeypatch, f'{Handler.address}/net.pth')
    yield Handler
    running.shutdown()
    thread.join()


def publish(monkeypatch, url, content=CONTENT, algorithm='sha256', digits=8):
  digest = hashlib.new(algorithm, content).hexdigest()[:digits] if algorithm else ''
  checksum = f'{algorithm}:{digest}' if algorithm else ''
  entry = published.PublishedWeights(url, checksum)
  monkeypatch.setattr(published, 'PUBLISHED', {'test/net': entry, 'test/other': entry})


def folder():
  return artifacts.cache_dir() / 'weights'


@pytest.mark.parametrize(('algorithm', 'digits'), [('sha256', 8), ('md5', 32), ('sha1', 40)])
def test_a_file_is_downloaded_once(server, monkeypatch, capsys, algorithm, digits):
  publish(monkeypatch, f'{server.address}/net.pth', algorithm=algorithm, digits=digits)
  path = published.fetch('test/net')
  assert path == folder() / 'net.pth'
  assert path.read_bytes() == CONTENT
  assert published.fetch('test/net') == path
  assert server.requests == ['/net.pth']
  assert 'test/net' in capsys.readouterr().out


def test_a_file_from_elsewhere_is_verified(server):
  folder().mkdir(parents=True)
  path = folder() / 'net.pth'
  path.write_bytes(CONTENT)
  assert published.fetch('test/net') == path
  path.write_bytes(CONTENT[:-1])
  with pytest.raises(ValueError, match=r'net.pth is deleted: its sha256 was \w{8}, not \w{8}'):
    published.fetch('test/net')
  assert not path.exists()
  assert not server.requests
  assert published.fetch('test/net').read_bytes() == CONTENT


def test_a_download_with_the_wrong_checksum_is_deleted(server):
  server.content = CONTENT[::-1]
  with pytest.raises(ValueError, match=r'net.pth is deleted: .* http://127.*run again') as error:
    published.fetch('test/net')
  assert '\n' not in str(error.value)
  assert not list(folder().iterdir())


def test_a_file_without_a_checksum_is_compared_with_the_first_download(server, monkeypatch, capsys):
  publish(monkeypatch, f'{server.address}/net.pth', algorithm='')
  path = published.fetch('test/net')
  digest = hashlib.sha256(CONTENT).hexdigest()
  record = folder() / 'net.pth.sha256'
  assert record.read_text() == f'{digest}  net.pth\n'
  said = ' '.join(capsys.readouterr().out.split())
  assert 'test/net is not verified: its publisher gives no checksum' in said
  assert digest in said
  assert published.fetch('test/net') == path
  assert 'not verified' not in capsys.readouterr().out
  assert server.requests == ['/net.pth']

  path.write_bytes(CONTENT[::-1])
  with pytest.raises(ValueError, match=r'is deleted: its sha256 was .*net.pth.sha256; delete this'):
    published.fetch('test/net')
  assert not path.exists()
  # The publisher has another file by now: it is refused until the user gives up the record.
  server.content = CONTENT[::-1]
  with pytest.raises(ValueError, match='is deleted'):
    published.fetch('test/net')
  record.unlink()
  assert published.fetch('test/net').read_bytes() == CONTENT[::-1]
  assert hashlib.sha256(CONTENT[::-1]).hexdigest() in record.read_text()


def test_a_page_is_not_recorded_as_the_first_download(server, monkeypatch):
  publish(monkeypatch, f'{server.address}/net.pth', algorithm='')
  server.content = b'\n<!DOCTYPE html>Please log in'.ljust(len(CONTENT))
  with pytest.raises(
    ValueError, match='gave a page in place of weights, which is deleted: .*again'
  ):
    published.fetch('test/net')
  assert not any(folder().iterdir())
  server.content = CONTENT
  assert published.fetch('test/net').read_bytes() == CONTENT


def test_every_checksum_is_of_a_known_algorithm_or_missing():
  for name, entry in published.PUBLISHED.items():
    if name.startswith(('places365/', 'dinov2/')):
      assert not entry.checksum
      continue
    algorithm, digits = entry.checksum.split(':')
    assert algorithm in hashlib.algorithms_guaranteed
    assert 8 <= len(digits) <= 2 * hashlib.new(algorithm).digest_size
    assert digits == f'{int(digits, 16):0{len(digits)}x}'


def test_a_truncated_download_leaves_nothing(server):
  server.content = CONTENT[:-1000]
  with pytest.raises(ValueError, match=r'net.pth cannot be downloaded \('):
    published.fetch('test/net')
  assert not list(folder().iterdir())


def test_the_error_without_a_connection_says_where_to_put_the_file(server, monkeypatch):
  for url, reason in (
    ('http://127.0.0.1:1/net.pth', 'ConnectionError'),
    (f'{server.address}/gone/net.pth', 'HTTPError'),
  ):
    publish(monkeypatch, url)
    with pytest.raises(ValueError, match='cannot be downloaded') as error:
      published.fetch('test/net')
    assert str(error.value) == (
      f'{url} cannot be downloaded ({reason}); fetch it elsewhere and put it at '
      f'{folder() / "net.pth"}'
    )
  (folder() / 'net.pth').write_bytes(CONTENT)
  assert published.fetch('test/net') == folder() / 'net.pth'


def test_an_unwritable_cache_is_named(server, monkeypatch, tmp_path):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  with pytest.raises(ValueError, match=r'cannot be downloaded \(Not a directory\)'):
    published.fetch('test/net')


def test_every_file_has_its_own_place_in_the_cache():
  files = {entry.url.rpartition('/')[2] for entry in published.PUBLISHED.values()}
  assert len(files) == len(published.PUBLISHED)


@pytest.mark.reference
def test_torchvision_has_the_same_addresses_and_checksums():
  import torch

  models = torch_reference.torchvision().models
  for name, entry in published.PUBLISHED.items():
    publisher, _, network = name.partition('/')
    if publisher == 'torchvision':
      version = 2 if network.endswith('_v2') and network != 'mobilenet_v2' else 1
      network = network.removesuffix('_v2') if version == 2 else network
      weights = models.get_model_weights(network)[f'IMAGENET1K_V{version}']
      assert entry.url == weights.url
      # torch.hub finds the digits that it checks so.
      assert entry.checksum == 'sha256:' + torch.hub.HASH_REGEX.search(weights.url)[1]


@pytest.mark.reference
def test_keras_has_the_same_addresses_and_checksums(monkeypatch, tmp_path):
  applications = torch_reference.keras(tmp_path).applications
  from keras.src.applications import resnet
  from keras.src.utils import file_utils

  class RequestedError(Exception):
    pass

  def get_file(name, url, file_hash, **_):
    raise RequestedError(url, f'md5:{file_hash}')

  monkeypatch.setattr(file_utils, 'get_file', get_file)
  networks = {n.split('/')[1]: e for n, e in published.PUBLISHED.items() if n.startswith('keras/')}
  # Keras builds a network before it requests the weights: a large one would take seconds.
  for build in (applications.ResNet50V2, applications.VGG16, applications.VGG19):
    with pytest.raises(RequestedError) as request:
      build(weights='imagenet')
    assert request.value.args == dataclasses.astuple(networks[build.__name__.lower()])
  for network, entry in networks.items():
    if network.startswith('resnet'):
      assert entry.checksum == f'md5:{resnet.WEIGHTS_HASHES[network][0]}'
      assert entry.url.startswith(f'{resnet.BASE_WEIGHTS_PATH}{network}_weights')
