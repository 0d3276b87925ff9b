"""Measure how fast JPEG files become training views: decode, short side 256, 224×224 centre.

  python -m experiments.bench_loading [--json]

In the first table every contender works through files in a plain loop and the processor's time
counts, of all its threads, so that other work on the machine does not matter much. In the second
one batches of 32 come from whole loaders with a worker for each core, and the time on the clock
counts, from when a loader is in its stride.

Rates are medians over rounds in which every contender takes one turn; ratios are medians of each
round's ratio. The photographs are those of scikit-image (extra `demo`), native pixels, the large
ones put together from nine; JPEG quality 90, 4:2:0. PyTorch and TensorFlow are optional.
"""

import contextlib
import functools
import importlib.util
import io
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import grain
import numpy as np
import skimage.data
import tensorflow_datasets as tfds
from absl import app, flags
from PIL import Image

from experiments.timing import Work, race, speedup
from sjft_jax.data import decode, transforms
from sjft_jax.data.dataset import SubsetDataset
from sjft_jax.data.folder import ClassFolder
from sjft_jax.data.loader import views

SIZES = flags.DEFINE_multi_string(
  'size', ['400x500', '1000x1300'], 'Height and width of the JPEGs; repeatable.'
)
FILES = flags.DEFINE_integer('files', 64, 'JPEGs of each size.')
IMAGES = flags.DEFINE_integer('images', 512, 'Images in a turn.')
ROUNDS = flags.DEFINE_integer('rounds', 5, 'Turns of each contender, after one to warm up.')
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object instead of tables.')

RESIZE, CROP, BATCH = 256, 224, 32
CORES = os.cpu_count() or 1
# More batches than any loader holds ready.
STRIDE = 8 * CORES
PHOTOGRAPHS = (
  'astronaut',
  'coffee',
  'hubble_deep_field',
  'immunohistochemistry',
  'retina',
  'rocket',
)


