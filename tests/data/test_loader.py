import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from data.numbered import NumberedDataset

from sjft_jax.data import loader
from sjft_jax.data.loader import num_loaders, prefetch, views


def make_dataset(size):
  return NumberedDataset('numbered', np.zeros(size), domain=1, size=8)


def cut_corner(image):
  return image[None, :2, :2]


def cut_two_corners(image):
  return image[None, :2, :2], image[None, :4, :4]


@pytest.mark.parametrize('buffer_size', [1, 5])
def test_prefetching_keeps_the_order_and_starts_anywhere(monkeypatch, buffer_size):
  monkeypatch.setattr(loader, 'BUFFER_SIZE', buffer_size)

  def load(step):
    time.sleep(0.01 * (step % 3))  # Batches are not ready in the order of their steps.
    return np.array([step, step**2])

  loaded = list(prefetch(load, 7, 20))
  assert [batch.tolist() for batch in loaded] == [[n, n**2] for n in range(7, 20)]
  assert not list(prefetch(load, 7, 7))


# A program of its own: what jaxtyping's import hook wraps for the tests cannot be pickled.
PROCESSES = """
import os
import numpy as np
from sjft_jax.data.dataset import ImageArrays
from sjft_jax.data.loader import prefetch, views

def load(step):
  return step, os.getpid()

def corner(image):
  return image[:2, :2]

if __name__ == '__main__':
  steps, processes = zip(*prefetch(load, 3, 9, workers=2))
  assert steps == tuple(range(3, 9)), steps
  assert len({os.getpid(), *processes}) == 3, processes
  images = ImageArrays(np.random.default_rng(0).integers(0, 256, (10, 5, 5, 3), np.uint8))
  one, other = (list(views(images, corner, 4, min_side=2, workers=n)) for n in (0, 2))
  assert [len(batch) for batch in other] == [4, 4, 2]
  for a, b in zip(one, other, strict=True):
    np.testing.assert_array_equal(a, b)
"""


@pytest.mark.slow
def test_processes_load_the_same_batches_as_threads(tmp_path):
  """Also where no command has parsed any flags."""
  (tmp_path / 'program.py').write_text(PROCESSES)
  environment = os.environ | {'PYTHONPATH': str(Path(loader.__file__).parents[2])}
  subprocess.run([sys.executable, tmp_path / 'program.py'], check=True, env=environment)


def test_no_more_batches_are_loaded_ahead_than_the_buffer_holds(monkeypatch):
  monkeypatch.setattr(loader, 'BUFFER_SIZE', 3)
  steps, lock = [], threading.Lock()

  def load(step):
    with lock:
      steps.append(step)
    return step

  batches = prefetch(load, 0, 1000)
  assert next(batches) == 0
  time.sleep(0.3)
  # The three in the buffer, and one that each thread has begun.
  assert max(steps) <= 1 + 3 + num_loaders(0)


def test_an_error_while_loading_is_raised_where_the_batch_is_used():
  def load(step):
    if step == 2:
      raise ValueError('step 2 is broken')
    return step

  batches = prefetch(load, 0, 5)
  assert [next(batches), next(batches)] == [0, 1]
  with pytest.raises(ValueError, match='step 2 is broken'):
    next(batches)


def test_views_keep_the_order_and_every_image():
  loaded = list(views(make_dataset(10), cut_corner, 4, min_side=2))
  assert [len(batch) for batch in loaded] == [4, 4, 2]
  pixels = np.concatenate(loaded)[:, 0, 0, 0]
  np.testing.assert_array_equal(pixels, [[1, index, 2] for index in range(10)])


def test_views_of_a_part_of_the_images():
  loaded = list(views(make_dataset(10), cut_corner, 3, min_side=2, start=4, stop=9))
  assert [batch[:, 0, 0, 0, 1].tolist() for batch in loaded] == [[4, 5, 6], [7, 8]]


def test_views_of_several_sizes_are_batched_size_by_size():
  loaded = list(views(make_dataset(3), cut_two_corners, 2, min_side=2))
  assert [[part.shape for part in batch] for batch in loaded] == [
    [(2, 1, 2, 2, 3), (2, 1, 4, 4, 3)],
    [(1, 1, 2, 2, 3), (1, 1, 4, 4, 3)],
  ]


def test_as_many_loaders_as_workers_or_cores():
  assert num_loaders(3) == 3
  assert 1 <= num_loaders(0) <= loader.BUFFER_SIZE
  assert num_loaders(0) <= os.cpu_count()


def test_opencv_uses_one_thread_while_loading():
  cv2.setNumThreads(4)
  loader._limit_opencv_threads.cache_clear()
  list(prefetch(lambda step: step, 0, 2))
  assert cv2.getNumThreads() == 1


KILLED = """
import os
import numpy as np
from sjft_jax.data.loader import prefetch

def load(step):
  if step == 2:
    os.kill(os.getpid(), 9)
  return np.array(step)

if __name__ == '__main__':
  list(prefetch(load, 0, 8, workers=2))
"""


@pytest.mark.slow
def test_killed_worker_is_one_line(tmp_path):
  """As the system does with processes when memory runs out."""
  (tmp_path / 'program.py').write_text(KILLED)
  environment = os.environ | {'PYTHONPATH': str(Path(loader.__file__).parents[2])}
  command = [sys.executable, str(tmp_path / 'program.py')]
  run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
  message = 'ValueError: a process that loads images was killed (exit code -9)'
  assert message in run.stderr, run.stderr
  assert 'with --resume_with_changes, or' in run.stderr
  assert 'run the same command: it goes on' in run.stderr
