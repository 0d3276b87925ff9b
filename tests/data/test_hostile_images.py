"""Hostile image files take little memory and time; several at once take turns."""

import os
import sys
from pathlib import Path

import pyarrow.csv
import pytest
from commands import start
from data.hostile_images import (
  ATTACKS,
  gif_canvas,
  jpeg_fill,
  png_chunks,
  png_with_alpha,
  tiff_strips,
  webp_canvas,
)
from measured_process import needs_linux, read_all, run
from stripes import write_target_and_source

from sjft_jax.data.decode import MAX_BYTES, MAX_PIXELS, UnreadableError
from sjft_jax.data.image_paths import ImageFiles
from sjft_jax.runtime import host_memory
from sjft_jax.screening.scan import scan

pytestmark = needs_linux

DECODE = """
from sjft_jax.data.decode import decode_image

def prepare(path):
  return path.read_bytes()

def read(content):
  decode_image(content, min_side=64)
"""

LARGE = {'gif_canvas': 12, 'png_of_one_bit': 12, 'png_with_alpha': 12, 'webp_canvas': 20}


def decode_all(folder, attacks):
  """Decode files in a process of its own; return the results by name."""
  results = read_all(DECODE, folder, attacks)
  assert all((folder / name).stat().st_size <= 20_000_000 for name in results)
  return results


QUICK = [attack for attack in ATTACKS if attack not in (png_with_alpha, webp_canvas)]


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  return decode_all(tmp_path_factory.mktemp('images'), QUICK)


def check(name, result, file_bytes=20_000_000):
  limit = LARGE[name] * MAX_PIXELS if name in LARGE else 8 * file_bytes
  assert result['megabytes'] < limit / 1e6
  assert result['seconds'] < (20 if name in LARGE else 10)
  if result['message'] is not None:
    assert result['message'].startswith(('has ', 'is '))
    assert len(result['message']) < 200


@pytest.mark.parametrize('name', [attack.__name__ for attack in QUICK])
def test_hostile_image_takes_little_memory_and_time(results, name):
  check(name, results[name])


@pytest.mark.slow
def test_image_of_four_channels_is_counted_with_all_copies(tmp_path):
  for name, result in decode_all(tmp_path, [png_with_alpha, webp_canvas]).items():
    check(name, result)


# Screens four images, in as many threads, where memory is said to be there for one.
SCREEN = """
import os, pathlib, sys
os.cpu_count = lambda: 4
from sjft_jax.data.folder import UnlabelledFolder
from sjft_jax.runtime import host_memory
from sjft_jax.screening import scan

host_memory.free_host_bytes = lambda: 3 * 2**30
result = scan.scan(UnlabelledFolder(sys.argv[1]))
assert not result.bad
lines = pathlib.Path('/proc/self/status').read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith('VmHWM')))
"""


@pytest.mark.slow
def test_large_images_are_screened_one_after_another(tmp_path):
  for number in range(4):
    (tmp_path / f'{number}.gif').write_bytes(gif_canvas())
  output = run(SCREEN, tmp_path, XDG_CACHE_HOME=str(tmp_path / 'cache'))
  kilobytes = int(output.splitlines()[-1])
  # Three that are being hashed while the last one is decoded; four that are decoded take 7 GB.
  assert kilobytes < 4_200_000


def test_file_with_holes_is_refused_by_its_beginning_or_size(tmp_path):
  hole, large = tmp_path / 'hole.jpg', tmp_path / 'large.jpg'
  for path, size in ((hole, MAX_BYTES), (large, 3 * 2**30)):
    path.write_bytes(b'')
    os.truncate(path, size)
  data = ImageFiles([hole, large])
  assert data.read_encoded(0) == bytes(512)
  assert not data.digests[1].any()
  with pytest.raises(UnreadableError, match=r'hole\.jpg is no AVIF'):
    data[0]
  with pytest.raises(UnreadableError, match=r'large\.jpg has 3,221,225,472 bytes, more than'):
    data[1]


def test_memory_that_is_not_there_ends_the_run_and_drops_no_image(tmp_path, monkeypatch):
  path = Path(tmp_path / 'canvas.gif')
  path.write_bytes(gif_canvas())
  monkeypatch.setattr(host_memory, 'free_host_bytes', lambda: 2**30)
  monkeypatch.setattr(host_memory, '_PATIENCE_S', 0)
  with pytest.raises(
    host_memory.OutOfMemoryError,
    match=r'canvas\.gif takes 2 GiB of memory, where 1 GiB are free; free memory, or make',
  ):
    scan(ImageFiles([path]))


@pytest.mark.slow
def test_hostile_files_among_a_search_cost_a_line_each(tmp_path):
  data = write_target_and_source(tmp_path)
  source = data / 'source'
  for attack, suffix in ((jpeg_fill, 'jpg'), (png_chunks, 'png'), (tiff_strips, 'tif')):
    (source / f'{attack.__name__}.{suffix}').write_bytes(attack())
  (source / 'hole.jpg').write_bytes(b'')
  os.truncate(source / 'hole.jpg', 3 * 2**30)
  (source / 'self.png').symlink_to('self.png')
  options = '--bank=gabor', '--resize=16', '--crop=16', '--num_bins=8', '--max_bad_share=0.1'
  folders = f'--target={data / "target"}', f'--source={source}', f'--output={tmp_path / "o.csv"}'
  module = [sys.executable, '-m', 'sjft_jax.retrieve']
  output, errors = start([*module, *folders, *options, '--k=3']).communicate(timeout=300)
  assert errors == ''
  assert '1 links that lead nowhere (self.png)' in output
  assert '4 of 154 images of source cannot be read and are left out' in output
  rows = pyarrow.csv.read_csv(tmp_path / 'o.csv.bad_images.csv').to_pylist()
  assert {row['image']: row['reason'] for row in rows} == {
    'hole.jpg': 'has 3,221,225,472 bytes, more than the limit of 1,431,655,760',
    'jpeg_fill.jpg': 'has a header of more than 5,000 segments',
    'png_chunks.png': 'has too many parts, in its header or around its pixels',
    'tiff_strips.tif': 'has 4,990,000 strips, more than the limit of 131,072',
  }