def make_jpegs(height: int, width: int, number: int) -> Iterator[bytes]:
  """Yield JPEGs of photographs cut to size, or of nine put together."""
  rng = np.random.default_rng(0)
  photographs = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
  parts = 1 if height <= 400 else 3
  h, w = -(-height // parts), -(-width // parts)

  def part() -> np.ndarray:
    photograph = photographs[rng.integers(len(photographs))]
    y, x = (rng.integers(0, n - m + 1) for n, m in zip(photograph.shape, (h, w), strict=False))
    return photograph[y : y + h, x : x + w]

  for _ in range(number):
    rows = [np.hstack([part() for _ in range(parts)]) for _ in range(parts)]
    buffer = io.BytesIO()
    Image.fromarray(np.vstack(rows)[:height, :width]).save(buffer, 'JPEG', quality=90)
    yield buffer.getvalue()


class JpegBuilder(tfds.core.GeneratorBasedBuilder):
  """Prepares the same JPEGs as records of TFDS."""

  VERSION = tfds.core.Version('1.0.0')
  pkg_dir_path = Path(__file__).parent
  files: tuple[str, ...] = ()

  def _info(self):
    features = {'image': tfds.features.Image(encoding_format='jpeg')}
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for number, file in enumerate(self.files):
      yield number, {'image': file}


our_view = functools.partial(transforms.center_crop, resize=RESIZE, crop=CROP)


def our_file_view(file: str) -> np.ndarray:
  with open(file, 'rb') as stream:
    return our_view(decode.decode_image(stream.read(), min_side=RESIZE))


def pillow(file: str, *, draft: bool = False) -> np.ndarray:
  with Image.open(file) as image:
    if draft:
      image.draft('RGB', (RESIZE, RESIZE))
    image = image.convert('RGB')
  scale = RESIZE / min(image.size)
  image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
  left, top = ((side - CROP) // 2 for side in image.size)
  return np.array(image.crop((left, top, left + CROP, top + CROP)))


def opencv(file: str) -> np.ndarray:
  return our_view(cv2.imread(file, cv2.IMREAD_COLOR_RGB))


class PillowFiles:
  """A data set for torch's DataLoader: the first 2²⁰ images of an endless sequence."""

  def __init__(self, files: Sequence[str]):
    self.files = files

  def __len__(self) -> int:
    return 2**20

  def __getitem__(self, index: int) -> np.ndarray:
    return pillow(self.files[index % len(self.files)])


def torch_batches(files: Sequence[str]) -> Iterator[Any]:
  from torch.utils import data

  # Processes are not forked: other contenders have threads.
  return iter(
    data.DataLoader(PillowFiles(files), BATCH, num_workers=CORES, multiprocessing_context='spawn')
  )


def tensorflow_batches(files: Sequence[str], *, antialias: bool = False) -> Iterator[np.ndarray]:
  import tensorflow as tf

  def view(file: Any) -> Any:
    image = tf.io.decode_jpeg(tf.io.read_file(file), 3)
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    sides = tf.cast(tf.round(sides * RESIZE / tf.reduce_min(sides)), tf.int32)
    image = tf.image.resize_with_crop_or_pad(
      tf.image.resize(image, sides, antialias=antialias), CROP, CROP
    )
    return tf.cast(tf.round(image), tf.uint8)

  dataset = tf.data.Dataset.from_tensor_slices(files).repeat().map(view, CORES).batch(BATCH)
  return dataset.prefetch(2).as_numpy_iterator()


# The package that each rival needs, and its batches of some files.
RIVALS: dict[str, tuple[str, Callable[[Sequence[str]], Iterator[Any]]]] = {
  'torch DataLoader, Pillow': ('torch', torch_batches),
  'tf.data, bilinear': ('tensorflow', tensorflow_batches),
  'tf.data, antialiased': (
    'tensorflow',
    functools.partial(tensorflow_batches, antialias=True),
  ),
}


def tfds_batches(source: Sequence[Any]) -> Iterator[np.ndarray]:
  images = grain.MapDataset.source(source).repeat().map(lambda record: our_view(record['image']))
  options = grain.ReadOptions(num_threads=CORES, prefetch_buffer_size=4)
  return iter(images.batch(BATCH).to_iter_dataset(options))


def loop(view: Callable[[Any], np.ndarray], items: Iterable[Any]) -> Callable[[], float]:
  """Return a turn of images one after another; it returns the processor's seconds."""
  endless = itertools.cycle(items)

  def turn() -> float:
    start_time = time.process_time()
    for _ in range(IMAGES.value):
      assert view(next(endless)).shape == (CROP, CROP, 3)
    return time.process_time() - start_time

  return turn


def stream(load: Callable[[], Iterator[Any]]) -> Callable[[], float]:
  """Return a turn of batches from a loader in its stride; it returns the seconds on the clock."""

  def turn() -> float:
    batches = load()
    for _ in range(STRIDE):
      next(batches)
    start_time = time.perf_counter()
    for _ in range(IMAGES.value // BATCH):
      assert next(batches).shape == (BATCH, CROP, CROP, 3)
    seconds = time.perf_counter() - start_time
    # The next contender has the machine to itself.
    getattr(batches, 'close', lambda: None)()
    return seconds

  return turn


def race_turns(turns: Mapping[str, Work], *, cores: int, ours: str) -> dict[str, dict[str, float]]:
  """Let turns that return their own seconds race.

  Returns:
    Images per second and core of each, and how many times as fast `ours` is.
  """
  seconds = race(turns, ROUNDS.value, measure=lambda turn: turn())
  return {
    name: {
      'images_per_second_and_core': IMAGES.value / statistics.median(values) / cores,
      'ours_is_faster_by': speedup([values], seconds[ours]),
    }
    for name, values in seconds.items()
  }


def write_data(folder: Path, size: str) -> tuple[list[str], Sequence[Any]]:
  """Write JPEGs of one size; return the names of the files, and the same as records of TFDS."""
  images = folder / 'files' / 'class'
  images.mkdir(parents=True)
  files = []
  for number, data in enumerate(make_jpegs(*map(int, size.split('x')), FILES.value)):
    files.append(str(images / f'{number:03}.jpg'))
    Path(files[-1]).write_bytes(data)
  JpegBuilder.files = tuple(files)
  builder = JpegBuilder(data_dir=folder / 'tfds', file_format='array_record')
  with contextlib.redirect_stdout(sys.stderr):
    builder.download_and_prepare()
  return files, builder.as_data_source('train')


def bench(size: str) -> dict[str, dict[str, dict[str, float]]]:
  """Return the figures of the plain loops and of the loaders for one size of JPEGs."""
  with tempfile.TemporaryDirectory() as folder:
    files, records = write_data(Path(folder), size)
    loops = {
      'ours': loop(our_file_view, files),
      'OpenCV': loop(opencv, files),
      'Pillow': loop(pillow, files),
      'Pillow, reduced decoding': loop(functools.partial(pillow, draft=True), files),
      'TFDS, OpenCV resizing': loop(lambda i: our_view(records[i]['image']), range(len(files))),
    }
    class_folder = ClassFolder(str(Path(folder) / 'files'), '')
    endless = SubsetDataset(class_folder, np.arange(2**20) % len(files))
    load = functools.partial(views, endless, batch_size=BATCH, min_side=RESIZE)
    loaders = {
      'ours, threads': stream(functools.partial(load, view=our_view)),
      'ours, processes': stream(functools.partial(load, view=our_view, workers=CORES)),
      'TFDS, Grain threads': stream(functools.partial(tfds_batches, records)),
    }
    for name, (package, batches) in RIVALS.items():
      if importlib.util.find_spec(package):
        loaders[name] = stream(functools.partial(batches, files))
      else:
        print(f'{name} is left out: {package} is not installed', file=sys.stderr)
    return {
      'loop': race_turns(loops, cores=1, ours='ours'),
      'loader': race_turns(loaders, cores=CORES, ours='ours, threads'),
    }


def main(_: object) -> None:
  tfds.disable_progress_bar()
  results: dict[str, Any] = {'cores': CORES, 'files': FILES.value, 'images': IMAGES.value}
  for size in SIZES.value:
    results[size] = bench(size)
    if not JSON.value:
      for kind, table in results[size].items():
        print(f'\n{size} pixels, {kind:22} images/s/core   ours is faster by')
        for name, row in table.items():
          print(f'  {name:36}{row["images_per_second_and_core"]:10,.0f}', end='')
          print(f'{row["ours_is_faster_by"]:15.2f}×')
  if JSON.value:
    print(json.dumps(results))


if __name__ == '__main__':
  app.run(main)
